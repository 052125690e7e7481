//! Hosts: machines with a BOINC client, and which workers they are.

use anyhow::Result;
use protocol::{
    Hash, PublicKey,
    units::{RunId, WorkerId},
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{DoorStore, Pending, bytes_of, count, optional};
use crate::boinc::request::Machine;

/// Hosts of one account.
pub(crate) const HOSTS_MAX: i64 = 4_096;

/// A host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) id: u64,
    pub(crate) account: u64,
    /// Number of its client's last request.
    pub(crate) sequence: u64,
    pub(crate) created_ms: u64,
    pub(crate) seen_ms: u64,
    pub(crate) platform: String,
    pub(crate) client_version: String,
    pub(crate) machine: Machine,
    pub(crate) failures: u64,
    pub(crate) failed_ms: u64,
    /// Spot checks in a row that agreed with it.
    pub(crate) valid_in_row: u64,
    pub(crate) quota: Quota,
}

/// How many tasks a host is given in a day. The database counts them as they are given, and doubles a lessened quota with
/// each that is granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quota {
    /// Less than the run allows, after tasks that failed or were given up.
    lessened: Option<u64>,
    given_day: u64,
    given_on_day: u64,
}

impl Quota {
    /// The quota, of a run that allows so many, and how many of it are left on a day (in days since 1970).
    pub(crate) fn on(&self, day: u64, whole: u64) -> (u64, u64) {
        let quota = self.lessened.map_or(whole, |it| it.min(whole));
        let given = match self.given_day == day {
            true => self.given_on_day,
            false => 0,
        };
        (quota, quota.saturating_sub(given))
    }
}

/// Which worker a host is in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Enrolment {
    pub(crate) worker: Option<WorkerId>,
    /// Whether its key is another host's.
    pub(crate) is_copy: bool,
    /// Log position of the refusal that it was told of last.
    pub(crate) refusal_told: u64,
}

impl DoorStore {
    /// A host by number.
    pub(crate) async fn host(&self, id: u64) -> Result<Option<Host>> {
        let row = sqlx::query("SELECT * FROM host WHERE id = ?")
            .bind(i64::try_from(id).unwrap_or(-1))
            .fetch_optional(&mut *self.reader().await)
            .await?;
        row.as_ref().map(host).transpose()
    }

    /// An account's hosts, those heard of last first.
    pub(crate) async fn hosts_of(&self, account: u64, limit: u64) -> Result<Vec<Host>> {
        let rows =
            sqlx::query("SELECT * FROM host WHERE account = ? ORDER BY seen_ms DESC, id LIMIT ?")
                .bind(account as i64)
                .bind(limit as i64)
                .fetch_all(&mut *self.reader().await)
                .await?;
        rows.iter().map(host).collect()
    }

    /// How many hosts an account has.
    pub(crate) async fn host_count(&self, account: u64) -> Result<u64> {
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM host WHERE account = ?")
            .bind(account as i64)
            .fetch_one(&mut *self.reader().await)
            .await?;
        Ok(found.unsigned_abs())
    }

    /// Hosts of accounts that agreed to be shown, by number.
    pub(crate) async fn shown_hosts(&self) -> Result<Vec<Host>> {
        let rows = sqlx::query(
            "SELECT host.* FROM host JOIN account ON account.id = host.account
             WHERE account.shows_statistics = 1 ORDER BY host.id",
        )
        .fetch_all(&mut *self.reader().await)
        .await?;
        rows.iter().map(host).collect()
    }

    /// An account's hosts that call themselves by this name, newest first.
    pub(crate) async fn hosts_named(&self, account: u64, cpid: &str) -> Result<Vec<Host>> {
        let rows = sqlx::query(
            "SELECT * FROM host WHERE account = ? AND cpid = ? ORDER BY id DESC LIMIT 16",
        )
        .bind(account as i64)
        .bind(cpid)
        .fetch_all(&mut *self.reader().await)
        .await?;
        rows.iter().map(host).collect()
    }

