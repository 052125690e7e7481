//! Fetching a blob into the cache, resumed where the connection was cut.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use protocol::{
    Hash,
    units::{BlobReference, WorkerId},
};
use reqwest::{Method, Response, StatusCode, header::CONTENT_RANGE};

use super::{
    BlobCache, CacheError, FAILURES_MAX, TransferError,
    cache::{failed, remove},
};
use crate::{
    client::{ClientError, HubClient},
    disk::Disk,
    world,
};

/// Header by which the hub counts what it sends a worker.
const WORKER: &str = "x-athome-worker";

/// Why one attempt ended before the last byte.
enum Stop {
    /// Trying again may help.
    Interrupted(ClientError),
    /// It may not.
    Failed(TransferError),
}

/// The file in which a download is gathered.
pub(crate) struct Part {
    disk: Arc<dyn Disk>,
    pub(crate) path: Arc<Path>,
}

impl HubClient {
    /// Fetches a blob into `cache`, unless it is there, and calls `progress` with the bytes present so far.
    ///
    /// At most `reference.bytes` bytes are read. A failed download leaves what it has; the next one goes on from there.
    /// `worker` is whom the hub counts the bytes for.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn download(
        &self,
        cache: &BlobCache,
        reference: BlobReference,
        worker: Option<WorkerId>,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<(), TransferError> {
        let _claim = cache.claim(&reference.hash).await;
        if cache.contains(&reference) {
            return Ok(());
        }
        self.download_claimed(cache, reference, worker, &mut progress)
            .await
    }

    /// The same for a blob that is not in the cache and that the caller has claimed.
    pub(crate) async fn download_claimed(
        &self,
        cache: &BlobCache,
        reference: BlobReference,
        worker: Option<WorkerId>,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), TransferError> {
        let hash = reference.hash;
        let keep = |source| TransferError::Cache { hash, source };
        cache.make_room(reference.bytes, None).map_err(keep)?;
        let part = Part::of(cache, &hash);
        let resumed = part.bytes() > 0;
        self.gather(&part, reference, worker, progress).await?;
        if part.hash().await.map_err(keep)? != hash {
            part.remove().map_err(keep)?;
            if !resumed {
                return Err(TransferError::WrongHash { hash });
            }
            // What an earlier download left may have gone bad: once more from the start.
            self.gather(&part, reference, worker, progress).await?;
            if part.hash().await.map_err(keep)? != hash {
                part.remove().map_err(keep)?;
                return Err(TransferError::WrongHash { hash });
            }
        }
        cache
            .adopt(&hash, &part.path, reference.bytes)
            .map_err(keep)
    }

