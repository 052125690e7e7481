//! What a worker carries between rounds, on disk under the hash that its commitments name.
//!
//! A round ends in one of two states, which differ in the error feedback alone: after a merge it lacks what was sent,
//! after a refusal it keeps everything. So a state is two files: `<hash>.state` with the error, and `<hash>.moments`
//! with m and v, which both states of a round name. What is read must hash to its name, so a torn write is a state that
//! is not there, and the worker starts afresh.
//!
//! `.state`: magic `AHws`, version 1, 1 if there are moments, steps (`u64`), hash that names the moments' file, error.
//! `.moments`: magic `AHwm`, version 1, m, v. Values are `f32`, all numbers little-endian.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use engine::update::{
    carried::{CarriedState, Moments, values_of_bytes, values_to_bytes},
    steps::StepLeaf,
};
use network::disk::{Disk, Listed};
use protocol::Hash;

use crate::leaves;

const STATE_MAGIC: &[u8; 5] = b"AHws\x01";
const MOMENTS_MAGIC: &[u8; 5] = b"AHwm\x01";
const STATE_HEADER_BYTES: usize = 5 + 1 + 8 + 32;

/// The states of one run in one folder.
#[derive(Clone, Debug)]
pub(crate) struct CarriedStore {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
}

impl CarriedStore {
    /// Opens or makes the folder.
    pub(crate) fn open(disk: Arc<dyn Disk>, folder: PathBuf) -> Result<Self> {
        disk.make_folder(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { disk, folder })
    }

    /// A folder that is there, another worker's perhaps.
    pub(crate) fn existing(disk: Arc<dyn Disk>, folder: PathBuf) -> Self {
        Self { disk, folder }
    }

    /// Keeps the leaves of an update's inner steps beside the states; that they can't be kept loses nothing else.
    pub(crate) fn keep_leaves(&self, round: u64, root: &Hash, kept: &[StepLeaf]) {
        let folder = self.folder.with_file_name("leaves");
        if let Err(error) = leaves::keep(&*self.disk, &folder, round, root, kept) {
            tracing::warn!(round, "the leaves of the inner steps are not kept: {error}");
        }
    }

    /// Writes a state under `hash`, its own; its moments under `moments`, unless they are there.
    pub(crate) fn write(&self, hash: &Hash, moments: &Hash, state: &CarriedState) -> Result<()> {
        if let Some(values) = &state.moments {
            let path = self.path(moments, "moments");
            if self.disk.length(&path).is_err() {
                self.write_file(&path, MOMENTS_MAGIC, &[&values.first, &values.second])?;
            }
        }
        let mut header = STATE_MAGIC.to_vec();
        header.push(u8::from(state.moments.is_some()));
        header.extend_from_slice(&state.step.to_le_bytes());
        header.extend_from_slice(&moments.0);
        self.write_file(&self.path(hash, "state"), &header, &[&state.error])
    }

    /// Brings states onto the disk that were written: apart from writing them, because a disk takes its time and a commitment
    /// has a deadline. A killed process loses nothing of what is not synced yet; a machine without power may.
    pub(crate) fn sync(&self, hashes: &[Hash]) -> Result<()> {
        for hash in hashes {
            let state = self.path(hash, "state");
            let moments = self.named_moments(&state)?;
            let moments = moments.map(|it| self.path(&it, "moments"));
            for path in [Some(state), moments].into_iter().flatten() {
                match self.disk.sync(&path) {
                    // A later round has begun and removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    synced => synced.with_context(|| format!("keeping {}", path.display()))?,
                }
            }
        }
        Ok(())
    }

