//! What a unit's round starts from: carried state, assignment, text.

use anyhow::{Context, Result};
use protocol::{
    Hash,
    api::{Work, WorkAssignment},
    boinc::TrainingTask,
    sampling::assigned_shards,
    state::decide::fresh,
    units::{BlobReference, WorkerId},
};

use super::unit::Given;
use crate::{
    carried::CarriedStore,
    machine::{Carried, Machine, Task},
    model,
    shards::{self, Shards},
};

/// Brings the machine to what the log says that this worker carries, or to a fresh start.
pub(super) fn carried_in(
    given: &Given<'_>,
    machine: &mut Machine,
    work: &Work,
    store: &CarriedStore,
    published: Option<Hash>,
) -> Result<Carried> {
    let wanted = work
        .worker
        .carried
        .as_deref()
        .map(model::hash)
        .transpose()?;
    let wanted = wanted.unwrap_or_else(fresh);
    let start = match &work.inner_start {
        Some(start) if given.charter.inner.carry_inner_state => Some(BlobReference {
            hash: model::hash(&start.blob)?,
            bytes: start.bytes,
        }),
        Some(_) | None => None,
    };
    // Whoever took part in the warm start early goes on from its end like everyone, not from its own old moments.
    let is_outdated = matches!((published, start), (Some(own), Some(start)) if own != start.hash);
    if !is_outdated && machine.continue_from(wanted, store)? {
        return Ok(Carried::State(wanted));
    }
    let bytes = match start {
        Some(blob) => Some((blob.hash, given.read("the optimiser's state", &blob)?)),
        None => None,
    };
    machine.begin_fresh(bytes)?;
    Ok(Carried::Fresh(start.map(|it| it.hash)))
}

/// The assignment, with what the machine holds.
pub(super) fn task(
    given: &Given<'_>,
    limits: &TrainingTask,
    assignment: &WorkAssignment,
    machine: &Machine,
    carried: Carried,
) -> Result<Task> {
    Ok(Task {
        run: given.unit.run,
        worker: WorkerId(limits.worker),
        round: assignment.round,
        slot: assignment.slot,
        slots: assignment.slots,
        seed: model::hash(&assignment.seed)?,
        tokens_before: assignment.tokens_before,
        base: machine.held().context("no model is held")?,
        carried,
        publish_inner_state: assignment.publish_inner_state,
    })
}

/// The text of the assignment.
pub(super) fn load_shards(given: &Given<'_>, task: &Task) -> Result<Shards> {
    let mut loaded = Shards::default();
    for shard in assigned_shards(&given.charter, &task.seed, &task.worker) {
        let blob = given.charter.data.training[shard as usize].blob;
        let bytes = given.read("training text", &blob)?;
        loaded.insert(shard, shards::decode(&given.charter, shard, &bytes)?);
    }
    Ok(loaded)
}
