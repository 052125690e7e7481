//! Spot checks: which updates are to be made again, by whom they were, and what it came to.

use anyhow::{Context, Result};
use protocol::{
    Hash,
    units::{BlobReference, RunId},
};
use rusqlite::{Connection, Row, params};

use super::{DoorStore, all, execute, first, number};

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
        self.write(move |it| {
            execute(
                it,
                "INSERT OR IGNORE INTO spot_check (unit, run, account, host, sealed, update_hash, update_bytes, steps,
                 arithmetic, created_ms, state)
                 SELECT ?1, ?2, ?3, ?4, unit.sealed, ?5, ?6, ?7, ?8, ?9, 'open' FROM unit
                 WHERE unit.name = ?1 AND unit.sealed IS NOT NULL
                 AND (SELECT count(*) FROM spot_check WHERE run = ?2 AND state = 'open') < ?10",
                params![
                    new.unit,
                    new.run.0.0,
                    new.account,
                    new.host,
                    new.update.hash.0,
                    new.update.bytes,
                    new.steps,
                    new.arithmetic,
                    new.now_ms,
                    OPEN_MAX
                ],
            )
            .map(drop)
        })
        .await
    }

    /// Checks that a host of an account may make a copy for, oldest first: none of its own, none twice, one copy at a time.
    pub(crate) async fn open_checks(&self, run: RunId, account: u64) -> Result<Vec<Check>> {
        self.read(move |it| {
            all(
                it,
                "SELECT * FROM spot_check WHERE run = ?1 AND state = 'open' AND is_made = 0 AND account <> ?2
                 AND NOT EXISTS (SELECT 1 FROM spot_copy WHERE spot_check = spot_check.id AND account = ?2)
                 ORDER BY id LIMIT ?3",
                params![run.0.0, account, OFFERED_MAX],
                check,
            )
        })
        .await
    }

    /// Gives checks up that nobody made in time.
    pub(crate) async fn drop_old_checks(&self, run: RunId, before_ms: u64) -> Result<()> {
        let old =
            "SELECT 1 FROM spot_check WHERE run = ? AND state = 'open' AND created_ms < ? LIMIT 1";
        let old = move |it: &Connection| first(it, old, params![run.0.0, before_ms], number);
        if self.read(old).await?.is_none() {
            return Ok(());
        }
        let change = "UPDATE spot_check SET state = 'dropped', sealed = NULL
                      WHERE run = ? AND state = 'open' AND created_ms < ?";
        self.write(move |it| execute(it, change, params![run.0.0, before_ms]).map(drop))
            .await
    }

    /// Gives a check up that can't be made.
    pub(crate) async fn drop_check(&self, id: u64) -> Result<()> {
        self.write(move |it| end(it, id, "dropped").map(drop)).await
    }

    /// Notes that a task makes a copy for a check.
    pub(crate) async fn add_copy(
        &self,
        unit: String,
        check: u64,
        account: u64,
        host: u64,
    ) -> Result<()> {
        self.write(move |it| {
            let copy = "INSERT INTO spot_copy (unit, spot_check, account, host) VALUES (?, ?, ?, ?)";
            execute(it, copy, params![unit, check, account, host])?;
            let is_made = "UPDATE spot_check SET is_made = 1 WHERE id = ?
                           AND EXISTS (SELECT 1 FROM unit WHERE name = ? AND state IN ('sent', 'uploaded'))";
            execute(it, is_made, params![check, unit]).map(drop)
        })
        .await
    }

    /// The check that a task makes a copy for, if it still waits for one.
    pub(crate) async fn check_of_copy(&self, unit: &str) -> Result<Option<Check>> {
        let unit = unit.to_owned();
        let question = "SELECT spot_check.* FROM spot_check JOIN spot_copy ON spot_copy.spot_check = spot_check.id
                        WHERE spot_copy.unit = ? AND agrees IS NULL AND state = 'open'";
        self.read(move |it| first(it, question, [unit], check))
            .await
    }

    /// The angles that copies between two arithmetic classes came to lately.
    pub(crate) async fn cosines(&self, classes: &str) -> Result<Vec<f64>> {
        let classes = classes.to_owned();
        let question =
            "SELECT cosine FROM spot_copy WHERE classes = ? ORDER BY spot_check DESC LIMIT ?";
        self.read(move |it| {
            all(it, question, params![classes, COSINES_MAX], |row| {
                Ok(row.get(0)?)
            })
        })
        .await
    }

    /// Notes what a copy came to, and what follows: one that agrees is the last word, and so are two that differ. Then the
    /// hosts' rows of agreement go on or end.
    pub(crate) async fn settle_copy(&self, unit: String, likeness: Likeness) -> Result<()> {
        self.write(move |it| {
            let id = first(
                it,
                "UPDATE spot_copy SET classes = ?, cosine = ?, agrees = ? WHERE unit = ? RETURNING spot_check",
                params![likeness.classes, likeness.cosine, likeness.agrees, unit],
                number,
            )?;
            let id = id.context("no such copy")?;
            let differing = "SELECT host FROM spot_copy WHERE spot_check = ? AND agrees = 0";
            let differing = all(it, differing, [id], number)?;
            let state = match (likeness.agrees, differing.len()) {
                (true, _) => "agreed",
                (false, 0 | 1) => return Ok(()),
                (false, _) => "differs",
            };
            let Some((host, of)) = end(it, id, state)? else {
                return Ok(());
            };
            let doubted = match likeness.agrees {
                true => {
                    let change = "UPDATE host SET valid_in_row = valid_in_row + 1 WHERE id = ?";
                    execute(it, change, [host])?;
                    differing
                }
                false => {
                    let change = "UPDATE unit SET refusal = ?, is_told = 0 WHERE name = ?";
                    execute(it, change, [DIFFERS, &of])?;
                    vec![host]
                }
            };
            for host in doubted {
                execute(it, "UPDATE host SET valid_in_row = 0 WHERE id = ?", [host])?;
            }
            Ok(())
        })
        .await
    }
}

/// Ends a check that is open; gives whose and of which task it was.
fn end(connection: &Connection, id: u64, state: &str) -> Result<Option<(u64, String)>> {
    first(
        connection,
        "UPDATE spot_check SET state = ?, sealed = NULL WHERE id = ? AND state = 'open' RETURNING host, unit",
        params![state, id],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

fn check(row: &Row<'_>) -> Result<Check> {
    let sealed: Option<Vec<u8>> = row.get("sealed")?;
    Ok(Check {
        id: row.get("id")?,
        sealed: sealed.context("an open check without its task")?,
        update: BlobReference {
            hash: Hash(row.get("update_hash")?),
            bytes: row.get("update_bytes")?,
        },
        steps: row.get("steps")?,
        arithmetic: row.get("arithmetic")?,
    })
}
