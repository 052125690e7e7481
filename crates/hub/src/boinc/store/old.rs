//! What is over for long, and removed: little at a time, so that whoever writes meanwhile waits for little.

use anyhow::Result;
use sqlx::Row;

use super::{DoorStore, count};

/// Rows removed by one change.
pub(crate) const BATCH: u64 = 256;
/// What is said of a task whose host never came back.
const OVERDUE: &str = "the machine was not heard of in the task's time";

impl DoorStore {
    /// Gives tasks up that hosts have and whose time ended before this, at most [`BATCH`] of them; gives their names and
    /// accounts.
    pub(crate) async fn give_up_overdue(&self, before_ms: u64) -> Result<Vec<(String, u64)>> {
        self.write_one(move |connection| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "UPDATE unit SET state = 'lost', refusal = coalesce(refusal, ?1), sealed = NULL WHERE id IN
                     (SELECT id FROM unit WHERE state = 'sent' AND deadline_ms < ?2 LIMIT ?3) RETURNING name, account",
                )
                .bind(OVERDUE)
                .bind(before_ms as i64)
                .bind(BATCH as i64)
                .fetch_all(connection)
                .await?;
                let pair = |row| Ok((Row::try_get(row, "name")?, count(row, "account")?));
                rows.iter().map(pair).collect()
            })
        })
        .await
    }

    /// Removes tasks that are over and whose time ended before this, at most [`BATCH`] of them; gives how many. What they
    /// earned stands in the logs.
    pub(crate) async fn remove_old_units(&self, before_ms: u64) -> Result<u64> {
        self.write_one(move |connection| {
            Box::pin(async move {
                let removed = sqlx::query(
                    "DELETE FROM unit WHERE id IN (SELECT id FROM unit WHERE deadline_ms < ?1
                     AND state IN ('granted', 'refused', 'failed', 'aborted', 'lost') LIMIT ?2)",
                )
                .bind(before_ms as i64)
                .bind(BATCH as i64)
                .execute(connection)
                .await?;
                Ok(removed.rows_affected())
            })
        })
        .await
    }

    /// Removes spot checks that were noted before this, with their copies, at most [`BATCH`] of them; gives how many.
    pub(crate) async fn remove_old_checks(&self, before_ms: u64) -> Result<u64> {
        self.write(move |connection| {
            Box::pin(async move {
                let old: Vec<i64> =
                    sqlx::query_scalar("SELECT id FROM spot_check WHERE created_ms < ? LIMIT ?")
                        .bind(before_ms as i64)
                        .bind(BATCH as i64)
                        .fetch_all(&mut *connection)
                        .await?;
                for id in &old {
                    for question in [
                        "DELETE FROM spot_copy WHERE spot_check = ?",
                        "DELETE FROM spot_check WHERE id = ?",
                    ] {
                        sqlx::query(question)
                            .bind(id)
                            .execute(&mut *connection)
                            .await?;
                    }
                }
                Ok(old.len() as u64)
            })
        })
        .await
    }
}
