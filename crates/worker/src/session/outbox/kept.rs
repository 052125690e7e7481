//! One kept update: its commitment in a file named by round and hash, its bytes in files named by their hashes.

use std::{collections::BTreeSet, io, path::Path};

use anyhow::{Context, Result};
use network::disk::Disk;
use protocol::{
    Hash,
    api::{Work, WorkAssignment},
    canonical,
    command::{COMMAND_BYTES_MAX, Commitment},
    units::BlobReference,
};
use tokio::time::Instant;

/// How the names of commitments end.
const SUFFIX: &str = ".commitment";

/// An update that the hub may ask for.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) commitment: Commitment,
    /// When the hub was told of it last; an answer to an older question says nothing.
    pub(super) touched: Instant,
}

impl Kept {
    pub(super) fn new(commitment: Commitment) -> Self {
        Self {
            commitment,
            touched: Instant::now(),
        }
    }

    pub(super) fn round(&self) -> u64 {
        self.commitment.header.round
    }

    /// The blobs that it names: the smaller first.
    pub(super) fn references(&self) -> Vec<BlobReference> {
        let inner = self.commitment.header.inner_state;
        std::iter::once(self.commitment.update)
            .chain(inner)
            .collect()
    }

    /// Their names.
    pub(super) fn files(&self) -> Vec<Hash> {
        self.references().iter().map(|it| it.hash).collect()
    }

    pub(super) fn bytes(&self) -> u64 {
        let inner = self.commitment.header.inner_state.map_or(0, |it| it.bytes);
        self.commitment.update.bytes.saturating_add(inner)
    }

    /// The name of the commitment's file.
    pub(super) fn name(&self) -> String {
        let (round, update) = (self.round(), self.commitment.update.hash);
        format!("{round:020}-{update}{SUFFIX}")
    }

    pub(super) fn write(&self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        write(
            disk,
            folder,
            &self.name(),
            &canonical::encode(&self.commitment),
        )
    }

    /// Whether the work of an assignment went into it, so that it can be committed to as that.
    pub(super) fn is_of(&self, assignment: &WorkAssignment) -> bool {
        let header = &self.commitment.header;
        header.round == assignment.round
            && header.slot == assignment.slot
            && assignment.base_round <= header.base_round
            && (header.base_round != assignment.base_round
                || header.base.to_string() == assignment.base_hash)
    }

    /// Whether the hub's log lacks the commitment and a round would take it.
    pub(super) fn is_wanted(&self, work: &Work) -> bool {
        let open = work.assignment.as_ref();
        open.is_some_and(|it| !it.committed && self.is_of(it))
            || work.late_rounds.contains(&self.round())
    }
}

/// What an earlier process left, oldest first; what belongs to no commitment, or is damaged, is removed.
pub(super) fn left_over(disk: &dyn Disk, folder: &Path) -> Result<Vec<Kept>> {
    let files = disk.list(folder);
    let files = files.with_context(|| format!("reading {}", folder.display()))?;
    let mut names: Vec<String> = files.into_iter().map(|it| it.name).collect();
    names.sort();
    let mut kept = Vec::new();
    let mut stay = BTreeSet::new();
    for name in names.iter().filter(|it| it.ends_with(SUFFIX)) {
        let bytes = disk.read_start(&folder.join(name), COMMAND_BYTES_MAX as u64 + 1);
        let bytes = bytes.with_context(|| format!("reading {}", folder.join(name).display()))?;
        let commitment: Option<Commitment> = canonical::decode(&bytes, COMMAND_BYTES_MAX).ok();
        let found = commitment.map(Kept::new).filter(|it| it.name() == *name);
        if let Some(found) = found
            && found
                .files()
                .iter()
                .all(|it| names.contains(&it.to_string()))
        {
            stay.insert(name.clone());
            stay.extend(found.files().iter().map(ToString::to_string));
            kept.push(found);
        }
    }
    for name in names.iter().filter(|it| !stay.contains(*it)) {
        remove(disk, &folder.join(name));
    }
    Ok(kept)
}

/// Writes a file beside its place, onto the disk, and then into its place; the folder is the caller's to sync.
pub(super) fn write(disk: &dyn Disk, folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, fresh) = (folder.join(name), folder.join(format!("{name}.new")));
    let written = disk
        .write(&fresh, &mut |into| into.write_all(bytes))
        .and_then(|()| disk.sync(&fresh))
        .and_then(|()| disk.rename(&fresh, &path));
    if written.is_err() {
        // Half a file takes room that somebody may be waiting for; without it nothing is lost.
        let _ = disk.remove(&fresh);
    }
    written.with_context(|| format!("writing {}", path.display()))
}

/// A file's bytes; `None` if it is gone or damaged.
pub(super) fn read(disk: &dyn Disk, folder: &Path, hash: &Hash) -> Result<Option<Vec<u8>>> {
    let path = folder.join(hash.to_string());
    match disk.read(&path) {
        Ok(bytes) => Ok((Hash::of_blob(&bytes) == *hash).then_some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

pub(super) fn remove(disk: &dyn Disk, path: &Path) {
    if let Err(error) = disk.remove(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("removing {}: {error}", path.display());
    }
}
