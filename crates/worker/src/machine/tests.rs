//! Whole rounds on a tiny model: train, seal, open, decode, merge, apply.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use engine::{
    initial_parameters,
    update::{codec, outer::OuterState, round::merge_round},
};
use network::disk::{Disk, Listed, Lock, RealDisk};
use protocol::{
    PublicKey, SecretKey,
    charter::{Baselines, Codec, Data, Income, Inner, Model, Outer, RoundRules, ShardReference},
    sampling::{assigned_shards, round_seed},
    units::{BlobReference, WorkerId},
    update,
};

use super::*;
use crate::{ground::engine_trainer, shards::Shards};

const VOCABULARY: u32 = 32;
const SHARD_TOKENS: u64 = 2_000;

fn shard(seed: u8) -> ShardReference {
    ShardReference {
        blob: BlobReference {
            hash: Hash([seed; 32]),
            bytes: SHARD_TOKENS * 2,
        },
        tokens: SHARD_TOKENS,
        text_bytes: SHARD_TOKENS,
    }
}

pub(crate) fn sparse() -> Codec {
    Codec::Sparse {
        chunk: 1024,
        kept: 128,
        error_decay_q16: 62_259,
    }
}

pub(crate) fn charter(codec: Codec, carry_inner_state: bool) -> Arc<Charter> {
    let charter = Charter {
        name: "tiny".into(),
        description: String::new(),
        seed: 1,
        hub: PublicKey([1; 32]),
        addresses: vec![],
        succession: vec![],
        model: Model {
            vocab_size: VOCABULARY,
            hidden_size: 32,
            intermediate_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 16,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "counting".into(),
            tokenizer: shard(9).blob,
            training: vec![shard(2), shard(3)],
            held_out: vec![shard(4)],
            held_out_tokens_max: 256,
            baselines: Baselines::default(),
        },
        inner: Inner {
            batch_rows: 4,
            sequence: 16,
            learning_rate_peak_nano: 3_000_000,
            warmup_tokens: 100,
            tokens_max: 1_000_000,
            final_rate_ppm: 100_000,
            beta1_ppm: 900_000,
            beta2_ppm: 990_000,
            epsilon_pico: 10_000,
            weight_decay_ppm: 100_000,
            clip_norm_ppm: 1_000_000,
            carry_inner_state,
        },
        outer: Outer {
            codec,
            rate_q16: 65_536,
            denominator_floor_q16: 32_768,
            momentum_q16: 0,
            delta_kept: 512,
            norm_ratio_max_q16: 20 << 16,
        },
        round: RoundRules {
            window_ms: 1_000,
            reveal_ms: 1_000,
            steps_min: 1,
            steps_max: 10,
            quorum: 1,
            slots_max: 8,
            weight_cap_q16: 65_536,
            shards_per_assignment: 1,
            checkpoint_every: 10,
            leaf_steps: 4,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 2 << 16,
            boinc_unit_ms: 0,
        },
        income: Income::EveryoneWhoMadeIt,
    };
    charter.check().unwrap();
    engine::charter::check(&charter).unwrap();
    Arc::new(charter)
}

/// A sequence that a small model learns soon: each token follows from the one before.
pub(crate) fn shards() -> Shards {
    let mut shards = Shards::default();
    for (index, step) in [(0, 1), (1, 5)] {
        let tokens: Vec<u32> = (0..SHARD_TOKENS as u32)
            .map(|at| (at * step + at / 97) % VOCABULARY)
            .collect();
        shards.insert(index, tokens.into());
    }
    shards
}

pub(crate) fn first_checkpoint(charter: &Charter) -> Vec<u8> {
    let config = engine::charter::model_config(&charter.model);
    let parameters = initial_parameters(&config, charter.seed);
    engine::checkpoint::to_safetensors(&config, &parameters, &Default::default())
}

pub(crate) fn worker(number: u8) -> WorkerId {
    WorkerId(SecretKey::from_entropy([number; 32]).public())
}

