//! Rounds that overlap: late and unrevealed updates, closing, quorum, what is known ahead.

use super::*;
use crate::state::late::LateUpdates;

#[test]
fn what_is_not_revealed_in_time_goes_on_to_the_next_rounds() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    hub.commit(2, 1).unwrap();
    assert_eq!(hub.clock(&[1, 2]), ["commitments_closed"]);
    assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
    hub.judge(1, Ok(())).unwrap();
    assert!(
        round_to_merge(&hub.state).is_none(),
        "worker 2's bytes are waited for"
    );
    hub.now_ms += hub.state.charter.round.reveal_ms;
    assert_eq!(hub.clock(&[1, 2]), ["update_deferred"]);
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    // They come while round 2 trains, and count there with the weight of one round late.
    assert_eq!(hub.judge(2, Ok(())), Ok(vec!["update_accepted"]));
    hub.now_ms += 100;
    hub.commit(1, 1).unwrap();
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
    hub.judge(1, Ok(())).unwrap();
    let updates = round_to_merge(&hub.state)
        .unwrap()
        .merged_updates(&hub.state.charter);
    let weights: Vec<_> = updates.iter().map(|it| (it.of_round, it.weight)).collect();
    assert_eq!(weights, [(2, 128), (1, (128 * 39_750) >> 16)]);
    hub.merge().unwrap();
    let record = &hub.state.workers[&worker(2)];
    assert_eq!(record.tokens, 128);
    assert_eq!(
        (record.last_of_round(), record.last_round),
        (Some(1), Some(2))
    );
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn a_verdict_counts_while_the_round_that_gave_the_update_up_is_merged() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    hub.commit(2, 1).unwrap();
    hub.clock(&[1, 2]);
    hub.clock(&[1, 2]);
    hub.judge(1, Ok(())).unwrap();
    hub.now_ms += hub.state.charter.round.reveal_ms;
    assert_eq!(hub.clock(&[1, 2]), ["update_deferred"]);
    assert!(
        round_to_merge(&hub.state).is_some(),
        "the merge is computed"
    );
    assert_eq!(hub.judge(2, Ok(())), Ok(vec!["update_accepted"]));
    assert_eq!(hub.judge(2, Ok(())), Ok(vec![]), "once");
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    assert_eq!(hub.state.training.as_ref().unwrap().accepted(), 1);
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn who_never_reveals_is_given_up_after_three_rounds_and_holds_up_one() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    hub.commit(2, 1).unwrap();
    let mut last = vec![];
    for round in 1..=4 {
        hub.clock(&[1]);
        hub.clock(&[1]);
        hub.judge(1, Ok(())).unwrap();
        if round == 1 {
            hub.now_ms += hub.state.charter.round.reveal_ms;
        }
        last = hub.clock(&[1]);
        assert_eq!(hub.merge(), Ok(vec!["round_merged"]), "round {round}");
        hub.now_ms += 100;
        hub.commit(1, 1).unwrap();
    }
    assert_eq!(last, ["update_refused"]);
    let record = &hub.state.workers[&worker(2)];
    assert_eq!(
        (record.updates_refused, record.carried),
        (1, Some(Hash([52; 32])))
    );
    assert_eq!(hub.replayed(), hub.state);
}

/// Worker 2 commits to round 2 twice: what it was late with for round 1, and that round's own. Gives their hashes; round 2 has
/// its other commitment too, and is closed.
fn late_and_own(hub: &mut Driver) -> [Hash; 2] {
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    let late = hub.commitment(2, 2);
    hub.commit(1, 1).unwrap();
    hub.now_ms += 500;
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
    let commit = |it: &Commitment| Command::Commit(Box::new(it.clone()));
    let refusal = hub.command(2, commit(&late)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::BetweenRounds);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
    assert_eq!(hub.command(2, commit(&late)), Ok(vec!["update_committed"]));
    let refusal = hub.command(2, commit(&late)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotAssigned, "once");
    // In the same round it commits to that round's own slot; its time is not counted twice.
    let mut own = hub.commitment(2, 1);
    own.update = BlobReference::of(b"own");
    own.header.payload = Hash::of_blob(b"own");
    own.header.base = hub.state.model.parameters;
    own.header.base_round = 1;
    own.header.carried_before = late.header.carried_after;
    hub.now_ms += 500;
    assert_eq!(hub.command(2, commit(&own)), Ok(vec!["update_committed"]));
    hub.commit(1, 1).unwrap();
    assert_eq!(hub.clock(&[1, 2]), ["commitments_closed"]);
    [late.update.hash, own.update.hash]
}

