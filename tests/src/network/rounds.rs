//! Waiting for what a run's log says, and what must hold of it whatever happened.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use protocol::{
    Hash,
    command::Command,
    event::Event,
    log::Entry,
    units::{RunId, WorkerId},
};

use super::Network;
use crate::audit;

/// Longest wait for a merge.
const MERGE_MAX: Duration = Duration::from_secs(60);

impl Network {
    /// Waits for so many merges from now on.
    ///
    /// # Errors
    /// If they do not come.
    pub async fn merged(&mut self, run: RunId, rounds: usize) -> Result<()> {
        let mut merged = 0;
        let longest = MERGE_MAX * u32::try_from(rounds)?;
        self.watch(run, longest, "merged rounds", |entry| {
            merged += usize::from(entry.kind == "round_merged");
            (merged == rounds).then_some(())
        })
        .await
    }

    /// Waits until an update is part of a merge, now or at any time before.
    ///
    /// # Errors
    /// If it does not become part of one.
    pub async fn merged_update(&mut self, run: RunId, update: Hash) -> Result<()> {
        let events = self.client()?.events(run, Some(0)).await?;
        let (hash, what) = (update.to_string(), format!("merge of {}", update.short()));
        self.follow(events, MERGE_MAX, &what, |entry| {
            let updates = entry.body["updates"].as_array()?;
            let is_there = updates
                .iter()
                .any(|it| it["update"]["hash"] == hash.as_str());
            (entry.kind == "round_merged" && is_there).then_some(())
        })
        .await
    }

    /// Waits for a merge from now on that a worker's update is part of.
    ///
    /// # Errors
    /// If there is none.
    pub async fn merged_of(&mut self, run: RunId, worker: WorkerId) -> Result<()> {
        self.merged_of_within(run, worker, MERGE_MAX).await
    }

    /// Waits until any worker has joined, and gives the first one's id.
    ///
    /// # Errors
    /// If none does within `wait`.
    pub async fn has_joined_within(&mut self, run: RunId, wait: Duration) -> Result<WorkerId> {
        let events = self.client()?.events(run, Some(0)).await?;
        self.follow(events, wait, "join", |entry| {
            (entry.kind == "worker_joined").then_some(())
        })
        .await?;
        let workers = self.client()?.workers(run).await?;
        let first = workers.iter().min_by_key(|it| it.event);
        Ok(first.context("nobody joined")?.id.parse()?)
    }

    /// As [`Self::merged_of`], with more patience.
    ///
    /// # Errors
    /// If there is none within `wait`.
    pub async fn merged_of_within(
        &mut self,
        run: RunId,
        worker: WorkerId,
        wait: Duration,
    ) -> Result<()> {
        let (id, what) = (worker.to_string(), format!("merge with {}", worker.short()));
        self.watch(run, wait, &what, |entry| {
            let updates = entry.body["updates"].as_array()?;
            let is_there = updates.iter().any(|it| it["worker"] == id.as_str());
            (entry.kind == "round_merged" && is_there).then_some(())
        })
        .await
    }

    /// Waits for so many merges from now on that a worker is no part of.
    ///
    /// # Errors
    /// If they do not come.
    pub async fn merged_of_others(
        &mut self,
        run: RunId,
        worker: WorkerId,
        rounds: usize,
    ) -> Result<()> {
        let (id, mut merged) = (worker.to_string(), 0);
        // Until it counts as gone, every round waits for it.
        let longest = MERGE_MAX * u32::try_from(rounds + 2)?;
        self.watch(run, longest, "merges of others", |entry| {
            let updates = entry.body["updates"].as_array()?;
            let is_there = updates.iter().any(|it| it["worker"] == id.as_str());
            merged += usize::from(entry.kind == "round_merged" && !is_there);
            (merged == rounds).then_some(())
        })
        .await
    }

    /// Waits for a merge of this many workers.
    ///
    /// # Errors
    /// If there is none within `wait`.
    pub async fn merged_with_hosts(
        &mut self,
        run: RunId,
        workers: usize,
        wait: Duration,
    ) -> Result<()> {
        self.watch(run, wait, "merge of all", |entry| {
            let updates = entry.body["updates"].as_array()?;
            (entry.kind == "round_merged" && updates.len() == workers).then_some(())
        })
        .await
    }

    /// Waits until a worker of this name has joined, and gives its id.
    ///
    /// # Errors
    /// If it does not join.
    pub async fn has_joined(&mut self, run: RunId, name: &str) -> Result<WorkerId> {
        let events = self.client()?.events(run, Some(0)).await?;
        let (field, what) = (format!("\"name\":\"{name}\""), format!("join of {name}"));
        self.follow(events, MERGE_MAX, &what, |entry| {
            let is_it = entry.kind == "worker_joined" && entry.body.to_string().contains(&field);
            is_it.then_some(())
        })
        .await?;
        self.worker_id(run, name).await
    }

    /// The id of the worker of this name.
    ///
    /// # Errors
    /// If it never joined.
    pub async fn worker_id(&self, run: RunId, name: &str) -> Result<WorkerId> {
        let workers = self.client()?.workers(run).await?;
        let worker = workers.iter().find(|it| it.name == name);
        let worker = worker.with_context(|| format!("{name} never joined"))?;
        Ok(worker.id.parse()?)
    }

    /// The log as it is now, checked.
    ///
    /// # Errors
    /// If it does not read.
    pub async fn log(&self, run: RunId) -> Result<Vec<Entry>> {
        audit::log(&self.client()?, run).await
    }

    /// Every merge done again gives the same hash, and the updates' loss at the end is below that at the beginning.
    ///
    /// # Errors
    /// If not.
    pub async fn is_sound(&self, run: RunId) -> Result<()> {
        let client = self.client()?;
        let audited = audit::audit(&client, run, &self.folder.join("audit")).await?;
        ensure!(4 <= audited.merges.len(), "too few merges to tell anything");
        let losses = client.losses(run).await?;
        let losses: Vec<f64> = losses.iter().filter_map(|it| it.training_loss).collect();
        let quarter = (losses.len() / 4).max(1);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (
            mean(&losses[..quarter]),
            mean(&losses[losses.len() - quarter..]),
        );
        ensure!(last < first, "the loss went from {first:.3} to {last:.3}");
        Ok(())
    }
}

/// The newest update that a worker committed to.
#[must_use]
pub fn last_commitment(entries: &[Entry], worker: WorkerId) -> Option<Hash> {
    entries.iter().rev().find_map(|entry| match &entry.event {
        Event::UpdateCommitted { command } if command.worker == worker => match &command.command {
            Command::Commit(commitment) => Some(commitment.update.hash),
            Command::Join { .. } | Command::Leave { .. } => None,
        },
        _ => None,
    })
}

/// Checks that a log goes on from where it was.
///
/// # Errors
/// If it has become shorter or another one.
pub fn goes_on(before: &[Entry], after: &[Entry]) -> Result<()> {
    ensure!(before.len() <= after.len(), "the log has become shorter");
    for (old, new) in before.iter().zip(after) {
        let index = old.index;
        ensure!(old == new, "entry {index} is another one");
    }
    Ok(())
}