    /// The state of this hash, for a model of so many parameters; `None` if it is not here whole.
    pub(crate) fn read(&self, hash: &Hash, parameters: usize) -> Result<Option<CarriedState>> {
        let Some(bytes) = self.read_file(&self.path(hash, "state"))? else {
            return Ok(None);
        };
        let Some((header, error)) = bytes.split_first_chunk::<STATE_HEADER_BYTES>() else {
            return Ok(None);
        };
        if header[..5] != *STATE_MAGIC || error.len() != parameters * 4 {
            return Ok(None);
        }
        let step = u64::from_le_bytes(header[6..14].try_into().expect("eight bytes"));
        let named = Hash(header[14..].try_into().expect("thirty-two bytes"));
        let moments = match header[5] {
            0 => None,
            1 => match self.read_moments(&named, parameters)? {
                Some(moments) => Some(moments),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let state = CarriedState {
            step,
            error: values_of_bytes(error),
            moments,
        };
        if state.hash() != hash.0 {
            tracing::warn!(carried = %hash, "a carried state has gone bad on disk");
            return Ok(None);
        }
        Ok(Some(state))
    }

    /// Removes every state but these, and every moments' file that they do not name.
    pub(crate) fn keep_only(&self, keep: &[Hash]) -> Result<()> {
        let mut names = HashSet::new();
        for hash in keep {
            names.extend(self.files_of(hash)?);
        }
        self.remove_but(self.list()?, &names)
    }

    /// Removes every state but `needed` and so many of `wanted`, from the first on, as take no more than `bytes_max`.
    pub(crate) fn keep_within(&self, needed: Hash, wanted: &[Hash], bytes_max: u64) -> Result<()> {
        let files = self.list()?;
        let lengths: HashMap<&str, u64> = files
            .iter()
            .map(|it| (it.name.as_str(), it.bytes))
            .collect();
        let mut keep = HashSet::from_iter(self.files_of(&needed)?);
        let (mut counted, mut bytes) = (HashSet::new(), 0_u64);
        for hash in wanted {
            let names = self.files_of(hash)?;
            for name in &names {
                // What is not there takes no room.
                let length = lengths.get(name.as_str()).copied().unwrap_or(0);
                if counted.insert(name.clone()) {
                    bytes = bytes.saturating_add(length);
                }
            }
            if bytes_max < bytes {
                break;
            }
            keep.extend(names);
        }
        self.remove_but(files, &keep)
    }

    /// Whether two states that are here have the same moments, or both none.
    pub(crate) fn share_moments(&self, one: &Hash, other: &Hash) -> Result<bool> {
        let moments = |hash| self.named_moments(&self.path(hash, "state"));
        Ok(moments(one)? == moments(other)?)
    }

    fn read_moments(&self, hash: &Hash, parameters: usize) -> Result<Option<Moments>> {
        let Some(bytes) = self.read_file(&self.path(hash, "moments"))? else {
            return Ok(None);
        };
        let Some(values) = bytes.strip_prefix(MOMENTS_MAGIC) else {
            return Ok(None);
        };
        if values.len() != parameters * 8 {
            return Ok(None);
        }
        let (first, second) = values.split_at(parameters * 4);
        Ok(Some(Moments {
            first: values_of_bytes(first),
            second: values_of_bytes(second),
        }))
    }

    fn path(&self, hash: &Hash, suffix: &str) -> PathBuf {
        self.folder.join(file_name(hash, suffix))
    }

    /// Names of a state's own file and of its moments', if it has some and is here.
    fn files_of(&self, hash: &Hash) -> Result<Vec<String>> {
        let moments = self.named_moments(&self.path(hash, "state"))?;
        let moments = moments.map(|it| file_name(&it, "moments"));
        Ok([Some(file_name(hash, "state")), moments]
            .into_iter()
            .flatten()
            .collect())
    }

    fn list(&self) -> Result<Vec<Listed>> {
        let files = self.disk.list(&self.folder);
        files.with_context(|| format!("reading {}", self.folder.display()))
    }

    fn remove_but(&self, files: Vec<Listed>, keep: &HashSet<String>) -> Result<()> {
        for file in files.into_iter().filter(|it| !keep.contains(&it.name)) {
            let path = self.folder.join(file.name);
            self.disk
                .remove(&path)
                .with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }

    /// The hash of the moments that a state's file names; `None` if it has none or is not there.
    fn named_moments(&self, path: &Path) -> Result<Option<Hash>> {
        match self.disk.read_start(path, STATE_HEADER_BYTES as u64) {
            Ok(header) if header.len() == STATE_HEADER_BYTES && header[5] == 1 => Ok(Some(Hash(
                header[14..].try_into().expect("thirty-two bytes"),
            ))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self.disk.read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Beside its place, then into its place. [`Self::sync`] brings it onto the disk: until then a power cut may leave a torn
    /// file under the right name, which its hash tells.
    fn write_file(&self, path: &Path, header: &[u8], vectors: &[&[f32]]) -> Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let content = &mut |file: &mut dyn io::Write| -> io::Result<()> {
            file.write_all(header)?;
            for vector in vectors {
                values_to_bytes(vector, &mut |block| file.write_all(block))?;
            }
            Ok(())
        };
        let disk = &*self.disk;
        let written = disk
            .write(&fresh, content)
            .and_then(|()| disk.rename(&fresh, path));
        if written.is_err() {
            // Half a state takes room that somebody may be waiting for; without it nothing is lost.
            let _ = disk.remove(&fresh);
        }
        written.with_context(|| format!("writing {}", path.display()))
    }
}

fn file_name(hash: &Hash, suffix: &str) -> String {
    format!("{hash}.{suffix}")
}

#[cfg(test)]
mod tests;
