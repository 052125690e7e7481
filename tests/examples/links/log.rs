//! What a worker's log tells about its training, joined with what the run's log says was accepted.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result};
use network::HubClient;
use protocol::{api::ROUNDS_PAGE_MAX, units::RunId};

/// What `athome join` is told to log, beside the lines of its status.
pub(crate) const FILTER: &str = "warn,worker=info";

/// A slot of a round.
pub(crate) type Slot = (u64, u64);

/// One line about training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    /// Training begins.
    Begins(Slot),
    /// The first inner step is done.
    FirstStep(Slot),
    /// Training has ended; milliseconds in inner steps.
    Ends(Slot, u64),
}

/// Reads a worker's log while it is written.
pub(crate) struct Follower {
    path: std::path::PathBuf,
    seen: usize,
}

impl Follower {
    /// From the log's beginning.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            seen: 0,
        }
    }

    /// The whole lines about training since the last call.
    pub(crate) fn lines(&mut self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let Some(end) = text.rfind('\n') else {
            return Vec::new();
        };
        let fresh = text.get(self.seen..=end).unwrap_or_default();
        self.seen = end + 1;
        fresh.lines().filter_map(read).collect()
    }
}

fn read(line: &str) -> Option<Line> {
    let field = |name: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!(" {name}="))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let slot = || Some((field("round")?, field("slot")?));
    if line.contains("training begins") {
        return Some(Line::Begins(slot()?));
    }
    if line.contains("first step done") {
        return Some(Line::FirstStep(slot()?));
    }
    if line.contains("training ends") {
        return Some(Line::Ends(slot()?, field("stepping_ms")?));
    }
    None
}

/// Slots of the updates of this worker that the run's log accepted.
pub(crate) async fn accepted(client: &HubClient, run: RunId, name: &str) -> Result<HashSet<Slot>> {
    let workers = client.workers(run).await?;
    let worker = workers.iter().find(|it| it.name == name);
    let id = &worker.context("the worker never joined")?.id;
    let rounds = client.rounds(run, None, ROUNDS_PAGE_MAX).await?;
    Ok(rounds
        .iter()
        .flat_map(|round| {
            round
                .contributions
                .iter()
                .filter(|it| it.worker == *id && matches!(it.state.as_str(), "accepted" | "merged"))
                .map(|it| (round.round, u64::from(it.slot)))
        })
        .collect())
}
