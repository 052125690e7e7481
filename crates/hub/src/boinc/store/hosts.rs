//! Hosts: machines with a BOINC client, and which workers they are.

use anyhow::Result;
use protocol::{
    Hash, PublicKey,
    units::{RunId, WorkerId},
};
use rusqlite::{Connection, Row, params};

use super::{DoorStore, Pending, all, execute, first, number, sql};
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
        self.read(move |it| by_number(it, id)).await
    }

    /// An account's hosts, those heard of last first.
    pub(crate) async fn hosts_of(&self, account: u64, limit: u64) -> Result<Vec<Host>> {
        let question = "SELECT * FROM host WHERE account = ? ORDER BY seen_ms DESC, id LIMIT ?";
        self.read(move |it| all(it, question, [account, limit], host))
            .await
    }

    /// How many hosts an account has.
    pub(crate) async fn host_count(&self, account: u64) -> Result<u64> {
        let question = "SELECT count(*) FROM host WHERE account = ?";
        let found = self.read(move |it| first(it, question, [account], number));
        Ok(found.await?.unwrap_or_default())
    }

    /// Hosts of accounts that agreed to be shown, by number.
    pub(crate) async fn shown_hosts(&self) -> Result<Vec<Host>> {
        let question = "SELECT host.* FROM host JOIN account ON account.id = host.account
                        WHERE account.shows_statistics = 1 AND host.id > ? ORDER BY host.id LIMIT ?";
        self.in_pages(question, host, |it| it.id).await
    }

    /// An account's hosts that call themselves by this name, newest first.
    pub(crate) async fn hosts_named(&self, account: u64, cpid: &str) -> Result<Vec<Host>> {
        let cpid = cpid.to_owned();
        let question =
            "SELECT * FROM host WHERE account = ? AND cpid = ? ORDER BY id DESC LIMIT 16";
        self.read(move |it| all(it, question, params![account, cpid], host))
            .await
    }

    /// Notes a new host; `None` if the account has too many. Machines that never became a worker make room, those first
    /// that were not heard of for longest: whoever found a key of the account closes it to nobody.
    pub(crate) async fn add_host(&self, new: Host) -> Result<Option<u64>> {
        self.write(move |it| {
            make_room(it, new.account)?;
            let made = first(
                it,
                "INSERT INTO host (account, cpid, sequence, created_ms, seen_ms, platform, client_version,
                 timezone, processors, vendor, model, flops, iops, memory_bytes, disk_bytes, os_name, os_version)
                 SELECT ?1, '', 0, ?2, ?2, '', '', 0, 1, '', '', 0, 0, 0, 0, '', ''
                 WHERE (SELECT count(*) FROM host WHERE account = ?1) < ?3 RETURNING id",
                params![new.account, new.created_ms, HOSTS_MAX],
                number,
            )?;
            let Some(id) = made else {
                return Ok(None);
            };
            describe(it, &Host { id, ..new })?;
            Ok(Some(id))
        })
        .await
    }

    /// Begins to note that a host asked and said of itself what is noted.
    pub(crate) async fn host_seen(&self, host: &Host) -> Result<Pending<()>> {
        let (sequence, seen_ms, id) = (sql(host.sequence), host.seen_ms, host.id);
        let change = "UPDATE host SET sequence = ?, seen_ms = ? WHERE id = ?";
        self.begin(move |it| execute(it, change, params![sequence, seen_ms, id]).map(drop))
            .await
    }

    /// Begins to note what a host's client said of it last: nothing that is read before the reply depends on it.
    pub(crate) async fn update_host(&self, host: Host) -> Result<Pending<()>> {
        self.begin(move |it| describe(it, &host)).await
    }

    /// Notes that a host's task came to nothing; the database forgets it with the next one that is granted.
    pub(crate) async fn note_failure(&self, host: u64, now_ms: u64) -> Result<()> {
        let change =
            "UPDATE host SET failures = failures + 1, failed_ms = ?, valid_in_row = 0 WHERE id = ?";
        self.write(move |it| execute(it, change, params![now_ms, host]).map(drop))
            .await
    }

    /// Halves a host's daily quota for each of so many tasks that came to nothing, down to one; `whole` is what the run
    /// allows.
    pub(crate) async fn lessen_quota(&self, host: u64, tasks: usize, whole: u64) -> Result<()> {
        let change = "UPDATE host SET daily_quota = max(1, min(coalesce(daily_quota, ?1), ?1) >> ?2) WHERE id = ?3";
        let tasks = tasks.min(62) as u64;
        self.write(move |it| execute(it, change, [sql(whole), sql(tasks), sql(host)]).map(drop))
            .await
    }

    /// Which workers a host is, by run.
    pub(crate) async fn enrolments(&self, host: u64) -> Result<Vec<(RunId, Enrolment)>> {
        self.read(move |it| enrolments(it, host)).await
    }

    /// All workers of a host, those that it is today last.
    pub(crate) async fn workers_of(&self, host: u64) -> Result<Vec<(RunId, WorkerId)>> {
        self.read(move |it| workers_of(it, host)).await
    }

    /// All workers that are hosts of an account, by run.
    pub(crate) async fn workers_of_account(&self, account: u64) -> Result<Vec<(RunId, WorkerId)>> {
        let question = "SELECT run, worker FROM former_worker JOIN host ON host.id = former_worker.host
                        WHERE host.account = ?1
                        UNION ALL SELECT run, worker FROM enrolment JOIN host ON host.id = enrolment.host
                        WHERE host.account = ?1 AND worker IS NOT NULL";
        self.read(move |it| all(it, question, [account], pair))
            .await
    }

    /// The host that is this worker in a run, or was.
    pub(crate) async fn host_of_worker(&self, run: RunId, worker: WorkerId) -> Result<Option<u64>> {
        let question = "SELECT host FROM enrolment WHERE run = ?1 AND worker = ?2
                        UNION ALL SELECT host FROM former_worker WHERE run = ?1 AND worker = ?2";
        self.read(move |it| first(it, question, [run.0.0, worker.0.0], number))
            .await
    }

    /// Notes which worker a host is; whether it may be: no other host is it, or was.
    pub(crate) async fn enrol(&self, host: u64, run: RunId, worker: WorkerId) -> Result<bool> {
        let change = "INSERT INTO enrolment (host, run, worker) SELECT ?1, ?2, ?3
                      WHERE NOT EXISTS (SELECT 1 FROM enrolment WHERE run = ?2 AND worker = ?3 AND host <> ?1)
                      AND NOT EXISTS (SELECT 1 FROM former_worker WHERE run = ?2 AND worker = ?3 AND host <> ?1)
                      ON CONFLICT (host, run) DO UPDATE SET worker = excluded.worker, is_copy = 0";
        self.write(move |it| Ok(execute(it, change, params![host, run.0.0, worker.0.0])? > 0))
            .await
    }

    /// Notes that a host's key is another's, so that it makes a new one.
    pub(crate) async fn note_copy(&self, host: u64, run: RunId) -> Result<()> {
        let change = "INSERT INTO enrolment (host, run, is_copy) VALUES (?, ?, 1)
                      ON CONFLICT (host, run) DO UPDATE SET is_copy = 1, worker = NULL";
        self.write(move |it| execute(it, change, params![host, run.0.0]).map(drop))
            .await
    }

    /// Notes up to which refusal in the log a host was told.
    pub(crate) async fn note_refusal_told(&self, host: u64, run: RunId, event: u64) -> Result<()> {
        let change = "UPDATE enrolment SET refusal_told = ? WHERE host = ? AND run = ?";
        self.write(move |it| execute(it, change, params![event, host, run.0.0]).map(drop))
            .await
    }
}

