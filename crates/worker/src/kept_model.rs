//! The model that a worker held last, on disk: whoever starts again goes on from it by the deltas since, instead of fetching
//! a whole checkpoint.
//!
//! One file a run, in place of the one before. What is read must hash to the name that it says it has; what does not, or is
//! torn, is a model that is not there. The hub's word about the next one decides as for any model that is held.
//!
//! Magic `AHwp`, version 1, round (`u64`), length of the log when it was the newest (`u64`), hash of the parameters,
//! parameters (`f32`); all numbers little-endian.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use engine::update::{
    carried::{values_of_bytes, values_to_bytes},
    hash::parameters_hash,
};
use network::disk::Disk;
use protocol::Hash;

use crate::machine::Held;

const MAGIC: &[u8; 5] = b"AHwp\x01";
const HEADER_BYTES: usize = 5 + 8 + 8 + 32;

/// Where a run's model is kept.
#[derive(Clone, Debug)]
pub(crate) struct KeptModel {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

/// What the file says of its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The model.
    pub(crate) held: Held,
    /// Length of the log when it was the newest.
    pub(crate) held_at: u64,
}

impl KeptModel {
    /// In this file, which need not be there.
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self { disk, path }
    }

    /// Bytes of the file for a model of so many parameters.
    pub(crate) fn bytes(parameters: u64) -> u64 {
        parameters * 4 + HEADER_BYTES as u64
    }

    /// What a whole file of so many parameters says; the parameters are not looked at.
    pub(crate) fn look(&self, parameters: u64) -> Option<Kept> {
        let length = self.disk.length(&self.path).ok()?;
        let header = self
            .disk
            .read_start(&self.path, HEADER_BYTES as u64)
            .ok()
            .filter(|_| length == Self::bytes(parameters))?;
        header_of(header.first_chunk()?)
    }

    /// The model and its parameters; `None` if they are not here whole.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn read(&self, parameters: usize) -> Result<Option<(Kept, Vec<f32>)>> {
        let bytes = match self.disk.read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(self.doing("reading")),
        };
        let Some((header, values)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let Some(kept) = header_of(header).filter(|_| values.len() == parameters * 4) else {
            return Ok(None);
        };
        let values = values_of_bytes(values);
        if Hash(parameters_hash(&values)) != kept.held.parameters {
            tracing::warn!("the kept model has gone bad on disk");
            return Ok(None);
        }
        Ok(Some((kept, values)))
    }

    /// Keeps this model in place of the one before.
    ///
    /// # Errors
    /// The disk's; then the one before is still here.
    pub(crate) fn write(&self, kept: &Kept, parameters: &[f32]) -> Result<()> {
        let disk = &*self.disk;
        let fresh = self.path.with_extension("new");
        let written = disk
            .write(&fresh, &mut |file| {
                file.write_all(MAGIC)?;
                file.write_all(&kept.held.round.to_le_bytes())?;
                file.write_all(&kept.held_at.to_le_bytes())?;
                file.write_all(&kept.held.parameters.0)?;
                values_to_bytes(parameters, &mut |block| file.write_all(block))
            })
            .and_then(|()| disk.sync(&fresh))
            .and_then(|()| disk.rename(&fresh, &self.path));
        if written.is_err() {
            // Half a model takes room that somebody may be waiting for.
            let _ = disk.remove(&fresh);
        }
        written.with_context(|| self.doing("writing"))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        disk.sync_folder(folder)
            .with_context(|| self.doing("writing"))
    }

    /// Gives the room back.
    pub(crate) fn remove(&self) {
        if let Err(error) = self.disk.remove(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {error}", self.doing("removing"));
        }
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} {}", self.path.display())
    }
}

fn header_of(bytes: &[u8; HEADER_BYTES]) -> Option<Kept> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (round, rest) = rest.split_first_chunk()?;
    let (held_at, parameters) = rest.split_first_chunk()?;
    Some(Kept {
        held: Held {
            round: u64::from_le_bytes(*round),
            parameters: Hash(parameters.try_into().ok()?),
        },
        held_at: u64::from_le_bytes(*held_at),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use network::disk::RealDisk;

    use super::*;

    fn model(round: u64) -> (Kept, Vec<f32>) {
        let values = vec![round as f32, -0.5, 1e-20];
        let held = Held {
            round,
            parameters: Hash(parameters_hash(&values)),
        };
        (Kept { held, held_at: 70 }, values)
    }

    #[test]
    fn the_newest_model_comes_back_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model");
        let file = KeptModel::new(Arc::new(RealDisk), path.clone());
        assert_eq!((file.look(3), file.read(3).unwrap()), (None, None));
        for round in [7, 8] {
            let (kept, values) = model(round);
            file.write(&kept, &values).unwrap();
            assert_eq!(file.look(3), Some(kept));
            assert_eq!(file.read(3).unwrap(), Some((kept, values)));
        }
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, KeptModel::bytes(3));
        assert_eq!(bytes[..13], *b"AHwp\x01\x08\0\0\0\0\0\0\0");
        // Of another model's shape.
        assert_eq!((file.look(4), file.read(4).unwrap()), (None, None));
        for damage in [0, 4, 30, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[damage] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(file.read(3).unwrap(), None, "byte {damage}");
        }
        for torn in [0, 10, HEADER_BYTES, bytes.len() - 1] {
            fs::write(&path, &bytes[..torn]).unwrap();
            assert_eq!((file.look(3), file.read(3).unwrap()), (None, None));
        }
        file.remove();
        file.remove();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
