//! The door's own database, beside the hub's: accounts, hosts, tasks. One thread reads and writes it by one connection, so
//! what it read stays in its memory. What waits together is written in one transaction (group commit), and nobody is answered
//! before that is on the disk.
//!
//! Each request of a client asks a dozen short questions. From another thread each of them would take longer on its way there
//! and back than in the database; so whole functions go to the database's thread, and rusqlite runs them there. sqlx makes the
//! schema.

mod accounts;
mod caller;
mod checks;
mod devices;
mod files;
mod hosts;
mod old;
mod outcomes;
mod teams;
mod units;

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    panic::{self, AssertUnwindSafe},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rusqlite::{OptionalExtension, Params, Row};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

pub(crate) use self::{
    accounts::{Account, NewAccount},
    caller::{Caller, Standing},
    checks::{Check, Likeness, NewCheck},
    devices::KeyUse,
    files::FileSum,
    hosts::{Enrolment, Host},
    old::BATCH,
    outcomes::{Measured, Outcome, Settled, Uploaded},
    teams::{TEAMS_SHOWN_MAX, Team},
    units::{NewUnit, Unit, UnitState},
};
use super::Busy;

/// The database's file in a hub's folder.
const DATABASE: &str = "boinc.sqlite";
/// How long a statement waits for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two tries to open it again.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// How long a change waits for others, to be written with them: each transaction costs a write to the disk.
const GATHERED: Duration = Duration::from_millis(4);
/// Changes written together.
const TOGETHER_MAX: usize = 256;
/// Questions answered together: changes that are due wait for them.
const QUESTIONS_MAX: usize = 32;
/// Changes that wait; whoever comes then waits outside.
const WAITING_MAX: usize = 1_024;
/// Rows read at once of what may be long.
const PAGE: u64 = 1_000;
/// Memory for what was read and written last. Little: SQLite looks through all of it when a transaction ends in which a
/// tree was balanced.
const CACHE_KIB: i64 = 8 << 10;
/// Prepared statements kept: as many as there are, and some.
const STATEMENTS_MAX: usize = 128;

/// The database. Clones are the same one.
#[derive(Clone)]
pub(crate) struct DoorStore {
    jobs: mpsc::Sender<Job>,
    /// Tasks whose results are being settled: nobody gives one up meanwhile, whatever is noted of it.
    pub(super) settling: Busy<String>,
}

/// A change on its way to the disk.
#[must_use]
#[derive(Debug)]
pub(crate) struct Pending<T>(oneshot::Receiver<Result<T>>);

impl<T> Pending<T> {
    /// Waits until the change is on the disk.
    pub(crate) async fn written(self) -> Result<T> {
        self.0.await.map_err(|_| closed())?
    }
}

/// Tells whoever asked for a change whether it is on the disk.
type Tell = Box<dyn FnOnce(bool) + Send>;
/// A change, which is made inside of a transaction.
type Change = Box<dyn FnOnce(&rusqlite::Connection) -> Tell + Send>;

/// A question, which answers by itself.
type Question = Box<dyn FnOnce(&rusqlite::Connection) + Send>;

/// What the database's thread is to do.
enum Job {
    Question(Question),
    Change(Change),
}

impl DoorStore {
    /// Opens or creates the database in a folder; nobody else on the machine reads it.
    pub(crate) async fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(DATABASE);
        make_private(&path).with_context(|| format!("can't create {}", path.display()))?;
        bring_up_to_date(&path).await?;
        let connection = connect(&path)
            .with_context(|| format!("can't open the database {}", path.display()))?;
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        thread::Builder::new()
            .name("boinc store".to_owned())
            .spawn(move || runtime.block_on(serve(&path, connection, waiting)))?;
        Ok(Self {
            jobs,
            settling: Busy::default(),
        })
    }

    /// Asks something.
    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&rusqlite::Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let question = Job::Question(Box::new(move |connection| {
            // Whoever asked may have gone.
            let _ = reply.send(unless_it_panics(|| question(connection)));
        }));
        self.jobs.send(question).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Asks something long in parts, so that nobody else waits for all of it. The question's places are the number of the
    /// last row before the part, and how many rows the part may have.
    async fn in_pages<T: Send + 'static>(
        &self,
        question: &'static str,
        read: impl Fn(&Row<'_>) -> Result<T> + Copy + Send + 'static,
        number: impl Fn(&T) -> u64,
    ) -> Result<Vec<T>> {
        let mut found = Vec::new();
        loop {
            let after = found.last().map_or(0, &number);
            let page = self.read(move |it| all(it, question, [after, PAGE], read));
            let page = page.await?;
            let is_last = (page.len() as u64) < PAGE;
            found.extend(page);
            if is_last {
                return Ok(found);
            }
        }
    }

    /// Makes a change; it is on the disk when this returns.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&rusqlite::Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.begin(change).await?.written().await
    }

    /// Begins a change; those begun after it are not on the disk before it.
    async fn begin<T: Send + 'static>(
        &self,
        change: impl FnOnce(&rusqlite::Connection) -> Result<T> + Send + 'static,
    ) -> Result<Pending<T>> {
        let (reply, answer) = oneshot::channel();
        let change: Change = Box::new(move |connection| {
            let made = in_savepoint(connection, change);
            Box::new(move |is_written| {
                let answer = match is_written {
                    true => made,
                    false => made.and_then(|_| anyhow::bail!("the change was not written")),
                };
                // Whoever asked may have gone; the change stands all the same.
                let _ = reply.send(answer);
            })
        });
        let job = Job::Change(change);
        self.jobs.send(job).await.map_err(|_| closed())?;
        Ok(Pending(answer))
    }
}

