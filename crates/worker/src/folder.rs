//! A worker's folder: its key, its lock, and what it keeps of each run.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use network::disk::{Disk, Lock};
use protocol::{SecretKey, units::RunId};
use tokio::time::Instant;

/// The key's file in the folder.
const KEY_NAME: &str = "worker.key";
/// How long a worker that ends is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two looks at the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// The folder of one worker, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    key: SecretKey,
    /// Held, never read: the operating system lets go of it when the process ends, however it ends.
    _lock: Lock,
}

impl Folder {
    /// Opens or makes the folder, takes its lock, reads or makes its key. A worker that was stopped a moment ago may still
    /// have the lock.
    pub(crate) async fn open(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let given_up = Instant::now() + LOCK_PATIENCE;
        loop {
            if let Some(folder) = Self::open_if_free(disk, path)? {
                return Ok(folder);
            }
            anyhow::ensure!(
                Instant::now() < given_up,
                "another worker is using the folder {}: stop it, or give this one a folder of its own",
                path.display()
            );
            tokio::time::sleep(LOCK_PAUSE).await;
        }
    }

    /// The same; `None` if another worker has the folder.
    pub(crate) fn open_if_free(disk: &dyn Disk, path: &Path) -> Result<Option<Self>> {
        disk.make_folder(path)
            .with_context(|| format!("making the worker's folder {}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = disk
            .lock(&lock_path)
            .with_context(|| format!("locking {}", lock_path.display()))?;
        let Some(lock) = lock else {
            return Ok(None);
        };
        let key = read_or_make_key(disk, &path.join(KEY_NAME))?;
        Ok(Some(Self {
            path: path.to_owned(),
            key,
            _lock: lock,
        }))
    }

    /// Puts the key aside, for the reason of this name, and makes another; once for each reason.
    #[cfg(target_os = "linux")]
    pub(crate) fn replace_key(&mut self, disk: &dyn Disk, reason: &str) -> Result<()> {
        let path = self.path.join(KEY_NAME);
        let aside = self.path.join(format!("{KEY_NAME}.before-{reason}"));
        if disk.length(&aside).is_ok() {
            return Ok(());
        }
        disk.rename(&path, &aside)
            .with_context(|| format!("putting the key {} aside", path.display()))?;
        self.key = make_key(disk, &path)?;
        Ok(())
    }

    /// The worker's key.
    pub(crate) fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Whether anything of a run is here: its worker goes on with it.
    pub(crate) fn has(&self, disk: &dyn Disk, run: RunId) -> bool {
        let runs = self.path.join("runs").join(run.to_string());
        disk.list(&runs).is_ok_and(|it| !it.is_empty())
    }

    /// Where the hub's addresses are kept.
    pub(crate) fn addresses(&self) -> PathBuf {
        self.path.join("addresses")
    }

    /// Where the statements lie that say who keeps a run.
    pub(crate) fn takeovers(&self, run: RunId) -> PathBuf {
        self.path
            .join("runs")
            .join(run.to_string())
            .join("takeovers")
    }

    /// Where cached blobs lie.
    pub(crate) fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// Where what is carried between a run's rounds lies.
    pub(crate) fn carried(&self, run: RunId) -> PathBuf {
        self.path.join("runs").join(run.to_string()).join("carried")
    }

    /// Where the model lies that was held last.
    pub(crate) fn model(&self, run: RunId) -> PathBuf {
        self.path.join("runs").join(run.to_string()).join("model")
    }

    /// Where a BOINC host remembers what it sent.
    #[cfg(target_os = "linux")]
    pub(crate) fn recent(&self, run: RunId) -> PathBuf {
        self.path.join("runs").join(run.to_string()).join("recent")
    }

    /// Where what a BOINC host sends is written until it is whole.
    #[cfg(target_os = "linux")]
    pub(crate) fn fresh_output(&self) -> PathBuf {
        self.path.join("output.new")
    }

    /// Where committed updates lie until nobody can ask for them.
    pub(crate) fn outbox(&self, run: RunId) -> PathBuf {
        self.path.join("runs").join(run.to_string()).join("outbox")
    }
}

fn read_or_make_key(disk: &dyn Disk, path: &Path) -> Result<SecretKey> {
    match disk.read(path) {
        Ok(text) => String::from_utf8(text)
            .ok()
            .and_then(|it| SecretKey::from_text(&it).ok())
            .with_context(|| {
                format!(
                    "the key file {} is damaged: restore it from a copy, or move it away to begin as a new worker",
                    path.display()
                )
            }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_key(disk, path),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Written beside its place first: half a key must never be found there.
fn make_key(disk: &dyn Disk, path: &Path) -> Result<SecretKey> {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy)
        .map_err(|error| anyhow::anyhow!("the system gives no entropy for a key: {error}"))?;
    let key = SecretKey::from_entropy(entropy);
    let fresh = path.with_extension("new");
    let text = format!("{}\n", key.to_secret_text());
    disk.write_private(&fresh, text.as_bytes())
        .and_then(|()| disk.sync(&fresh))
        .and_then(|()| disk.rename(&fresh, path))
        .with_context(|| format!("writing the key file {}", path.display()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use network::disk::RealDisk;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_folder_keeps_its_key_and_serves_one_worker() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("worker");
        let first = Folder::open(&RealDisk, &path).await.unwrap();
        let refused = Folder::open(&RealDisk, &path).await.unwrap_err();
        assert!(refused.to_string().contains("another worker"), "{refused}");
        let key = first.key().public();
        // One that ends meanwhile is waited for.
        let ending = async {
            tokio::time::sleep(LOCK_PATIENCE / 2).await;
            drop(first);
        };
        let (next, ()) = tokio::join!(Folder::open(&RealDisk, &path), ending);
        assert_eq!(next.unwrap().key().public(), key);
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn the_key_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let _folder = Folder::open(&RealDisk, place.path()).await.unwrap();
        let meta = fs::metadata(place.path().join("worker.key")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_damaged_key_is_not_replaced() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("worker.key"), "half a k").unwrap();
        let refusal = Folder::open(&RealDisk, place.path())
            .await
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("damaged"), "{refusal}");
        assert_eq!(
            fs::read(place.path().join("worker.key")).unwrap(),
            b"half a k"
        );
    }
}
