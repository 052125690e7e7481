//! The hub's only clock: the system's, as long as that makes sense.
//!
//! Times in a log never decrease. A system clock that jumped into the future and back, or that is behind the log after a
//! restart, must not make the hub wait until it has caught up: time then goes on from the latest moment that was seen, as
//! fast as it passes. Deadlines are told to workers together with this clock, so a clock that is wrong harms nobody.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use network::world::Clock;
use tokio::time::Instant;

/// A system clock further behind the log than this is worth a word to the operator.
const BEHIND_MS: u64 = 5 * 60_000;

/// The hub's clock. Clones are the same clock.
#[derive(Clone, Debug)]
pub(crate) struct SteadyClock {
    system: Clock,
    begun: Instant,
    steady: Arc<Steady>,
}

impl SteadyClock {
    pub(crate) fn new(system: Clock) -> Self {
        Self {
            system,
            begun: Instant::now(),
            steady: Arc::default(),
        }
    }

    /// Unix milliseconds; never less than before.
    pub(crate) fn now_ms(&self) -> u64 {
        self.steady.now(self.system.now_ms(), self.passed_ms())
    }

    /// Tells the clock of a moment that a log has reached: time goes on from there.
    pub(crate) fn is_at_least(&self, moment_ms: u64) {
        let system = self.system.now_ms();
        if moment_ms > system.saturating_add(BEHIND_MS) {
            tracing::warn!(
                behind_s = (moment_ms - system) / 1000,
                "this machine's clock is behind the run's log: the log's time goes on from where it is"
            );
        }
        self.steady.now(moment_ms, self.passed_ms());
    }

    fn passed_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }
}

/// A clock that runs at least as fast as time passes and never goes back.
#[derive(Debug, Default)]
struct Steady {
    /// Its time when it was made, as far as is known: the latest moment seen, less what had passed by then.
    began_ms: AtomicU64,
}

impl Steady {
    /// The time, when the system says `system_ms` and `passed_ms` have passed since the clock was made.
    fn now(&self, system_ms: u64, passed_ms: u64) -> u64 {
        let began = system_ms.saturating_sub(passed_ms);
        let latest = self.began_ms.fetch_max(began, Ordering::Relaxed).max(began);
        latest.saturating_add(passed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_whatever_the_system_says() {
        let clock = Steady::default();
        assert_eq!(clock.now(1_000_000, 0), 1_000_000);
        assert_eq!(clock.now(1_000_500, 500), 1_000_500);
        // An hour forward is believed, the way back is not; seconds go on passing.
        assert_eq!(clock.now(4_601_000, 1_000), 4_601_000);
        assert_eq!(clock.now(1_001_500, 1_500), 4_601_500);
        assert_eq!(clock.now(0, 61_500), 4_661_500);
        // Once the system is ahead again, it is followed.
        assert_eq!(clock.now(5_000_000, 70_000), 5_000_000);
        // Absurd clocks do not overflow.
        assert_eq!(clock.now(u64::MAX, 80_000), u64::MAX);
        assert_eq!(clock.now(0, 90_000), u64::MAX);
    }
}
