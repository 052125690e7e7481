//! What the passing of time decides: when rounds open, close, are extended and end.

use std::collections::BTreeSet;

use crate::{
    Hash,
    event::{Event, RefusalReason},
    state::{
        Round, SlotProgress, State,
        round::{LATE_ROUNDS_MAX, Reveal},
    },
    units::WorkerId,
};

/// What follows from the time and from who is there.
pub(super) fn decide(state: &State, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    if state.finished {
        return vec![];
    }
    // The next round opens first: what is not revealed in time then has a place to go to.
    if state.training.is_none() {
        let events = open(state, present, now_ms);
        if !events.is_empty() {
            return events;
        }
    }
    if let Some((round, reveal)) = revealing(state) {
        let events = end_reveal(state, round, reveal, now_ms);
        if !events.is_empty() {
            return events;
        }
    }
    if let Some(round) = &state.training {
        let present: BTreeSet<WorkerId> = present.iter().copied().collect();
        let events = close(state, round, &present, now_ms);
        if !events.is_empty() {
            return events;
        }
        return add_slots(state, round, &present, now_ms);
    }
    if state.tokens >= state.charter.inner.tokens_max && state.revealing.is_none() {
        return vec![Event::RunFinished { round: state.round }];
    }
    vec![]
}

fn revealing(state: &State) -> Option<(&Round, Reveal)> {
    let round = state.revealing.as_ref()?;
    Some((round, round.reveal?))
}

/// The next moment at which time alone decides something, Unix milliseconds.
#[must_use]
pub fn next_moment_ms(state: &State) -> Option<u64> {
    let reveal = revealing(state)
        .filter(|(round, _)| round.unjudged() > 0)
        .map(|(_, reveal)| reveal.deadline_ms);
    let close = state
        .training
        .as_ref()
        .filter(|_| state.revealing.is_none())
        .map(|it| {
            let closes = it.closes_ms(&state.charter, state.merge_ms);
            let closes = match it.is_below_quorum(&state.charter) && it.committed() > 0 {
                true => closes.min(it.deadline_ms),
                false => closes,
            };
            closes.saturating_add(1)
        });
    reveal.into_iter().chain(close).min()
}

fn open(state: &State, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    let is_warm_start = state.is_warming_up();
    let is_enough = state.tokens_with_pending() >= state.charter.inner.tokens_max;
    if is_enough || is_warm_start && state.revealing.is_some() {
        return vec![];
    }
    let seed = state.ahead[0];
    let mut assignments: Vec<WorkerId> = present
        .iter()
        .copied()
        .filter(|it| state.workers.get(it).is_some_and(|it| it.joined))
        .collect();
    assignments.sort_unstable();
    assignments.dedup();
    if is_warm_start {
        // The fastest trains alone, unless it missed its last slots; of equally fast ones the first by key.
        let rank = |it: &WorkerId| {
            let record = state.workers.get(it);
            let missed = record.map_or(0, |it| it.missed_in_a_row);
            let speed = record.map_or(0, |it| it.device.tokens_per_s);
            (missed, std::cmp::Reverse(speed))
        };
        assignments.sort_by_key(|it| (rank(it), *it));
        assignments.truncate(1);
    }
    // More machines than slots: the seed draws who has one, so that nobody is left out for good.
    assignments.sort_by_cached_key(|it| {
        Hash::in_domain(
            "AI@home 2026 slot order v1",
            &[seed.0.as_slice(), it.0.0.as_slice()].concat(),
        )
    });
    assignments.truncate(state.charter.round.assigned_max() as usize);
    if assignments.is_empty() || assignments.len() < state.charter.round.quorum as usize {
        return vec![];
    }
    vec![Event::RoundOpened {
        round: state.round + 1,
        base: state.model,
        seed,
        tokens_before: state.tokens_with_pending(),
        deadline_ms: now_ms.max(state.head.time_ms) + state.charter.round.window_ms,
        assignments,
    }]
}

