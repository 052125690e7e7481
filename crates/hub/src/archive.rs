//! A hub's folder while no hub works in it: its runs' logs and blobs, for whoever checks them.
//!
//! Nothing here writes, and nothing is believed: entries come as the bytes that stand on the disk. A copy of a folder
//! serves as well as the folder.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use protocol::{Hash, PublicKey, SecretKey, units::RunId};
use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use crate::store::{DATABASE, hash_of};

/// Entries read at once at most.
const PAGE_ENTRIES: u32 = 500;
/// Bytes of entries after which a page ends.
const PAGE_BYTES: usize = 32 << 20;

/// The folder of a hub that does not run.
#[derive(Debug)]
pub struct Archive {
    pool: SqlitePool,
    folder: PathBuf,
    /// Held, never read: no hub begins to work while somebody checks.
    _lock: Option<File>,
}

/// One row of the log as it stands on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its position by the row's key.
    pub position: u64,
    /// The event's name by the row.
    pub kind: String,
    /// The entry's bytes.
    pub bytes: Vec<u8>,
}

/// An entry that was set aside, because another hub's log counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySetAside {
    /// Its row, by which the next ones are asked for.
    pub row: i64,
    /// Its position by the row.
    pub position: u64,
    /// The entry's bytes.
    pub bytes: Vec<u8>,
}

/// A proof that a key said two things, as it stands on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredProof {
    /// Its name by the row.
    pub id: Vec<u8>,
    /// The proof's bytes.
    pub bytes: Vec<u8>,
}

impl Archive {
    /// Whether this looks like a hub's folder.
    #[must_use]
    pub fn is_there(folder: &Path) -> bool {
        folder.join(DATABASE).is_file()
    }

