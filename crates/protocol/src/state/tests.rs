//! The state machine, driven as a hub drives it.

mod rounds;

use super::{
    decide::{Refusal, RefusalCode, Request, decide, fresh, round_to_merge},
    *,
};
use crate::{
    SecretKey,
    charter::tests::sample_charter,
    command::{Command, SignedCommand},
    event::{Event, ModelState, RefusalReason},
    log::Entry,
    units::BlobReference,
    update::UpdateHeader,
};

/// A hub without a world: clock, log and state.
struct Driver {
    key: SecretKey,
    state: State,
    log: Vec<Entry>,
    now_ms: u64,
}

fn worker_key(number: u8) -> SecretKey {
    SecretKey::from_entropy([100 + number; 32])
}

fn worker(number: u8) -> WorkerId {
    WorkerId(worker_key(number).public())
}

/// The first entry of a run's log.
pub(crate) fn created(key: &SecretKey, charter: Charter) -> Entry {
    let run = charter.id();
    let event = Event::RunCreated {
        charter: Box::new(charter),
        model: ModelState {
            round: 0,
            parameters: Hash([20; 32]),
            outer: Hash([21; 32]),
        },
        checkpoint: Checkpoint {
            parameters: BlobReference::of(b"parameters"),
            outer: BlobReference::of(b"outer"),
        },
    };
    Head::empty().next(key, run, 1_000_000, event)
}

impl Driver {
    fn new(change: impl FnOnce(&mut Charter)) -> Self {
        let key = SecretKey::from_entropy([1; 32]);
        let mut charter = sample_charter();
        change(&mut charter);
        let entry = created(&key, charter);
        Self {
            key,
            state: State::create(&entry).unwrap(),
            log: vec![entry],
            now_ms: 1_000_000,
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Vec<&'static str>, Refusal> {
        let events = decide(&self.state, request, self.now_ms)?;
        let mut names = Vec::new();
        for event in events {
            names.push(event.name());
            let entry = self
                .state
                .head
                .next(&self.key, self.state.run, self.now_ms, event);
            self.state.apply(&entry).unwrap();
            self.log.push(entry);
        }
        Ok(names)
    }

    fn command(&mut self, number: u8, command: Command) -> Result<Vec<&'static str>, Refusal> {
        let sequence = self
            .state
            .workers
            .get(&worker(number))
            .map_or(1, |it| it.sequence + 1);
        let signed = SignedCommand::sign(&worker_key(number), self.state.run, sequence, command);
        self.ask(&Request::Worker(Box::new(signed.checked().unwrap())))
    }

    fn join(&mut self, number: u8) {
        let join = Command::Join {
            name: format!("worker {number}"),
            device: Device {
                arithmetic: "portable".into(),
                threads: 1,
                memory_mib: 1,
                tokens_per_s: 10_000,
            },
        };
        assert_eq!(self.command(number, join), Ok(vec!["worker_joined"]));
    }

