//! A least speed, measured only while the other end is waited for.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// The other end sends, or takes, bytes more slowly than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the bytes came or went at less than {bytes_per_s_min} a second; the connection is too slow, or stalled"
)]
pub struct TooSlow {
    /// What was asked.
    pub bytes_per_s_min: u32,
}

/// How slow is too slow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) bytes_per_s_min: u32,
    pub(super) stall_max: Duration,
}

/// Patience that runs out while one waits and comes back with every byte.
#[derive(Debug)]
pub(super) struct Patience {
    pace: Pace,
    left: Duration,
    waiting_since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            left: pace.stall_max,
            waiting_since: None,
            alarm: None,
        }
    }

    /// Notes bytes that came or went.
    pub(super) fn progressed(&mut self, bytes: usize) {
        if let Some(since) = self.waiting_since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        let earned = bytes as f64 / f64::from(self.pace.bytes_per_s_min);
        let earned = Duration::from_secs_f64(earned.min(self.pace.stall_max.as_secs_f64()));
        self.left = (self.left + earned).min(self.pace.stall_max);
    }

    /// Ready when patience is at its end; called while nothing moves.
    pub(super) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<TooSlow> {
        if self.waiting_since.is_none() {
            let now = Instant::now();
            self.waiting_since = Some(now);
            let end = now + self.left;
            match &mut self.alarm {
                Some(alarm) => alarm.as_mut().reset(end),
                None => self.alarm = Some(Box::pin(tokio::time::sleep_until(end))),
            }
        }
        let alarm = self.alarm.as_mut().expect("it was set above");
        alarm.as_mut().poll(context).map(|()| TooSlow {
            bytes_per_s_min: self.pace.bytes_per_s_min,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until the end comes when `bytes` arrive after every `wait_s` seconds, at 10 bytes a second and 20 s of stall.
    async fn ends_after(bytes: usize, wait_s: u64, times: u64) -> Option<u64> {
        let begun = Instant::now();
        let mut patience = Patience::new(Pace {
            bytes_per_s_min: 10,
            stall_max: Duration::from_secs(20),
        });
        for _ in 0..times {
            let end = std::future::poll_fn(|context| patience.poll_end(context));
            if tokio::time::timeout(Duration::from_secs(wait_s), end)
                .await
                .is_ok()
            {
                return Some(begun.elapsed().as_secs());
            }
            patience.progressed(bytes);
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_dripping_end_and_a_slow_line_goes_on() {
        assert_eq!(ends_after(0, 3600, 1).await, Some(20));
        // One byte a second: 0.9 s of patience lost with each.
        assert_eq!(ends_after(1, 1, 1000).await, Some(22));
        assert_eq!(ends_after(100, 10, 1000).await, None);
        assert_eq!(ends_after(10_000, 19, 1000).await, None);
    }
}
