//! A folder that appears whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{MutexGuard, PoisonError},
};

use super::{Abandon, DatasetError};

/// Held locked while the folder is being written, so that a leftover can be told from work in progress.
const LOCK_FILE: &str = "lock";

/// How far a build is, for whoever may abandon it.
#[derive(Debug, Default)]
pub(super) enum Stage {
    /// No folder yet.
    #[default]
    Before,
    /// The folder in the making.
    Making(PathBuf),
    /// At its destination, or failed: nothing is left to abandon.
    Over,
    /// No more is written.
    Abandoned,
}

impl Abandon {
    /// Ends the build: removes the folder in the making at once and has the build fail where it would write next.
    /// Returns whether it did; if not, the build was over already.
    pub fn now(&self) -> bool {
        let mut stage = self.stage();
        if let Stage::Making(path) = &*stage {
            remove(path);
        }
        let is_over = matches!(*stage, Stage::Over);
        if !is_over {
            *stage = Stage::Abandoned;
        }
        !is_over
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        // A build that panicked while it wrote has left a stage that holds.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stage, which stays as it is while the answer lives.
    fn unless_abandoned(&self) -> Result<MutexGuard<'_, Stage>, DatasetError> {
        let stage = self.stage();
        match *stage {
            Stage::Abandoned => Err(DatasetError::Abandoned),
            Stage::Before | Stage::Making(_) | Stage::Over => Ok(stage),
        }
    }
}

/// A folder in the making, beside its destination. Dropped without [`PartialFolder::finish`], it is removed.
pub(super) struct PartialFolder {
    path: PathBuf,
    destination: PathBuf,
    parent: PathBuf,
    lock: Option<File>,
    abandon: Abandon,
}

impl PartialFolder {
    /// Refuses a destination that exists; removes what a killed process left.
    pub(super) fn create(destination: &Path, abandon: &Abandon) -> Result<Self, DatasetError> {
        let mut stage = abandon.unless_abandoned()?;
        if fs::symlink_metadata(destination).is_ok() {
            return Err(DatasetError::Exists(destination.to_owned()));
        }
        let name = destination.file_name().ok_or_else(|| {
            let nameless = io::Error::other("the path has no last part");
            file_error("create", destination, nameless)
        })?;
        let parent = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let path = parent.join(partial);

        fs::create_dir_all(&path).map_err(|error| file_error("create", &path, error))?;
        let lock_path = path.join(LOCK_FILE);
        let lock =
            File::create(&lock_path).map_err(|error| file_error("create", &lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DatasetError::Busy(path)),
            Err(TryLockError::Error(error)) => return Err(file_error("lock", &lock_path, error)),
        }
        let folder = Self {
            path,
            destination: destination.to_owned(),
            parent,
            lock: Some(lock),
            abandon: abandon.clone(),
        };
        *stage = Stage::Making(folder.path.clone());
        drop(stage);
        folder.clear()?;
        Ok(folder)
    }

    /// Writes a file and flushes it to disk; `name` is relative, its folders are created.
    pub(super) fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> Result<(), DatasetError> {
        let _stage = self.abandon.unless_abandoned()?;
        let path = self.path.join(name);
        let folder = path.parent().expect("a joined path has a parent");
        fs::create_dir_all(folder).map_err(|error| file_error("create", folder, error))?;
        File::create_new(&path)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(|error| file_error("write", &path, error))
    }

    /// Moves the folder to its destination, and has both reach the disk.
    pub(super) fn finish(mut self) -> Result<(), DatasetError> {
        let abandon = self.abandon.clone();
        let mut stage = abandon.unless_abandoned()?;
        self.move_into_place()?;
        *stage = Stage::Over;
        Ok(())
    }

    fn move_into_place(&mut self) -> Result<(), DatasetError> {
        for entry in self.entries()? {
            if entry.is_dir() {
                sync_folder(&entry)?;
            }
        }
        let lock_path = self.path.join(LOCK_FILE);
        fs::remove_file(&lock_path).map_err(|error| file_error("remove", &lock_path, error))?;
        sync_folder(&self.path)?;
        if fs::symlink_metadata(&self.destination).is_ok() {
            return Err(DatasetError::Exists(self.destination.clone()));
        }
        // Some systems do not rename a folder while a file in it is open.
        let lock = self.lock.take();
        if cfg!(windows) {
            drop(lock);
        }
        if let Err(error) = fs::rename(&self.path, &self.destination) {
            let failed = file_error("rename", &self.path, error);
            remove(&self.path);
            return Err(failed);
        }
        sync_folder(&self.parent)
    }

    fn entries(&self) -> Result<Vec<PathBuf>, DatasetError> {
        fs::read_dir(&self.path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(|error| file_error("read", &self.path, error))
    }

    /// Removes everything but the lock.
    fn clear(&self) -> Result<(), DatasetError> {
        for entry in self.entries()? {
            if entry.ends_with(LOCK_FILE) {
                continue;
            }
            let removed = if entry.is_dir() && !entry.is_symlink() {
                fs::remove_dir_all(&entry)
            } else {
                fs::remove_file(&entry)
            };
            removed.map_err(|error| file_error("remove", &entry, error))?;
        }
        Ok(())
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        let mut stage = self.abandon.stage();
        // What was abandoned is removed already, and another build may be at that place by now.
        if matches!(*stage, Stage::Abandoned) {
            return;
        }
        if self.lock.take().is_some() {
            remove(&self.path);
        }
        *stage = Stage::Over;
    }
}

/// Removes as far as possible: this runs while another error is on its way to the caller.
fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path);
}

fn sync_folder(path: &Path) -> Result<(), DatasetError> {
    if cfg!(unix) {
        File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| file_error("write", path, error))?;
    }
    Ok(())
}

fn file_error(doing: &'static str, path: &Path, source: io::Error) -> DatasetError {
    DatasetError::File {
        doing,
        path: path.to_owned(),
        source,
    }
}