    fn clock(&mut self, present: &[u8]) -> Vec<&'static str> {
        let mut present: Vec<WorkerId> = present.iter().map(|&it| worker(it)).collect();
        present.sort_unstable();
        self.ask(&Request::Clock { present }).unwrap()
    }

    fn commitment(&self, number: u8, steps: u32) -> Commitment {
        let round = self.state.current_round().expect("a round is open");
        let (slot, _) = round.slot_of(&worker(number)).expect("it has a slot");
        let carried = self.state.workers[&worker(number)].carried;
        Commitment {
            update: BlobReference::of(&[number, steps as u8, round.round as u8]),
            header: UpdateHeader {
                run: self.state.run,
                worker: worker(number),
                round: round.round,
                slot,
                base_round: round.base.round,
                base: round.base.parameters,
                steps,
                head_start_steps: 0,
                tokens: u64::from(steps) * self.state.charter.tokens_per_step(),
                loss_micronats: 4_000_000,
                carried_before: carried.unwrap_or(fresh()),
                carried_after: Hash([number + round.round as u8 - 1; 32]),
                carried_if_refused: Hash([number + 50; 32]),
                steps_root: Hash::default(),
                payload: Hash::of_blob(&[number, steps as u8, round.round as u8]),
                inner_state: self
                    .state
                    .is_warming_up()
                    .then(|| BlobReference::of(b"inner state")),
            },
        }
    }

    fn commit(&mut self, number: u8, steps: u32) -> Result<Vec<&'static str>, Refusal> {
        let commitment = self.commitment(number, steps);
        self.command(number, Command::Commit(Box::new(commitment)))
    }

    fn judge(
        &mut self,
        number: u8,
        verdict: Result<(), RefusalReason>,
    ) -> Result<Vec<&'static str>, Refusal> {
        let commitments = self.state.rounds_in_progress().flat_map(Round::slots);
        let update = commitments
            .filter(|it| it.worker == worker(number))
            .find_map(|it| Some(it.commitment()?.update.hash))
            .unwrap_or_default();
        self.ask(&Request::Judged { update, verdict })
    }

    fn merge(&mut self) -> Result<Vec<&'static str>, Refusal> {
        let round = round_to_merge(&self.state).map_or(0, |it| it.round);
        self.ask(&Request::Merged {
            round,
            delta: BlobReference::of(b"delta"),
            model: ModelState {
                round,
                parameters: Hash([round as u8; 32]),
                outer: Hash([round as u8 + 1; 32]),
            },
        })
    }

    fn replayed(&self) -> State {
        let mut state = State::create(&self.log[0]).unwrap();
        for entry in &self.log[1..] {
            state.apply(entry).unwrap();
        }
        state
    }
}

#[test]
fn a_round_from_opening_to_merge() {
    let mut hub = Driver::new(|_| {});
    assert_eq!(hub.clock(&[]), Vec::<&str>::new());
    hub.join(1);
    hub.join(2);
    assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
    assert_eq!(hub.commit(1, 3), Ok(vec!["update_committed"]));
    // Worker 2 still trains.
    assert_eq!(hub.clock(&[1, 2]), Vec::<&str>::new());
    assert_eq!(hub.judge(1, Ok(())), Ok(vec!["update_accepted"]));
    assert_eq!(hub.commit(2, 1), Ok(vec!["update_committed"]));
    assert_eq!(hub.clock(&[1, 2]), ["commitments_closed"]);
    // The next round opens at once: nobody waits for the merge.
    assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
    assert!(round_to_merge(&hub.state).is_none());
    assert_eq!(hub.judge(2, Ok(())), Ok(vec!["update_accepted"]));
    let round = round_to_merge(&hub.state).unwrap();
    let merged = round.merged_updates(&hub.state.charter);
    assert_eq!(merged.iter().map(|it| it.weight).sum::<u64>(), 4 * 4 * 32);
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    assert_eq!(hub.state.tokens, 4 * 4 * 32);
    assert_eq!(hub.state.model.round, 1);
    assert_eq!(
        hub.state.workers[&worker(1)].carried,
        Some(Hash([1; 32])),
        "a merged update leaves what it said it would"
    );
    let open = hub.state.training.as_ref().unwrap();
    assert_eq!((open.round, open.base.round), (2, 0));
    assert_eq!(open.tokens_before, 4 * 4 * 32, "pending tokens count");
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn who_does_not_come_is_not_waited_for() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    // Worker 2 fell silent: the round closes at once for those who are there.
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
    // Nobody's bytes, and nobody there for a next round that could take them up: the round ends empty.
    hub.now_ms += hub.state.charter.round.reveal_ms;
    assert_eq!(hub.clock(&[]), ["update_refused", "round_empty"]);
    assert_eq!(hub.state.workers[&worker(1)].updates_refused, 1);
    assert_eq!(hub.state.workers[&worker(1)].carried, Some(Hash([51; 32])));
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn a_latecomer_gets_a_slot_in_the_first_half_of_a_window() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.join(2);
    assert_eq!(hub.clock(&[1, 2]), ["slot_added"]);
    hub.join(3);
    hub.now_ms += hub.state.charter.round.window_ms * 3 / 4;
    assert_eq!(hub.clock(&[1, 2, 3]), Vec::<&str>::new());
}

