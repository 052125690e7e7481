//! Spot checks: which updates are to be made again, by whom they were, and what it came to.

use anyhow::{Context, Result};
use protocol::{
    Hash,
    units::{BlobReference, RunId},
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{DoorStore, bytes_of, count};

/// Checks of a run that wait at most; more updates go without.
const OPEN_MAX: i64 = 1_024;
/// Checks that are looked at for a host.
const OFFERED_MAX: i64 = 8;
/// What a pair of arithmetic classes is known by.
const COSINES_MAX: i64 = 101;
/// What an owner is told whose update came out differently on two other machines.
const DIFFERS: &str = "a spot check: the machines of two other accounts made this update again, and both got another one";

/// An update that is to be checked.
#[derive(Clone, Debug)]
pub(crate) struct NewCheck {
    pub(crate) unit: String,
    pub(crate) run: RunId,
    pub(crate) account: u64,
    pub(crate) host: u64,
    pub(crate) update: BlobReference,
    pub(crate) steps: u32,
    pub(crate) arithmetic: String,
    pub(crate) now_ms: u64,
}

/// A check that waits for a copy.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) id: u64,
    pub(crate) sealed: Vec<u8>,
    pub(crate) update: BlobReference,
    pub(crate) steps: u32,
    pub(crate) arithmetic: String,
}

/// What a copy came to.
#[derive(Clone, Debug)]
pub(crate) struct Likeness {
    /// Both arithmetic classes, in alphabetical order.
    pub(crate) classes: String,
    pub(crate) cosine: f64,
    pub(crate) agrees: bool,
}

