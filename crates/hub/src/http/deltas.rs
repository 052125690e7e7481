//! The newest deltas of a run: the store is asked once a merge, and each poll is given what its worker lacks.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use protocol::{api::WorkDelta, units::RunId};

use crate::{Hub, run::Run};

/// The newest answer for each run.
#[derive(Default)]
pub(crate) struct Deltas {
    newest: Mutex<HashMap<RunId, Listed>>,
}

/// The deltas between a checkpoint and a model.
struct Listed {
    checkpoint_round: u64,
    model_round: u64,
    deltas: Vec<WorkDelta>,
}

/// Deltas from before the newest checkpoint that are still listed: whoever follows round by round never asks for the log.
const BACK_MAX: u64 = 16;

/// Deltas of the merges after `checkpoint_round` up to `model_round`, oldest first; for whoever holds the model of round
/// `held`, from the delta that made it on, which shows that it is the run's.
pub(super) async fn of(
    hub: &Hub,
    run: &Run,
    checkpoint_round: u64,
    model_round: u64,
    held: Option<u64>,
) -> Result<Vec<WorkDelta>> {
    let mut deltas = listed(hub, run, checkpoint_round, model_round).await?;
    let first = match held {
        Some(held) if checkpoint_round <= held.saturating_add(BACK_MAX) => held,
        Some(_) | None => checkpoint_round.saturating_add(1),
    };
    deltas.retain(|it| it.round >= first);
    Ok(deltas)
}

async fn listed(
    hub: &Hub,
    run: &Run,
    checkpoint_round: u64,
    model_round: u64,
) -> Result<Vec<WorkDelta>> {
    if let Some(deltas) = hub.deltas.get(run.id, checkpoint_round, model_round) {
        return Ok(deltas);
    }
    let after = checkpoint_round.saturating_sub(BACK_MAX + 1);
    let mut deltas = hub.store.deltas_after(run.id, after).await?;
    deltas.retain(|it| it.round <= model_round);
    let listed = Listed {
        checkpoint_round,
        model_round,
        deltas: deltas.clone(),
    };
    hub.deltas.lock().insert(run.id, listed);
    Ok(deltas)
}

impl Deltas {
    fn get(&self, run: RunId, checkpoint_round: u64, model_round: u64) -> Option<Vec<WorkDelta>> {
        let newest = self.lock();
        let listed = newest.get(&run)?;
        let is_asked =
            listed.checkpoint_round == checkpoint_round && listed.model_round == model_round;
        is_asked.then(|| listed.deltas.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Listed>> {
        // Each change replaces a whole answer: the map is right after any panic.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
