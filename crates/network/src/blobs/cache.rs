//! A folder of blobs on disk, by hash, of bounded size: what was used longest ago goes first.
//!
//! Files are written beside their place and renamed into it, and hashed on every read: a power cut or a failing disk
//! costs a download, never a wrong byte. One process uses a folder at a time (the worker's lock sees to it).

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use protocol::{Hash, units::BlobReference};

use crate::disk::{Disk, RealDisk};

/// Suffix of a download in progress.
const PART: &str = "part";
/// Suffix of a file that is being written at once.
const FRESH: &str = "new";
/// A download that was not touched for so long is not waited for any more.
const PART_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Blobs on disk. Cheap to clone; clones are the same cache.
#[derive(Clone, Debug)]
pub struct BlobCache {
    disk: Arc<dyn Disk>,
    folder: Arc<PathBuf>,
    inner: Arc<Mutex<Inner>>,
    transfers: Arc<Mutex<Transfers>>,
    /// Blobs that came in so far: who waits for one looks again when the number changes.
    arrivals: Arc<tokio::sync::watch::Sender<u64>>,
}

/// One lock for each blob that is being fetched, so that two tasks do not write one file.
type Transfers = HashMap<Hash, Arc<tokio::sync::Mutex<()>>>;

#[derive(Debug)]
struct Inner {
    bytes_max: u64,
    bytes: u64,
    /// Size and last use by hash.
    blobs: HashMap<Hash, (u64, SystemTime)>,
}

/// Why the cache did not keep or give a blob.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The disk.
    #[error("{doing} {path:?} failed")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// One blob larger than the whole cache may be.
    #[error("{bytes} bytes are more than the cache's limit of {bytes_max}: allow it more space")]
    TooLarge {
        /// Size of the blob.
        bytes: u64,
        /// Size of the cache.
        bytes_max: u64,
    },
    /// The bytes do not hash to the name that they came under.
    #[error("the bytes are not those of blob {}", hash.short())]
    WrongHash {
        /// The name.
        hash: Hash,
    },
}

impl BlobCache {
    /// Opens or makes the cache at `folder`, at most `bytes_max` bytes large.
    ///
    /// # Errors
    /// [`CacheError::Disk`].
    pub fn open(folder: &Path, bytes_max: u64) -> Result<Self, CacheError> {
        Self::open_on(Arc::new(RealDisk), folder, bytes_max)
    }

    /// As [`Self::open`], on another disk than the machine's.
    ///
    /// # Errors
    /// [`CacheError::Disk`].
    pub fn open_on(disk: Arc<dyn Disk>, folder: &Path, bytes_max: u64) -> Result<Self, CacheError> {
        disk.make_folder(folder)
            .map_err(failed("making the folder", folder))?;
        let mut inner = Inner {
            bytes_max,
            bytes: 0,
            blobs: HashMap::new(),
        };
        let files = disk.list(folder);
        for file in files.map_err(failed("reading the folder", folder))? {
            if let Ok(hash) = file.name.parse::<Hash>() {
                inner.bytes += file.bytes;
                inner.blobs.insert(hash, (file.bytes, file.used));
            } else if file.name.ends_with(FRESH) || file.name.ends_with(PART) && is_old(file.used) {
                remove(&*disk, &folder.join(&file.name))?;
            }
        }
        let cache = Self {
            disk,
            folder: Arc::new(folder.to_owned()),
            inner: Arc::new(Mutex::new(inner)),
            transfers: Arc::default(),
            arrivals: Arc::default(),
        };
        cache.make_room(0, None)?;
        Ok(cache)
    }

    /// The disk that the cache lies on.
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether the blob is here, as far as its name and size tell.
    #[must_use]
    pub fn contains(&self, reference: &BlobReference) -> bool {
        let inner = self.lock();
        matches!(inner.blobs.get(&reference.hash), Some((bytes, _)) if *bytes == reference.bytes)
    }