fn closed() -> anyhow::Error {
    anyhow::anyhow!("the door's database is closed")
}

async fn bring_up_to_date(path: &Path) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(path);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .with_context(|| format!("can't open the database {}", path.display()))?;
    sqlx::migrate!("src/boinc/store/migrations")
        .run(&mut connection)
        .await
        .with_context(|| {
            format!(
                "the database {} was made by another version",
                path.display()
            )
        })?;
    Ok(connection.close().await?)
}

fn connect(path: &Path) -> rusqlite::Result<rusqlite::Connection> {
    let connection = rusqlite::Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// Does what is asked for until nobody can ask any more: questions at once, changes that come within [`GATHERED`] in one
/// transaction.
async fn serve(
    path: &Path,
    mut connection: rusqlite::Connection,
    mut waiting: mpsc::Receiver<Job>,
) {
    let mut changes: Vec<Change> = Vec::new();
    let mut due = Instant::now();
    loop {
        let job = match changes.len() {
            0 => match waiting.recv().await {
                Some(job) => Some(job),
                None => return,
            },
            TOGETHER_MAX.. => None,
            // Before anything that waits is looked at.
            _ if due <= Instant::now() => None,
            // None either because time is up or because nobody can ask any more.
            _ => timeout_at(due, waiting.recv()).await.ok().flatten(),
        };
        let change = match job {
            Some(Job::Question(question)) => answer(&connection, question, &mut waiting),
            Some(Job::Change(change)) => Some(change),
            None => {
                connection = write(path, connection, std::mem::take(&mut changes));
                continue;
            }
        };
        if let Some(change) = change {
            if changes.is_empty() {
                due = Instant::now() + GATHERED;
            }
            changes.push(change);
        }
    }
}

/// Answers a question and those that wait behind it, in one transaction: each by itself would lock the file and unlock it.
/// Gives the change that came next, if one did.
fn answer(
    connection: &rusqlite::Connection,
    question: Question,
    waiting: &mut mpsc::Receiver<Job>,
) -> Option<Change> {
    // Without a transaction each statement is one of its own: as good, and slower.
    let is_begun = execute(connection, "BEGIN", []).is_ok();
    question(connection);
    let mut change = None;
    for _ in 1..QUESTIONS_MAX {
        match waiting.try_recv() {
            Ok(Job::Question(next)) => next(connection),
            Ok(Job::Change(next)) => {
                change = Some(next);
                break;
            }
            Err(_) => break,
        }
    }
    if is_begun && let Err(error) = execute(connection, "COMMIT", []) {
        tracing::error!("can't end a reading of the door's database: {error:#}");
        let _ = execute(connection, "ROLLBACK", []);
    }
    change
}

/// Makes changes and tells whoever asked for them; gives the connection to go on with.
fn write(
    path: &Path,
    connection: rusqlite::Connection,
    changes: Vec<Change>,
) -> rusqlite::Connection {
    let mut told = Vec::new();
    let written = write_together(&connection, changes, &mut told);
    for tell in told {
        tell(written.is_ok());
    }
    match written {
        Ok(()) => connection,
        // After any error the connection is opened anew: what it believes of its transaction may not be true.
        Err(error) => {
            tracing::error!("can't write the door's database: {error:#}");
            open_again(path, connection)
        }
    }
}

fn open_again(path: &Path, old: rusqlite::Connection) -> rusqlite::Connection {
    // What it has not written is gone with it, whatever it says.
    drop(old);
    loop {
        match connect(path) {
            Ok(connection) => return connection,
            Err(error) => tracing::error!("can't open the door's database: {error:#}"),
        }
        thread::sleep(OPEN_PAUSE);
    }
}

fn write_together(
    connection: &rusqlite::Connection,
    changes: Vec<Change>,
    told: &mut Vec<Tell>,
) -> Result<()> {
    execute(connection, "BEGIN IMMEDIATE", [])?;
    told.extend(changes.into_iter().map(|change| change(connection)));
    execute(connection, "COMMIT", [])?;
    Ok(())
}

/// A bug in one function closes the door to nobody else.
fn unless_it_panics<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What the database has of it is rolled back or was only read, and nothing else is shared.
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| anyhow::bail!("the door's database met a bug: please report this"))
}

/// One that fails takes back what it did and nothing of the others.
fn in_savepoint<T>(
    connection: &rusqlite::Connection,
    change: impl FnOnce(&rusqlite::Connection) -> Result<T>,
) -> Result<T> {
    execute(connection, "SAVEPOINT change", [])?;
    let made = unless_it_panics(|| change(connection));
    if made.is_err() {
        execute(connection, "ROLLBACK TO change", [])?;
    }
    execute(connection, "RELEASE change", [])?;
    made
}

/// Makes a change by one statement; how many rows it touched.
fn execute(
    connection: &rusqlite::Connection,
    statement: &str,
    parameters: impl Params,
) -> Result<usize> {
    Ok(connection.prepare_cached(statement)?.execute(parameters)?)
}

/// The first row that a statement gives.
fn first<T>(
    connection: &rusqlite::Connection,
    statement: &str,
    parameters: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let mut statement = connection.prepare_cached(statement)?;
    let found = statement.query_row(parameters, |row| Ok(read(row)));
    found.optional()?.transpose()
}

/// All rows that a statement gives.
fn all<T>(
    connection: &rusqlite::Connection,
    statement: &str,
    parameters: impl Params,
    read: impl Fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = connection.prepare_cached(statement)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// The number in the first column.
fn number(row: &Row<'_>) -> Result<u64> {
    Ok(row.get(0)?)
}

/// A number that clients or callers choose, within what the database has.
fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn make_private(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop)
}

#[cfg(test)]
pub(crate) mod tests;
