//! The embedded store: the log of every run, and projections folded from it in the same transaction.
//!
//! SQLite in write-ahead mode, `synchronous = FULL`: when [`Store::append`] returns, the entries survive a power cut.
//! Nothing here knows HTTP or decides anything.

pub(crate) mod forks;
mod project;
pub(crate) mod read;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use network::world;
use protocol::{command::Command, event::Event, log::Entry, state::State, units::RunId};
use sqlx::{
    Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{sync::Mutex, time::Instant};

use crate::ground::Ground;

/// The database's file in a hub's folder.
pub(crate) const DATABASE: &str = "hub.sqlite";
/// Connections for readers; the writer takes one of them at a time.
const CONNECTIONS_MAX: u32 = 8;
/// How long a statement waits for another writer's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries inserted by one statement.
const INSERTED_TOGETHER: [usize; 3] = [1, 8, 64];
/// Entries read at once when a log is replayed.
const REPLAY_PAGE: i64 = 500;
/// A long replay tells after each time of this length how far it is.
const REPLAY_TOLD_EVERY: Duration = Duration::from_secs(5);

/// The database.
#[derive(Clone)]
pub(crate) struct Store {
    /// Readers.
    pool: SqlitePool,
    /// The one connection that writes. After any error it is closed and opened anew: a statement that failed for want
    /// of disk may have ended the transaction by itself, and what a pool then believes of the connection is not true.
    writer: Arc<Mutex<Option<SqliteConnection>>>,
    options: SqliteConnectOptions,
}

impl Store {
    /// Opens or creates the database in a folder and brings its schema up to date.
    pub(crate) async fn open(folder: &Path, ground: &Ground) -> Result<Self> {
        let path = folder.join(DATABASE);
        let mut options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        if let Some(disk) = &ground.database {
            options = options.vfs(disk.clone());
        }
        world::settled(Self::connect(options, &path)).await
    }

    async fn connect(options: SqliteConnectOptions, path: &Path) -> Result<Self> {
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options.clone())
            .await
            .with_context(|| format!("can't open the database {}", path.display()))?;
        sqlx::migrate!("src/store/migrations")
            .run(&pool)
            .await
            .with_context(|| {
                format!(
                    "the database {} was made by another version",
                    path.display()
                )
            })?;
        Ok(Self {
            pool,
            writer: Arc::default(),
            options,
        })
    }

    /// Ids of all runs, oldest first.
    pub(crate) async fn runs(&self) -> Result<Vec<RunId>> {
        let query = sqlx::query("SELECT id FROM run ORDER BY created_ms, id");
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter()
            .map(|row| Ok(RunId(hash_of(row.try_get("id")?)?)))
            .collect()
    }

    /// Adds a run with its first entry.
    pub(crate) async fn create(&self, entry: &Entry, state: &State) -> Result<()> {
        world::settled(self.write_run(entry, state)).await
    }

    async fn write_run(&self, entry: &Entry, state: &State) -> Result<()> {
        let mut writer = self.writer.lock().await;
        let mut connection = self.take_writer(&mut writer).await?;
        let mut transaction = connection.begin().await?;
        sqlx::query("INSERT INTO run (id, name, created_ms) VALUES (?, ?, ?)")
            .bind(&state.run.0.0[..])
            .bind(&state.charter.name)
            .bind(entry.time_ms as i64)
            .execute(&mut *transaction)
            .await?;
        let entries = [(entry.clone(), Projected::default())];
        insert_entries(&mut transaction, &entries).await?;
        project::apply_group(&mut transaction, &entries).await?;
        transaction.commit().await?;
        *writer = Some(connection);
        Ok(())
    }

    /// Appends entries, all or none, each with what its projections need to know.
    pub(crate) async fn append(&self, entries: &[(Entry, Projected)]) -> Result<()> {
        world::written(self.write(entries)).await
    }

    async fn write(&self, entries: &[(Entry, Projected)]) -> Result<()> {
        let mut writer = self.writer.lock().await;
        let mut connection = self.take_writer(&mut writer).await?;
        let mut transaction = connection.begin().await?;
        let mut left = entries;
        while let Some((chunk, rest)) = split_chunk(left) {
            insert_entries(&mut transaction, chunk).await?;
            left = rest;
        }
        for group in entries.chunk_by(|(a, _), (b, _)| project::go_together(a, b)) {
            project::apply_group(&mut transaction, group).await?;
        }
        transaction.commit().await?;
        *writer = Some(connection);
        Ok(())
    }

    /// The writing connection, taken out of its place: it goes back only after a commit.
    async fn take_writer(&self, writer: &mut Option<SqliteConnection>) -> Result<SqliteConnection> {
        match writer.take() {
            Some(connection) => Ok(connection),
            None => Ok(SqliteConnection::connect_with(&self.options).await?),
        }
    }

    /// Replays a run's log from the beginning. It is this hub's own, every command in it was checked before it was written:
    /// the chain of hashes and the seal of the last entry tell whether it is whole.
    pub(crate) async fn replay(&self, run: RunId) -> Result<State> {
        let mut state: Option<State> = None;
        let mut last = None;
        let mut told = Instant::now();
        loop {
            let from = state.as_ref().map_or(0, |it| it.head.length);
            let entries = self.entries(run, from, REPLAY_PAGE as u64).await?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                match &mut state {
                    None => state = Some(State::create(&entry)?),
                    Some(state) => state.apply_decided(&entry)?,
                }
                last = Some(entry);
            }
            if told.elapsed() > REPLAY_TOLD_EVERY {
                let (read, of) = (from, self.length(run).await?);
                tracing::info!(run.id = %run.short(), "reading the log: {read} of {of} entries");
                told = Instant::now();
            }
        }
        let (Some(state), Some(last)) = (state, last) else {
            bail!("the log of run {run} is empty");
        };
        state.check_head(&last)?;
        Ok(state)
    }

    /// Entries from a position on.
    pub(crate) async fn entries(&self, run: RunId, from: u64, limit: u64) -> Result<Vec<Entry>> {
        let query = sqlx::query(
            "SELECT entry FROM log WHERE run = ? AND position >= ? ORDER BY position LIMIT ?",
        )
        .bind(&run.0.0[..])
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(limit as i64);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter().map(entry_of).collect()
    }

    /// Entries of some kinds from a position on.
    pub(crate) async fn entries_of_kinds(
        &self,
        run: RunId,
        from: u64,
        kinds: [&str; 2],
        limit: u64,
    ) -> Result<Vec<Entry>> {
        let query = sqlx::query(
            "SELECT entry FROM log WHERE run = ? AND position >= ? AND kind IN (?, ?) ORDER BY position LIMIT ?",
        )
        .bind(&run.0.0[..])
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(kinds[0])
        .bind(kinds[1])
        .bind(limit as i64);
        let rows = world::settled(query.fetch_all(&self.pool)).await?;
        rows.iter().map(entry_of).collect()
    }

    /// Entries of a run's log.
    pub(crate) async fn length(&self, run: RunId) -> Result<u64> {
        let query =
            sqlx::query_scalar("SELECT coalesce(max(position) + 1, 0) FROM log WHERE run = ?")
                .bind(run.0.0.to_vec());
        let length: i64 = world::settled(query.fetch_one(&self.pool)).await?;
        Ok(length.unsigned_abs())
    }

    /// Closes the database; what was committed stays.
    pub(crate) async fn close(&self) {
        world::settled(self.disconnect()).await;
    }

    async fn disconnect(&self) {
        let mut writer = self.writer.lock().await;
        let last = self.take_writer(&mut writer).await;
        self.pool.close().await;
        if let Ok(mut connection) = last {
            // SQLite brings the write-ahead log into the database when the last connection ends, but not if two end at the
            // same moment. What was committed stays, however this goes.
            let whole = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)");
            let _ = whole.execute(&mut connection).await;
            let _ = connection.close().await;
        }
    }
}