    /// Fills the part file up to the reference's length.
    async fn gather(
        &self,
        part: &Part,
        reference: BlobReference,
        worker: Option<WorkerId>,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), TransferError> {
        let mut failures = 0;
        loop {
            let before = part.bytes();
            let error = match self
                .attempt_download(part, reference, worker, progress)
                .await
            {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Interrupted(error)) => error,
            };
            failures = if part.bytes() > before {
                1
            } else {
                failures + 1
            };
            // An answer that contradicts itself may be better the next time.
            let may_help = error.is_temporary() || matches!(error, ClientError::Malformed { .. });
            if failures >= FAILURES_MAX || !may_help {
                return Err(TransferError::Client {
                    hash: reference.hash,
                    source: error,
                });
            }
            tracing::debug!(blob = %reference.hash, failures, "download interrupted: {error}");
            tokio::time::sleep(self.retry_policy().wait_after(failures)).await;
        }
    }

    async fn attempt_download(
        &self,
        part: &Part,
        reference: BlobReference,
        worker: Option<WorkerId>,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), Stop> {
        let hash = reference.hash;
        let keep = |source| Stop::Failed(TransferError::Cache { hash, source });
        let mut offset = part.bytes();
        if offset > reference.bytes {
            part.remove().map_err(keep)?;
            offset = 0;
        }
        if offset == reference.bytes && offset > 0 {
            return Ok(());
        }
        let mut call = self
            .call(Method::GET, &format!("blobs/{hash}"))
            .without_timeout();
        if offset > 0 {
            call = call.header("range", format!("bytes={offset}-"));
        }
        if let Some(worker) = worker {
            call = call.header(WORKER, worker.to_string());
        }
        let mut response = self.send(&call).await.map_err(Stop::Interrupted)?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => range_start(&response, reference)?,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                part.remove().map_err(keep)?;
                return Err(Stop::Interrupted(malformed("it has no such range")));
            }
            _ => return Err(Stop::Interrupted(self.refused(response).await)),
        };
        if start != 0 && start != offset {
            return Err(Stop::Interrupted(malformed(
                "it sends another range than asked for",
            )));
        }
        check_length(&response, start, reference)?;
        if start == 0 {
            part.remove().map_err(keep)?;
        }
        let mut present = start;
        progress(present);
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    let error = self.unreachable(error.without_url().into());
                    return Err(Stop::Interrupted(error));
                }
            };
            present += chunk.len() as u64;
            if present > reference.bytes {
                part.remove().map_err(keep)?;
                return Err(wrong_length(reference, present));
            }
            part.append(chunk).await.map_err(keep)?;
            progress(present);
        }
        if present < reference.bytes {
            return Err(Stop::Failed(TransferError::WrongLength {
                hash,
                expected: reference.bytes,
                found: present,
            }));
        }
        Ok(())
    }
}

impl Part {
    pub(crate) fn of(cache: &BlobCache, hash: &Hash) -> Self {
        Self {
            disk: Arc::clone(cache.disk()),
            path: cache.part_path(hash).into(),
        }
    }

    /// Bytes that an earlier attempt left.
    pub(crate) fn bytes(&self) -> u64 {
        self.disk.length(&self.path).unwrap_or(0)
    }

    async fn append(&self, bytes: Bytes) -> Result<(), CacheError> {
        let (disk, path) = (Arc::clone(&self.disk), Arc::clone(&self.path));
        let written = world::blocking(move || disk.append(&path, &bytes)).await;
        Self::done(written).map_err(failed("writing", &self.path))
    }

    pub(crate) async fn hash(&self) -> Result<Hash, CacheError> {
        let (disk, path) = (Arc::clone(&self.disk), Arc::clone(&self.path));
        let hashed = world::blocking(move || disk.hash(&path)).await;
        Self::done(hashed).map_err(failed("hashing", &self.path))
    }

    pub(crate) fn remove(&self) -> Result<(), CacheError> {
        remove(&*self.disk, &self.path)
    }

    fn done<T>(work: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
        work.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Where a 206 answer begins, once it is of the blob's length.
fn range_start(response: &Response, reference: BlobReference) -> Result<u64, Stop> {
    let header = response.headers().get(CONTENT_RANGE);
    let parsed = header.and_then(|it| {
        let (range, total) = it.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        Some((start.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    });
    let (start, total) =
        parsed.ok_or_else(|| Stop::Interrupted(malformed("its range is not named")))?;
    if total != reference.bytes {
        return Err(wrong_length(reference, total));
    }
    Ok(start)
}

fn check_length(response: &Response, start: u64, reference: BlobReference) -> Result<(), Stop> {
    match response.content_length() {
        Some(length) if length != reference.bytes - start => {
            Err(wrong_length(reference, start + length))
        }
        Some(_) | None => Ok(()),
    }
}

fn wrong_length(reference: BlobReference, found: u64) -> Stop {
    Stop::Failed(TransferError::WrongLength {
        hash: reference.hash,
        expected: reference.bytes,
        found,
    })
}

fn malformed(problem: &str) -> ClientError {
    ClientError::Malformed {
        what: "a blob",
        problem: problem.to_owned(),
    }
}