    /// Opens a hub's folder, or a copy of one, for reading.
    ///
    /// # Errors
    /// A hub works there, or it is no hub's folder.
    pub async fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(DATABASE);
        ensure!(
            path.is_file(),
            "{} is no hub's folder: there is no {DATABASE} in it",
            folder.display()
        );
        let lock = lock_shared(folder)?;
        // A hub that was killed leaves a write-ahead log, which SQLite reads beside the database and needs a file for.
        let left = path.with_extension("sqlite-wal");
        let is_whole = fs::metadata(&left).map_or(true, |it| it.len() == 0);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .read_only(true)
            .immutable(is_whole);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await
            .with_context(|| format!("can't read the database {}", path.display()))?;
        Ok(Self {
            pool,
            folder: folder.to_owned(),
            _lock: lock,
        })
    }

    /// Ids and names of all runs, oldest first.
    ///
    /// # Errors
    /// The database.
    pub async fn runs(&self) -> Result<Vec<(RunId, String)>> {
        let rows = sqlx::query("SELECT id, name FROM run ORDER BY created_ms, id")
            .fetch_all(&self.pool)
            .await
            .context("can't read the list of runs")?;
        rows.iter()
            .map(|row| Ok((RunId(hash_of(row.try_get("id")?)?), row.try_get("name")?)))
            .collect()
    }

    /// Entries of a run's log.
    ///
    /// # Errors
    /// The database.
    pub async fn length(&self, run: RunId) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM log WHERE run = ?")
            .bind(&run.0.0[..])
            .fetch_one(&self.pool)
            .await
            .context("can't count the log's entries")?;
        Ok(count.unsigned_abs())
    }

    /// Some entries from a position on, in order; none at the end.
    ///
    /// # Errors
    /// The database.
    pub async fn entries(&self, run: RunId, from: u64) -> Result<Vec<StoredEntry>> {
        let mut rows = sqlx::query(
            "SELECT position, kind, entry FROM log WHERE run = ? AND position >= ? ORDER BY position LIMIT ?",
        )
        .bind(run.0.0.to_vec())
        .bind(i64::try_from(from).unwrap_or(i64::MAX))
        .bind(PAGE_ENTRIES)
        .fetch(&self.pool);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES {
            let row = rows.try_next().await;
            let Some(row) = row.with_context(|| format!("can't read the log from {from}"))? else {
                break;
            };
            let position: i64 = row.try_get("position")?;
            let entry = StoredEntry {
                position: position.unsigned_abs(),
                kind: row.try_get("kind")?,
                bytes: row.try_get("entry")?,
            };
            bytes += entry.bytes.len();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Some of the entries that were set aside, after a row; none at the end.
    ///
    /// # Errors
    /// The database.
    pub async fn set_aside(&self, run: RunId, after: Option<i64>) -> Result<Vec<EntrySetAside>> {
        if !self.has_table("set_aside").await? {
            return Ok(Vec::new());
        }
        let mut rows = sqlx::query(
            "SELECT rowid, position, entry FROM set_aside WHERE run = ? AND rowid > ? ORDER BY rowid LIMIT ?",
        )
        .bind(run.0.0.to_vec())
        .bind(after.unwrap_or(i64::MIN))
        .bind(PAGE_ENTRIES)
        .fetch(&self.pool);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < PAGE_BYTES {
            let row = rows.try_next().await;
            let Some(row) = row.context("can't read what was set aside")? else {
                break;
            };
            let position: i64 = row.try_get("position")?;
            let entry = EntrySetAside {
                row: row.try_get("rowid")?,
                position: position.unsigned_abs(),
                bytes: row.try_get("entry")?,
            };
            bytes += entry.bytes.len();
            entries.push(entry);
        }
        Ok(entries)
    }

    /// All proofs of what was said twice; a hub keeps few.
    ///
    /// # Errors
    /// The database.
    pub async fn proofs(&self, run: RunId) -> Result<Vec<StoredProof>> {
        if !self.has_table("equivocation").await? {
            return Ok(Vec::new());
        }
        let rows = sqlx::query("SELECT id, proof FROM equivocation WHERE run = ? ORDER BY id")
            .bind(run.0.0.to_vec())
            .fetch_all(&self.pool)
            .await
            .context("can't read the proofs of what was said twice")?;
        rows.iter()
            .map(|row| {
                Ok(StoredProof {
                    id: row.try_get("id")?,
                    bytes: row.try_get("proof")?,
                })
            })
            .collect()
    }

    /// Whether the database, which an older hub may have made, has this table.
    async fn has_table(&self, name: &str) -> Result<bool> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?",
        )
        .bind(name.to_owned())
        .fetch_one(&self.pool)
        .await
        .context("can't read the list of tables")?;
        Ok(count > 0)
    }

    /// What SQLite says is wrong with the database's own structure, and rows of runs that are not there.
    ///
    /// # Errors
    /// It can't even be looked at.
    pub async fn database_problems(&self) -> Result<Vec<String>> {
        let lines: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_all(&self.pool)
            .await
            .context("can't check the database")?;
        let mut problems: Vec<String> = lines.into_iter().filter(|it| it != "ok").collect();
        let strays = sqlx::query(
            "SELECT \"table\" AS name, count(*) AS count FROM pragma_foreign_key_check GROUP BY 1",
        )
        .fetch_all(&self.pool)
        .await
        .context("can't check the database")?;
        for stray in &strays {
            let (name, count): (String, i64) = (stray.try_get("name")?, stray.try_get("count")?);
            problems.push(format!(
                "{count} rows of {name} are of a run that is not here"
            ));
        }
        Ok(problems)
    }

    /// The file of the hub's key.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        self.folder.join(crate::KEY)
    }

    /// The public part of the hub's key; none if its file is not here.
    ///
    /// # Errors
    /// What the file has is no key.
    pub fn key(&self) -> Result<Option<PublicKey>> {
        let text = match fs::read(self.key_path()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context("it can't be read"),
        };
        let text = std::str::from_utf8(&text).ok();
        let key = text.and_then(|it| SecretKey::from_text(it).ok());
        Ok(Some(key.context("it is damaged: it is no key")?.public()))
    }

    /// The database's file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.folder.join(DATABASE)
    }

    /// Where a blob lies, if it is here.
    #[must_use]
    pub fn blob_path(&self, hash: &Hash) -> PathBuf {
        self.folder.join("blobs").join(hash.to_string())
    }

    /// Every file among the blobs, with the hash that it is named by, if its name is one.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn blobs(&self) -> Result<Vec<(Option<Hash>, PathBuf)>> {
        let folder = self.folder.join("blobs");
        let items = fs::read_dir(&folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .with_context(|| format!("can't list the folder {}", folder.display()))?;
        let named = items.into_iter().map(|item| {
            let name = item.file_name();
            let hash = name.to_str().and_then(|it| it.parse().ok());
            (hash, item.path())
        });
        Ok(named.collect())
    }
}

/// Keeps hubs out while this is held; a copy of a folder may lack the file.
fn lock_shared(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(crate::LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("can't open {}", path.display()));
        }
    };
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).map_err(|_| {
        anyhow::anyhow!(
            "a hub works in {}: stop it, or name its address instead of its folder",
            folder.display()
        )
    })?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests;