/// A worker that arrives within the first half of a window still has a use.
fn add_slots(
    state: &State,
    round: &Round,
    present: &BTreeSet<WorkerId>,
    now_ms: u64,
) -> Vec<Event> {
    let half = round.opened_ms + state.charter.round.window_ms / 2;
    if round.is_warm_start || now_ms > half {
        return vec![];
    }
    let given = round.undecided() + round.committed();
    let free = state.charter.round.assigned_max().saturating_sub(given);
    present
        .iter()
        .filter(|it| round.slot_of(it).is_none())
        .filter(|it| state.workers.get(it).is_some_and(|it| it.joined))
        .take(free as usize)
        .enumerate()
        .map(|(index, worker)| Event::SlotAdded {
            round: round.round,
            slot: (round.slots().len() + index) as u32,
            worker: *worker,
        })
        .collect()
}

/// Closes a round when everyone who is there has committed or its time is up; not before the round before it is merged.
fn close(state: &State, round: &Round, present: &BTreeSet<WorkerId>, now_ms: u64) -> Vec<Event> {
    if state.revealing.is_some() {
        return vec![];
    }
    let is_time_up = now_ms > round.closes_ms(&state.charter, state.merge_ms);
    let is_waiting = round.undecided() > 0
        && round
            .slots()
            .iter()
            .any(|it| it.progress == SlotProgress::Assigned && present.contains(&it.worker));
    // Below the quorum, whoever is away may come back until the deadline: a hub that was just started knows nobody.
    let is_below_quorum = round.is_below_quorum(&state.charter);
    let may_come_back = is_below_quorum && now_ms <= round.deadline_ms;
    let has_all = round.committed() > 0 && !is_waiting && !may_come_back;
    if !has_all && !is_time_up {
        return vec![];
    }
    if !round.has_commitments() {
        return vec![Event::RoundEmpty { round: round.round }];
    }
    if !has_all && !round.is_extended && is_below_quorum {
        return vec![Event::RoundExtended {
            round: round.round,
            deadline_ms: round
                .deadline_ms
                .saturating_add(state.charter.round.window_ms / 2),
        }];
    }
    vec![Event::CommitmentsClosed {
        round: round.round,
        reveal_deadline_ms: now_ms.max(state.head.time_ms) + state.charter.round.reveal_ms,
    }]
}

/// When everything that is waited for was judged, or the time for it is over, what did not come goes on to the next round,
/// or is refused when it is too late for that; with nothing to merge the round ends.
fn end_reveal(state: &State, round: &Round, reveal: Reveal, now_ms: u64) -> Vec<Event> {
    let is_over = now_ms >= reveal.deadline_ms;
    // Without a next round that could take it up, what is still to come has all its time.
    let is_ready = round.waiting() == 0 && round.accepted() > 0 && state.training.is_some();
    if !is_over && !is_ready && round.unjudged() > 0 {
        return vec![];
    }
    let mut events: Vec<Event> = round
        .slots()
        .iter()
        .enumerate()
        .filter(|(_, it)| matches!(it.progress, SlotProgress::Committed(_)))
        .map(|(slot, it)| leave_behind(state, round, slot as u32, it.of_round, it.worker))
        .collect();
    if round.accepted() == 0 {
        events.push(Event::RoundEmpty { round: round.round });
    }
    events
}

/// The event that takes an unrevealed commitment out of a round.
fn leave_behind(state: &State, round: &Round, slot: u32, of_round: u64, worker: WorkerId) -> Event {
    let can_go_on = state
        .training
        .as_ref()
        .is_some_and(|it| it.round - of_round <= LATE_ROUNDS_MAX);
    if can_go_on {
        Event::UpdateDeferred {
            round: round.round,
            slot,
            worker,
        }
    } else {
        Event::UpdateRefused {
            round: round.round,
            slot,
            worker,
            reason: RefusalReason::NotRevealed,
        }
    }
}
