//! What became of tasks: results that came, reports, what was given up.

use anyhow::Result;
use protocol::units::WorkerId;
use rusqlite::params;

use super::{DoorStore, UnitState, all, execute, sql};
use crate::boinc::request::Trickle;

/// What a client said of a task that it is done with.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) host: u64,
    /// What the task becomes if its result is not here.
    pub(crate) otherwise: UnitState,
    /// Whether the machine or its user is to be given less for it then.
    pub(crate) lessens_quota: bool,
    pub(crate) refusal: Option<String>,
    pub(crate) exit_status: i64,
    pub(crate) stderr: String,
    pub(crate) cpu_ms: u64,
    pub(crate) elapsed_ms: u64,
}

/// What a host measured of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) tokens: u64,
    pub(crate) loss_micronats: u64,
    pub(crate) loss_of_hub: Option<u64>,
}

/// When a result had come whole, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uploaded {
    pub(crate) at_ms: u64,
    pub(crate) bytes: u64,
}

/// What became of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Why it was refused; `None` if it was granted.
    pub(crate) refusal: Option<String>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) measured: Option<Measured>,
    /// Of one that was settled before anything else was noted of it.
    pub(crate) uploaded: Option<Uploaded>,
}

impl DoorStore {
    /// Notes that a task's result is whole; whether anybody still waits for it.
    pub(crate) async fn note_uploaded(
        &self,
        name: String,
        bytes: u64,
        now_ms: u64,
    ) -> Result<bool> {
        let change = "UPDATE unit SET state = 'uploaded', uploaded_ms = ?, uploaded_bytes = ?
                      WHERE name = ? AND state = 'sent'";
        self.write(move |it| Ok(execute(it, change, params![now_ms, bytes, name])? > 0))
            .await
    }

    /// Notes what became of a task's result, unless the task was given up meanwhile.
    pub(crate) async fn settle(&self, name: String, settled: Settled) -> Result<()> {
        let state = match &settled.refusal {
            None => UnitState::Granted,
            Some(_) => UnitState::Refused,
        };
        self.write(move |it| {
            let measured = settled.measured;
            execute(
                it,
                "UPDATE unit SET state = ?1, refusal = ?2, is_told = ?2 IS NULL, worker = coalesce(?3, worker),
                 tokens_measured = ?4, loss_measured = ?5, loss_of_hub = ?6, sealed = NULL,
                 uploaded_ms = coalesce(?7, uploaded_ms), uploaded_bytes = coalesce(?8, uploaded_bytes)
                 WHERE name = ?9 AND state IN ('sent', 'uploaded')",
                params![
                    state.name(),
                    settled.refusal,
                    settled.worker.map(|it| it.0.0),
                    measured.map(|it| sql(it.tokens)),
                    measured.map(|it| sql(it.loss_micronats)),
                    measured.and_then(|it| it.loss_of_hub).map(sql),
                    settled.uploaded.map(|it| it.at_ms),
                    settled.uploaded.map(|it| it.bytes),
                    name
                ],
            )
            .map(drop)
        })
        .await
    }

    /// Notes what a client reported; gives the names of those tasks that came to nothing by it. A task whose result is being
    /// settled comes to what that says.
    pub(crate) async fn note_reports(
        &self,
        outcomes: Vec<Outcome>,
        now_ms: u64,
    ) -> Result<Vec<String>> {
        let settling = self.settling.clone();
        self.write(move |connection| {
            let mut failed = Vec::new();
            for it in outcomes {
                let changed = execute(
                    connection,
                    "UPDATE unit SET reported_ms = coalesce(reported_ms, ?1), exit_status = ?2, stderr = ?3,
                     cpu_ms = ?4, elapsed_ms = min(?5, max(0, ?1 - sent_ms)) WHERE name = ?6 AND host = ?7",
                    params![
                        now_ms,
                        it.exit_status,
                        it.stderr,
                        sql(it.cpu_ms),
                        sql(it.elapsed_ms),
                        it.name,
                        it.host
                    ],
                )?;
                if changed == 0 || settling.has(&it.name) {
                    continue;
                }
                let changed = execute(
                    connection,
                    "UPDATE unit SET state = ?1, refusal = coalesce(?2, refusal), sealed = NULL
                     WHERE name = ?3 AND host = ?4 AND state IN ('sent', 'lost')",
                    params![it.otherwise.name(), it.refusal, it.name, it.host],
                )?;
                if changed > 0 {
                    failed.push(it.name);
                }
            }
            Ok(failed)
        })
        .await
    }

    /// Gives tasks of a host up, but for those whose results are being settled; gives the names of those that it had until
    /// now.
    pub(crate) async fn give_up(
        &self,
        names: Vec<String>,
        state: UnitState,
        why: &'static str,
    ) -> Result<Vec<String>> {
        let settling = self.settling.clone();
        self.write(move |it| {
            let mut given_up = Vec::new();
            for name in names {
                if settling.has(&name) {
                    continue;
                }
                let changed = execute(
                    it,
                    "UPDATE unit SET state = ?, refusal = coalesce(refusal, ?), sealed = NULL
                     WHERE name = ? AND state = 'sent'",
                    [state.name(), why, &name],
                )?;
                if changed > 0 {
                    given_up.push(name);
                }
            }
            Ok(given_up)
        })
        .await
    }

    /// Notes that a client no longer lists tasks whose results are here: its report came before, or never will.
    pub(crate) async fn note_gone(&self, names: Vec<String>, now_ms: u64) -> Result<()> {
        self.write(move |it| {
            for name in names {
                let change = "UPDATE unit SET reported_ms = ? WHERE name = ?";
                execute(it, change, params![now_ms, name])?;
            }
            Ok(())
        })
        .await
    }

    /// Notes how far applications said they were.
    pub(crate) async fn note_progress(
        &self,
        host: u64,
        told: Vec<(String, Trickle)>,
    ) -> Result<()> {
        self.write(move |connection| {
            for (name, it) in told {
                execute(
                    connection,
                    "UPDATE unit SET progress_ppm = coalesce(?, progress_ppm), steps_told = coalesce(?, steps_told),
                     loss_told = coalesce(?, loss_told) WHERE name = ? AND host = ?",
                    params![it.progress_ppm, it.steps, it.loss_micronats, name, host],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Refusals that a host's user was not told of, and notes that they are told now.
    pub(crate) async fn take_refusals(
        &self,
        host: u64,
    ) -> Result<Vec<(String, UnitState, String)>> {
        let change = "UPDATE unit SET is_told = 1 WHERE host = ? AND is_told = 0 RETURNING name, state, refusal";
        self.write(move |it| {
            all(it, change, [host], |row| {
                let (state, refusal): (String, Option<String>) = (row.get(1)?, row.get(2)?);
                let state = UnitState::of(&state)?;
                Ok((row.get(0)?, state, refusal.unwrap_or_default()))
            })
        })
        .await
    }
}
