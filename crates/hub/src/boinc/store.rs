//! The door's own database, beside the hub's: accounts, hosts, tasks. One task writes it; what waits together is written in
//! one transaction (group commit), and nobody is answered before that is on the disk.

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

use std::{fs, io, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use sqlx::{
    Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

pub(crate) use self::{
    accounts::{Account, NewAccount},
    caller::{Caller, Standing},
    checks::{Check, Likeness, NewCheck},
    files::FileSum,
    hosts::{Enrolment, Host},
    old::BATCH,
    outcomes::{Measured, Outcome, Settled},
    teams::Team,
    units::{NewUnit, Unit, UnitState},
};

/// The database's file in a hub's folder.
const DATABASE: &str = "boinc.sqlite";
/// How long a statement waits for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two tries to open it again.
const OPEN_PAUSE: Duration = Duration::from_secs(1);
/// Changes written together.
const TOGETHER_MAX: usize = 256;
/// Changes that wait; whoever comes then waits outside.
const WAITING_MAX: usize = 1_024;

/// The database. Clones are the same one.
///
/// One connection reads and writes: what it read stays in its memory, while another's memory is void after each change.
#[derive(Clone)]
pub(crate) struct DoorStore {
    connection: Arc<Mutex<SqliteConnection>>,
    changes: mpsc::Sender<Change>,
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
type Change = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Tell> + Send>;

impl DoorStore {
    /// Opens or creates the database in a folder; nobody else on the machine reads it.
    pub(crate) async fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(DATABASE);
        make_private(&path).with_context(|| format!("can't create {}", path.display()))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
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
        let connection = Arc::new(Mutex::new(connection));
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(write_all(options, Arc::clone(&connection), waiting));
        Ok(Self {
            connection,
            changes,
        })
    }

    /// The connection, to read by, between two transactions.
    async fn reader(&self) -> MutexGuard<'_, SqliteConnection> {
        self.connection.lock().await
    }

    /// Makes a change; it is on the disk when this returns.
    async fn write<T: Send + 'static>(
        &self,
        change: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>
        + Send
        + 'static,
    ) -> Result<T> {
        self.begin(false, change).await?.written().await
    }

    /// The same for a change of one statement, which is whole or nothing by itself.
    async fn write_one<T: Send + 'static>(
        &self,
        change: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>
        + Send
        + 'static,
    ) -> Result<T> {
        self.begin(true, change).await?.written().await
    }

    /// Begins a change; those begun after it are not on the disk before it.
    async fn begin<T: Send + 'static>(
        &self,
        is_one_statement: bool,
        change: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>
        + Send
        + 'static,
    ) -> Result<Pending<T>> {
        let (reply, answer) = oneshot::channel();
        let change: Change = Box::new(move |connection| {
            Box::pin(async move {
                let made = match is_one_statement {
                    true => change(connection).await,
                    false => in_savepoint(connection, change).await,
                };
                let tell: Tell = Box::new(move |is_written| {
                    let answer = match is_written {
                        true => made,
                        false => made.and_then(|_| anyhow::bail!("the change was not written")),
                    };
                    // Whoever asked may have gone; the change stands all the same.
                    let _ = reply.send(answer);
                });
                tell
            })
        });
        self.changes.send(change).await.map_err(|_| closed())?;
        Ok(Pending(answer))
    }
}

fn closed() -> anyhow::Error {
    anyhow::anyhow!("the door's database is closed")
}

/// One that fails takes back what it did and nothing of the others.
async fn in_savepoint<T>(
    connection: &mut SqliteConnection,
    change: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>>,
) -> Result<T> {
    sqlx::query("SAVEPOINT change")
        .execute(&mut *connection)
        .await?;
    let made = change(&mut *connection).await;
    if made.is_err() {
        sqlx::query("ROLLBACK TO change")
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("RELEASE change")
        .execute(&mut *connection)
        .await?;
    made
}

/// Makes changes, those that wait together in one transaction, until nobody can ask for more.
async fn write_all(
    options: SqliteConnectOptions,
    connection: Arc<Mutex<SqliteConnection>>,
    mut waiting: mpsc::Receiver<Change>,
) {
    let mut changes = Vec::new();
    while waiting.recv_many(&mut changes, TOGETHER_MAX).await > 0 {
        let mut told = Vec::new();
        let mut connection = connection.lock().await;
        let written = write_together(&mut connection, &mut changes, &mut told).await;
        changes.clear();
        for tell in told {
            tell(written.is_ok());
        }
        // After any error the connection is opened anew: what it believes of its transaction may not be true. Nobody reads
        // by it before.
        if let Err(error) = written {
            tracing::error!("can't write the door's database: {error:#}");
            *connection = open_again(&options).await;
        }
    }
}

async fn open_again(options: &SqliteConnectOptions) -> SqliteConnection {
    loop {
        match SqliteConnection::connect_with(options).await {
            Ok(connection) => return connection,
            Err(error) => tracing::error!("can't open the door's database: {error:#}"),
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
}

async fn write_together(
    connection: &mut SqliteConnection,
    changes: &mut Vec<Change>,
    told: &mut Vec<Tell>,
) -> Result<()> {
    sqlx::query("BEGIN IMMEDIATE")
        .execute(&mut *connection)
        .await?;
    for change in changes.drain(..) {
        told.push(change(&mut *connection).await);
    }
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}

fn make_private(path: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop)
}

fn count(row: &SqliteRow, column: &str) -> Result<u64> {
    Ok(row.try_get::<i64, _>(column)?.unsigned_abs())
}

fn optional(row: &SqliteRow, column: &str) -> Result<Option<u64>> {
    let number: Option<i64> = row.try_get(column)?;
    Ok(number.map(i64::unsigned_abs))
}

fn bytes_of<const N: usize>(row: &SqliteRow, column: &str) -> Result<[u8; N]> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes
        .try_into()
        .with_context(|| format!("{column} of the door's database has another length"))
}

#[cfg(test)]
pub(crate) mod tests;
