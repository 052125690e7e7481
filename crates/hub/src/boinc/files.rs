//! The files that tasks name: by hash, with the MD5 that BOINC clients check, which is computed once.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::{Stream, TryStreamExt};
use md5::{Digest, Md5};
use protocol::{
    Hash, canonical,
    units::{BlobReference, RunId},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, SeekFrom},
};
use tokio_util::io::ReaderStream;

use super::{Door, accounts::md5_hex, store::FileSum};
use crate::{Hub, run::Run};

/// Sums that are kept in memory: those that tasks name again and again.
const SUMS_MAX: usize = 4_096;

/// Sums of files that the database has too.
#[derive(Default)]
pub(super) struct Sums(Mutex<HashMap<Hash, FileSum>>);

impl Sums {
    fn get(&self, hash: &Hash) -> Option<FileSum> {
        self.lock().get(hash).cloned()
    }

    fn add(&self, sum: &FileSum) {
        let mut sums = self.lock();
        if sums.len() >= SUMS_MAX {
            sums.clear();
        }
        sums.insert(sum.blob.hash, sum.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Hash, FileSum>> {
        // Each change is one insertion or removal: the map is right after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a file's bytes are.
pub(crate) enum Source {
    /// Among the hub's blobs.
    Blob(BlobReference),
    /// In memory.
    Bytes(Bytes),
    /// A program of a release.
    File(PathBuf, u64),
}

/// A part of a file as a stream; the part lies within it.
pub(crate) async fn read_file(
    path: &Path,
    part: Range<u64>,
) -> Result<impl Stream<Item = io::Result<Bytes>> + use<>> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(part.start)).await?;
    Ok(ReaderStream::new(file.take(part.end - part.start)))
}

/// The charter of a run as a file.
pub(super) fn charter(run: &Run) -> Vec<u8> {
    canonical::encode(&*run.charter)
}

impl Door {
    /// A blob as BOINC clients check it.
    pub(super) async fn sum_of(&self, hub: &Hub, blob: &BlobReference) -> Result<FileSum> {
        if let Some(sum) = self.sums.get(&blob.hash) {
            return Ok(sum);
        }
        if let Some(sum) = self.store.file_sum(&blob.hash).await? {
            self.sums.add(&sum);
            return Ok(sum);
        }
        let mut md5 = Md5::new();
        let mut stream = std::pin::pin!(hub.blobs.stream(&blob.hash, 0..blob.bytes).await?);
        let mut bytes = 0;
        while let Some(part) = stream.try_next().await? {
            bytes += part.len() as u64;
            md5.update(&part);
        }
        anyhow::ensure!(
            bytes == blob.bytes,
            "the blob {} has another length than the log says",
            blob.hash
        );
        let sum = FileSum {
            blob: *blob,
            md5: HEXLOWER.encode(&md5.finalize()),
        };
        self.store.add_file_sum(sum.clone()).await?;
        self.sums.add(&sum);
        Ok(sum)
    }

    /// A file that is made here.
    pub(super) fn sum_of_bytes(bytes: &[u8]) -> FileSum {
        FileSum {
            blob: BlobReference::of(bytes),
            md5: md5_hex(bytes),
        }
    }

    /// Where the file of that hash is, if a client may have it.
    pub(crate) async fn source(&self, hub: &Hub, hash: &Hash) -> Result<Option<Source>> {
        if let Some((path, bytes)) = self.programs.find(hash).await? {
            return Ok(Some(Source::File(path, bytes)));
        }
        if let Some(bytes) = self.store.sealed(hash).await? {
            return Ok(Some(Source::Bytes(bytes.into())));
        }
        if hub.private_in(hash).await.is_some() {
            return Ok(None);
        }
        if let Some(bytes) = hub.blobs.length(hash).await? {
            let blob = BlobReference { hash: *hash, bytes };
            return Ok(Some(Source::Blob(blob)));
        }
        for run in hub.all().await {
            let charter = charter(&run);
            if Hash::of_blob(&charter) == *hash {
                return Ok(Some(Source::Bytes(charter.into())));
            }
        }
        Ok(None)
    }

    /// The run with this id, if this hub has it.
    pub(super) async fn run(hub: &Hub, id: RunId) -> Result<Run> {
        let run = hub.find(&id.to_string()).await;
        run.with_context(|| format!("the hub has no run {id} any more"))
    }
}
