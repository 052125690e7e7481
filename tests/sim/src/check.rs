//! What must hold after a simulation, whatever happened in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use engine::replay::verify::{Blobs, Verifier};
use network::{HubClient, disk::Disk};
use protocol::{
    Hash,
    api::LOG_PAGE_MAX,
    command::Command,
    event::{Event, RefusalReason},
    log::Entry,
    units::{BlobReference, WorkerId},
};

use crate::{disk::SimDisk, machine, simulation::Simulation};

/// Merged rounds after which the model must be nearer to where honest work leads than it was at first.
const ROUNDS_TO_LEARN: u64 = 3;

/// What came of a simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Hash of the log's last entry: of everything that happened to the run.
    pub log_hash: Hash,
    /// Entries of the log.
    pub entries: u64,
    /// Simulated time.
    pub simulated: Duration,
    /// Rounds merged.
    pub rounds_merged: u64,
    /// Rounds that ended without a merge.
    pub rounds_empty: u64,
    /// Updates merged.
    pub updates_merged: u64,
    /// Those of them that came too late for the round that they were made in.
    pub updates_late: u64,
    /// The rounds that merged something of each worker.
    pub rounds_of: BTreeMap<WorkerId, BTreeSet<u64>>,
    /// Updates refused, other than for not being revealed.
    pub updates_refused: u64,
    /// Updates committed to and not revealed in time.
    pub updates_not_revealed: u64,
    /// Mean distance of the first and of the last model from where honest work leads.
    pub distance: (f64, f64),
    /// Lies told, by liars.
    pub lies: u64,
    /// Answers of the hub.
    pub answers: u64,
    /// What does not hold; empty if all is well.
    pub broken: Vec<String>,
    /// Why worker processes ended by themselves, and how often.
    pub failures: Vec<(String, u64)>,
}

impl Outcome {
    /// The outcome, if everything holds.
    ///
    /// # Errors
    /// What does not.
    pub fn holding(self) -> Result<Self> {
        anyhow::ensure!(self.broken.is_empty(), "{}", self.broken.join("\n"));
        Ok(self)
    }
}

/// Reads the log as a stranger would and recomputes everything.
pub(crate) async fn check(
    simulation: &Simulation,
    client: &HubClient,
    simulated: Duration,
) -> Result<Outcome> {
    let entries = read_log(simulation, client).await?;
    let mut blobs = HubBlobs(simulation.hub.disk.clone());
    let mut broken = Vec::new();
    let first = entries.first().context("the log is empty")?;
    let mut verifier = Verifier::begin(first, &mut blobs)?;
    let model = verifier.model().context("the first model")?;
    let before = machine::distance(&model.parameters, &simulation.target);
    for entry in &entries[1..] {
        verifier
            .next(entry, &mut blobs)
            .with_context(|| format!("entry {}", entry.index))?;
    }
    verifier.end(&mut blobs);
    let report = verifier.report();
    for finding in &report.findings {
        broken.push(format!("verify: {finding:?}"));
    }
    for unchecked in &report.unchecked {
        broken.push(format!("verify could not check: {unchecked:?}"));
    }
    let after = verifier.model().map_or(f64::NAN, |it| {
        machine::distance(&it.parameters, &simulation.target)
    });
    check_promises(simulation, &entries, &mut broken);
    check_liars(simulation, &entries, &mut broken);
    let rounds_merged = verifier.state().rounds_merged;
    if rounds_merged >= ROUNDS_TO_LEARN && after.total_cmp(&before).is_ge() {
        broken.push(format!(
            "the model did not come nearer in {rounds_merged} rounds: {before} to {after}"
        ));
    }
    broken.extend_from_slice(simulation.stalls());
    let mut rounds_of = BTreeMap::<WorkerId, BTreeSet<u64>>::new();
    let mut updates_late = 0;
    for entry in &entries {
        if let Event::RoundMerged { round, updates, .. } = &entry.event {
            for update in updates {
                rounds_of.entry(update.worker).or_default().insert(*round);
                updates_late += u64::from(update.of_round < *round);
            }
        }
    }
    let counted =
        |wanted: fn(&Event) -> bool| entries.iter().filter(|it| wanted(&it.event)).count() as u64;
    Ok(Outcome {
        log_hash: verifier.state().head.hash,
        entries: entries.len() as u64,
        simulated,
        rounds_merged: counted(|it| matches!(it, Event::RoundMerged { .. })),
        rounds_empty: counted(|it| matches!(it, Event::RoundEmpty { .. })),
        updates_merged: report.updates,
        updates_late,
        rounds_of,
        updates_refused: counted(
            |it| matches!(it, Event::UpdateRefused { reason, .. } if *reason != RefusalReason::NotRevealed),
        ),
        updates_not_revealed: counted(
            |it| matches!(it, Event::UpdateRefused { reason, .. } if *reason == RefusalReason::NotRevealed),
        ),
        distance: (before, after),
        lies: simulation
            .liars
            .iter()
            .map(|it| it.told().times.values().sum::<u64>())
            .sum(),
        answers: simulation.network.answers(),
        broken,
        failures: simulation
            .failures
            .iter()
            .map(|(failure, times)| (failure.clone(), *times))
            .collect(),
    })
}

