//! How many workers a run has and what all of them earned, counted once a second and not once a question.

use std::sync::{Mutex, PoisonError};

use protocol::{state::State, units::WorkerId};

use super::presence::Presence;

/// How long a count of the workers is good for: each worker that starts asks for its run's summary.
const CENSUS_MS: u64 = 1_000;

/// The newest count of a run's workers.
#[derive(Debug, Default)]
pub(crate) struct Census(Mutex<Option<Counted>>);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    at_ms: u64,
    /// Credit comes with merges.
    rounds_merged: u64,
    pub(crate) workers_present: u64,
    pub(crate) credits_micro: u64,
}

impl Census {
    /// The count, at most [`CENSUS_MS`] old and never older than the newest merge.
    pub(crate) fn counted(&self, presence: &Presence, state: &State, now_ms: u64) -> Counted {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |it: &Counted| {
            it.rounds_merged == state.rounds_merged && now_ms.abs_diff(it.at_ms) < CENSUS_MS
        };
        if let Some(counted) = newest.filter(is_good) {
            return counted;
        }
        let present = presence.present(now_ms);
        let (workers_present, credits_micro) = walk(state, &present);
        *newest.insert(Counted {
            at_ms: now_ms,
            rounds_merged: state.rounds_merged,
            workers_present,
            credits_micro,
        })
    }
}

/// How many workers of these, in the order of their ids, have joined, and what all have earned: one walk through both.
fn walk(state: &State, present: &[WorkerId]) -> (u64, u64) {
    let mut present = present.iter().peekable();
    let (mut there, mut credits) = (0, 0);
    for (id, worker) in &state.workers {
        credits += worker.credits.0;
        while present.next_if(|it| *it < id).is_some() {}
        there += u64::from(present.next_if_eq(&id).is_some() && worker.joined);
    }
    (there, credits)
}
