//! What is over for long, and removed: little at a time, so that whoever writes meanwhile waits for little.

use anyhow::Result;
use rusqlite::params;

use super::{DoorStore, all, execute, number};

/// Rows removed by one change.
pub(crate) const BATCH: u64 = 256;
/// What is said of a task whose host never came back.
const OVERDUE: &str = "the machine was not heard of in the task's time";

impl DoorStore {
    /// Gives tasks up that hosts have and whose time ended before this, at most [`BATCH`] of them; gives their names and
    /// accounts.
    pub(crate) async fn give_up_overdue(&self, before_ms: u64) -> Result<Vec<(String, u64)>> {
        self.write(move |it| {
            all(
                it,
                "UPDATE unit SET state = 'lost', refusal = coalesce(refusal, ?1), sealed = NULL WHERE id IN
                 (SELECT id FROM unit WHERE state = 'sent' AND deadline_ms < ?2 LIMIT ?3) RETURNING name, account",
                params![OVERDUE, before_ms, BATCH],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
        })
        .await
    }

    /// Removes tasks that are over and whose time ended before this, at most [`BATCH`] of them; gives how many. What they
    /// earned stands in the logs.
    pub(crate) async fn remove_old_units(&self, before_ms: u64) -> Result<u64> {
        self.write(move |it| {
            let removed = execute(
                it,
                "DELETE FROM unit WHERE id IN (SELECT id FROM unit WHERE deadline_ms < ?1
                 AND state IN ('granted', 'refused', 'failed', 'aborted', 'lost') LIMIT ?2)",
                [before_ms, BATCH],
            )?;
            Ok(removed as u64)
        })
        .await
    }

    /// Removes spot checks that were noted before this, with their copies, at most [`BATCH`] of them; gives how many.
    pub(crate) async fn remove_old_checks(&self, before_ms: u64) -> Result<u64> {
        self.write(move |it| {
            let old = "SELECT id FROM spot_check WHERE created_ms < ? LIMIT ?";
            let old = all(it, old, [before_ms, BATCH], number)?;
            for id in &old {
                execute(it, "DELETE FROM spot_copy WHERE spot_check = ?", [id])?;
                execute(it, "DELETE FROM spot_check WHERE id = ?", [id])?;
            }
            Ok(old.len() as u64)
        })
        .await
    }
}
