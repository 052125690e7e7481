//! What the passing of time decides: when rounds open, close, are extended and end.

use std::cmp::Reverse;

use crate::{
    Hash,
    event::{Event, RefusalReason},
    state::{
        Round, SlotProgress, State, Worker,
        round::{LATE_ROUNDS_MAX, Reveal},
    },
    units::WorkerId,
};

/// Who missed so many slots in a row counts no longer as one who brings work; more make no difference.
const MISSED_MAX: u64 = 3;
/// Rounds of a warm start that go to the fastest by their own claim.
const TRIAL_ROUNDS: u64 = 3;
/// A claim to be so many times as fast as the machines there usually claim is not believed.
const CLAIM_ABSURD: u64 = 256;

/// What follows from the time and from who is there.
pub(super) fn decide(state: &State, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    if state.finished {
        return vec![];
    }
    debug_assert!(present.is_sorted(), "they are looked up by halves");
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
        let events = close(state, round, present, now_ms);
        if !events.is_empty() {
            return events;
        }
        return add_slots(state, round, present, now_ms);
    }
    if state.tokens >= state.charter.inner.tokens_max && state.revealing.is_none() {
        return vec![Event::RunFinished { round: state.round }];
    }
    vec![]
}

fn is_among(present: &[WorkerId], worker: &WorkerId) -> bool {
    present.binary_search(worker).is_ok()
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
    // Before all of them are drawn, for nothing.
    if present.len() < state.charter.round.quorum as usize {
        return vec![];
    }
    let seed = state.ahead[0];
    let assignments = if is_warm_start {
        warm_start_order(state, present)
            .into_iter()
            .take(1)
            .collect()
    } else {
        draw(
            state,
            &seed,
            present.iter().copied(),
            state.charter.round.assigned_max(),
        )
    };
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

/// Who has a slot if there are more machines than slots. The seed draws, so that nobody is left out for good; who left its
/// last slots empty comes after the others, so that machines which are there and do nothing crowd nobody out. The quarter of
/// the slots that is more than there are places is drawn from everyone: that is the way back.
fn draw(
    state: &State,
    seed: &Hash,
    candidates: impl Iterator<Item = WorkerId>,
    slots: u32,
) -> Vec<WorkerId> {
    let mut drawn: Vec<(Hash, WorkerId)> = candidates
        .filter(|it| state.workers.get(it).is_some_and(|it| it.joined))
        .map(|it| {
            let message = [seed.0.as_slice(), it.0.0.as_slice()].concat();
            (Hash::in_domain("AI@home 2026 slot order v1", &message), it)
        })
        .collect();
    drawn.sort_unstable();
    if drawn.len() > slots as usize {
        let missed = |worker: &WorkerId| {
            let record = state.workers.get(worker);
            record.map_or(0, |it| it.missed_in_a_row.min(MISSED_MAX))
        };
        let open_to_all = slots as usize / 5;
        let places = slots as usize - open_to_all;
        // Stable: among those who missed as much, the draw decides.
        drawn.sort_by_key(|(_, worker)| missed(worker));
        drawn[places..].sort_unstable();
        drawn.truncate(slots as usize);
        drawn.sort_unstable();
    }
    drawn.into_iter().map(|(_, worker)| worker).collect()
}

/// Who trains alone in the warm start, best first.
///
/// Whoever has brought work keeps it as long as it does: speed is only a claim, and a claim takes it from nobody. The first
/// rounds try those out who claim to be the fastest; after them, and while nobody has brought anything, every other round
/// goes to whoever has been there longest, so that however many come and promise, an honest machine has its turn.
fn warm_start_order(state: &State, present: &[WorkerId]) -> Vec<WorkerId> {
    let joined = present.iter().filter_map(|worker| {
        let record = state.workers.get(worker).filter(|it| it.joined)?;
        Some((*worker, record))
    });
    let joined: Vec<(WorkerId, &Worker)> = joined.collect();
    let mut claims: Vec<u64> = joined
        .iter()
        .map(|it| it.1.device.tokens_per_s.into())
        .collect();
    claims.sort_unstable();
    let usual = claims
        .get(claims.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0);
    let number = state.round + 1;
    let rank = |record: &Worker| {
        let is_tried = record.updates_accepted > 0 && record.missed_in_a_row < MISSED_MAX;
        let claim = u64::from(record.device.tokens_per_s);
        let is_absurd = claim / CLAIM_ABSURD > usual;
        if number <= TRIAL_ROUNDS {
            let order = (record.missed_in_a_row, is_absurd, Reverse(claim));
            return (false, order, Reverse(0), 0);
        }
        let speed = match (is_tried, number.is_multiple_of(2)) {
            (true, _) => record.tokens_last,
            (false, true) => claim,
            (false, false) => 0,
        };
        let order = (
            record.missed_in_a_row,
            is_absurd && !is_tried,
            Reverse(speed),
        );
        let tie = if is_tried { claim } else { 0 };
        (!is_tried, order, Reverse(tie), record.joined_at)
    };
    let mut order = joined;
    order.sort_by_key(|(worker, record)| (rank(record), *worker));
    order.into_iter().map(|(worker, _)| worker).collect()
}

/// A worker that arrives within the first half of a window still has a use; in the warm start only if who has the slot is
/// gone, and then until the deadline.
fn add_slots(state: &State, round: &Round, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    let is_joined = |it: &WorkerId| state.workers.get(it).is_some_and(|it| it.joined);
    let added = if round.is_warm_start {
        let is_there = |it: &WorkerId| is_among(present, it) && is_joined(it);
        let is_held = round.committed() > 0 || round.slots().iter().any(|it| is_there(&it.worker));
        if is_held || !round.takes_another_holder() || now_ms > round.deadline_ms {
            return vec![];
        }
        warm_start_order(state, &round.without_slot(present))
            .into_iter()
            .take(1)
            .collect()
    } else {
        if now_ms > round.opened_ms + state.charter.round.window_ms / 2 {
            return vec![];
        }
        let given = round.undecided() + round.committed();
        let free = state.charter.round.assigned_max().saturating_sub(given);
        if free == 0 {
            return vec![];
        }
        let without = round.without_slot(present);
        draw(state, &round.seed, without.into_iter(), free)
    };
    (round.slots().len() as u32..)
        .zip(added)
        .map(|(slot, worker)| Event::SlotAdded {
            round: round.round,
            slot,
            worker,
        })
        .collect()
}

/// Closes a round when everyone who is there has committed or its time is up; not before the round before it is merged.
fn close(state: &State, round: &Round, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    if state.revealing.is_some() {
        return vec![];
    }
    let is_time_up = now_ms > round.closes_ms(&state.charter, state.merge_ms);
    let is_waiting = round.undecided() > 0
        && round
            .slots()
            .iter()
            .any(|it| it.progress == SlotProgress::Assigned && is_among(present, &it.worker));
    // Below the quorum, whoever is away may come back until the deadline: a hub that was just started knows nobody.
    let is_below_quorum = round.is_below_quorum(&state.charter);
    let may_come_back = is_below_quorum && now_ms <= round.deadline_ms;
    // Where all that came was refused already, the round's time is for others.
    let is_in_time = now_ms < round.deadline_ms;
    let has_all = round.committed() > 0
        && !is_waiting
        && !may_come_back
        && (round.has_commitments() || !is_in_time);
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
