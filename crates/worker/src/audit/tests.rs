//! A worker's rounds done again by an auditor who has only what is public.

use engine::{
    initial_parameters,
    replay::{Rules, RunModel},
    update::{codec, merge::Weighted},
};
use protocol::{
    sampling::round_seed,
    state::decide::fresh,
    update::{open, seal},
};

use super::{
    compare::{Comparison, Difference, LeafPart, compare},
    *,
};
use crate::machine::{
    Carried, Sealed, Trained,
    tests::{charter, first_checkpoint, new_machine, shards, sparse, train_with, worker},
};

/// Steps of each update.
const STEPS: u32 = 10;

/// One worker, and the model that its updates are merged into.
struct Run {
    charter: Arc<Charter>,
    rules: Rules,
    model: RunModel,
    merges: Vec<Merge>,
    machine: Machine,
    states: CarriedStore,
    carried: Option<Hash>,
    place: tempfile::TempDir,
}

/// What a worker revealed, and the leaves that it kept.
struct Revealed {
    case: Case,
    file: Vec<u8>,
    leaves: Vec<StepLeaf>,
}

impl Run {
    fn new() -> Self {
        let charter = charter(sparse(), true);
        let rules = Rules::new(&charter).unwrap();
        let place = tempfile::tempdir().unwrap();
        let mut machine = new_machine(&charter, 1);
        let checkpoint = first_checkpoint(&charter);
        machine.load_checkpoint(0, &checkpoint).unwrap();
        Self {
            model: rules.first_model(initial_parameters(rules.config(), charter.seed)),
            rules,
            merges: Vec::new(),
            machine,
            states: CarriedStore::open(Arc::new(RealDisk), place.path().join("carried")).unwrap(),
            carried: None,
            place,
            charter,
        }
    }

    fn case(&self, round: u64, header: UpdateHeader) -> Case {
        Case {
            header,
            seed: round_seed(&self.charter, round, &Hash::default()),
            slots: 2,
            tokens_before: (round - 1) * 1_000,
        }
    }

    /// Trains a round as `task` changes it; `newer` come after so many steps.
    fn train(&mut self, round: u64, newer: &[Merge], after: u32) -> (Task, Trained) {
        let wanted = self.carried.unwrap_or(fresh());
        let carried = if self.machine.continue_from(wanted, &self.states).unwrap() {
            Carried::State(wanted)
        } else {
            self.machine.begin_fresh(None).unwrap();
            Carried::Fresh(None)
        };
        let task = Task {
            run: self.charter.id(),
            worker: worker(3),
            round,
            slot: 1,
            slots: 2,
            seed: round_seed(&self.charter, round, &Hash::default()),
            tokens_before: (round - 1) * 1_000,
            base: self.machine.held().unwrap(),
            carried,
            publish_inner_state: false,
        };
        let newer = |steps| match steps == after {
            true => newer.iter().map(Newer::from).collect(),
            false => vec![],
        };
        let trained = train_with(&mut self.machine, &task, STEPS, newer).unwrap();
        (task, trained)
    }

    fn seal(&mut self, round: u64, task: &Task, trained: Trained) -> Revealed {
        let sealed: Sealed = self.machine.seal(task, &trained, &self.states).unwrap();
        self.carried = Some(sealed.header.carried_after);
        Revealed {
            case: self.case(round, sealed.header),
            file: sealed.file.to_vec(),
            leaves: trained.leaves,
        }
    }

    fn round(&mut self, round: u64) -> Revealed {
        let (task, trained) = self.train(round, &[], 0);
        self.seal(round, &task, trained)
    }

    /// Merges an update; the worker's machine takes the delta up later or at once.
    fn merge(&mut self, revealed: &Revealed) -> Merge {
        let round = revealed.case.header.round;
        let update = self.rules.judge(&revealed.file, &revealed.case.header);
        let update = update.unwrap();
        let weighted = [Weighted {
            update: &update,
            weight: 1,
            standing: 0,
        }];
        let rate_q16 = self.rules.rate_q16();
        let merged = self
            .rules
            .merge(&mut self.model, round, rate_q16, &weighted)
            .unwrap();
        let merge = Merge {
            round,
            after: self.model.state.parameters,
            delta: merged.delta_bytes.into(),
        };
        self.merges.push(merge.clone());
        merge
    }

    fn follow(&mut self, merge: &Merge) {
        let applied = self
            .machine
            .apply_delta(merge.round, &merge.delta, merge.after);
        applied.unwrap();
    }
}

/// An auditor who has the first checkpoint and the text.
fn auditor(charter: &Arc<Charter>, folder: &Path) -> Auditor {
    let mut auditor = Auditor::new(Arc::clone(charter), 2, folder).unwrap();
    auditor.shards = shards();
    let checkpoint = first_checkpoint(charter);
    auditor.load_checkpoint(0, &checkpoint).unwrap();
    auditor
}

fn execute(auditor: &mut Auditor, case: &Case, newer: &[Merge]) -> Executed {
    let executing = auditor.execute(case, newer);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(executing).unwrap()
}

/// Does a fresh update again and compares all that was revealed.
fn audit(run: &Run, revealed: &Revealed, shown: Option<&[StepLeaf]>) -> Comparison {
    let place = tempfile::tempdir().unwrap();
    let mut auditor = auditor(&run.charter, place.path());
    auditor.begin_fresh(None).unwrap();
    let executed = execute(&mut auditor, &revealed.case, &[]);
    let header = &revealed.case.header;
    compare(&run.rules, header, Some(&revealed.file), shown, &executed)
}

