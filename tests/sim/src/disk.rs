//! A node's disk in memory, which knows what was synced: a power cut keeps or drops the rest sector by sector.
//!
//! Roles reach it through [`network::disk::Disk`], SQLite through [`vfs`], blobs through [`objects`]. Names follow a
//! journal, as on the usual file systems: a sync of any file or folder makes all earlier changes of names durable.

mod names;
pub mod objects;
pub mod vfs;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use network::disk::{Disk, Listed, Lock};
use protocol::Hash;

use crate::chance::Chance;
use names::Names;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// A disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

/// A copy of a disk.
#[derive(Clone, Debug)]
pub struct Image {
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug)]
struct Inner {
    chance: Chance,
    names: Names,
    files: BTreeMap<u64, File>,
    next_file: u64,
    /// Changes of names since the last sync, oldest first.
    journal: Vec<NameChange>,
    locked: BTreeSet<String>,
    /// Counts power cuts: what was opened before one is of no use after it.
    boot: u64,
    is_full: bool,
    /// Writing operations until the power fails.
    power_left: Option<u64>,
    is_dead: bool,
    uses: u64,
}

#[derive(Debug, Default)]
struct File {
    content: Vec<u8>,
    /// What brings back the content as it was at the last sync, oldest first.
    undo: Vec<Undo>,
    used: u64,
}

#[derive(Debug)]
enum Undo {
    /// Bytes from an offset on were overwritten (and the file grew, if it was shorter).
    Write {
        offset: usize,
        end: usize,
        before: Vec<u8>,
    },
    /// The file was cut; this was its end.
    Cut { before: Vec<u8> },
}

#[derive(Debug)]
enum NameChange {
    Made {
        name: String,
    },
    Moved {
        from: String,
        to: String,
        replaced: Option<u64>,
    },
    Removed {
        name: String,
        file: u64,
    },
}