    /// Bytes of all blobs.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Most bytes that the cache keeps.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.lock().bytes_max
    }

    /// A blob's bytes, hashed; `None` if it is not here. One that has gone bad is thrown away and is not here.
    ///
    /// # Errors
    /// [`CacheError::Disk`].
    pub fn get(&self, hash: &Hash) -> Result<Option<Vec<u8>>, CacheError> {
        if !self.lock().blobs.contains_key(hash) {
            return Ok(None);
        }
        let path = self.path(hash);
        let bytes = match self.disk.read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(hash);
                return Ok(None);
            }
            Err(source) => return Err(failed("reading", &path)(source)),
        };
        if Hash::of_blob(&bytes) != *hash {
            tracing::warn!(blob = %hash, "a cached blob has gone bad on disk and is dropped");
            remove(&*self.disk, &path)?;
            self.forget(hash);
            return Ok(None);
        }
        self.touch(hash, &path);
        Ok(Some(bytes))
    }

    /// Where a blob that is here lies, counted as used; what the file holds is not looked at.
    pub(crate) fn place_of(&self, reference: &BlobReference) -> Option<PathBuf> {
        if !self.contains(reference) {
            return None;
        }
        let path = self.path(&reference.hash);
        self.touch(&reference.hash, &path);
        Some(path)
    }

    /// Changes whenever a blob has come in.
    pub(crate) fn arrivals(&self) -> tokio::sync::watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// Those who wait for a change of [`Self::arrivals`].
    #[cfg(test)]
    pub(crate) fn listeners(&self) -> usize {
        self.arrivals.receiver_count()
    }

    /// Keeps these bytes under `hash`.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn insert(&self, hash: &Hash, bytes: &[u8]) -> Result<(), CacheError> {
        if Hash::of_blob(bytes) != *hash {
            return Err(CacheError::WrongHash { hash: *hash });
        }
        let fresh = self.folder.join(format!("{hash}.{FRESH}"));
        self.make_room(bytes.len() as u64, Some(hash))?;
        self.disk
            .write(&fresh, &mut |file| file.write_all(bytes))
            .map_err(failed("writing", &fresh))?;
        self.adopt(hash, &fresh, bytes.len() as u64)
    }

    /// Waits until nobody else fetches this blob, and keeps others from it until the guard is dropped.
    pub(crate) async fn claim(&self, hash: &Hash) -> tokio::sync::OwnedMutexGuard<()> {
        let transfer = {
            let mut transfers = self
                .transfers
                .lock()
                .expect("nothing panics while the list is locked");
            transfers.retain(|_, transfer| Arc::strong_count(transfer) > 1);
            Arc::clone(transfers.entry(*hash).or_default())
        };
        transfer.lock_owned().await
    }

    /// Where a download of this blob is gathered.
    pub(crate) fn part_path(&self, hash: &Hash) -> PathBuf {
        self.folder.join(format!("{hash}.{PART}"))
    }

    /// Makes a gathered and checked file one of the cache's blobs.
    pub(crate) fn adopt(&self, hash: &Hash, file: &Path, bytes: u64) -> Result<(), CacheError> {
        self.make_room(bytes, Some(hash))?;
        let path = self.path(hash);
        self.disk
            .rename(file, &path)
            .map_err(failed("moving into place", &path))?;
        let mut inner = self.lock();
        let before = inner.blobs.insert(*hash, (bytes, SystemTime::now()));
        inner.bytes += bytes;
        inner.bytes -= before.map_or(0, |(bytes, _)| bytes);
        drop(inner);
        self.arrivals.send_modify(|it| *it += 1);
        Ok(())
    }

    /// Removes the blobs used longest ago until `bytes` more fit.
    pub(crate) fn make_room(&self, bytes: u64, keep: Option<&Hash>) -> Result<(), CacheError> {
        let mut inner = self.lock();
        if bytes > inner.bytes_max {
            return Err(CacheError::TooLarge {
                bytes,
                bytes_max: inner.bytes_max,
            });
        }
        while inner.bytes + bytes > inner.bytes_max {
            let oldest = inner
                .blobs
                .iter()
                .filter(|(hash, _)| Some(*hash) != keep)
                .min_by_key(|(hash, (_, used))| (*used, **hash))
                .map(|(hash, (bytes, _))| (*hash, *bytes));
            // Only the blob itself is left: its new bytes take the place of the old ones.
            let Some((hash, gone)) = oldest else { break };
            remove(&*self.disk, &self.path(&hash))?;
            inner.blobs.remove(&hash);
            inner.bytes -= gone;
        }
        Ok(())
    }

    fn path(&self, hash: &Hash) -> PathBuf {
        self.folder.join(hash.to_string())
    }

    fn touch(&self, hash: &Hash, path: &Path) {
        let now = SystemTime::now();
        if let Some((_, used)) = self.lock().blobs.get_mut(hash) {
            *used = now;
        }
        // Only the order of eviction after a restart depends on it.
        let touched = self.disk.touch(path, now);
        if let Err(error) = touched {
            tracing::debug!(blob = %hash, "the time of use was not noted: {error}");
        }
    }

    fn forget(&self, hash: &Hash) {
        let mut inner = self.lock();
        if let Some((bytes, _)) = inner.blobs.remove(hash) {
            inner.bytes -= bytes;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("nothing panics while the index is locked")
    }
}

fn is_old(used: SystemTime) -> bool {
    used.elapsed().is_ok_and(|age| age > PART_AGE_MAX)
}

pub(crate) fn failed<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError::Disk {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Removes a file that may be gone already.
pub(super) fn remove(disk: &dyn Disk, path: &Path) -> Result<(), CacheError> {
    match disk.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("removing", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