/// One worker with its folder.
struct Rig {
    machine: Machine,
    store: CarriedStore,
    carried: Option<Hash>,
    place: tempfile::TempDir,
}

pub(crate) fn new_machine(charter: &Arc<Charter>, threads: usize) -> Machine {
    Machine::new(Arc::clone(charter), engine_trainer(charter, threads))
}

fn train(machine: &mut Machine, task: &Task, steps: u32) -> Trained {
    train_with(machine, task, steps, |_| vec![]).unwrap()
}

pub(crate) fn train_with(
    machine: &mut Machine,
    task: &Task,
    steps: u32,
    newer: impl FnMut(u32) -> Vec<Newer> + Send,
) -> Result<Trained> {
    let shards = shards();
    let training = machine.train(task, &shards, newer, |done, _| done < steps);
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(training)
}

impl Rig {
    fn new(charter: &Arc<Charter>) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut machine = new_machine(charter, 1);
        machine
            .load_checkpoint(0, &first_checkpoint(charter))
            .unwrap();
        Self {
            machine,
            store: CarriedStore::open(Arc::new(RealDisk), place.path().join("carried")).unwrap(),
            carried: None,
            place,
        }
    }

    fn store_folder(&self) -> PathBuf {
        self.place.path().join("carried")
    }

    fn task(&mut self, round: u64, slot: u32, slots: u32) -> Task {
        let base = self.machine.held().unwrap();
        let wanted = self.carried.unwrap_or_else(fresh);
        let carried = if self.machine.continue_from(wanted, &self.store).unwrap() {
            Carried::State(wanted)
        } else {
            self.machine.begin_fresh(None).unwrap();
            Carried::Fresh(None)
        };
        let tokens_per_step = self.machine.charter.tokens_per_step();
        Task {
            run: self.machine.charter.id(),
            worker: worker(slot as u8),
            round,
            slot,
            slots,
            seed: round_seed(&self.machine.charter, round, &base.parameters),
            tokens_before: (round - 1) * 10 * u64::from(slots) * tokens_per_step,
            base,
            carried,
            publish_inner_state: false,
        }
    }

    fn round(&mut self, task: &Task, steps: u32) -> Sealed {
        let trained = train(&mut self.machine, task, steps);
        assert_eq!(trained.steps, steps);
        self.machine.seal(task, &trained, &self.store).unwrap()
    }
}

/// A disk that has no room for the first so many files.
#[derive(Debug)]
pub(crate) struct FullAtFirst(RealDisk, AtomicU32);

impl FullAtFirst {
    pub(crate) fn new(files: u32) -> Self {
        Self(RealDisk, AtomicU32::new(files))
    }
}