impl SimDisk {
    /// An empty disk; `chance` decides what a power cut keeps.
    #[must_use]
    pub fn new(chance: Chance) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                chance,
                names: Names::default(),
                files: BTreeMap::new(),
                next_file: 0,
                journal: Vec::new(),
                locked: BTreeSet::new(),
                boot: 0,
                is_full: false,
                power_left: None,
                is_dead: false,
                uses: 0,
            })),
        }
    }

    /// From now on, no file grows (or all may again).
    pub fn set_full(&self, is_full: bool) {
        self.lock_inner().is_full = is_full;
    }

    /// Whether no file grows.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock_inner().is_full
    }

    /// The power fails in the middle of the writing operation after so many more.
    pub fn fail_power_after(&self, operations: u64) {
        self.lock_inner().power_left = Some(operations);
    }

    /// Whether the power has failed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.lock_inner().is_dead
    }

    /// The node loses power, now or when [`Self::fail_power_after`] said, and starts again: what was not synced is kept
    /// or lost by chance.
    pub fn cut_power(&self) {
        self.lock_inner().cut_power();
    }

    /// The node's process ends and starts again; the machine stays up, so nothing written is lost.
    pub fn kill_process(&self) {
        let mut inner = self.lock_inner();
        inner.boot += 1;
        inner.locked.clear();
    }

    /// Throws everything away: what still holds the disk holds no memory.
    pub fn wipe(&self) {
        let mut inner = self.lock_inner();
        inner.boot += 1;
        inner.names.clear();
        inner.files.clear();
        inner.journal.clear();
    }

    /// A copy of what lies on it now, as of a machine that runs: taken for a backup, or in a snapshot.
    #[must_use]
    pub fn image(&self) -> Image {
        let inner = self.lock_inner();
        let content = |number: u64| inner.files.get(&number).map(|it| it.content.clone());
        let files = inner.names.all();
        Image {
            files: files
                .map(|(name, number)| (name, content(number).unwrap_or_default()))
                .collect(),
        }
    }

    /// The node's process has ended; the disk is what it was when the copy was made.
    pub fn restore(&self, image: &Image) {
        let mut inner = self.lock_inner();
        inner.boot += 1;
        inner.locked.clear();
        inner.names.clear();
        inner.files.clear();
        inner.journal.clear();
        for (name, content) in &image.files {
            let number = inner.next_file;
            inner.next_file += 1;
            let file = File {
                content: content.clone(),
                ..File::default()
            };
            inner.names.insert(name, number);
            inner.files.insert(number, file);
        }
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let inner = self.lock_inner();
        inner.files.values().map(|it| it.content.len() as u64).sum()
    }

    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn alive(&self) -> io::Result<()> {
        if self.is_dead {
            return Err(io::Error::other("the power failed"));
        }
        Ok(())
    }

    /// Counts a writing operation; true if the power fails in the middle of it.
    fn power_fails(&mut self) -> bool {
        let fails = self.power_left == Some(0);
        self.power_left = self.power_left.map(|it| it.saturating_sub(1));
        self.is_dead |= fails;
        fails
    }

    fn file(&self, name: &str) -> io::Result<u64> {
        self.names
            .get(name)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn make(&mut self, name: &str) -> u64 {
        let file = self.next_file;
        self.next_file += 1;
        self.files.insert(file, File::default());
        self.names.insert(name, file);
        self.journal.push(NameChange::Made {
            name: name.to_owned(),
        });
        file
    }

    fn write_at(&mut self, file: u64, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.alive()?;
        let fails = self.power_fails();
        self.uses += 1;
        let uses = self.uses;
        let file = self.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        let end = offset + bytes.len();
        if self.is_full && end > file.content.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.used = uses;
        let held = file.content.len();
        let before = file.content[offset.min(held)..end.min(held)].to_vec();
        if end > held {
            file.content.resize(end, 0);
        }
        file.content[offset..end].copy_from_slice(bytes);
        file.undo.push(Undo::Write {
            offset: offset.min(held),
            end,
            before,
        });
        if fails { self.alive() } else { Ok(()) }
    }

    fn cut(&mut self, file: u64, bytes: usize) -> io::Result<()> {
        self.alive()?;
        let fails = self.power_fails();
        let file = self.files.get_mut(&file).ok_or(io::ErrorKind::NotFound)?;
        if bytes < file.content.len() {
            let before = file.content.split_off(bytes);
            file.undo.push(Undo::Cut { before });
        }
        if fails { self.alive() } else { Ok(()) }
    }

    fn sync(&mut self, file: Option<u64>) -> io::Result<()> {
        self.alive()?;
        if self.power_fails() {
            return self.alive();
        }
        if let Some(file) = file.and_then(|it| self.files.get_mut(&it)) {
            file.undo.clear();
        }
        for change in std::mem::take(&mut self.journal) {
            let gone = match change {
                NameChange::Made { .. } => None,
                NameChange::Moved { replaced, .. } => replaced,
                NameChange::Removed { file, .. } => Some(file),
            };
            gone.map(|it| self.files.remove(&it));
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.alive()?;
        let fails = self.power_fails();
        let file = self.file(from)?;
        self.names.remove(from);
        let replaced = self.names.insert(to, file);
        self.journal.push(NameChange::Moved {
            from: from.to_owned(),
            to: to.to_owned(),
            replaced,
        });
        if fails { self.alive() } else { Ok(()) }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.alive()?;
        let fails = self.power_fails();
        let file = self.file(name)?;
        self.names.remove(name);
        self.journal.push(NameChange::Removed {
            name: name.to_owned(),
            file,
        });
        if fails { self.alive() } else { Ok(()) }
    }

    fn cut_power(&mut self) {
        self.boot += 1;
        self.is_dead = false;
        self.power_left = None;
        self.locked.clear();
        // Names: a prefix of the journal is on the disk.
        let kept = self.chance.below(self.journal.len() as u64 + 1) as usize;
        for change in self.journal.split_off(kept).into_iter().rev() {
            match change {
                NameChange::Made { name } => {
                    self.names.remove(&name);
                }
                NameChange::Moved { from, to, replaced } => {
                    if let Some(file) = self.names.remove(&to) {
                        self.names.insert(&from, file);
                    }
                    if let Some(replaced) = replaced {
                        self.names.insert(&to, replaced);
                    }
                }
                NameChange::Removed { name, file } => {
                    self.names.insert(&name, file);
                }
            }
        }
        self.journal.clear();
        let named: BTreeSet<u64> = self.names.all().map(|(_, file)| file).collect();
        self.files.retain(|file, _| named.contains(file));
        for file in self.files.values_mut() {
            file.tear(&mut self.chance);
        }
    }
}

impl File {
    /// Undoes what was not synced, sector by sector, by chance: all of it, nothing, or each for itself.
    fn tear(&mut self, chance: &mut Chance) {
        let lost_per_million = match chance.below(3) {
            0 => 0,
            1 => 1_000_000,
            _ => 500_000,
        };
        let mut is_end_lost = true;
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::Write {
                    offset,
                    end,
                    before,
                } => {
                    let mut at = offset;
                    while at < end {
                        let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                        if chance.happens(lost_per_million) {
                            for index in at..next.min(self.content.len()) {
                                self.content[index] =
                                    before.get(index - offset).copied().unwrap_or(0);
                            }
                        } else {
                            is_end_lost = false;
                        }
                        at = next;
                    }
                    let was = offset + before.len();
                    if is_end_lost && was < end {
                        self.content.truncate(was);
                    }
                }
                Undo::Cut { before } => {
                    if chance.happens(lost_per_million) {
                        self.content.extend_from_slice(&before);
                    }
                }
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Disk for SimDisk {
    fn make_folder(&self, _folder: &Path) -> io::Result<()> {
        self.lock_inner().alive()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Listed>> {
        let inner = self.lock_inner();
        inner.alive()?;
        let files = inner.names.of_folder(&name(folder)).into_iter();
        Ok(files
            .map(|(name, file)| Listed {
                name: name.to_owned(),
                bytes: inner.files[&file].content.len() as u64,
                used: SystemTime::UNIX_EPOCH + Duration::from_millis(inner.files[&file].used),
            })
            .collect())
    }

    fn length(&self, file: &Path) -> io::Result<u64> {
        let inner = self.lock_inner();
        inner.alive()?;
        Ok(inner.files[&inner.file(&name(file))?].content.len() as u64)
    }

    fn read_start(&self, file: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let inner = self.lock_inner();
        inner.alive()?;
        let content = &inner.files[&inner.file(&name(file))?].content;
        let bytes = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Ok(content[..content.len().min(bytes)].to_vec())
    }

    fn hash(&self, file: &Path) -> io::Result<Hash> {
        Ok(Hash(*blake3::hash(&self.read(file)?).as_bytes()))
    }

    fn write(
        &self,
        file: &Path,
        content: &mut dyn FnMut(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        content(&mut bytes)?;
        let mut inner = self.lock_inner();
        inner.alive()?;
        let name = name(file);
        let file = match inner.file(&name) {
            Ok(file) => {
                inner.cut(file, 0)?;
                file
            }
            Err(_) => inner.make(&name),
        };
        inner.write_at(file, 0, &bytes)
    }

    fn write_private(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write(file, &mut |into| into.write_all(bytes))
    }

    fn append(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.alive()?;
        let name = name(file);
        let file = match inner.file(&name) {
            Ok(file) => file,
            Err(_) => inner.make(&name),
        };
        let end = inner.files[&file].content.len();
        inner.write_at(file, end, bytes)
    }

    fn sync(&self, file: &Path) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.alive()?;
        let file = inner.file(&name(file))?;
        inner.sync(Some(file))
    }

    fn sync_folder(&self, _folder: &Path) -> io::Result<()> {
        self.lock_inner().sync(None)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock_inner().rename(&name(from), &name(to))
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        self.lock_inner().remove(&name(file))
    }

    fn lock(&self, file: &Path) -> io::Result<Option<Lock>> {
        let mut inner = self.lock_inner();
        inner.alive()?;
        let name = name(file);
        if !inner.locked.insert(name.clone()) {
            return Ok(None);
        }
        Ok(Some(Lock::new(Locked {
            disk: self.clone(),
            boot: inner.boot,
            name,
        })))
    }

    fn touch(&self, file: &Path, _used: SystemTime) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.alive()?;
        let file = inner.file(&name(file))?;
        inner.uses += 1;
        let uses = inner.uses;
        if let Some(file) = inner.files.get_mut(&file) {
            file.used = uses;
        }
        Ok(())
    }
}

/// A file lock, until it is dropped or the node starts again.
struct Locked {
    disk: SimDisk,
    boot: u64,
    name: String,
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut inner = self.disk.lock_inner();
        if inner.boot == self.boot {
            inner.locked.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests;