/// What the projections need of the state right after an entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Projected {
    /// Round and slot that merge a commitment, if that is not told by the event.
    pub(crate) place: Option<(u64, u32)>,
    /// Accepted tokens of the run.
    pub(crate) tokens: u64,
    /// Mean training loss of the merged updates, 10^-6 nats a token.
    pub(crate) training_loss: Option<u64>,
}

impl Projected {
    /// What the projections need that the event is about to change.
    pub(crate) fn before(state: &State, event: &Event) -> Self {
        let mut projected = Self::default();
        let next_slot = || {
            let open = state.training.as_ref()?;
            Some((open.round, open.slots().len() as u32))
        };
        match event {
            Event::UpdateCommitted { command } => {
                let Command::Commit(commitment) = &command.command else {
                    return projected;
                };
                let header = &commitment.header;
                let open = state.training.as_ref().map(|it| it.round);
                projected.place = if open == Some(header.round) {
                    Some((header.round, header.slot))
                } else {
                    next_slot()
                };
            }
            Event::UpdateDeferred { .. } => projected.place = next_slot(),
            Event::RoundMerged { updates, .. } => {
                let round = state.revealing.as_ref();
                let tokens: u128 = updates.iter().map(|it| u128::from(it.tokens)).sum();
                let loss: u128 = updates
                    .iter()
                    .filter_map(|it| {
                        let slot = round?.slots().get(it.slot as usize)?;
                        let header = &slot.commitment()?.header;
                        Some(u128::from(header.loss_micronats) * u128::from(it.tokens))
                    })
                    .sum();
                projected.training_loss =
                    loss.checked_div(tokens).and_then(|it| it.try_into().ok());
            }
            _ => {}
        }
        projected
    }
}

/// Entries with what their projections need.
type Written = [(Entry, Projected)];

/// The first entries, as many as one statement inserts, and the rest: few lengths, so that few statements are prepared.
fn split_chunk(entries: &Written) -> Option<(&Written, &Written)> {
    let longest = INSERTED_TOGETHER.into_iter();
    let length = longest.filter(|it| *it <= entries.len()).max()?;
    Some(entries.split_at(length))
}

async fn insert_entries(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    entries: &Written,
) -> Result<()> {
    let mut query = sqlx::QueryBuilder::new("INSERT INTO log (run, position, kind, entry) ");
    query.push_values(entries, |mut row, (entry, _)| {
        row.push_bind(entry.run.0.0.to_vec())
            .push_bind(entry.index as i64)
            .push_bind(entry.event.name())
            .push_bind(entry.to_bytes());
    });
    query.build().execute(&mut **transaction).await?;
    Ok(())
}

/// An entry from its column.
fn entry_of(row: &sqlx::sqlite::SqliteRow) -> Result<Entry> {
    let bytes: &[u8] = row.try_get("entry")?;
    Entry::from_bytes(bytes).context("a stored log entry does not read")
}

/// A hash from a column.
pub(crate) fn hash_of(bytes: &[u8]) -> Result<protocol::Hash> {
    Ok(protocol::Hash(
        bytes.try_into().context("a stored hash is not 32 bytes")?,
    ))
}

#[cfg(test)]
pub(crate) mod tests;
