//! Tasks: what each host was given, and what became of it.

use anyhow::{Context, Result};
use protocol::{
    Hash, PublicKey,
    units::{RunId, WorkerId},
};
use rusqlite::{Row, params};

use super::{DoorStore, all, execute, first, sql};

/// Asks for tasks, each with where the spot check of its update stands: one that another machine's copy spoke against is
/// doubted until a third one is here.
macro_rules! units {
    ($which:literal) => {
        concat!(
            "SELECT unit.*, (SELECT CASE WHEN c.state = 'open' AND EXISTS
             (SELECT 1 FROM spot_copy WHERE spot_check = c.id AND agrees = 0) THEN 'doubted' ELSE c.state END
             FROM spot_check c WHERE c.unit = unit.name) AS check_state FROM unit ",
            $which
        )
    };
}

/// The question for a host's open tasks.
pub(super) const OPEN: &str = units!(
    "WHERE host = ? AND reported_ms IS NULL AND state NOT IN ('aborted', 'lost', 'failed') ORDER BY id DESC LIMIT 64"
);

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
        self.write(move |it| {
            execute(
                it,
                "INSERT INTO unit (name, host, account, run, kind, round, worker, sealed, sealed_hash,
                 upload_max, expected_ms, sent_ms, deadline_ms, state)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'sent')",
                params![
                    new.name,
                    new.host,
                    new.account,
                    new.run.0.0,
                    new.kind,
                    new.round,
                    new.worker.map(|it| it.0.0),
                    new.sealed,
                    Hash::of_blob(&new.sealed).0,
                    sql(new.upload_bytes_max),
                    sql(new.expected_ms),
                    new.sent_ms,
                    sql(new.deadline_ms)
                ],
            )
            .map(drop)
        })
        .await
    }

    /// A task by name.
    pub(crate) async fn unit(&self, name: &str) -> Result<Option<Unit>> {
        let name = name.to_owned();
        self.read(move |it| first(it, units!("WHERE name = ?"), [name], unit))
            .await
    }

    /// A host's tasks, newest first.
    pub(crate) async fn units_of(&self, host: u64, limit: u64) -> Result<Vec<Unit>> {
        let question = units!("WHERE host = ? ORDER BY id DESC LIMIT ?");
        self.read(move |it| all(it, question, [host, limit], unit))
            .await
    }

    /// A host's tasks that its client has not reported and that are not given up.
    pub(crate) async fn open_units(&self, host: u64) -> Result<Vec<Unit>> {
        self.read(move |it| all(it, OPEN, [host], unit)).await
    }

    /// Names of tasks whose results are here and not settled, oldest first.
    pub(crate) async fn unsettled(&self) -> Result<Vec<String>> {
        let question = "SELECT name FROM unit WHERE state = 'uploaded' ORDER BY id";
        self.read(move |it| all(it, question, [], |row| Ok(row.get(0)?)))
            .await
    }

    /// The newest task of this kind that a host had in a run and whose result is here and not settled.
    pub(crate) async fn waiting(
        &self,
        host: u64,
        run: RunId,
        kind: &'static str,
    ) -> Result<Option<String>> {
        let question =
            "SELECT name FROM unit WHERE host = ? AND run = ? AND kind = ? AND state = 'uploaded'
                        ORDER BY id DESC LIMIT 1";
        let whose = (host, run.0.0, kind);
        self.read(move |it| first(it, question, whose, |row| Ok(row.get(0)?)))
            .await
    }

    /// The signed file with a hash.
    pub(crate) async fn sealed(&self, hash: &Hash) -> Result<Option<Vec<u8>>> {
        let hash = hash.0;
        let question = "SELECT sealed FROM unit WHERE sealed_hash = ? LIMIT 1";
        let found = self.read(move |it| first(it, question, [hash], |row| Ok(row.get(0)?)));
        Ok(found.await?.flatten())
    }
}

pub(super) fn unit(row: &Row<'_>) -> Result<Unit> {
    let worker: Option<[u8; 32]> = row.get("worker")?;
    let state: String = row.get("state")?;
    Ok(Unit {
        name: row.get("name")?,
        host: row.get("host")?,
        account: row.get("account")?,
        run: RunId(Hash(row.get("run")?)),
        kind: row.get("kind")?,
        round: row.get("round")?,
        worker: worker.map(|it| WorkerId(PublicKey(it))),
        sealed_hash: Hash(row.get("sealed_hash")?),
        upload_bytes_max: row.get("upload_max")?,
        expected_ms: row.get("expected_ms")?,
        sent_ms: row.get("sent_ms")?,
        deadline_ms: row.get("deadline_ms")?,
        state: UnitState::of(&state)?,
        uploaded_ms: row.get("uploaded_ms")?,
        uploaded_bytes: row.get("uploaded_bytes")?,
        reported_ms: row.get("reported_ms")?,
        refusal: row.get("refusal")?,
        progress_ppm: row.get("progress_ppm")?,
        steps_told: row.get("steps_told")?,
        loss_told: row.get("loss_told")?,
        loss_measured: row.get("loss_measured")?,
        loss_of_hub: row.get("loss_of_hub")?,
        check: row.get("check_state")?,
    })
}
