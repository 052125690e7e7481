//! What the newest news make a worker do.

use protocol::{
    Hash,
    api::{WorkBlob, WorkDelta},
};

use super::*;
use crate::{
    machine::tests::{charter, sparse},
    plausible::Bounds,
    testing::work,
};

fn held(round: u64) -> Held {
    Held {
        round,
        parameters: Hash([round as u8; 32]),
    }
}

fn assignment(round: u64) -> WorkAssignment {
    WorkAssignment {
        round,
        slot: 0,
        seed: Hash([9; 32]).to_string(),
        slots: 1,
        tokens_before: 0,
        base_round: 2,
        base_hash: held(2).parameters.to_string(),
        deadline_ms: 10_000,
        committed: false,
        publish_inner_state: false,
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Work), model: Option<u64>, attempted: u64, expected: Next) {
    let mut work = work();
    change(&mut work);
    let is_done = |it: &WorkAssignment| is_same_work(it, &assignment(attempted));
    assert_eq!(next(&work, model.map(held), is_done), expected);
}

#[test]
fn the_run_decides_first_then_the_model_then_the_round() {
    check(|_| {}, Some(3), 3, Next::Wait);
    check(|it| it.finished = true, None, 0, Next::Finish);
    check(|it| it.worker.joined = false, None, 0, Next::Join);
    check(|_| {}, None, 0, Next::CatchUp);
    check(|_| {}, Some(2), 0, Next::CatchUp);
    let open = |it: &mut Work| it.assignment = Some(assignment(4));
    check(open, Some(1), 3, Next::CatchUp);
    // The merge that came since the round opened is taken up on the way.
    check(open, Some(2), 3, Next::Train(assignment(4)));
    check(open, Some(3), 3, Next::Train(assignment(4)));
}

#[test]
fn a_model_of_the_same_round_but_other_bits_is_another_model() {
    let other = |it: &mut Work| it.model.parameters_hash = Hash([77; 32]).to_string();
    check(other, Some(3), 3, Next::CatchUp);
}

#[test]
fn a_round_is_worked_on_once() {
    let open = |it: &mut Work| it.assignment = Some(assignment(4));
    check(open, Some(3), 4, Next::Wait);
    let committed = |it: &mut Work| {
        let mut assignment = assignment(4);
        assignment.committed = true;
        it.assignment = Some(assignment);
    };
    check(committed, Some(3), 3, Next::Wait);
}

#[test]
fn a_round_that_another_hub_opened_anew_is_worked_on_again() {
    let changes: [fn(&mut WorkAssignment); 4] = [
        |it| it.slot = 1,
        |it| it.seed = Hash([10; 32]).to_string(),
        |it| it.base_hash = held(3).parameters.to_string(),
        |it| it.deadline_ms += 500,
    ];
    for (change, is_other_work) in changes.into_iter().zip([true, true, true, false]) {
        let mut again = assignment(4);
        change(&mut again);
        let open = |it: &mut Work| it.assignment = Some(again.clone());
        let expected = if is_other_work {
            Next::Train(again.clone())
        } else {
            Next::Wait
        };
        check(open, Some(3), 4, expected);
        // A log that went back is followed: its round 4 comes after the other's round 5.
        check(open, Some(3), 5, Next::Train(again.clone()));
    }
}

#[track_caller]
fn check_plausible(change: impl FnOnce(&mut Work), complaint: Option<&str>) {
    let mut work = work();
    change(&mut work);
    let result = Bounds::of(&charter(sparse(), true)).check(&mut work);
    match (complaint, result) {
        (None, Ok(())) => {}
        (Some(complaint), Err(said)) if said.contains(complaint) => {}
        (expected, said) => panic!("{said:?} instead of {expected:?}"),
    }
}

#[test]
fn what_no_honest_hub_says_is_not_believed() {
    check_plausible(|_| {}, None);
    check_plausible(|it| it.assignment = Some(assignment(4)), None);
    check_plausible(
        |it| it.model.checkpoint_bytes = u64::MAX,
        Some("a checkpoint's size"),
    );
    check_plausible(
        |it| it.model.checkpoint_round = 4,
        Some("a checkpoint's round"),
    );
    let delta = |bytes| WorkDelta {
        round: 1,
        blob: Hash([1; 32]).to_string(),
        bytes,
        parameters_hash: Hash([2; 32]).to_string(),
    };
    check_plausible(|it| it.model.deltas = vec![delta(100)], None);
    check_plausible(
        |it| it.model.deltas = vec![delta(1 << 40)],
        Some("a delta's size"),
    );
    check_plausible(
        |it| it.model.deltas = vec![delta(1); 70_000],
        Some("the number of deltas"),
    );
    check_plausible(|it| it.worker.sequence = u64::MAX, Some("sequence number"));
    let late = |it: &mut Work| {
        let mut assignment = assignment(4);
        assignment.deadline_ms = u64::MAX;
        it.assignment = Some(assignment);
    };
    check_plausible(late, Some("the time to a deadline"));
    let crowded = |it: &mut Work| {
        let mut assignment = assignment(4);
        assignment.slots = u32::MAX;
        it.assignment = Some(assignment);
    };
    check_plausible(crowded, Some("the number of slots"));
    let start = |it: &mut Work| {
        it.inner_start = Some(WorkBlob {
            blob: Hash([1; 32]).to_string(),
            bytes: 1 << 50,
        });
    };
    check_plausible(start, Some("the optimiser's state"));
}

#[test]
fn a_refusal_does_not_steer_the_terminal() {
    let mut work = work();
    work.worker.last_refusal = Some("bad\u{1b}]0;owned\u{7}".into());
    Bounds::of(&charter(sparse(), true))
        .check(&mut work)
        .unwrap();
    assert_eq!(work.worker.last_refusal.as_deref(), Some("bad�]0;owned�"));
}
