//! What goes back, and what is remembered of it.

use std::{fs, io::Read};

use anyhow::{Context, Result};
use bytes::Bytes;
use network::disk::Disk;
use protocol::{
    Hash,
    boinc::{OUTPUT_NAME, Output, Unit},
    canonical,
    units::RunId,
};
use serde::{Deserialize, Serialize};

use super::slot::Slot;
use crate::folder::Folder;

/// Longest file of what is remembered.
const RECENT_BYTES_MAX: usize = 4096;
/// States of the last updates that are kept: the log may come back to any of them.
const STATES_MAX: usize = 6;

/// What is remembered of the last units of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recent {
    /// The speed that the hub was told last.
    pub(crate) tokens_per_s: u32,
    /// The optimiser's state that the last update published.
    pub(crate) published: Option<Hash>,
    /// The states that the last updates name, newest first.
    pub(crate) states: Vec<Hash>,
}

impl Recent {
    /// What is remembered; nothing, if it does not read.
    pub(crate) fn read(disk: &dyn Disk, folder: &Folder, run: RunId) -> Self {
        let bytes = disk.read_start(&folder.recent(run), RECENT_BYTES_MAX as u64);
        let recent = bytes
            .ok()
            .and_then(|it| canonical::decode(&it, RECENT_BYTES_MAX).ok());
        recent.unwrap_or_default()
    }

    /// Notes what an update names.
    pub(crate) fn add_states(&mut self, states: [Hash; 2]) {
        self.states.splice(0..0, states);
        self.states.truncate(STATES_MAX);
    }

    /// Remembers it; that it can't be is worth a warning.
    pub(crate) fn write(&self, disk: &dyn Disk, folder: &Folder, run: RunId) {
        let path = folder.recent(run);
        let fresh = path.with_extension("new");
        let bytes = canonical::encode(self);
        let parent = path.parent().expect("it is in the run's folder");
        let written = disk
            .make_folder(parent)
            .and_then(|()| disk.write(&fresh, &mut |file| file.write_all(&bytes)))
            .and_then(|()| disk.rename(&fresh, &path));
        if let Err(error) = written {
            tracing::warn!("what was sent is not remembered: {error}");
        }
    }
}

/// Whether the output of this unit is there already: the client ended the program before it could say so.
///
/// # Errors
/// The disk's.
pub(crate) fn is_whole(slot: &Slot, unit: &Unit) -> Result<bool> {
    let path = slot.resolve(OUTPUT_NAME)?;
    let Ok(file) = fs::File::open(&path) else {
        return Ok(false);
    };
    let length = file.metadata().context("the output")?.len();
    let mut head = Vec::new();
    file.take(Output::head_bytes_max() as u64)
        .read_to_end(&mut head)
        .context("the output")?;
    let Ok((output, begin)) = Output::read_head(&head) else {
        return Ok(false);
    };
    let files: u64 = output.files.iter().map(|it| it.bytes).sum();
    Ok(output.unit == unit.name && length == begin as u64 + files)
}

/// Writes the output where the client takes it from, whole or not at all.
///
/// # Errors
/// The disk's; then there is no output.
pub(crate) fn write(
    disk: &dyn Disk,
    slot: &Slot,
    folder: &Folder,
    output: &Output,
    files: &[Bytes],
) -> Result<()> {
    let path = slot.resolve(OUTPUT_NAME)?;
    let fresh = folder.fresh_output();
    let head = output.head();
    let content = &mut |file: &mut dyn std::io::Write| {
        file.write_all(&head)?;
        files.iter().try_for_each(|it| file.write_all(it))
    };
    let written = disk
        .write(&fresh, content)
        .and_then(|()| disk.sync(&fresh))
        .and_then(|()| disk.rename(&fresh, &path));
    if written.is_err() {
        let _ = disk.remove(&fresh);
    }
    written.with_context(|| format!("writing the output {}", path.display()))
}
