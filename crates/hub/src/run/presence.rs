//! Who is there: the only thing a hub knows of a run that is not in the log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use protocol::units::WorkerId;

use super::peers::PeerBook;
use crate::clock::SteadyClock;

/// A worker that trains is silent for a window; after that and this long it counts as gone.
const SILENCE_MS: u64 = 5_000;

/// When each joined worker was last heard of, and what it was sent.
pub(crate) struct Presence {
    window_ms: u64,
    clock: SteadyClock,
    seen: Mutex<BTreeMap<WorkerId, Seen>>,
    /// Where they are reached by each other.
    pub(crate) peers: PeerBook,
}

/// What is remembered of a worker.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Unix milliseconds.
    pub(crate) last_ms: u64,
    /// Bytes sent since the hub started.
    pub(crate) bytes_down: u64,
    /// Polls that wait for an answer: an open connection is presence.
    waiting: u32,
}

impl Presence {
    pub(crate) fn new(window_ms: u64, clock: SteadyClock) -> Self {
        Self {
            window_ms,
            clock,
            seen: Mutex::default(),
            peers: PeerBook::default(),
        }
    }

    /// Notes that a worker waits for work until the guard is dropped, which also says whether it was away before. Callers
    /// pass joined workers only.
    pub(crate) fn wait(&self, worker: WorkerId, now_ms: u64) -> Waiting<'_> {
        let mut seen = self.lock();
        let before = seen.get(&worker).copied();
        let was_away = !before.is_some_and(|it| self.is_present(&it, now_ms));
        let entry = seen.entry(worker).or_default();
        entry.last_ms = now_ms;
        entry.waiting += 1;
        Waiting {
            presence: self,
            worker,
            was_away,
        }
    }

    /// Counts workers as there that this process, just started, can't have heard of yet: those that a round waits for.
    pub(crate) fn expect(&self, workers: impl IntoIterator<Item = WorkerId>, now_ms: u64) {
        let mut seen = self.lock();
        for worker in workers {
            let entry = seen.entry(worker).or_default();
            entry.last_ms = entry.last_ms.max(now_ms);
        }
    }

    /// Notes bytes on their way to a worker that is known here.
    pub(crate) fn sent(&self, worker: &WorkerId, bytes: u64) {
        if let Some(entry) = self.lock().get_mut(worker) {
            entry.bytes_down += bytes;
        }
    }

    /// What is remembered of a worker, and whether it counts as present.
    pub(crate) fn of(&self, worker: &WorkerId, now_ms: u64) -> Option<(Seen, bool)> {
        let seen = self.lock().get(worker).copied()?;
        Some((seen, self.is_present(&seen, now_ms)))
    }

    /// Everyone who counts as present, in ascending order: the state machine relies on it.
    pub(crate) fn present(&self, now_ms: u64) -> Vec<WorkerId> {
        self.lock()
            .iter()
            .filter(|(_, it)| self.is_present(it, now_ms))
            .map(|(worker, _)| *worker)
            .collect()
    }

    fn is_present(&self, seen: &Seen, now_ms: u64) -> bool {
        seen.waiting > 0 || now_ms.saturating_sub(seen.last_ms) <= self.window_ms + SILENCE_MS
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<WorkerId, Seen>> {
        // The map is consistent after any panic: each change is one assignment.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's open poll.
pub(crate) struct Waiting<'a> {
    presence: &'a Presence,
    worker: WorkerId,
    /// Whether nobody had heard of it lately.
    pub(crate) was_away: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let now_ms = self.presence.clock.now_ms();
        if let Some(entry) = self.presence.lock().get_mut(&self.worker) {
            entry.waiting -= 1;
            entry.last_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::SecretKey;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_expected_counts_as_there_for_a_window_and_the_usual_silence() {
        let presence = Presence::new(1_000, SteadyClock::new(network::world::Clock::default()));
        let worker = WorkerId(SecretKey::from_entropy([7; 32]).public());
        assert_eq!(presence.present(50_000), []);
        presence.expect([worker], 50_000);
        let until = 50_000 + 1_000 + SILENCE_MS;
        assert_eq!(presence.present(until), [worker]);
        assert_eq!(presence.present(until + 1), []);
        assert!(!presence.wait(worker, 51_000).was_away);
    }
}