fn make_room(connection: &Connection, account: u64) -> Result<()> {
    let count = "SELECT count(*) FROM host WHERE account = ?";
    if first(connection, count, [account], number)?.unwrap_or_default() < HOSTS_MAX as u64 {
        return Ok(());
    }
    // Not the newest of all: its number would be another's.
    let unused = "SELECT id FROM host WHERE account = ?
                  AND NOT EXISTS (SELECT 1 FROM enrolment WHERE host = host.id AND worker IS NOT NULL)
                  AND NOT EXISTS (SELECT 1 FROM former_worker WHERE host = host.id)
                  AND NOT EXISTS (SELECT 1 FROM unit WHERE host = host.id AND state = 'uploaded')
                  AND id < (SELECT max(id) FROM host)
                  ORDER BY seen_ms LIMIT 1";
    let Some(unused) = first(connection, unused, [account], number)? else {
        return Ok(());
    };
    for change in [
        "DELETE FROM unit WHERE host = ?",
        "DELETE FROM enrolment WHERE host = ?",
        "DELETE FROM host WHERE id = ?",
    ] {
        execute(connection, change, [unused])?;
    }
    Ok(())
}

pub(super) fn by_number(connection: &Connection, id: u64) -> Result<Option<Host>> {
    first(
        connection,
        "SELECT * FROM host WHERE id = ?",
        [sql(id)],
        host,
    )
}