#[test]
fn the_hard_cap_ends_a_round_without_commitments() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.now_ms += hub.state.charter.round.window_ms * 3 / 2;
    assert_eq!(hub.clock(&[1]), Vec::<&str>::new());
    hub.now_ms += 1;
    assert_eq!(hub.clock(&[1]), ["round_empty"]);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Commitment), expected: RefusalCode) {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    let mut commitment = hub.commitment(1, 3);
    change(&mut commitment);
    let before = hub.state.clone();
    let refusal = hub
        .command(1, Command::Commit(Box::new(commitment)))
        .unwrap_err();
    assert_eq!(refusal.code, expected, "{refusal}");
    assert_eq!(hub.state, before);
}

#[test]
fn commitments_that_do_not_fit_are_refused() {
    refused(|it| it.header.round = 2, RefusalCode::Late);
    refused(|it| it.header.slot ^= 1, RefusalCode::NotAssigned);
    refused(|it| it.header.worker = worker(2), RefusalCode::NotAssigned);
    refused(
        |it| it.header.run = RunId::default(),
        RefusalCode::NotAssigned,
    );
    refused(|it| it.header.base = Hash([1; 32]), RefusalCode::WrongBase);
    refused(|it| it.header.base_round = 1, RefusalCode::WrongBase);
    refused(|it| it.header.tokens += 1, RefusalCode::Claim);
    refused(|it| it.header.head_start_steps = 4, RefusalCode::WrongBase);
    refused(|it| it.header.steps = 0, RefusalCode::Claim);
    refused(|it| it.update.bytes = 0, RefusalCode::Claim);
    // A thousandfold of what the machine measured of itself.
    refused(
        |it| {
            it.header.steps = 100_000;
            it.header.tokens = 100_000 * 128;
        },
        RefusalCode::Claim,
    );
}

#[test]
fn more_work_than_the_machine_can_do_is_refused() {
    let mut hub = Driver::new(|it| it.round.steps_max = 1_000_000);
    hub.join(1);
    hub.clock(&[1]);
    hub.now_ms += 500;
    // 10,000 tokens/s × 0.5 s × 2, and three steps of 128 tokens.
    let refusal = hub.commit(1, 10_000 / 128 + 4).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Claim);
    assert!(hub.commit(1, 10_000 / 128 + 3).is_ok());
}

#[test]
fn carried_state_must_be_the_one_last_left() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    hub.clock(&[1]);
    let mut commitment = hub.commitment(1, 1);
    commitment.header.carried_before = Hash([77; 32]);
    let refusal = hub
        .command(1, Command::Commit(Box::new(commitment.clone())))
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::WrongBase);
    // Who lost its folder starts afresh.
    commitment.header.carried_before = fresh();
    assert!(
        hub.command(1, Command::Commit(Box::new(commitment)))
            .is_ok()
    );
}

#[test]
fn a_lost_reply_is_answered_again_and_a_replay_is_not() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    let run = hub.state.run;
    let commit = SignedCommand::sign(
        &worker_key(1),
        run,
        5,
        Command::Commit(Box::new(hub.commitment(1, 1))),
    );
    assert_eq!(
        hub.ask(&Request::Worker(Box::new(
            commit.clone().checked().unwrap()
        ))),
        Ok(vec!["update_committed"])
    );
    assert_eq!(
        hub.ask(&Request::Worker(Box::new(
            commit.clone().checked().unwrap()
        ))),
        Ok(vec![])
    );
    let leave = |sequence| {
        SignedCommand::sign(
            &worker_key(1),
            run,
            sequence,
            Command::Leave {
                reason: "sleep".into(),
            },
        )
    };
    assert_eq!(
        hub.ask(&Request::Worker(Box::new(leave(4).checked().unwrap())))
            .unwrap_err()
            .code,
        RefusalCode::Replayed
    );
    assert_eq!(
        hub.ask(&Request::Worker(Box::new(leave(6).checked().unwrap()))),
        Ok(vec!["worker_left"])
    );
}

