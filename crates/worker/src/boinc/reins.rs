//! What the attending process and the computing one say to each other, in lines.

use std::{
    io::BufRead,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Exit status of a computing process that kept its state and waits to be started again.
pub(crate) const EXIT_PAUSED: u8 = 3;
/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 4096;

/// From the attending process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Keep the state and end.
    Quit,
    /// So many milliseconds were spent stopped since the start.
    Stopped(u64),
    /// So many milliseconds shall lie between checkpoints.
    Period(u64),
}

/// From the computing process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// This part of the work is done.
    Fraction(f64),
    /// The state was kept.
    Checkpoint,
    /// A message for the project.
    Trickle(String),
    /// Nothing can be done now: to be started again after so many seconds.
    Wait(u64, String),
}

/// What the attending process has said so far, for the thread that computes.
#[derive(Debug)]
pub(crate) struct Reins {
    begun: Instant,
    quit: AtomicBool,
    stopped_ms: AtomicU64,
    period_ms: AtomicU64,
}

impl Order {
    /// The line, without its end.
    pub(crate) fn line(self) -> String {
        match self {
            Self::Quit => "quit".into(),
            Self::Stopped(ms) => format!("stopped {ms}"),
            Self::Period(ms) => format!("period {ms}"),
        }
    }

    fn read(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "quit" => Some(Self::Quit),
            Some(("stopped", ms)) => Some(Self::Stopped(ms.parse().ok()?)),
            Some(("period", ms)) => Some(Self::Period(ms.parse().ok()?)),
            _ => None,
        }
    }
}

impl Told {
    /// The line, without its end.
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Fraction(fraction) => format!("fraction {fraction}"),
            Self::Checkpoint => "checkpoint".into(),
            Self::Trickle(text) => format!("trickle {}", text.replace('\n', " ")),
            Self::Wait(seconds, reason) => format!("wait {seconds} {}", reason.replace('\n', " ")),
        }
    }

    /// Reads a line.
    pub(crate) fn read(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "checkpoint" => Some(Self::Checkpoint),
            Some(("fraction", it)) => Some(Self::Fraction(it.parse().ok()?)),
            Some(("trickle", text)) => Some(Self::Trickle(text.to_owned())),
            Some(("wait", it)) => {
                let (seconds, reason) = it.split_once(' ')?;
                Some(Self::Wait(seconds.parse().ok()?, reason.to_owned()))
            }
            _ => None,
        }
    }
}

impl Reins {
    /// Nothing was said; a checkpoint is due every `period`.
    pub(crate) fn new(period: Duration) -> Self {
        Self {
            begun: Instant::now(),
            quit: AtomicBool::new(false),
            stopped_ms: AtomicU64::new(0),
            period_ms: AtomicU64::new(period.as_millis() as u64),
        }
    }

    /// Follows an order.
    pub(crate) fn follow(&self, order: Order) {
        match order {
            Order::Quit => self.quit.store(true, Relaxed),
            Order::Stopped(ms) => self.stopped_ms.store(ms, Relaxed),
            Order::Period(ms) => self.period_ms.store(ms, Relaxed),
        }
    }

    /// Follows orders until their source ends.
    pub(crate) fn follow_all(&self, orders: impl BufRead) {
        lines(orders, |line| {
            if let Some(order) = Order::read(line) {
                self.follow(order);
            }
        });
    }

    /// Whether to keep the state and end.
    pub(crate) fn must_quit(&self) -> bool {
        self.quit.load(Relaxed)
    }

    /// Time since the start without the time that was spent stopped.
    pub(crate) fn active(&self) -> Duration {
        let stopped = Duration::from_millis(self.stopped_ms.load(Relaxed));
        self.begun.elapsed().saturating_sub(stopped)
    }

    /// Time between checkpoints.
    pub(crate) fn period(&self) -> Duration {
        Duration::from_millis(self.period_ms.load(Relaxed))
    }
}

/// Hands over line after line until there are no more.
pub(crate) fn lines(mut source: impl BufRead, mut each: impl FnMut(&str)) {
    let mut line = String::new();
    loop {
        line.clear();
        match std::io::Read::take(&mut source, LINE_BYTES_MAX).read_line(&mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => each(line.trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for order in [Order::Quit, Order::Stopped(5), Order::Period(60_000)] {
            assert_eq!(Order::read(&order.line()), Some(order));
        }
        for told in [
            Told::Fraction(0.25),
            Told::Checkpoint,
            Told::Trickle("<step>5</step>".into()),
            Told::Wait(60, "another task computes".into()),
        ] {
            assert_eq!(Told::read(&told.line()), Some(told));
        }
        for nonsense in ["", "quit now", "stopped x", "wait 5", "fraction"] {
            assert_eq!(Order::read(nonsense), None);
            assert_eq!(Told::read(nonsense), None);
        }
    }

    #[test]
    fn reins_follow_lines_and_time_that_was_stopped_does_not_count() {
        let reins = Reins::new(Duration::from_secs(60));
        reins.follow_all(&b"what\nperiod 5\nstopped 3600000\n"[..]);
        assert_eq!(reins.period(), Duration::from_millis(5));
        assert_eq!(reins.active(), Duration::ZERO);
        assert!(!reins.must_quit());
        reins.follow_all(&b"quit"[..]);
        assert!(reins.must_quit());
    }
}