fn is_accepted(hub: &mut Driver, update: Hash) {
    let verdict = Ok(());
    let judged = hub.ask(&Request::Judged { update, verdict });
    assert_eq!(judged, Ok(vec!["update_accepted"]));
}

#[test]
fn a_late_commitment_is_taken_up_by_the_open_round() {
    let mut hub = Driver::new(|_| {});
    for update in late_and_own(&mut hub) {
        is_accepted(&mut hub, update);
    }
    hub.judge(1, Ok(())).unwrap();
    let updates = round_to_merge(&hub.state)
        .unwrap()
        .merged_updates(&hub.state.charter);
    assert_eq!(updates.len(), 3);
    assert_eq!(updates.iter().filter(|it| it.of_round == 1).count(), 1);
    hub.merge().unwrap();
    // Its own of this round counts, though the late one is merged behind it.
    assert_eq!(hub.state.workers[&worker(2)].last_of_round(), Some(2));
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn what_is_merged_after_a_newer_update_does_not_hide_that() {
    let mut hub = Driver::new(|_| {});
    let [late, own] = late_and_own(&mut hub);
    is_accepted(&mut hub, own);
    hub.judge(1, Ok(())).unwrap();
    assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
    hub.now_ms += hub.state.charter.round.reveal_ms;
    assert_eq!(hub.clock(&[1, 2]), ["update_deferred"]);
    hub.merge().unwrap();
    is_accepted(&mut hub, late);
    hub.commit(1, 1).unwrap();
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    let record = &hub.state.workers[&worker(2)];
    let rounds = (record.last_of_round(), record.last_round);
    assert_eq!(rounds, (Some(2), Some(3)));
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn what_was_seen_is_not_committed_to_under_another_name() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    // Worker 2 leaves its slot, sees worker 1's update when the round is closed, and seals its payload under its own name.
    let mut copied = hub.commitment(2, 1);
    hub.commit(1, 1).unwrap();
    let seen = hub.state.training.as_ref().unwrap().slots();
    let seen = seen.iter().find_map(Slot::commitment).unwrap().clone();
    copied.header.payload = seen.header.payload;
    hub.clock(&[1]);
    for round in 1..=4 {
        hub.clock(&[1]);
        hub.judge(1, Ok(())).unwrap();
        hub.merge().unwrap();
        hub.clock(&[1]);
        let commit = |it: &Commitment| Command::Commit(Box::new(it.clone()));
        let refusal = hub.command(2, commit(&copied)).unwrap_err();
        let expected = match round {
            // Late in round 2, 3 and 4; then too late.
            1..=3 => RefusalCode::Copied,
            _ => RefusalCode::Late,
        };
        assert_eq!(refusal.code, expected, "{refusal}");
        // Nor does its own maker bring it twice.
        let mut again = hub.commitment(1, 1);
        again.header.payload = seen.header.payload;
        again.header.base = hub.state.model.parameters;
        let refusal = hub.command(1, commit(&again)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Copied, "{refusal}");
        hub.now_ms += 100;
        hub.commit(1, 1).unwrap();
        hub.clock(&[1]);
    }
}

#[test]
fn a_late_update_is_compared_with_those_of_others_that_were_public_before() {
    let mut hub = Driver::new(|_| {});
    let all = [1, 2, 3, 4];
    for number in all {
        hub.join(number);
    }
    hub.clock(&all);
    let late = hub.commitment(2, 1);
    hub.commit(1, 1).unwrap();
    hub.commit(3, 1).unwrap();
    hub.commit(4, 1).unwrap();
    // Worker 4's bytes do not come in time, worker 2 commits in round 2.
    assert_eq!(hub.clock(&[1, 3, 4]), ["commitments_closed"]);
    assert_eq!(hub.clock(&all), ["round_opened"]);
    hub.judge(1, Ok(())).unwrap();
    hub.judge(3, Ok(())).unwrap();
    hub.now_ms += hub.state.charter.round.reveal_ms;
    assert_eq!(hub.clock(&all), ["update_deferred"]);
    let revealing = hub.state.revealing.as_ref().unwrap();
    assert_eq!(hub.state.late_updates(revealing), LateUpdates::default());
    hub.merge().unwrap();
    hub.command(2, Command::Commit(Box::new(late))).unwrap();
    hub.commit(1, 1).unwrap();
    for number in [4, 2, 1] {
        hub.judge(number, Ok(())).unwrap();
    }
    let training = hub.state.training.as_ref().unwrap();
    let updates = hub.state.late_updates(training);
    let [(slot, late)] = &updates.late[..] else {
        panic!("one update is late: what was given up came in time");
    };
    assert_eq!(training.slots()[*slot as usize].worker, worker(2));
    let earlier = updates.shown.iter().filter(|it| late.may_be_copy_of(it));
    let mut makers: Vec<WorkerId> = earlier.map(|it| it.worker).collect();
    let mut expected = [1, 3, 4].map(worker);
    makers.sort_unstable();
    expected.sort_unstable();
    assert_eq!(
        makers, expected,
        "not the one of worker 1 that is still private"
    );
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn four_rounds_late_is_too_late() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    let late = hub.commitment(2, 1);
    for round in 1..=5 {
        hub.commit(1, 1).unwrap();
        hub.clock(&[1]);
        hub.clock(&[1]);
        hub.judge(1, Ok(())).unwrap();
        hub.merge().unwrap();
        hub.now_ms += 100;
        let open = hub.state.training.as_ref().map(|it| it.round);
        assert_eq!(open, Some(round + 1));
        if round == 4 {
            let refusal = hub
                .command(2, Command::Commit(Box::new(late.clone())))
                .unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Late);
        }
    }
}