async fn read_log(simulation: &Simulation, client: &HubClient) -> Result<Vec<Entry>> {
    // The verifier checks the chain.
    let mut entries = Vec::new();
    loop {
        let from = entries.len() as u64;
        let page = client
            .log_entries(simulation.run, from, LOG_PAGE_MAX)
            .await?;
        if page.entries.is_empty() {
            anyhow::ensure!(page.length == from, "the log ends before its length");
            return Ok(entries);
        }
        entries.extend(page.entries);
    }
}

/// Nothing that a hub acknowledged may be missing.
fn check_promises(simulation: &Simulation, entries: &[Entry], broken: &mut Vec<String>) {
    let promises = simulation.network.promises();
    let (mut joined, mut committed) = (BTreeSet::new(), BTreeSet::new());
    for entry in entries {
        match &entry.event {
            Event::WorkerJoined { command } => {
                joined.insert(command.worker);
            }
            Event::UpdateCommitted { command } => {
                if let Command::Commit(commitment) = &command.command {
                    committed.insert(commitment.update.hash);
                }
            }
            _ => {}
        }
    }
    for worker in promises.joined.iter().filter(|it| !joined.contains(*it)) {
        broken.push(format!(
            "the acknowledged join of {worker} is not in the log"
        ));
    }
    for update in promises
        .committed
        .iter()
        .filter(|it| !committed.contains(*it))
    {
        broken.push(format!(
            "the acknowledged commitment to {update} is not in the log"
        ));
    }
    let mut blobs = HubBlobs(simulation.hub.disk.clone());
    for blob in &promises.uploaded {
        match blobs.bytes(blob) {
            Some(bytes) if Hash::of_blob(&bytes) == *blob => {}
            Some(_) => broken.push(format!("the acknowledged blob {blob} is damaged")),
            None => broken.push(format!("the acknowledged blob {blob} is gone")),
        }
    }
}

/// Lies earn nothing, and do nothing to others: what honest workers made is refused for coming too late at most.
fn check_liars(simulation: &Simulation, entries: &[Entry], broken: &mut Vec<String>) {
    let liars: BTreeSet<WorkerId> = simulation.liars.iter().map(|it| it.id).collect();
    for liar in &simulation.liars {
        for (lie, worker) in liar.told().granted {
            broken.push(format!("the hub granted the lie {lie:?} of {worker}"));
        }
    }
    for entry in entries {
        let index = entry.index;
        match &entry.event {
            Event::UpdateAccepted { worker, .. } if liars.contains(worker) => {
                broken.push(format!("entry {index} accepts what {worker} made up"));
            }
            Event::RoundMerged { updates, .. } => {
                let lies = updates.iter().filter(|it| liars.contains(&it.worker));
                broken.extend(lies.map(|it| {
                    format!(
                        "entry {index} pays {} for lies of {}",
                        it.credits.0, it.worker
                    )
                }));
            }
            Event::UpdateRefused { worker, reason, .. }
                if !liars.contains(worker) && *reason != RefusalReason::NotRevealed =>
            {
                broken.push(format!(
                    "entry {index} refuses an honest update of {worker}: {}",
                    reason.sentence()
                ));
            }
            _ => {}
        }
    }
}

/// The blobs on a hub's disk.
struct HubBlobs(SimDisk);

impl HubBlobs {
    fn bytes(&mut self, hash: &Hash) -> Option<Vec<u8>> {
        self.0
            .read(&Path::new("/hub/blobs").join(hash.to_string()))
            .ok()
    }
}

impl Blobs for HubBlobs {
    fn read(&mut self, blob: &BlobReference) -> Result<Option<Vec<u8>>, String> {
        Ok(self.bytes(&blob.hash))
    }
}
