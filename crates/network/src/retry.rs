//! How long to wait before trying again: exponential, with jitter, bounded.
//!
//! Jitter keeps a thousand workers from returning to a restarted hub in the same millisecond.

use std::time::Duration;

use crate::world::unit_interval;

/// How often and how patiently a call is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Calls in all, the first included; at least 1.
    pub attempts: u32,
    /// Wait before the second attempt; doubled before each further one.
    pub first_wait: Duration,
    /// Longest wait.
    pub wait_max: Duration,
}

impl Default for RetryPolicy {
    /// Four attempts within about three seconds.
    fn default() -> Self {
        Self {
            attempts: 4,
            first_wait: Duration::from_millis(250),
            wait_max: Duration::from_secs(8),
        }
    }
}

impl RetryPolicy {
    /// One attempt.
    #[must_use]
    pub fn once() -> Self {
        Self {
            attempts: 1,
            ..Self::default()
        }
    }

    /// The wait after `failures` failures in a row (at least 1): between half of the doubled first wait and the whole of it.
    #[must_use]
    pub fn wait_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        let longest = self
            .first_wait
            .saturating_mul(1 << doublings)
            .min(self.wait_max);
        longest / 2 + (longest / 2).mul_f64(unit_interval())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let policy = RetryPolicy {
            attempts: 9,
            first_wait: Duration::from_millis(100),
            wait_max: Duration::from_millis(1_000),
        };
        for (failures, longest) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (4, 800),
            (5, 1_000),
            (90, 1_000),
        ] {
            for _ in 0..50 {
                let wait = policy.wait_after(failures).as_millis();
                assert!(
                    (longest / 2..=longest).contains(&wait),
                    "{failures}: {wait}"
                );
            }
        }
    }
}