impl DoorStore {
    /// Notes that a task's update is to be checked; once, however often it is said.
    pub(crate) async fn add_check(&self, new: NewCheck) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT OR IGNORE INTO spot_check (unit, run, account, host, sealed, update_hash, update_bytes, steps,
                     arithmetic, created_ms, state)
                     SELECT ?1, ?2, ?3, ?4, unit.sealed, ?5, ?6, ?7, ?8, ?9, 'open' FROM unit
                     WHERE unit.name = ?1 AND unit.sealed IS NOT NULL
                     AND (SELECT count(*) FROM spot_check WHERE run = ?2 AND state = 'open') < ?10",
                )
                .bind(new.unit)
                .bind(new.run.0.0.to_vec())
                .bind(new.account as i64)
                .bind(new.host as i64)
                .bind(new.update.hash.0.to_vec())
                .bind(new.update.bytes as i64)
                .bind(new.steps)
                .bind(new.arithmetic)
                .bind(new.now_ms as i64)
                .bind(OPEN_MAX)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Checks that a host of an account may make a copy for, oldest first: none of its own, none twice, one copy at a time.
    pub(crate) async fn open_checks(&self, run: RunId, account: u64) -> Result<Vec<Check>> {
        let rows = sqlx::query(
            "SELECT * FROM spot_check WHERE run = ?1 AND state = 'open' AND account <> ?2
             AND NOT EXISTS (SELECT 1 FROM spot_copy WHERE spot_check = spot_check.id AND account = ?2)
             AND NOT EXISTS (SELECT 1 FROM spot_copy JOIN unit ON unit.name = spot_copy.unit
                             WHERE spot_check = spot_check.id AND agrees IS NULL AND unit.state IN ('sent', 'uploaded'))
             ORDER BY id LIMIT ?3",
        )
        .bind(run.0.0.to_vec())
        .bind(account as i64)
        .bind(OFFERED_MAX)
        .fetch_all(&mut *self.reader().await)
        .await?;
        rows.iter().map(check).collect()
    }

    /// Gives checks up that nobody made in time.
    pub(crate) async fn drop_old_checks(&self, run: RunId, before_ms: u64) -> Result<()> {
        let old: Option<i64> = sqlx::query_scalar(
            "SELECT 1 FROM spot_check WHERE run = ? AND state = 'open' AND created_ms < ? LIMIT 1",
        )
        .bind(run.0.0.to_vec())
        .bind(before_ms as i64)
        .fetch_optional(&mut *self.reader().await)
        .await?;
        if old.is_none() {
            return Ok(());
        }
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE spot_check SET state = 'dropped', sealed = NULL
                     WHERE run = ? AND state = 'open' AND created_ms < ?",
                )
                .bind(run.0.0.to_vec())
                .bind(before_ms as i64)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Gives a check up that can't be made.
    pub(crate) async fn drop_check(&self, id: u64) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move { end(connection, id, "dropped").await.map(drop) })
        })
        .await
    }

    /// Notes that a task makes a copy for a check.
    pub(crate) async fn add_copy(
        &self,
        unit: String,
        check: u64,
        account: u64,
        host: u64,
    ) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO spot_copy (unit, spot_check, account, host) VALUES (?, ?, ?, ?)",
                )
                .bind(unit)
                .bind(check as i64)
                .bind(account as i64)
                .bind(host as i64)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// The check that a task makes a copy for, if it still waits for one.
    pub(crate) async fn check_of_copy(&self, unit: &str) -> Result<Option<Check>> {
        let row = sqlx::query(
            "SELECT spot_check.* FROM spot_check JOIN spot_copy ON spot_copy.spot_check = spot_check.id
             WHERE spot_copy.unit = ? AND agrees IS NULL AND state = 'open'",
        )
        .bind(unit)
        .fetch_optional(&mut *self.reader().await)
        .await?;
        row.as_ref().map(check).transpose()
    }

    /// The angles that copies between two arithmetic classes came to lately.
    pub(crate) async fn cosines(&self, classes: &str) -> Result<Vec<f64>> {
        let cosines = sqlx::query_scalar(
            "SELECT cosine FROM spot_copy WHERE classes = ? ORDER BY spot_check DESC LIMIT ?",
        )
        .bind(classes)
        .bind(COSINES_MAX)
        .fetch_all(&mut *self.reader().await)
        .await?;
        Ok(cosines)
    }

    /// Notes what a copy came to, and what follows: one that agrees is the last word, and so are two that differ. Then the
    /// hosts' rows of agreement go on or end.
    pub(crate) async fn settle_copy(&self, unit: String, likeness: Likeness) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                let id: i64 = sqlx::query_scalar(
                    "UPDATE spot_copy SET classes = ?, cosine = ?, agrees = ? WHERE unit = ? RETURNING spot_check",
                )
                .bind(likeness.classes)
                .bind(likeness.cosine)
                .bind(likeness.agrees)
                .bind(unit)
                .fetch_one(&mut *connection)
                .await?;
                let differing: Vec<i64> = sqlx::query_scalar(
                    "SELECT host FROM spot_copy WHERE spot_check = ? AND agrees = 0",
                )
                .bind(id)
                .fetch_all(&mut *connection)
                .await?;
                let state = match (likeness.agrees, differing.len()) {
                    (true, _) => "agreed",
                    (false, 0 | 1) => return Ok(()),
                    (false, _) => "differs",
                };
                let Some((host, of)) = end(connection, id.unsigned_abs(), state).await? else {
                    return Ok(());
                };
                let doubted = match likeness.agrees {
                    true => {
                        sqlx::query("UPDATE host SET valid_in_row = valid_in_row + 1 WHERE id = ?")
                            .bind(host)
                            .execute(&mut *connection)
                            .await?;
                        differing
                    }
                    false => {
                        sqlx::query("UPDATE unit SET refusal = ?, is_told = 0 WHERE name = ?")
                            .bind(DIFFERS)
                            .bind(of)
                            .execute(&mut *connection)
                            .await?;
                        vec![host]
                    }
                };
                for host in doubted {
                    sqlx::query("UPDATE host SET valid_in_row = 0 WHERE id = ?")
                        .bind(host)
                        .execute(&mut *connection)
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }
}

/// Ends a check that is open; gives whose and of which task it was.
async fn end(
    connection: &mut SqliteConnection,
    id: u64,
    state: &str,
) -> Result<Option<(i64, String)>> {
    let row = sqlx::query(
        "UPDATE spot_check SET state = ?, sealed = NULL WHERE id = ? AND state = 'open' RETURNING host, unit",
    )
    .bind(state)
    .bind(id as i64)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((row.try_get("host")?, row.try_get("unit")?)))
        .transpose()
}

fn check(row: &SqliteRow) -> Result<Check> {
    let sealed: Option<Vec<u8>> = row.try_get("sealed")?;
    Ok(Check {
        id: count(row, "id")?,
        sealed: sealed.context("an open check without its task")?,
        update: BlobReference {
            hash: Hash(bytes_of(row, "update_hash")?),
            bytes: count(row, "update_bytes")?,
        },
        steps: row.try_get("steps")?,
        arithmetic: row.try_get("arithmetic")?,
    })
}