impl Disk for FullAtFirst {
    fn write(
        &self,
        file: &Path,
        content: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.write(file, content)?;
        let left = self.1.load(Ordering::Relaxed);
        if left == 0 {
            return Ok(());
        }
        self.1.store(left - 1, Ordering::Relaxed);
        Err(io::ErrorKind::StorageFull.into())
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.make_folder(folder)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<Listed>> {
        self.0.list(folder)
    }
    fn length(&self, file: &Path) -> io::Result<u64> {
        self.0.length(file)
    }
    fn read_start(&self, file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.0.read_start(file, bytes_max)
    }
    fn hash(&self, file: &Path) -> io::Result<Hash> {
        self.0.hash(file)
    }
    fn write_private(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        self.0.write_private(file, bytes)
    }
    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        self.0.append(file, bytes)
    }
    fn sync(&self, file: &Path) -> io::Result<()> {
        self.0.sync(file)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.sync_folder(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, file: &Path) -> io::Result<()> {
        self.0.remove(file)
    }
    fn lock(&self, file: &Path) -> io::Result<Option<Lock>> {
        self.0.lock(file)
    }
    fn touch(&self, file: &Path, used: SystemTime) -> io::Result<()> {
        self.0.touch(file, used)
    }
}

/// Seals a round on a disk that is full for so many files, and on one that is not.
#[test]
fn a_full_disk_costs_a_round_nothing() {
    let charter = charter(sparse(), true);
    for full in 1..=4 {
        let mut rigs = [Rig::new(&charter), Rig::new(&charter)];
        let folder = rigs[1].store_folder();
        let disk = FullAtFirst::new(full);
        let store = CarriedStore::open(Arc::new(disk), folder.clone()).unwrap();
        let tasks = [rigs[0].task(1, 0, 1), rigs[1].task(1, 0, 1)];
        let expected = rigs[0].round(&tasks[0], 3);
        let machine = &mut rigs[1].machine;
        let trained = train(machine, &tasks[1], 3);
        let mut ending = machine.end_round(&trained).unwrap();
        for _ in 0..full {
            ending.write(&store).unwrap_err();
            let names = RealDisk.list(&folder).unwrap();
            assert!(names.iter().all(|it| !it.name.ends_with(".new")));
        }
        ending.write(&store).unwrap();
        let sealed = machine.seal_ended(&tasks[1], &trained, ending, &store);
        let sealed = sealed.unwrap();
        assert_eq!(sealed.header, expected.header);
        for hash in [
            sealed.header.carried_after,
            sealed.header.carried_if_refused,
        ] {
            assert!(store.read(&hash, machine.base.len()).unwrap().is_some());
        }
        assert_eq!(
            machine.carried(),
            Some(Carried::State(sealed.header.carried_after))
        );
    }
}

/// Runs rounds of two workers through the engine's merge; gives the mean losses of each round.
fn train_together(charter: &Arc<Charter>, rounds: u64) -> Vec<u64> {
    let config = engine::charter::model_config(&charter.model);
    let lengths = config.layout().lengths();
    let settings = engine::charter::update_settings(&charter.outer);
    let merge = engine::charter::merge_settings(&charter.outer);
    let mut theta = initial_parameters(&config, charter.seed);
    let mut outer = OuterState::new(theta.len(), merge.momentum_q16.is_some());
    let mut rigs = [Rig::new(charter), Rig::new(charter)];
    let mut losses = Vec::new();
    for round in 1..=rounds {
        let (mut updates, mut loss) = (Vec::new(), 0);
        for (slot, rig) in rigs.iter_mut().enumerate() {
            let task = rig.task(round, slot as u32, 2);
            let sealed = rig.round(&task, 10);
            assert_eq!(sealed.reference, BlobReference::of(&sealed.file));
            let (header, payload) = update::open(&sealed.file).unwrap();
            assert_eq!(header, sealed.header);
            assert_eq!(header.base, task.base.parameters);
            assert_eq!(header.tokens, 10 * charter.tokens_per_step());
            assert_eq!(header.carried_before, task.carried.hash());
            let decoded = codec::decode(payload, &lengths, &settings).unwrap();
            updates.push((decoded, header.tokens));
            loss += header.loss_micronats / 2;
            rig.carried = Some(header.carried_after);
        }
        let merged = merge_round(&mut theta, &mut outer, &updates, &merge).unwrap();
        let after = Hash(parameters_hash(&theta));
        for rig in &mut rigs {
            rig.machine
                .apply_delta(round, &merged.delta_bytes, after)
                .unwrap();
            let held = Held {
                round,
                parameters: after,
            };
            assert_eq!(rig.machine.held(), Some(held));
        }
        losses.push(loss);
    }
    losses
}

#[track_caller]
fn learns(charter: &Arc<Charter>) {
    let losses = train_together(charter, 8);
    let (first, last) = (losses[0], losses[7]);
    assert!(last * 4 < first * 3, "the loss does not fall: {losses:?}");
}

#[test]
fn two_workers_teach_a_model_with_error_feedback() {
    learns(&charter(sparse(), true));
}

#[test]
fn two_workers_teach_a_model_with_fresh_moments() {
    learns(&charter(sparse(), false));
}

#[test]
fn two_workers_teach_a_model_densely() {
    let dense = Codec::Dense {
        chunk: 1024,
        bits: 8,
    };
    learns(&charter(dense, true));
}

#[test]
fn a_round_repeats_bit_by_bit_after_a_restart() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    let task = rig.task(1, 0, 1);
    rig.carried = Some(rig.round(&task, 5).header.carried_after);

