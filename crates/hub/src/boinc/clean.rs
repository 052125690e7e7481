//! What nobody asks for any more is removed: tasks that are over for long, tasks of hosts that never came back, and what came
//! of results of such tasks.

use std::{sync::Arc, time::Duration};

use anyhow::Result;

use super::{Door, store::BATCH};
use crate::Hub;

/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(3_600);
/// A task that a host has is waited for so long after its time, in milliseconds: machines are switched off for holidays.
const OVERDUE_MS: u64 = 14 * 86_400_000;
/// So long after its time a task is shown, if it is over, in milliseconds.
const KEPT_MS: u64 = 30 * 86_400_000;
/// Batches of one kind at a time; what is left is removed the next time.
const BATCHES_MAX: usize = 400;

/// Removes it again and again until the hub stops.
pub(crate) async fn clean_often(hub: Arc<Hub>, door: Arc<Door>) {
    let mut every = tokio::time::interval(EVERY);
    let shutdown = &hub.shutdown;
    while shutdown.run_until_cancelled(every.tick()).await.is_some() {
        if let Err(error) = clean(&door, hub.clock.now_ms()).await {
            tracing::error!("can't remove what is old of BOINC clients: {error:#}");
        }
    }
}

pub(super) async fn clean(door: &Door, now_ms: u64) -> Result<()> {
    let (store, uploads) = (&door.store, &door.uploads);
    let before_ms = now_ms.saturating_sub(OVERDUE_MS);
    for _ in 0..BATCHES_MAX {
        let overdue = store.give_up_overdue(before_ms).await?;
        let is_last = (overdue.len() as u64) < BATCH;
        for (name, account) in overdue {
            uploads.give_up(&[name], account).await?;
        }
        if is_last {
            break;
        }
    }
    let before_ms = now_ms.saturating_sub(KEPT_MS);
    for _ in 0..BATCHES_MAX {
        if store.remove_old_units(before_ms).await? < BATCH {
            break;
        }
    }
    for _ in 0..BATCHES_MAX {
        if store.remove_old_checks(before_ms).await? < BATCH {
            break;
        }
    }
    uploads.clean(store).await?;
    door.programs.clean().await
}
