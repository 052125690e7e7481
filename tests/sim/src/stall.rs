//! Watches that no round stands still for longer than the rules permit, whoever is missing.
//!
//! Only time counts in which the hub answered and its disk had room, since a hub that is dead holds nothing up but
//! itself. Clocks of nodes do not matter: this is the time that passes.

use std::time::Duration;

use protocol::{api::RunSummary, charter::Charter};
use tokio::time::Instant;

/// Allowed beyond the rules: looks are some seconds apart, and so are tries to write and merge again.
const SLACK: Duration = Duration::from_secs(12);
/// Two looks further apart than this had something else between them.
const GAP_MAX: Duration = Duration::from_secs(5);

/// What was seen last, and for how long.
#[derive(Debug)]
pub(crate) struct StallWatch {
    window: Duration,
    reveal: Duration,
    quorum: u64,
    /// Round and phase when it was last seen.
    seen: Option<(u64, String)>,
    /// When that was, if nothing was wrong with the hub since.
    then: Option<Instant>,
    stood: Duration,
    found: Vec<String>,
}

impl StallWatch {
    pub(crate) fn new(charter: &Charter) -> Self {
        Self {
            window: Duration::from_millis(charter.round.window_ms),
            reveal: Duration::from_millis(charter.round.reveal_ms),
            quorum: u64::from(charter.round.quorum.max(1)),
            seen: None,
            then: None,
            stood: Duration::ZERO,
            found: Vec::new(),
        }
    }

    /// Takes the run as its hub shows it; `None` if it does not, or can't work.
    pub(crate) fn look(&mut self, run: Option<&RunSummary>) {
        let Some(run) = run else {
            self.then = None;
            return;
        };
        let now = Instant::now();
        let then = self.then.replace(now);
        let seen = Some((run.round, run.phase.clone()));
        if self.seen != seen {
            self.seen = seen;
            self.stood = Duration::ZERO;
            return;
        }
        let passed = then.map_or(Duration::ZERO, |it| now - it);
        if passed <= GAP_MAX {
            self.stood += passed;
        }
        let Some(longest) = self.longest(run) else {
            self.stood = Duration::ZERO;
            return;
        };
        if self.stood > longest {
            self.found.push(format!(
                "round {} stood for {} s in phase {}, where {} s are allowed",
                run.round,
                self.stood.as_secs(),
                run.phase,
                longest.as_secs()
            ));
            self.stood = Duration::ZERO;
        }
    }

    pub(crate) fn found(&self) -> &[String] {
        &self.found
    }

    /// How long a phase may last; `None` for ever.
    fn longest(&self, run: &RunSummary) -> Option<Duration> {
        match run.phase.as_str() {
            // The hard cap of a round that was extended is two windows; and it waits for the one before it.
            "training" => Some(self.window * 2 + self.reveal + SLACK),
            "revealing" => Some(self.reveal + SLACK),
            // Too few to begin.
            "idle" if run.workers_present < self.quorum => None,
            "idle" => Some(SLACK),
            _ => None,
        }
    }
}
