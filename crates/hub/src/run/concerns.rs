//! Which entries are news for a worker that waits for work: a poll that is answered for commitments and others' verdicts
//! costs both sides bytes and tells nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use protocol::{event::Event, units::WorkerId};
use tokio::sync::Notify;

/// For everyone, and for each worker: the length of the log right after the newest entry that concerns it, and who waits
/// for a newer one.
pub(crate) struct Concerns {
    inner: Mutex<Inner>,
}

struct Inner {
    everyone: u64,
    of_worker: HashMap<WorkerId, u64>,
    /// In an order that does not depend on chance: they are woken in it.
    waiting: BTreeMap<WorkerId, Arc<Notify>>,
}

impl Concerns {
    /// Whatever is in the log already concerns everyone: nothing is known of who was told what.
    pub(crate) fn new(length: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                everyone: length,
                of_worker: HashMap::new(),
                waiting: BTreeMap::new(),
            }),
        }
    }

    /// Takes note of an entry at position `index` and wakes whom it concerns. What it says of itself is enough; if in doubt
    /// it concerns everyone.
    pub(crate) fn note(&self, index: u64, event: &Event) {
        let mut inner = self.lock();
        let length = index + 1;
        match event {
            // A join and a leave are their worker's.
            Event::WorkerJoined { command } | Event::WorkerLeft { command } => {
                inner.concerns(command.worker, length);
            }
            // So is a slot, and what becomes of an update that is not merged as it was committed.
            Event::SlotAdded { worker, .. }
            | Event::UpdateRefused { worker, .. }
            | Event::UpdateDeferred { worker, .. } => inner.concerns(*worker, length),
            // These change nothing that a worker is to do: who committed has the log's length from the answer, and the merge
            // and the next opening follow them.
            Event::UpdateCommitted { .. }
            | Event::UpdateAccepted { .. }
            | Event::ModelEvaluated { .. }
            | Event::SampleDrawn { .. }
            | Event::IdentityBound { .. }
            | Event::CheckpointPublished { .. } => {}
            _ => inner.concerns_everyone(length),
        }
    }

    /// Takes note that everyone is concerned by what the first `length` entries may have been.
    pub(crate) fn note_all(&self, length: u64) {
        self.lock().concerns_everyone(length);
    }

    /// Whether a worker that knows the first `length` entries has news.
    pub(crate) fn has_news(&self, worker: &WorkerId, length: u64) -> bool {
        let inner = self.lock();
        length < inner.everyone || inner.of_worker.get(worker).is_some_and(|it| length < *it)
    }

    /// Waits until a worker that knows the first `length` entries has news. Nobody else's news wake it.
    pub(crate) async fn news_for(&self, worker: WorkerId, length: u64) {
        let waiting = Waiting::begin(self, worker);
        loop {
            // Whoever is woken after this line is not missed.
            let woken = waiting.notify.notified();
            if self.has_news(&worker, length) {
                return;
            }
            woken.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Numbers and names are right after any panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn concerns_everyone(&mut self, length: u64) {
        self.everyone = length;
        // Whoever was concerned by something older is so by this.
        self.of_worker.clear();
        for waiting in self.waiting.values() {
            waiting.notify_waiters();
        }
    }

    fn concerns(&mut self, worker: WorkerId, length: u64) {
        self.of_worker.insert(worker, length);
        if let Some(waiting) = self.waiting.get(&worker) {
            waiting.notify_waiters();
        }
    }
}

/// One wait of a worker, which may have several.
struct Waiting<'a> {
    concerns: &'a Concerns,
    worker: WorkerId,
    notify: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn begin(concerns: &'a Concerns, worker: WorkerId) -> Self {
        let notify = Arc::clone(concerns.lock().waiting.entry(worker).or_default());
        Self {
            concerns,
            worker,
            notify,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.concerns.lock();
        // The map's and this one: nobody else waits for the worker, and nobody begins to under the lock.
        if Arc::strong_count(&self.notify) == 2 {
            inner.waiting.remove(&self.worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::{SecretKey, command::Command, command::SignedCommand, units::RunId};

    use super::*;

    #[test]
    fn leaving_concerns_its_worker_and_merges_everyone() {
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

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_by_its_own_news() {
        let (mine, other) = (
            WorkerId(SecretKey::from_entropy([1; 32]).public()),
            WorkerId(SecretKey::from_entropy([2; 32]).public()),
        );
        let slot = |worker| Event::SlotAdded {
            round: 1,
            slot: 0,
            worker,
        };
        let concerns = Concerns::new(5);
        let second = std::time::Duration::from_secs(1);
        let mut waiting = std::pin::pin!(concerns.news_for(mine, 5));
        assert!(tokio::time::timeout(second, &mut waiting).await.is_err());
        concerns.note(5, &slot(other));
        assert!(tokio::time::timeout(second, &mut waiting).await.is_err());
        concerns.note(6, &slot(mine));
        tokio::time::timeout(second, &mut waiting).await.unwrap();
        // What has happened is not waited for, and who has gone is forgotten.
        let known = concerns.news_for(mine, 6);
        tokio::time::timeout(second, known).await.unwrap();
        drop(concerns.news_for(other, 9));
        assert!(concerns.lock().waiting.len() <= 1);
    }
}