#[test]
fn an_update_may_start_from_the_merge_that_came_during_its_window() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    hub.now_ms += 500;
    let commit = |it: &Commitment| Command::Commit(Box::new(it.clone()));
    let mut commitment = hub.commitment(1, 3);
    commitment.header.head_start_steps = 1;
    let refusal = hub.command(1, commit(&commitment)).unwrap_err();
    assert_eq!(
        refusal.code,
        RefusalCode::WrongBase,
        "no newer base, no head start"
    );
    commitment.header.base_round = 1;
    let refusal = hub.command(1, commit(&commitment)).unwrap_err();
    assert_eq!(
        refusal.code,
        RefusalCode::WrongBase,
        "not that model's hash"
    );
    commitment.header.base = hub.state.model.parameters;
    assert_eq!(
        hub.command(1, commit(&commitment)),
        Ok(vec!["update_committed"])
    );
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn two_rounds_are_known_ahead() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    let mut known = Vec::new();
    for _ in 0..4 {
        let ahead = hub.state.ahead;
        hub.clock(&[1]);
        let seed = hub.state.training.as_ref().unwrap().seed;
        assert_eq!(seed, ahead[0]);
        assert_eq!(hub.state.ahead[0], ahead[1]);
        assert!(!known.contains(&seed));
        known.push(seed);
        hub.commit(1, 1).unwrap();
        hub.clock(&[1]);
        hub.judge(1, Ok(())).unwrap();
        hub.merge().unwrap();
        hub.now_ms += 100;
    }
}