    let task = rig.task(2, 0, 1);
    assert_eq!(Some(task.carried.hash()), rig.carried);
    let first = rig.round(&task, 5);

    // A new process: everything but the folder is gone.
    rig.machine = new_machine(&charter, 2);
    let checkpoint = first_checkpoint(&charter);
    rig.machine.load_checkpoint(0, &checkpoint).unwrap();
    let task = rig.task(2, 0, 1);
    let again = rig.round(&task, 5);
    assert_eq!(first.file, again.file);
}

#[test]
fn a_refused_round_keeps_its_work_in_the_error() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    let task = rig.task(1, 0, 1);
    let sealed = rig.round(&task, 5);
    let after = rig.machine.error.clone();
    rig.carried = Some(sealed.header.carried_if_refused);
    let task = rig.task(2, 0, 1);
    assert_eq!(task.carried.hash(), sealed.header.carried_if_refused);
    // What the update said, and nothing else, is still in the error.
    let (_, payload) = update::open(&sealed.file).unwrap();
    let machine = &rig.machine;
    let sent = codec::decode(payload, &machine.lengths, &machine.settings).unwrap();
    let mut refused = machine.error.clone();
    assert_ne!(refused, after);
    engine::update::feedback::subtract_decoded(&mut refused, &sent);
    assert_eq!(refused, after);
}

#[test]
fn a_warm_start_hands_its_moments_on() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    let mut task = rig.task(1, 0, 1);
    task.publish_inner_state = true;
    let sealed = rig.round(&task, 5);
    let files = sealed.files();
    let published = sealed.header.inner_state.unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(BlobReference::of(&files[1].1), published);
    assert_eq!(files[1].0, published.hash);

    let mut joiner = Rig::new(&charter);
    let start = Some((published.hash, files[1].1.to_vec()));
    joiner.machine.begin_fresh(start.clone()).unwrap();
    assert_eq!(
        joiner.machine.trainer.inner_state(),
        rig.machine.trainer.inner_state()
    );
    assert!(joiner.machine.error.iter().all(|&it| it == 0.0));
    // The same fresh start again does nothing; another one does.
    let carried = Some(Carried::Fresh(Some(published.hash)));
    assert_eq!(joiner.machine.carried, carried);
    joiner.machine.begin_fresh(start).unwrap();
    joiner.machine.begin_fresh(None).unwrap();
    assert_eq!(joiner.machine.trainer.inner_state().step, 0);
    let nonsense = Some((published.hash, b"nonsense".to_vec()));
    assert!(joiner.machine.begin_fresh(nonsense).is_err());
    assert_eq!(joiner.machine.carried, None);
}

#[test]
fn a_round_given_up_leaves_what_was_carried() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    let task = rig.task(1, 0, 1);
    rig.carried = Some(rig.round(&task, 5).header.carried_after);
    let task = rig.task(2, 0, 1);
    let expected = rig.machine.trainer.inner_state().clone();
    train(&mut rig.machine, &task, 3);
    assert_ne!(rig.machine.trainer.inner_state(), &expected);
    assert_eq!(rig.task(2, 0, 1).carried, task.carried);
    assert_eq!(rig.machine.trainer.inner_state(), &expected);
}

#[test]
fn a_lost_folder_means_a_fresh_start() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    rig.carried = Some(Hash([5; 32]));
    assert_eq!(rig.task(1, 0, 1).carried, Carried::Fresh(None));
}