    /// Notes a new host; `None` if the account has too many.
    pub(crate) async fn add_host(&self, new: Host) -> Result<Option<u64>> {
        self.write(move |connection| {
            Box::pin(async move {
                let made: Option<i64> = sqlx::query_scalar(
                    "INSERT INTO host (account, cpid, sequence, created_ms, seen_ms, platform, client_version,
                     timezone, processors, vendor, model, flops, iops, memory_bytes, disk_bytes, os_name, os_version)
                     SELECT ?1, '', 0, ?2, ?2, '', '', 0, 1, '', '', 0, 0, 0, 0, '', ''
                     WHERE (SELECT count(*) FROM host WHERE account = ?1) < ?3 RETURNING id",
                )
                .bind(new.account as i64)
                .bind(new.created_ms as i64)
                .bind(HOSTS_MAX)
                .fetch_optional(&mut *connection)
                .await?;
                let Some(id) = made.map(i64::unsigned_abs) else {
                    return Ok(None);
                };
                describe(connection, &Host { id, ..new }).await?;
                Ok(Some(id))
            })
        })
        .await
    }

    /// Begins to note what a host's client said of it last: nothing that is read before the reply depends on it.
    pub(crate) async fn update_host(&self, host: Host) -> Result<Pending<()>> {
        self.begin(true, move |connection| {
            Box::pin(async move { describe(connection, &host).await })
        })
        .await
    }

    /// Notes that a host's task came to nothing (or that one went well).
    pub(crate) async fn note_failure(
        &self,
        host: u64,
        is_failure: bool,
        now_ms: u64,
    ) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE host SET failures = CASE WHEN ?1 THEN failures + 1 ELSE 0 END, failed_ms = ?2,
                     valid_in_row = CASE WHEN ?1 THEN 0 ELSE valid_in_row END
                     WHERE id = ?3",
                )
                .bind(is_failure)
                .bind(now_ms as i64)
                .bind(host as i64)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Halves a host's daily quota for each of so many tasks that came to nothing, down to one; `whole` is what the run
    /// allows.
    pub(crate) async fn lessen_quota(&self, host: u64, tasks: usize, whole: u64) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE host SET daily_quota = max(1, min(coalesce(daily_quota, ?1), ?1) >> ?2) WHERE id = ?3",
                )
                .bind(i64::try_from(whole).unwrap_or(i64::MAX))
                .bind(tasks.min(62) as i64)
                .bind(host as i64)
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Which workers a host is, by run.
    pub(crate) async fn enrolments(&self, host: u64) -> Result<Vec<(RunId, Enrolment)>> {
        let rows = sqlx::query("SELECT * FROM enrolment WHERE host = ?")
            .bind(host as i64)
            .fetch_all(&mut *self.reader().await)
            .await?;
        let pair = |row| Ok((RunId(Hash(bytes_of(row, "run")?)), enrolment(row)?));
        rows.iter().map(pair).collect()
    }

    /// All workers of a host, by run.
    pub(crate) async fn workers_of(&self, host: u64) -> Result<Vec<(RunId, WorkerId)>> {
        let rows = sqlx::query("SELECT * FROM enrolment WHERE host = ? AND worker IS NOT NULL")
            .bind(host as i64)
            .fetch_all(&mut *self.reader().await)
            .await?;
        pairs(&rows)
    }

    /// All workers that are hosts of an account, by run.
    pub(crate) async fn workers_of_account(&self, account: u64) -> Result<Vec<(RunId, WorkerId)>> {
        let rows = sqlx::query(
            "SELECT enrolment.* FROM enrolment JOIN host ON host.id = enrolment.host
             WHERE host.account = ? AND worker IS NOT NULL",
        )
        .bind(account as i64)
        .fetch_all(&mut *self.reader().await)
        .await?;
        pairs(&rows)
    }

    /// The host that is this worker in a run.
    pub(crate) async fn host_of_worker(&self, run: RunId, worker: WorkerId) -> Result<Option<u64>> {
        let found: Option<i64> =
            sqlx::query_scalar("SELECT host FROM enrolment WHERE run = ? AND worker = ?")
                .bind(run.0.0.to_vec())
                .bind(worker.0.0.to_vec())
                .fetch_optional(&mut *self.reader().await)
                .await?;
        Ok(found.map(i64::unsigned_abs))
    }

    /// Notes which worker a host is; whether it may be: no other host is it.
    pub(crate) async fn enrol(&self, host: u64, run: RunId, worker: WorkerId) -> Result<bool> {
        self.write_one(move |connection| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "INSERT INTO enrolment (host, run, worker) SELECT ?1, ?2, ?3
                     WHERE NOT EXISTS (SELECT 1 FROM enrolment WHERE run = ?2 AND worker = ?3 AND host <> ?1)
                     ON CONFLICT (host, run) DO UPDATE SET worker = excluded.worker, is_copy = 0",
                )
                .bind(host as i64)
                .bind(run.0.0.to_vec())
                .bind(worker.0.0.to_vec())
                .execute(connection)
                .await?;
                Ok(changed.rows_affected() > 0)
            })
        })
        .await
    }

    /// Notes that a host's key is another's, so that it makes a new one.
    pub(crate) async fn note_copy(&self, host: u64, run: RunId) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO enrolment (host, run, is_copy) VALUES (?, ?, 1)
                     ON CONFLICT (host, run) DO UPDATE SET is_copy = 1, worker = NULL",
                )
                .bind(host as i64)
                .bind(run.0.0.to_vec())
                .execute(connection)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Notes up to which refusal in the log a host was told.
    pub(crate) async fn note_refusal_told(&self, host: u64, run: RunId, event: u64) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                sqlx::query("UPDATE enrolment SET refusal_told = ? WHERE host = ? AND run = ?")
                    .bind(event as i64)
                    .bind(host as i64)
                    .bind(run.0.0.to_vec())
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }
}

