//! Tasks: what each host was given, and what became of it.

use anyhow::{Context, Result};
use protocol::{
    Hash, PublicKey,
    units::{RunId, WorkerId},
};
use sqlx::{Row, sqlite::SqliteRow};

use super::{DoorStore, bytes_of, count, optional};

/// Tasks, each with where the spot check of its update stands: one that another machine's copy spoke against is doubted until
/// a third one is here.
const UNITS: &str = "SELECT unit.*, (SELECT CASE WHEN c.state = 'open' AND EXISTS
     (SELECT 1 FROM spot_copy WHERE spot_check = c.id AND agrees = 0) THEN 'doubted' ELSE c.state END
     FROM spot_check c WHERE c.unit = unit.name) AS check_state FROM unit";

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitState {
    /// The host has it, as far as is known.
    Sent,
    /// Its result is here and not settled.
    Uploaded,
    /// What its result asked for was granted.
    Granted,
    /// It was not.
    Refused,
    /// The host could not do it.
    Failed,
    /// It was called back, or the user gave it up.
    Aborted,
    /// Its time passed, or the host forgot it.
    Lost,
}

const STATES: [(UnitState, &str); 7] = [
    (UnitState::Sent, "sent"),
    (UnitState::Uploaded, "uploaded"),
    (UnitState::Granted, "granted"),
    (UnitState::Refused, "refused"),
    (UnitState::Failed, "failed"),
    (UnitState::Aborted, "aborted"),
    (UnitState::Lost, "lost"),
];

impl UnitState {
    /// Its name in the database and at the API.
    pub(crate) fn name(self) -> &'static str {
        let found = STATES.iter().find(|(state, _)| *state == self);
        found.expect("every state has a name").1
    }

    pub(super) fn of(name: &str) -> Result<Self> {
        let found = STATES.iter().find(|(_, it)| *it == name);
        Ok(found.context("a task's state is unknown")?.0)
    }
}

/// A task.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) host: u64,
    pub(crate) account: u64,
    pub(crate) run: RunId,
    pub(crate) kind: String,
    pub(crate) round: Option<u64>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) sealed_hash: Hash,
    pub(crate) upload_bytes_max: u64,
    pub(crate) expected_ms: u64,
    pub(crate) sent_ms: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) state: UnitState,
    pub(crate) uploaded_ms: Option<u64>,
    /// Bytes of its whole result.
    pub(crate) uploaded_bytes: Option<u64>,
    pub(crate) reported_ms: Option<u64>,
    pub(crate) refusal: Option<String>,
    pub(crate) progress_ppm: Option<u32>,
    pub(crate) steps_told: Option<u64>,
    pub(crate) loss_told: Option<u64>,
    pub(crate) loss_measured: Option<u64>,
    pub(crate) loss_of_hub: Option<u64>,
    /// Where the spot check of its update stands.
    pub(crate) check: Option<String>,
}

/// A task that is to be given.
#[derive(Clone, Debug)]
pub(crate) struct NewUnit {
    pub(crate) name: String,
    pub(crate) host: u64,
    pub(crate) account: u64,
    pub(crate) run: RunId,
    pub(crate) kind: &'static str,
    pub(crate) round: Option<u64>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) sealed: Vec<u8>,
    pub(crate) upload_bytes_max: u64,
    pub(crate) expected_ms: u64,
    pub(crate) sent_ms: u64,
    pub(crate) deadline_ms: u64,
}

impl NewUnit {
    /// The task as it is noted.
    pub(crate) fn noted(&self) -> Unit {
        Unit {
            name: self.name.clone(),
            host: self.host,
            account: self.account,
            run: self.run,
            kind: self.kind.to_owned(),
            round: self.round,
            worker: self.worker,
            sealed_hash: Hash::of_blob(&self.sealed),
            upload_bytes_max: self.upload_bytes_max,
            expected_ms: self.expected_ms,
            sent_ms: self.sent_ms,
            deadline_ms: self.deadline_ms,
            state: UnitState::Sent,
            uploaded_ms: None,
            uploaded_bytes: None,
            reported_ms: None,
            refusal: None,
            progress_ppm: None,
            steps_told: None,
            loss_told: None,
            loss_measured: None,
            loss_of_hub: None,
            check: None,
        }
    }
}