#[test]
fn below_the_quorum_a_round_is_extended_once_and_then_merged_with_a_smaller_step() {
    let mut hub = Driver::new(|it| it.round.quorum = 4);
    let all = [1, 2, 3, 4];
    for number in all {
        hub.join(number);
    }
    assert_eq!(
        hub.clock(&[1, 2, 3]),
        Vec::<&str>::new(),
        "too few to begin"
    );
    hub.clock(&all);
    let (opened, window) = (hub.now_ms, hub.state.charter.round.window_ms);
    hub.commit(1, 1).unwrap();
    hub.now_ms = opened + window + 1;
    assert_eq!(hub.clock(&all), ["round_extended"]);
    hub.now_ms = opened + window + window / 2;
    assert_eq!(hub.clock(&all), Vec::<&str>::new());
    hub.now_ms += 1;
    assert_eq!(hub.clock(&all), ["commitments_closed"]);
    hub.judge(1, Ok(())).unwrap();
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    let Some(Event::RoundMerged { rate_q16, .. }) = hub.log.last().map(|it| &it.event) else {
        panic!("the last entry is the merge");
    };
    assert_eq!(
        *rate_q16,
        hub.state.charter.outer.rate_q16 / 2,
        "the root of a quarter"
    );
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn below_the_quorum_nothing_closes_before_its_deadline() {
    let mut hub = Driver::new(|it| it.round.quorum = 4);
    let all = [1, 2, 3, 4];
    for number in all {
        hub.join(number);
    }
    hub.clock(&all);
    let (opened, window) = (hub.now_ms, hub.state.charter.round.window_ms);
    hub.now_ms += 10;
    hub.commit(1, 1).unwrap();
    // The hub was restarted, and nobody has called again yet; then only worker 1 has.
    assert_eq!(hub.clock(&[]), Vec::<&str>::new());
    assert_eq!(hub.clock(&[1]), Vec::<&str>::new());
    hub.now_ms = opened + window;
    assert_eq!(hub.clock(&[1]), Vec::<&str>::new());
    assert_eq!(
        super::super::decide::next_moment_ms(&hub.state),
        Some(opened + window + 1)
    );
    // Nobody else is there who could use an extension.
    hub.now_ms += 1;
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
    // With the quorum, who is away is not waited for.
    let mut hub = Driver::new(|it| it.round.quorum = 2);
    for number in all {
        hub.join(number);
    }
    hub.clock(&all);
    hub.commit(1, 1).unwrap();
    hub.commit(2, 1).unwrap();
    assert_eq!(hub.clock(&[1, 2]), ["commitments_closed"]);
}

/// A round of five machines of which the last two did most of the work before; two rounds taught that.
fn uneven() -> Driver {
    let all = [1, 2, 3, 4, 5];
    let mut hub = Driver::new(|_| {});
    for number in all {
        hub.join(number);
    }
    hub.clock(&all);
    for _ in 0..2 {
        hub.now_ms += 900;
        for number in all {
            hub.commit(number, if number < 4 { 1 } else { 10 }).unwrap();
        }
        hub.clock(&all);
        hub.clock(&all);
        for number in all {
            hub.judge(number, Ok(())).unwrap();
        }
        hub.now_ms += 40;
        hub.merge().unwrap();
    }
    assert_eq!(hub.state.merge_ms, 40);
    hub
}

#[test]
fn less_than_thirty_percent_of_the_expected_tokens_is_below_the_quorum() {
    let mut hub = uneven();
    let opened = hub.state.training.as_ref().unwrap().opened_ms;
    let window = hub.state.charter.round.window_ms;
    hub.now_ms = opened + 900;
    // Three of five machines, and 3 of 23 steps.
    for number in [1, 2, 3] {
        hub.commit(number, 1).unwrap();
    }
    assert_eq!(
        hub.clock(&[1, 2, 3]),
        Vec::<&str>::new(),
        "two may come back"
    );
    hub.now_ms = opened + window * 3 / 2 + 1;
    assert_eq!(hub.clock(&[1, 2, 3, 4, 5]), ["round_extended"]);
    // One of those that did most of the work makes 13 of 23.
    hub.commit(4, 10).unwrap();
    assert!(
        !hub.state
            .training
            .as_ref()
            .unwrap()
            .is_below_quorum(&hub.state.charter)
    );
    hub.now_ms = opened + window * 2;
    assert_eq!(hub.clock(&[1, 2, 3, 4, 5]), Vec::<&str>::new());
    hub.now_ms += 1;
    assert_eq!(hub.clock(&[1, 2, 3, 4, 5]), ["commitments_closed"]);
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn what_is_ready_after_the_deadline_leaves_half_of_what_is_left_for_the_others() {
    let mut hub = uneven();
    let opened = hub.state.training.as_ref().unwrap().opened_ms;
    let window = hub.state.charter.round.window_ms;
    hub.now_ms = opened + 900;
    for number in [1, 2] {
        hub.commit(number, 1).unwrap();
    }
    hub.commit(4, 10).unwrap();
    // 12 of 23 steps at the deadline; 22 at 1,200 ms of a window of 1,000.
    hub.now_ms = opened + window + 1;
    assert_eq!(hub.clock(&[1, 2, 3, 4, 5]), Vec::<&str>::new());
    hub.now_ms = opened + 1_200;
    hub.commit(5, 10).unwrap();
    // Half of the 300 ms to the hard cap, less the 40 that merging took.
    let closes = opened + 1_200 + (300 - 40) / 2;
    let training = hub.state.training.as_ref().unwrap();
    let charter = &hub.state.charter;
    assert_eq!(training.closes_ms(charter, hub.state.merge_ms), closes);
    assert_eq!(
        training.closes_ms(charter, 1_000),
        opened + 1_200,
        "no time left"
    );
    hub.now_ms = closes;
    assert_eq!(hub.clock(&[1, 2, 3, 4, 5]), Vec::<&str>::new());
    hub.now_ms += 1;
    assert_eq!(hub.clock(&[1, 2, 3, 4, 5]), ["commitments_closed"]);
}

#[test]
fn lateness_costs_half_a_power_of_e_a_round() {
    use super::super::round::STALENESS_Q16;
    assert_eq!(STALENESS_Q16, [65_536, 39_750, 24_109, 14_623]);
    for (late, factor) in (0..).zip(STALENESS_Q16) {
        assert_eq!(
            factor,
            (65_536.0 * (-0.5 * f64::from(late)).exp()).round() as u64
        );
    }
    for (late, expected) in [(2, (128 * 24_109) >> 16), (3, (128 * 14_623) >> 16)] {
        let mut hub = Driver::new(|_| {});
        hub.join(1);
        hub.join(2);
        hub.clock(&[1, 2]);
        let commitment = hub.commitment(2, 1);
        for _ in 0..late {
            hub.commit(1, 1).unwrap();
            hub.clock(&[1]);
            hub.clock(&[1]);
            hub.judge(1, Ok(())).unwrap();
            hub.merge().unwrap();
            hub.now_ms += 100;
        }
        hub.command(2, Command::Commit(Box::new(commitment)))
            .unwrap();
        hub.commit(1, 1).unwrap();
        hub.judge(2, Ok(())).unwrap();
        hub.clock(&[1]);
        hub.judge(1, Ok(())).unwrap();
        let round = round_to_merge(&hub.state).unwrap();
        let merged = round.merged_updates(&hub.state.charter);
        let weights: Vec<u64> = merged.iter().map(|it| it.weight).collect();
        assert_eq!(weights, [128, expected], "{late} rounds late");
        hub.merge().unwrap();
        assert_eq!(hub.replayed(), hub.state);
    }
}

/// A round is open until its hard cap, or until the round before is merged if that takes longer: the time to reveal and to
/// merge. With a window of at least half a minute the charter keeps the time to reveal below the hard cap.
#[test]
fn no_round_is_open_longer_than_its_hard_cap_and_the_merge_before_it() {
    /// Time between two looks at the clock, and the longest that a merge takes.
    const LOOK_MS: u64 = 50;
    const MERGE_MS_MAX: u64 = 700;
    for seed in 0..18_u64 {
        let mut hub = Driver::new(|it| {
            it.round.quorum = 1 + (seed % 3) as u32;
            it.round.window_ms = 1_000;
            it.round.reveal_ms = [300, 1_000, 2_500][seed as usize / 3 % 3];
            it.round.warm_start_tokens = if it.round.quorum == 1 {
                seed / 9 * 100
            } else {
                0
            };
        });
        let all = [1, 2, 3, 4, 5, 6];
        for number in all {
            hub.join(number);
        }
        let mut draws = 0_u64;
        let mut draw = |below: u64| {
            draws += 1;
            let hash = Hash::of_blob(&[seed.to_le_bytes(), draws.to_le_bytes()].concat());
            u64::from_le_bytes(hash.0[..8].try_into().unwrap()) % below
        };
        let mut merge_after = None;
        for _ in 0..300 {
            hub.now_ms += LOOK_MS;
            let present: Vec<u8> = all.into_iter().filter(|_| draw(4) > 0).collect();
            for number in all {
                // Some never commit, some late in the window, some never show their bytes.
                let slot = hub
                    .state
                    .training
                    .as_ref()
                    .and_then(|it| it.slot_of(&worker(number)));
                let may = slot.is_some_and(|it| it.1.progress == SlotProgress::Assigned);
                if may && u64::from(number) + draw(100) > 97 {
                    let _ = hub.commit(number, 1);
                }
                if draw(10) == 0 && number != 2 {
                    let _ = hub.judge(number, Ok(()));
                }
            }
            if let Some(round) = &hub.state.training {
                let mut there: Vec<_> = present.iter().map(|it| worker(*it)).collect();
                there.sort_unstable();
                let mut without = there.clone();
                without.retain(|it| round.slot_of(it).is_none());
                assert_eq!(round.without_slot(&there), without);
            }
            let before = hub
                .state
                .training
                .as_ref()
                .map(|it| (it.round, it.opened_ms));
            let cap = hub
                .state
                .training
                .as_ref()
                .map(|it| it.hard_cap_ms(&hub.state.charter));
            for _ in 0..4 {
                hub.clock(&present);
            }
            if round_to_merge(&hub.state).is_some() {
                let due = *merge_after.get_or_insert(hub.now_ms + draw(MERGE_MS_MAX));
                if hub.now_ms >= due {
                    hub.merge().unwrap();
                    merge_after = None;
                    hub.clock(&present);
                }
            }
            let (Some((round, opened)), Some(cap)) = (before, cap) else {
                continue;
            };
            if hub
                .state
                .training
                .as_ref()
                .is_some_and(|it| it.round == round)
            {
                let rules = &hub.state.charter.round;
                let merged = opened + rules.reveal_ms + MERGE_MS_MAX + LOOK_MS;
                let bound = cap.max(merged) + 2 * LOOK_MS;
                // Extended in this look: judged by the new cap in the next.
                let bound = bound
                    + if hub
                        .log
                        .last()
                        .is_some_and(|it| it.event.name() == "round_extended")
                    {
                        rules.window_ms / 2
                    } else {
                        0
                    };
                assert!(
                    hub.now_ms <= bound,
                    "seed {seed}: round {round} is open {} ms",
                    hub.now_ms - opened
                );
            }
        }
        assert!(
            hub.state.round > 5,
            "seed {seed}: {} rounds",
            hub.state.round
        );
        assert_eq!(hub.replayed(), hub.state);
    }
}

#[test]
fn with_most_of_the_expected_tokens_the_deadline_closes_and_without_them_the_hard_cap() {
    for (committed, closes_at_percent) in [(5, 100), (4, 100), (3, 150)] {
        let all = [1, 2, 3, 4, 5];
        let mut hub = Driver::new(|_| {});
        for number in all {
            hub.join(number);
        }
        // Two rounds, the first merged when the third opens, teach what to expect of everyone.
        hub.clock(&all);
        for _ in 0..2 {
            hub.now_ms += 500;
            for number in all {
                hub.commit(number, 1).unwrap();
            }
            hub.clock(&all);
            hub.clock(&all);
            for number in all {
                hub.judge(number, Ok(())).unwrap();
            }
            hub.merge().unwrap();
        }
        let opened = hub.now_ms;
        hub.now_ms += 500;
        for number in &all[..committed] {
            hub.commit(*number, 1).unwrap();
        }
        let closing = opened + hub.state.charter.round.window_ms * closes_at_percent / 100;
        hub.now_ms = closing;
        let early = if committed == 5 {
            vec!["commitments_closed"]
        } else {
            vec![]
        };
        assert_eq!(hub.clock(&all), early, "{committed}");
        hub.now_ms += 1;
        if committed < 5 {
            assert_eq!(hub.clock(&all), ["commitments_closed"], "{committed}");
        }
    }
}

#[test]
fn a_round_that_nobody_judges_does_not_close_the_next_one() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.clock(&[1]);
    hub.commit(1, 1).unwrap();
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
    assert_eq!(hub.clock(&[1]), ["round_opened"]);
    hub.now_ms += 500;
    hub.commit(1, 1).unwrap();
    assert_eq!(hub.clock(&[1]), Vec::<&str>::new());
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    assert_eq!(hub.clock(&[1]), ["commitments_closed"]);
}

#[test]
fn a_quarter_more_slots_than_places_are_given() {
    let mut hub = Driver::new(|it| it.round.slots_max = 4);
    let all: Vec<u8> = (1..=8).collect();
    for number in &all {
        hub.join(*number);
    }
    hub.clock(&all);
    assert_eq!(hub.state.training.as_ref().unwrap().slots().len(), 5);
}

#[test]
fn who_is_not_waited_for_goes_on_to_the_next_round_and_is_trusted_again() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    // Worker 2 misses a round.
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    hub.merge().unwrap();
    hub.now_ms += 100;
    assert_eq!(hub.clock(&[1, 2]), ["slot_added"]);
    hub.commit(1, 1).unwrap();
    hub.commit(2, 1).unwrap();
    hub.judge(1, Ok(())).unwrap();
    // Its bytes are on the way at the close: the next round opens first and takes them up.
    assert_eq!(hub.clock(&[1, 2]), ["commitments_closed"]);
    assert_eq!(hub.clock(&[1, 2]), ["round_opened"]);
    assert_eq!(hub.clock(&[1, 2]), ["update_deferred"]);
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    assert_eq!(hub.judge(2, Ok(())), Ok(vec!["update_accepted"]));
    hub.now_ms += 100;
    hub.commit(1, 1).unwrap();
    hub.clock(&[1]);
    hub.clock(&[1]);
    hub.judge(1, Ok(())).unwrap();
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
    let record = &hub.state.workers[&worker(2)];
    assert_eq!((record.updates_refused, record.missed_in_a_row), (0, 0));
    assert_eq!(hub.replayed(), hub.state);
}

#[test]
fn without_a_next_round_the_bytes_have_all_their_time() {
    let mut hub = Driver::new(|_| {});
    hub.join(1);
    hub.join(2);
    hub.clock(&[1, 2]);
    hub.commit(1, 1).unwrap();
    hub.commit(2, 1).unwrap();
    hub.clock(&[1, 2]);
    hub.judge(1, Ok(())).unwrap();
    // Nobody is there for another round.
    assert_eq!(hub.clock(&[]), Vec::<&str>::new());
    assert_eq!(hub.judge(2, Ok(())), Ok(vec!["update_accepted"]));
    assert_eq!(hub.merge(), Ok(vec!["round_merged"]));
}