#[test]
fn a_round_whose_only_update_was_refused_goes_on_to_its_deadline() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.commit(1, 1).unwrap();
    let refused = hub.judge(1, Err(RefusalReason::Payload("noise".into())));
    assert_eq!(refused, Ok(vec!["update_refused"]));
    assert_eq!(hub.clock(&[1]), [""; 0]);
    hub.now_ms = hub.state.training.as_ref().unwrap().deadline_ms;
    assert_eq!(hub.clock(&[1])[0], "round_empty");
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn verdicts_only_count_once_and_in_time() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    assert_eq!(hub.judge(1, Ok(())).unwrap_err().code, RefusalCode::Late);
    hub.commit(1, 1).unwrap();
    let update = BlobReference::of(&[1, 1, 1]).hash;
    let judged = |verdict| Request::Judged { update, verdict };
    assert_eq!(hub.ask(&judged(Ok(()))), Ok(vec!["update_accepted"]));
    assert_eq!(hub.ask(&judged(Ok(()))), Ok(vec![]));
    // An accepted update may still prove out of bounds at the merge.
    assert_eq!(
        hub.ask(&judged(Err(RefusalReason::Norm("zero".into())))),
        Ok(vec!["update_refused"])
    );
    assert_eq!(hub.ask(&judged(Ok(()))), Ok(vec![]));
}

#[test]
fn a_copied_commitment_is_refused() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    let mut copied = hub.commitment(2, 1);
    copied.update = hub.commitment(1, 1).update;
    let refusal = hub
        .command(2, Command::Commit(Box::new(copied)))
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotAssigned);
    assert!(hub.commit(2, 1).is_ok());
}

#[test]
fn who_promises_speed_and_brings_nothing_goes_last() {
    let mut hub = Driver::new(|it| it.round.warm_start_tokens = 10_000);
    hub.join(1);
    hub.join(2);
    let mut had_it = std::collections::BTreeSet::new();
    for _ in 0..2 {
        hub.clock(&[1, 2]);
        had_it.insert(hub.state.current_round().unwrap().slots()[0].worker);
        hub.now_ms += hub.state.charter.round.window_ms * 2;
        assert_eq!(hub.clock(&[1, 2])[0], "round_empty");
    }
    assert_eq!(had_it.len(), 2);
    assert_eq!(hub.replayed(), hub.state);
}

/// A hub in a warm start that worker 1 has brought two updates to.
fn warm() -> Driver {
    let mut hub = Driver::new(|it| it.round.warm_start_tokens = 100_000);
    hub.join(1);
    for _ in 0..3 {
        assert_eq!(hub.clock(&[1]), ["round_opened"]);
        hub.commit(1, 1).unwrap();
        hub.clock(&[1]);
        hub.judge(1, Ok(())).unwrap();
        hub.merge().unwrap();
        hub.now_ms += 100;
    }
    hub
}

impl Driver {
    fn boast(&mut self, number: u8) {
        let join = Command::Join {
            name: format!("worker {number}"),
            device: Device {
                arithmetic: "portable".into(),
                threads: 1,
                memory_mib: 1,
                tokens_per_s: u32::MAX,
            },
        };
        assert_eq!(self.command(number, join), Ok(vec!["worker_joined"]));
    }

    fn holders(&self) -> Vec<WorkerId> {
        let slots = self.state.training.as_ref().unwrap().slots();
        slots.iter().map(|it| it.worker).collect()
    }
}