pub(super) fn workers_of(connection: &Connection, host: u64) -> Result<Vec<(RunId, WorkerId)>> {
    let question = "SELECT run, worker FROM former_worker WHERE host = ?1
                    UNION ALL SELECT run, worker FROM enrolment WHERE host = ?1 AND worker IS NOT NULL";
    all(connection, question, [host], pair)
}

pub(super) fn enrolments(connection: &Connection, host: u64) -> Result<Vec<(RunId, Enrolment)>> {
    let question = "SELECT run, worker, is_copy, refusal_told FROM enrolment WHERE host = ?";
    all(connection, question, [host], |row| {
        let worker: Option<[u8; 32]> = row.get("worker")?;
        let enrolment = Enrolment {
            worker: worker.map(|it| WorkerId(PublicKey(it))),
            is_copy: row.get("is_copy")?,
            refusal_told: row.get("refusal_told")?,
        };
        Ok((RunId(Hash(row.get("run")?)), enrolment))
    })
}

fn describe(connection: &Connection, host: &Host) -> Result<()> {
    let machine = &host.machine;
    execute(
        connection,
        "UPDATE host SET cpid = ?, sequence = ?, seen_ms = ?, platform = ?, client_version = ?, timezone = ?,
         processors = ?, vendor = ?, model = ?, flops = ?, iops = ?, memory_bytes = ?, disk_bytes = ?,
         os_name = ?, os_version = ? WHERE id = ?",
        params![
            machine.cpid,
            sql(host.sequence),
            host.seen_ms,
            host.platform,
            host.client_version,
            machine.timezone,
            machine.processors,
            machine.vendor,
            machine.model,
            machine.flops,
            machine.iops,
            sql(machine.memory_bytes),
            sql(machine.disk_bytes),
            machine.os_name,
            machine.os_version,
            host.id,
        ],
    )
    .map(drop)
}

fn pair(row: &Row<'_>) -> Result<(RunId, WorkerId)> {
    Ok((RunId(Hash(row.get(0)?)), WorkerId(PublicKey(row.get(1)?))))
}

fn host(row: &Row<'_>) -> Result<Host> {
    Ok(Host {
        id: row.get("id")?,
        account: row.get("account")?,
        sequence: row.get("sequence")?,
        created_ms: row.get("created_ms")?,
        seen_ms: row.get("seen_ms")?,
        platform: row.get("platform")?,
        client_version: row.get("client_version")?,
        machine: Machine {
            cpid: row.get("cpid")?,
            timezone: row.get("timezone")?,
            processors: row.get("processors")?,
            vendor: row.get("vendor")?,
            model: row.get("model")?,
            flops: row.get("flops")?,
            iops: row.get("iops")?,
            memory_bytes: row.get("memory_bytes")?,
            disk_bytes: row.get("disk_bytes")?,
            os_name: row.get("os_name")?,
            os_version: row.get("os_version")?,
            disk_share_bytes: 0,
            memory_share_bytes: 0,
        },
        failures: row.get("failures")?,
        failed_ms: row.get("failed_ms")?,
        valid_in_row: row.get("valid_in_row")?,
        quota: Quota {
            lessened: row.get("daily_quota")?,
            given_day: row.get("given_day")?,
            given_on_day: row.get("given_on_day")?,
        },
    })
}
