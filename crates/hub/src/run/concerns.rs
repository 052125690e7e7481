//! Which entries are news for a worker that waits for work: a poll that is answered for others' commitments and verdicts
//! costs both sides bytes and tells nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use protocol::{event::Event, units::WorkerId};

/// For everyone, and for each worker: the length of the log right after the newest entry that concerns it.
pub(crate) struct Concerns {
    newest: Mutex<(u64, HashMap<WorkerId, u64>)>,
}

impl Concerns {
    /// Whatever is in the log already concerns everyone: nothing is known of who was told what.
    pub(crate) fn new(length: u64) -> Self {
        Self {
            newest: Mutex::new((length, HashMap::new())),
        }
    }

    /// Takes note of an entry at position `index`. What it says of itself is enough; if in doubt it concerns everyone.
    pub(crate) fn note(&self, index: u64, event: &Event) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let length = index + 1;
        match event {
            // A join, a leave and a commitment are their worker's.
            Event::WorkerJoined { command }
            | Event::WorkerLeft { command }
            | Event::UpdateCommitted { command } => {
                newest.1.insert(command.worker, length);
            }
            Event::SlotAdded { worker, .. } => {
                newest.1.insert(*worker, length);
            }
            // These change nothing that a worker is to do: the merge and the next opening follow them.
            Event::UpdateAccepted { .. }
            | Event::ModelEvaluated { .. }
            | Event::SampleDrawn { .. }
            | Event::IdentityBound { .. }
            | Event::CheckpointPublished { .. } => {}
            _ => {
                newest.0 = length;
                // Whoever was concerned by something older is so by this.
                newest.1.clear();
            }
        }
    }

    /// Whether a worker that knows the first `length` entries has news.
    pub(crate) fn has_news(&self, worker: &WorkerId, length: u64) -> bool {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        length < newest.0 || newest.1.get(worker).is_some_and(|it| length < *it)
    }
}

#[cfg(test)]
mod tests {
    use protocol::{SecretKey, command::Command, command::SignedCommand, units::RunId};

    use super::*;

    #[test]
    fn commitments_concern_their_worker_and_merges_everyone() {
        let (mine, other) = (
            SecretKey::from_entropy([1; 32]),
            SecretKey::from_entropy([2; 32]),
        );
        let me = WorkerId(mine.public());
        let run = RunId::default();
        let left = |key: &SecretKey| Event::WorkerLeft {
            command: SignedCommand::sign(
                key,
                run,
                1,
                Command::Leave {
                    reason: String::new(),
                },
            ),
        };
        let concerns = Concerns::new(5);
        assert!(concerns.has_news(&me, 4));
        assert!(!concerns.has_news(&me, 5));
        concerns.note(5, &left(&other));
        assert!(!concerns.has_news(&me, 5));
        concerns.note(6, &left(&mine));
        assert!(concerns.has_news(&me, 6));
        assert!(!concerns.has_news(&me, 7));
        concerns.note(7, &Event::RoundEmpty { round: 1 });
        assert!(concerns.has_news(&me, 7));
        assert!(!concerns.has_news(&me, 8));
    }
}