async fn describe(connection: &mut SqliteConnection, host: &Host) -> Result<()> {
    let machine = &host.machine;
    sqlx::query(
        "UPDATE host SET cpid = ?, sequence = ?, seen_ms = ?, platform = ?, client_version = ?, timezone = ?,
         processors = ?, vendor = ?, model = ?, flops = ?, iops = ?, memory_bytes = ?, disk_bytes = ?,
         os_name = ?, os_version = ? WHERE id = ?",
    )
    .bind(&machine.cpid)
    .bind(host.sequence as i64)
    .bind(host.seen_ms as i64)
    .bind(&host.platform)
    .bind(&host.client_version)
    .bind(machine.timezone)
    .bind(machine.processors)
    .bind(&machine.vendor)
    .bind(&machine.model)
    .bind(machine.flops)
    .bind(machine.iops)
    .bind(machine.memory_bytes as i64)
    .bind(machine.disk_bytes as i64)
    .bind(&machine.os_name)
    .bind(&machine.os_version)
    .bind(host.id as i64)
    .execute(connection)
    .await?;
    Ok(())
}

fn pairs(rows: &[SqliteRow]) -> Result<Vec<(RunId, WorkerId)>> {
    let pairs = rows.iter().map(|row| {
        let run = RunId(Hash(bytes_of(row, "run")?));
        Ok(worker(row)?.map(|it| (run, it)))
    });
    pairs.filter_map(Result::transpose).collect()
}

pub(super) fn enrolment(row: &SqliteRow) -> Result<Enrolment> {
    Ok(Enrolment {
        worker: worker(row)?,
        is_copy: row.try_get("is_copy")?,
        refusal_told: count(row, "refusal_told")?,
    })
}

fn worker(row: &SqliteRow) -> Result<Option<WorkerId>> {
    let is_known: Option<&[u8]> = row.try_get("worker")?;
    match is_known {
        Some(_) => Ok(Some(WorkerId(PublicKey(bytes_of(row, "worker")?)))),
        None => Ok(None),
    }
}

pub(super) fn host(row: &SqliteRow) -> Result<Host> {
    Ok(Host {
        id: count(row, "id")?,
        account: count(row, "account")?,
        sequence: count(row, "sequence")?,
        created_ms: count(row, "created_ms")?,
        seen_ms: count(row, "seen_ms")?,
        platform: row.try_get("platform")?,
        client_version: row.try_get("client_version")?,
        machine: Machine {
            cpid: row.try_get("cpid")?,
            timezone: row.try_get("timezone")?,
            processors: row.try_get("processors")?,
            vendor: row.try_get("vendor")?,
            model: row.try_get("model")?,
            flops: row.try_get("flops")?,
            iops: row.try_get("iops")?,
            memory_bytes: count(row, "memory_bytes")?,
            disk_bytes: count(row, "disk_bytes")?,
            os_name: row.try_get("os_name")?,
            os_version: row.try_get("os_version")?,
            disk_share_bytes: 0,
        },
        failures: count(row, "failures")?,
        failed_ms: count(row, "failed_ms")?,
        valid_in_row: count(row, "valid_in_row")?,
        quota: Quota {
            lessened: optional(row, "daily_quota")?,
            given_day: count(row, "given_day")?,
            given_on_day: count(row, "given_on_day")?,
        },
    })
}