#[test]
fn a_delta_that_gives_another_model_is_refused() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    let merge = engine::charter::merge_settings(&charter.outer);
    let lengths = rig.machine.lengths.clone();
    let mut residual = vec![1 << 20; rig.machine.base.len()];
    let bytes = Delta::take(&lengths, &merge.delta, &mut residual).encode();
    let refusal = rig.machine.apply_delta(1, &bytes, Hash([3; 32]));
    assert!(
        refusal
            .unwrap_err()
            .to_string()
            .contains("delta of round 1")
    );
    assert_eq!(rig.machine.held(), None);
    assert!(
        rig.machine
            .apply_delta(1, b"garbage", Hash([3; 32]))
            .is_err()
    );
}

#[test]
fn slots_see_different_text_and_steps_have_leaves() {
    let charter = charter(sparse(), true);
    let mut rig = Rig::new(&charter);
    let roots: Vec<Hash> = [(0, 4), (1, 4), (1, 5)]
        .into_iter()
        .map(|(slot, steps)| {
            let task = rig.task(1, slot, 2);
            rig.round(&task, steps).header.steps_root
        })
        .collect();
    assert!(roots[0] != roots[1] && roots[1] != roots[2]);
    let seed = round_seed(&charter, 1, &Hash([1; 32]));
    assert_eq!(assigned_shards(&charter, &seed, &worker(0)).len(), 1);
}

#[test]
fn a_merge_that_comes_in_mid_round_is_taken_up_without_losing_a_step() {
    let charter = charter(sparse(), true);
    let merge = engine::charter::merge_settings(&charter.outer);
    let mut rigs = [Rig::new(&charter), Rig::new(&charter)];
    // The first round's merge is known only after two steps of the second one.
    let task = rigs[0].task(1, 0, 1);
    let sealed = rigs[0].round(&task, 5);
    let machine = &rigs[0].machine;
    let (_, payload) = update::open(&sealed.file).unwrap();
    let decoded = codec::decode(payload, &machine.lengths, &machine.settings).unwrap();
    let mut theta = machine.base.clone();
    let mut outer = OuterState::new(theta.len(), merge.momentum_q16.is_some());
    let merged = merge_round(&mut theta, &mut outer, &[(decoded, 1)], &merge).unwrap();
    let newer = Newer {
        round: 1,
        after: Hash(parameters_hash(&theta)),
        delta: merged.delta_bytes.into(),
    };
    rigs[0].carried = Some(sealed.header.carried_after);
    let task = rigs[0].task(2, 0, 1);
    let machine = &mut rigs[0].machine;
    let at_two = |steps| {
        if steps == 2 {
            vec![newer.clone()]
        } else {
            vec![]
        }
    };
    let trained = train_with(machine, &task, 6, at_two).unwrap();
    assert_eq!((trained.steps, machine.base.clone()), (6, theta));
    let sealed = machine.seal(&task, &trained, &rigs[0].store).unwrap();
    assert_eq!(sealed.header.head_start_steps, 2);
    assert_eq!(sealed.header.base_round, 1);
    assert_eq!(sealed.header.base, newer.after);
    // Another model than the merge should give: the round is lost, and no wrong model is held.
    let wrong = Newer {
        after: Hash([1; 32]),
        ..newer
    };
    let task = rigs[1].task(2, 0, 1);
    let machine = &mut rigs[1].machine;
    let lost = train_with(machine, &task, 6, |_| vec![wrong.clone()]);
    assert!(lost.is_err());
    assert_eq!(machine.held(), None);
}

#[test]
fn measuring_leaves_no_trace() {
    let charter = charter(sparse(), true);
    let mut machine = new_machine(&charter, 1);
    let measured = machine.measure().unwrap();
    assert!(measured.tokens_per_s > 1 && !measured.step.is_zero());
    assert_eq!(machine.trainer.inner_state().step, 0);
    assert!(machine.error.iter().all(|&it| it == 0.0));
    assert!(machine.held().is_none());
    assert!(memory_bytes(&charter) > 4 * 4 * charter.model.parameter_count());
}
