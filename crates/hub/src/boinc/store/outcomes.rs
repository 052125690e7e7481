//! What became of tasks: results that came, reports, what was given up.

use anyhow::Result;
use protocol::units::WorkerId;
use sqlx::Row;

use super::{DoorStore, UnitState};
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

/// What became of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settled {
    /// Why it was refused; `None` if it was granted.
    pub(crate) refusal: Option<String>,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) measured: Option<Measured>,
}

impl DoorStore {
    /// Notes that a task's result is whole; whether anybody still waits for it.
    pub(crate) async fn note_uploaded(
        &self,
        name: String,
        bytes: u64,
        now_ms: u64,
    ) -> Result<bool> {
        self.write_one(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE unit SET state = 'uploaded', uploaded_ms = ?, uploaded_bytes = ?
                     WHERE name = ? AND state = 'sent'",
                )
                .bind(now_ms as i64)
                .bind(bytes as i64)
                .bind(name)
                .execute(connection)
                .await?;
                Ok(changed.rows_affected() > 0)
            })
        })
        .await
    }

    /// Notes what became of a task's result.
    pub(crate) async fn settle(&self, name: String, settled: Settled) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                let state = match &settled.refusal {
                    None => UnitState::Granted,
                    Some(_) => UnitState::Refused,
                };
                let measured = settled.measured;
                sqlx::query(
                    "UPDATE unit SET state = ?1, refusal = ?2, is_told = ?2 IS NULL, worker = coalesce(?3, worker),
                     tokens_measured = ?4, loss_measured = ?5, loss_of_hub = ?6, sealed = NULL WHERE name = ?7",
                )
                .bind(state.name())
                .bind(settled.refusal)
                .bind(settled.worker.map(|it| it.0.0.to_vec()))
                .bind(measured.map(|it| it.tokens as i64))
                .bind(measured.map(|it| it.loss_micronats as i64))
                .bind(measured.and_then(|it| it.loss_of_hub).map(|it| it as i64))
                .bind(name)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Notes what a client reported; gives the names of those tasks that came to nothing by it.
    pub(crate) async fn note_reports(
        &self,
        outcomes: Vec<Outcome>,
        now_ms: u64,
    ) -> Result<Vec<String>> {
        self.write(move |connection| {
            Box::pin(async move {
                let mut failed = Vec::new();
                for it in outcomes {
                    let changed = sqlx::query(
                        "UPDATE unit SET reported_ms = coalesce(reported_ms, ?1), exit_status = ?2, stderr = ?3,
                         cpu_ms = ?4, elapsed_ms = min(?5, max(0, ?1 - sent_ms)) WHERE name = ?6 AND host = ?7",
                    )
                    .bind(now_ms as i64)
                    .bind(it.exit_status)
                    .bind(&it.stderr)
                    .bind(i64::try_from(it.cpu_ms).unwrap_or(i64::MAX))
                    .bind(i64::try_from(it.elapsed_ms).unwrap_or(i64::MAX))
                    .bind(&it.name)
                    .bind(it.host as i64)
                    .execute(&mut *connection)
                    .await?;
                    if changed.rows_affected() == 0 {
                        continue;
                    }
                    let changed = sqlx::query(
                        "UPDATE unit SET state = ?1, refusal = coalesce(?2, refusal), sealed = NULL
                         WHERE name = ?3 AND host = ?4 AND state IN ('sent', 'lost')",
                    )
                    .bind(it.otherwise.name())
                    .bind(it.refusal)
                    .bind(&it.name)
                    .bind(it.host as i64)
                    .execute(&mut *connection)
                    .await?;
                    if changed.rows_affected() > 0 {
                        failed.push(it.name);
                    }
                }
                Ok(failed)
            })
        })
        .await
    }

    /// Gives tasks of a host up; gives the names of those that it had until now.
    pub(crate) async fn give_up(
        &self,
        names: Vec<String>,
        state: UnitState,
        why: &'static str,
    ) -> Result<Vec<String>> {
        self.write(move |connection| {
            Box::pin(async move {
                let mut given_up = Vec::new();
                for name in names {
                    let changed = sqlx::query(
                        "UPDATE unit SET state = ?, refusal = coalesce(refusal, ?), sealed = NULL
                         WHERE name = ? AND state = 'sent'",
                    )
                    .bind(state.name())
                    .bind(why)
                    .bind(&name)
                    .execute(&mut *connection)
                    .await?;
                    if changed.rows_affected() > 0 {
                        given_up.push(name);
                    }
                }
                Ok(given_up)
            })
        })
        .await
    }

    /// Notes that a client no longer lists tasks whose results are here: its report came before, or never will.
    pub(crate) async fn note_gone(&self, names: Vec<String>, now_ms: u64) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                for name in names {
                    sqlx::query("UPDATE unit SET reported_ms = ? WHERE name = ?")
                        .bind(now_ms as i64)
                        .bind(name)
                        .execute(&mut *connection)
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Notes how far applications said they were.
    pub(crate) async fn note_progress(
        &self,
        host: u64,
        told: Vec<(String, Trickle)>,
    ) -> Result<()> {
        // Of several each stands for itself.
        self.write_one(move |connection| {
            Box::pin(async move {
                for (name, it) in told {
                    sqlx::query(
                        "UPDATE unit SET progress_ppm = coalesce(?, progress_ppm), steps_told = coalesce(?, steps_told),
                         loss_told = coalesce(?, loss_told) WHERE name = ? AND host = ?",
                    )
                    .bind(it.progress_ppm)
                    .bind(it.steps)
                    .bind(it.loss_micronats)
                    .bind(name)
                    .bind(host as i64)
                    .execute(&mut *connection)
                    .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Refusals that a host's user was not told of, and notes that they are told now.
    pub(crate) async fn take_refusals(
        &self,
        host: u64,
    ) -> Result<Vec<(String, UnitState, String)>> {
        self.write(move |connection| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "UPDATE unit SET is_told = 1 WHERE host = ? AND is_told = 0 RETURNING name, state, refusal",
                )
                .bind(host as i64)
                .fetch_all(connection)
                .await?;
                let told = rows.iter().map(|row| {
                    let refusal: Option<String> = row.try_get("refusal")?;
                    let state = UnitState::of(row.try_get("state")?)?;
                    Ok((row.try_get("name")?, state, refusal.unwrap_or_default()))
                });
                told.collect()
            })
        })
        .await
    }
}
