//! Results that are here and can't be taken yet: who sent them and what was counted of them, why they wait, and when they
//! are tried again. In memory only: after a restart each is tried at once, and no address is counted for it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::http::Asker;

/// First and longest pause before a result is tried again; it doubles, so that nothing waits twice as long as it must.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Results that are remembered; what is known of one more is its name in the database.
const REMEMBERED_MAX: usize = 1 << 16;

/// What is known of results that wait.
#[derive(Default)]
pub(in crate::boinc) struct Waiting(Mutex<HashMap<String, Tries>>);

/// The tries of one result.
#[derive(Debug, Default)]
pub(in crate::boinc) struct Tries {
    pub(super) asker: Asker,
    /// Whether its files are those that it names: nobody writes a result that is whole.
    pub(super) are_files_checked: bool,
    /// Why the last one was in vain.
    why: String,
    count: u32,
    again: Option<Instant>,
}

impl Waiting {
    /// Takes over what is known of a result, for the next try.
    pub(in crate::boinc) fn take(&self, unit: &str) -> Tries {
        self.lock().remove(unit).unwrap_or_default()
    }

    /// Notes that a try was in vain, and gives the time of the next one.
    pub(super) fn postpone(&self, unit: &str, mut tries: Tries, why: String) -> Instant {
        let pause = PAUSE.0.saturating_mul(1 << tries.count.min(16));
        let again = Instant::now() + pause.min(PAUSE.1);
        tries.count = tries.count.saturating_add(1);
        (tries.again, tries.why) = (Some(again), why);
        let mut waiting = self.lock();
        if waiting.len() < REMEMBERED_MAX {
            waiting.insert(unit.to_owned(), tries);
        }
        again
    }

    /// When a result is tried again; `None` for now.
    pub(super) fn again(&self, unit: &str) -> Option<Instant> {
        let again = self.lock().get(unit)?.again;
        again.filter(|it| *it > Instant::now())
    }

    /// Why a result waits, if one of its tries was in vain.
    pub(in crate::boinc) fn why(&self, unit: &str) -> Option<String> {
        self.lock().get(unit).map(|it| it.why.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Tries>> {
        // Each change is one insertion or removal: the map is right after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pauses_double_up_to_a_minute() {
        let waiting = Waiting::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let again = waiting.postpone("a", waiting.take("a"), "it must".into());
            assert_eq!(waiting.again("a"), Some(again));
            assert_eq!(waiting.why("a").as_deref(), Some("it must"));
            pauses.push((again - Instant::now()).as_millis());
            tokio::time::advance(again - Instant::now()).await;
            assert_eq!(waiting.again("a"), None);
        }
        assert_eq!(
            pauses,
            [
                500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000
            ]
        );
        waiting.take("a");
        assert_eq!((waiting.again("a"), waiting.why("a")), (None, None));
    }
}