#[test]
fn a_claim_takes_the_warm_start_from_nobody_who_brings_work() {
    let mut hub = warm();
    let mut rounds_of_1 = 0;
    for newcomer in 10..20 {
        hub.boast(newcomer);
        let present: Vec<u8> = (10..=newcomer).chain([1]).collect();
        hub.clock(&present);
        assert_eq!(hub.holders(), [worker(1)]);
        rounds_of_1 += 1;
        hub.commit(1, 1).unwrap();
        hub.clock(&present);
        hub.judge(1, Ok(())).unwrap();
        hub.merge().unwrap();
        hub.now_ms += 100;
    }
    assert_eq!(rounds_of_1, 10);
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn an_honest_newcomer_has_its_turn_however_many_boast_and_bring_nothing() {
    let mut hub = Driver::new(|it| it.round.warm_start_tokens = 100_000);
    hub.boast(10);
    hub.join(1);
    let mut present = vec![1, 10];
    let mut windows = 0;
    for newcomer in 11..40 {
        hub.boast(newcomer);
        present.push(newcomer);
        hub.clock(&present);
        windows += 1;
        if hub.holders() == [worker(1)] {
            break;
        }
        hub.now_ms += hub.state.charter.round.window_ms * 2;
        assert_eq!(hub.clock(&present)[0], "round_empty");
    }
    assert!(windows <= 7, "{windows} windows");
    hub.commit(1, 1).unwrap();
    hub.clock(&present);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    hub.clock(&present);
    assert_eq!(hub.holders(), [worker(1)], "it brought work and keeps it");
}

#[test]
fn the_warm_start_is_handed_on_when_its_holder_is_gone() {
    let mut hub = warm();
    hub.join(2);
    hub.clock(&[1, 2]);
    assert_eq!(hub.holders(), [worker(1)]);
    let leave = Command::Leave {
        reason: String::new(),
    };
    hub.command(1, leave).unwrap();
    assert_eq!(hub.clock(&[1, 2]), ["slot_added"]);
    assert_eq!(hub.holders(), [1, 2].map(worker));
    assert_eq!(hub.clock(&[2]), Vec::<&str>::new(), "one is enough");
    hub.commit(2, 1).unwrap();
    assert_eq!(hub.clock(&[2]), ["commitments_closed"]);
    hub.judge(2, Ok(())).unwrap();
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn machines_that_are_there_and_bring_nothing_crowd_nobody_out() {
    let mut hub = Driver::new(|it| it.round.slots_max = 4);
    let honest = [1, 2, 3];
    let idle: Vec<u8> = (10..40).collect();
    for number in honest.iter().chain(&idle) {
        hub.join(*number);
    }
    let all: Vec<u8> = honest.iter().chain(&idle).copied().collect();
    let (mut of_honest, mut of_idle) = (Vec::new(), std::collections::BTreeSet::new());
    for round in 0..20 {
        hub.clock(&all);
        let holders = hub.holders();
        let mine = honest
            .into_iter()
            .filter(|it| holders.contains(&worker(*it)));
        let mine: Vec<u8> = mine.collect();
        of_honest.push(mine.len());
        if round >= 15 {
            of_idle.extend(
                holders
                    .into_iter()
                    .filter(|it| !honest.map(worker).contains(it)),
            );
        }
        hub.now_ms += 100;
        for number in &mine {
            hub.commit(*number, 1).unwrap();
        }
        hub.now_ms += hub.state.charter.round.window_ms * 2;
        let closed = hub.clock(&all);
        if mine.is_empty() {
            assert_eq!(closed, ["round_empty"]);
            continue;
        }
        if closed == ["round_extended"] {
            hub.now_ms += hub.state.charter.round.window_ms;
            assert_eq!(hub.clock(&all), ["commitments_closed"]);
        }
        for number in &mine {
            hub.judge(*number, Ok(())).unwrap();
        }
        hub.merge().unwrap();
    }
    // Each idle one had its chance in the first rounds; then it comes last.
    assert_eq!(of_honest[15..], [3; 5], "{of_honest:?}");
    // But nobody is left out for good: one slot of five is drawn from all.
    assert!(of_idle.len() >= 4, "{}", of_idle.len());
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn joining_again_unchanged_adds_nothing_to_the_log() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    let record = hub.state.workers[&worker(1)].clone();
    let join = |tokens_per_s| Command::Join {
        name: record.name.clone(),
        device: Device {
            tokens_per_s,
            ..record.device.clone()
        },
    };
    assert_eq!(hub.command(1, join(10_000)), Ok(vec![]));
    assert_eq!(hub.command(1, join(20_000)), Ok(vec!["worker_joined"]));
}

#[test]
fn one_identity_is_capped() {
    let mut hub = Driver::new(|it| it.round.weight_cap_q16 = 1 << 14);
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.now_ms += 500;
    hub.commit(1, 7).unwrap();
    hub.commit(2, 1).unwrap();
    hub.clock(&[1, 2]);
    hub.judge(1, Ok(())).unwrap();
    hub.judge(2, Ok(())).unwrap();
    let merged = hub
        .state
        .revealing
        .as_ref()
        .unwrap()
        .merged_updates(&hub.state.charter);
    let mut weights: Vec<u64> = merged.iter().map(|it| it.weight).collect();
    weights.sort_unstable();
    assert_eq!(weights, [128, 256]);
}

#[test]
fn the_warm_start_has_one_slot_and_publishes_its_inner_state() {
    let mut hub = Driver::new(|it| it.round.warm_start_tokens = 200);
    hub.join(1);
    hub.join(2);
    for _ in 0..2 {
        assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
        let round = hub.state.current_round().unwrap();
        assert_eq!(round.slots().len(), 1);
        let alone = if round.slots()[0].worker == worker(1) {
            1
        } else {
            2
        };
        assert_eq!(hub.clock(&[1, 2]), Vec::<&str>::new());
        let mut without = hub.commitment(alone, 1);
        without.header.inner_state = None;
        let refusal = hub
            .command(alone, Command::Commit(Box::new(without)))
            .unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotAssigned);
        hub.commit(alone, 1).unwrap();
        hub.clock(&[1, 2]);
        hub.judge(alone, Ok(())).unwrap();
        hub.merge().unwrap();
    }
    assert_eq!(
        hub.state.inner_start,
        Some(BlobReference::of(b"inner state"))
    );
    hub.clock(&[1, 2]);
    assert_eq!(hub.state.current_round().unwrap().slots().len(), 2);
    hub.commit(1, 1).unwrap();
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn a_run_ends_when_its_tokens_are_spent() {
    let mut hub = Driver::new(|it| {
        it.inner.warmup_tokens = 10;
        it.inner.tokens_max = 128;
    });
    hub.join(1);
    hub.clock(&[1]);
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    assert_eq!(hub.clock(&[1]), ["run_finished"]);
    assert!(hub.state.is_finished());
    assert_eq!(hub.clock(&[1]), Vec::<&str>::new());
}

#[test]
fn a_forged_log_is_refused_where_it_lies() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    // A hub that grants a slot to somebody who never joined, properly signed.
    let entry = hub.state.head.next(
        &hub.key,
        hub.state.run,
        hub.now_ms,
        Event::SlotAdded {
            round: 1,
            slot: 1,
            worker: worker(9),
        },
    );
    let before = hub.state.clone();
    let message = hub.state.apply(&entry).unwrap_err().to_string();
    assert!(message.contains("log entry 3: slot_added"), "{message}");
    assert_eq!(hub.state, before);
    // A merge of an update that nobody made.
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    let mut updates = hub
        .state
        .revealing
        .as_ref()
        .unwrap()
        .merged_updates(&hub.state.charter);
    updates[0].tokens += 1;
    let entry = hub.state.head.next(
        &hub.key,
        hub.state.run,
        hub.now_ms,
        Event::RoundMerged {
            round: 1,
            rate_q16: hub.state.charter.outer.rate_q16,
            updates,
            delta: BlobReference::of(b"delta"),
            model: ModelState {
                round: 1,
                ..hub.state.model
            },
        },
    );
    assert!(hub.state.apply(&entry).is_err());
}

#[test]
fn bindings_need_both_signatures_and_do_not_move() {
    let mut hub = Driver::new(|_| {});
    let run = hub.state.run;
    let account = SecretKey::from_entropy([60; 32]);
    let thief = SecretKey::from_entropy([61; 32]);
    let binding = crate::identity::Binding::sign(
        run,
        &account,
        &worker_key(1),
        crate::identity::KeyRole::Worker,
    );
    assert_eq!(
        hub.ask(&Request::Bind(binding.clone().checked().unwrap())),
        Ok(vec!["identity_bound"])
    );
    assert_eq!(
        hub.ask(&Request::Bind(binding.checked().unwrap())),
        Ok(vec![])
    );
    let stolen = crate::identity::Binding::sign(
        run,
        &thief,
        &worker_key(1),
        crate::identity::KeyRole::Worker,
    );
    assert_eq!(
        hub.ask(&Request::Bind(stolen.checked().unwrap()))
            .unwrap_err()
            .code,
        RefusalCode::Signature
    );
}

#[test]
fn golden_hash_of_a_log_with_the_common_events() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    let hashes: Vec<String> = hub
        .log
        .iter()
        .map(|it| {
            format!(
                "{} {}",
                it.event.name(),
                Hash::of_blob(&it.to_bytes()).short()
            )
        })
        .collect();
    expect_test::expect![[r#"
        run_created 0ed06075
        worker_joined 29abefb5
        round_opened 747ea8e0
        update_committed bea1b395
        commitments_closed 69804d95
        update_accepted 0eaf2782
        round_merged 6685b4f6"#]]
    .assert_eq(&hashes.join("\n"));
}