#[test]
fn updates_come_out_the_same_one_after_the_other() {
    let mut run = Run::new();
    let first = run.round(1);
    let merged = run.merge(&first);
    run.follow(&merged);
    let second = run.round(2);
    // Refused: the third carries what the second would have sent.
    run.carried = Some(second.case.header.carried_if_refused);
    let third = run.round(3);

    let place = tempfile::tempdir().unwrap();
    let mut auditor = auditor(&run.charter, place.path());
    auditor.begin_fresh(None).unwrap();
    for (number, revealed) in [first, second, third].iter().enumerate() {
        let header = &revealed.case.header;
        if number == 1 {
            auditor.apply(&merged).unwrap();
        }
        if number > 0 {
            assert!(auditor.continue_from(header.carried_before).unwrap());
        }
        let executed = execute(&mut auditor, &revealed.case, &[]);
        let shown = Some(&revealed.leaves[..]);
        let compared = compare(&run.rules, header, Some(&revealed.file), shown, &executed);
        assert!(compared.is_equal(), "update {number}: {compared:?}");
        assert_eq!(executed.file, revealed.file);
    }
    assert!(!auditor.continue_from(Hash([9; 32])).unwrap());
}

#[test]
fn a_state_that_the_worker_shows_saves_the_way_to_it() {
    let mut run = Run::new();
    run.round(1);
    let second = run.round(2);
    let header = &second.case.header;
    let place = tempfile::tempdir().unwrap();
    let mut auditor = auditor(&run.charter, place.path());
    let shown = run.place.path().join("carried");
    assert!(!auditor.continue_from(header.carried_before).unwrap());
    let other = Hash([9; 32]);
    assert!(!auditor.continue_from_folder(other, &shown).unwrap());
    let wanted = header.carried_before;
    assert!(auditor.continue_from_folder(wanted, &shown).unwrap());
    let executed = execute(&mut auditor, &second.case, &[]);
    assert_eq!(executed.file, second.file);
}

#[test]
fn a_head_start_is_done_again_with_both_models() {
    let mut run = Run::new();
    let first = run.round(1);
    let merged = run.merge(&first);
    // The merge arrives when round 2 has trained for four steps.
    let (task, trained) = run.train(2, std::slice::from_ref(&merged), 4);
    let second = run.seal(2, &task, trained);
    let header = &second.case.header;
    assert_eq!((header.head_start_steps, header.base_round), (4, 1));

    let place = tempfile::tempdir().unwrap();
    let mut auditor = auditor(&run.charter, place.path());
    auditor.begin_fresh(None).unwrap();
    execute(&mut auditor, &first.case, &[]);
    assert!(auditor.continue_from(header.carried_before).unwrap());
    let executed = execute(&mut auditor, &second.case, &[merged]);
    let compared = compare(&run.rules, header, Some(&second.file), None, &executed);
    assert!(compared.is_equal(), "{compared:?}");
}

#[test]
fn a_scaled_payload_is_found() {
    let mut run = Run::new();
    let honest = run.round(1);
    let (_, payload) = open(&honest.file).unwrap();
    let mut values = vec![0.0; run.rules.parameters()];
    run.rules
        .decode(payload)
        .unwrap()
        .for_each(|at, value| values[at] = 2.0 * value as f32 / (1 << 30) as f32);
    let settings = engine::charter::update_settings(&run.charter.outer);
    let scaled = codec::encode(run.rules.lengths(), &settings, &values).unwrap();
    let mut case = honest.case.clone();
    case.header.payload = Hash::of_blob(&scaled);
    let cheat = Revealed {
        file: seal(&case.header, &scaled),
        case,
        leaves: honest.leaves.clone(),
    };
    let compared = audit(&run, &cheat, Some(&honest.leaves));
    let [Difference::Payload(apart)] = &compared.differences[..] else {
        panic!("{compared:?}");
    };
    assert!((1.9..2.1).contains(&apart.norm_ratio), "{apart:?}");
    assert!(0.9 < apart.cosine && 0.9 < apart.overlap, "{apart:?}");
}

#[test]
fn other_samples_are_named_with_their_step() {
    let mut run = Run::new();
    // Trained on the text of another round.
    let (mut task, _) = run.train(1, &[], 0);
    let seed = std::mem::replace(&mut task.seed, Hash([7; 32]));
    run.machine.begin_fresh(None).unwrap();
    let trained = train_with(&mut run.machine, &task, STEPS, |_| vec![]).unwrap();
    let cheat = run.seal(1, &task, trained);
    assert_eq!(cheat.case.seed, seed);
    let compared = audit(&run, &cheat, Some(&cheat.leaves));
    let Difference::Leaf { step, parts } = &compared.differences[0] else {
        panic!("{compared:?}");
    };
    // A leaf every four steps.
    assert_eq!((*step, parts[0]), (4, LeafPart::Samples));
    assert!(!compared.is_alike, "no machine's class changes the samples");

    // Without leaves the root tells that something differs; with others they are not believed.
    let compared = audit(&run, &cheat, None);
    assert_eq!(compared.differences[0], Difference::StepsRoot);
    let mut others = cheat.leaves.clone();
    others[0].loss_bits ^= 1;
    let compared = audit(&run, &cheat, Some(&others));
    assert_eq!(compared.differences[0], Difference::LeavesNotCommitted);
}
