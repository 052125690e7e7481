//! How long before a round's deadline training must stop, learnt from how long encoding and committing took.

use std::time::Duration;

/// Share of what was measured that is kept free.
const SAFETY: f64 = 1.5;
/// How much of an old, longer measurement is forgotten by a new, shorter one.
const FORGET: f64 = 0.25;
/// The margin is at least this, or a tenth of the window if that is less.
const FLOOR: Duration = Duration::from_millis(300);
/// And at most this part of the window: the rest trains, whatever was measured.
const WINDOW_SHARE_MAX: f64 = 0.5;

/// Estimates the time from the last step to an accepted commitment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Margin {
    estimate: Duration,
    window: Duration,
}

impl Margin {
    /// Starts from a first measurement; `window` is the charter's.
    pub(crate) fn new(first: Duration, window: Duration) -> Self {
        Self {
            estimate: first,
            window,
        }
    }

    /// Notes what encoding and committing took: longer counts at once, shorter by and by.
    pub(crate) fn observe(&mut self, took: Duration) {
        self.estimate = if took >= self.estimate {
            took
        } else {
            self.estimate - (self.estimate - took).mul_f64(FORGET)
        };
    }

    /// Time before the deadline at which the last step must be done.
    pub(crate) fn get(&self) -> Duration {
        let floor = FLOOR.min(self.window / 10);
        let cap = self.window.mul_f64(WINDOW_SHARE_MAX);
        self.estimate.mul_f64(SAFETY).max(floor).min(cap)
    }
}

/// Whether another step fits: not beyond `steps_max`, always up to `steps_min` (a late update counts, one of too few steps
/// does not), else only if it ends before `margin` begins. `left` is the time to the deadline, `step` what a step takes.
pub(crate) fn fits_another_step(
    done: u32,
    (steps_min, steps_max): (u32, u32),
    left: Duration,
    margin: Duration,
    step: Duration,
) -> bool {
    done < steps_min || done < steps_max && step + margin <= left
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn rises_at_once_and_falls_slowly() {
        let mut margin = Margin::new(ms(400), ms(60_000));
        assert_eq!(margin.get(), ms(600));
        margin.observe(ms(2_000));
        assert_eq!(margin.get(), ms(3_000));
        margin.observe(ms(400));
        assert_eq!(margin.get(), ms(2_400));
        for _ in 0..100 {
            margin.observe(ms(10));
        }
        assert_eq!(margin.get(), FLOOR);
    }

    #[test]
    fn stays_within_a_short_window() {
        let mut margin = Margin::new(ms(1), ms(1_000));
        assert_eq!(margin.get(), ms(100));
        margin.observe(ms(5_000));
        assert_eq!(margin.get(), ms(500));
    }

    #[test]
    fn steps_fill_the_window() {
        let fits = |done, left| fits_another_step(done, (3, 10), ms(left), ms(500), ms(100));
        assert!(fits(5, 600));
        assert!(!fits(5, 599));
        // Below the least number of steps the margin may be used, and the time after the deadline.
        assert!(fits(2, 1));
        assert!(fits(2, 0));
        assert!(!fits(3, 0));
        assert!(!fits(10, 60_000));
    }
}