impl DoorStore {
    /// Notes a task before it is given.
    pub(crate) async fn add_unit(&self, new: NewUnit) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                let sealed_hash = Hash::of_blob(&new.sealed);
                sqlx::query(
                    "INSERT INTO unit (name, host, account, run, kind, round, worker, sealed, sealed_hash,
                     upload_max, expected_ms, sent_ms, deadline_ms, state)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'sent')",
                )
                .bind(new.name)
                .bind(new.host as i64)
                .bind(new.account as i64)
                .bind(new.run.0.0.to_vec())
                .bind(new.kind)
                .bind(new.round.map(|it| it as i64))
                .bind(new.worker.map(|it| it.0.0.to_vec()))
                .bind(new.sealed)
                .bind(sealed_hash.0.to_vec())
                .bind(new.upload_bytes_max as i64)
                .bind(new.expected_ms as i64)
                .bind(new.sent_ms as i64)
                .bind(new.deadline_ms as i64)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// A task by name.
    pub(crate) async fn unit(&self, name: &str) -> Result<Option<Unit>> {
        let row = sqlx::query(&format!("{UNITS} WHERE name = ?"))
            .bind(name)
            .fetch_optional(&mut *self.reader().await)
            .await?;
        row.as_ref().map(unit).transpose()
    }

    /// A host's tasks, newest first.
    pub(crate) async fn units_of(&self, host: u64, limit: u64) -> Result<Vec<Unit>> {
        let rows = sqlx::query(&format!("{UNITS} WHERE host = ? ORDER BY id DESC LIMIT ?"))
            .bind(host as i64)
            .bind(limit as i64)
            .fetch_all(&mut *self.reader().await)
            .await?;
        rows.iter().map(unit).collect()
    }

    /// A host's tasks that its client has not reported and that are not given up.
    pub(crate) async fn open_units(&self, host: u64) -> Result<Vec<Unit>> {
        let rows = sqlx::query(&open_units("?"))
            .bind(host as i64)
            .fetch_all(&mut *self.reader().await)
            .await?;
        rows.iter().map(unit).collect()
    }

    /// Names of tasks whose results are here and not settled, oldest first.
    pub(crate) async fn unsettled(&self) -> Result<Vec<String>> {
        let names =
            sqlx::query_scalar("SELECT name FROM unit WHERE state = 'uploaded' ORDER BY id")
                .fetch_all(&mut *self.reader().await)
                .await?;
        Ok(names)
    }

    /// The task of a host that joins a run, if its result is here and not settled.
    pub(crate) async fn waiting_enrolment(&self, host: u64, run: RunId) -> Result<Option<String>> {
        let found = sqlx::query_scalar(
            "SELECT name FROM unit WHERE host = ? AND run = ? AND kind = 'enrol' AND state = 'uploaded'
             ORDER BY id DESC LIMIT 1",
        )
        .bind(host as i64)
        .bind(run.0.0.to_vec())
        .fetch_optional(&mut *self.reader().await)
        .await?;
        Ok(found)
    }

    /// The signed file with a hash.
    pub(crate) async fn sealed(&self, hash: &Hash) -> Result<Option<Vec<u8>>> {
        let found: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT sealed FROM unit WHERE sealed_hash = ? LIMIT 1")
                .bind(hash.0.to_vec())
                .fetch_optional(&mut *self.reader().await)
                .await?;
        Ok(found.flatten())
    }
}

/// The question for a host's open tasks, with the place of its number.
pub(super) fn open_units(host: &str) -> String {
    format!(
        "{UNITS} WHERE host = {host} AND reported_ms IS NULL AND state NOT IN ('aborted', 'lost', 'failed')
         ORDER BY id DESC LIMIT 64"
    )
}

pub(super) fn unit(row: &SqliteRow) -> Result<Unit> {
    let worker: Option<&[u8]> = row.try_get("worker")?;
    Ok(Unit {
        name: row.try_get("name")?,
        host: count(row, "host")?,
        account: count(row, "account")?,
        run: RunId(Hash(bytes_of(row, "run")?)),
        kind: row.try_get("kind")?,
        round: optional(row, "round")?,
        worker: match worker {
            Some(_) => Some(WorkerId(PublicKey(bytes_of(row, "worker")?))),
            None => None,
        },
        sealed_hash: Hash(bytes_of(row, "sealed_hash")?),
        upload_bytes_max: count(row, "upload_max")?,
        expected_ms: count(row, "expected_ms")?,
        sent_ms: count(row, "sent_ms")?,
        deadline_ms: count(row, "deadline_ms")?,
        state: UnitState::of(row.try_get("state")?)?,
        uploaded_ms: optional(row, "uploaded_ms")?,
        uploaded_bytes: optional(row, "uploaded_bytes")?,
        reported_ms: optional(row, "reported_ms")?,
        refusal: row.try_get("refusal")?,
        progress_ppm: row.try_get("progress_ppm")?,
        steps_told: optional(row, "steps_told")?,
        loss_told: optional(row, "loss_told")?,
        loss_measured: optional(row, "loss_measured")?,
        loss_of_hub: optional(row, "loss_of_hub")?,
        check: row.try_get("check_state")?,
    })
}
