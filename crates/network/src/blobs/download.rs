//! Fetching a blob into the cache, resumed where the connection was cut.

use std::{fs, io, path::Path};

use protocol::{
    Hash,
    units::{BlobReference, WorkerId},
};
use reqwest::{Method, Response, StatusCode, header::CONTENT_RANGE};
use tokio::io::AsyncWriteExt;

use super::{
    BlobCache, CacheError, FAILURES_MAX, TransferError,
    cache::{disk, remove},
};
use crate::client::{ClientError, HubClient};

/// Header by which the hub counts what it sends a worker.
const WORKER: &str = "x-athome-worker";

/// Why one attempt ended before the last byte.
enum Stop {
    /// Trying again may help.
    Interrupted(ClientError),
    /// It may not.
    Failed(TransferError),
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
        let hash = reference.hash;
        let keep = |source| TransferError::Cache { hash, source };
        let _claim = cache.claim(&hash).await;
        if cache.contains(&reference) {
            return Ok(());
        }
        cache.make_room(reference.bytes, None).map_err(keep)?;
        let part = cache.part_path(&hash);
        let resumed = part_bytes(&part) > 0;
        self.gather(&part, reference, worker, &mut progress).await?;
        if hash_file(&part).await.map_err(keep)? != hash {
            remove(&part).map_err(keep)?;
            if !resumed {
                return Err(TransferError::WrongHash { hash });
            }
            // What an earlier download left may have gone bad: once more from the start.
            self.gather(&part, reference, worker, &mut progress).await?;
            if hash_file(&part).await.map_err(keep)? != hash {
                remove(&part).map_err(keep)?;
                return Err(TransferError::WrongHash { hash });
            }
        }
        cache.adopt(&hash, &part, reference.bytes).map_err(keep)
    }

    /// Fills the part file up to the reference's length.
    async fn gather(
        &self,
        part: &Path,
        reference: BlobReference,
        worker: Option<WorkerId>,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), TransferError> {
        let mut failures = 0;
        loop {
            let before = part_bytes(part);
            let error = match self
                .attempt_download(part, reference, worker, progress)
                .await
            {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Interrupted(error)) => error,
            };
            failures = if part_bytes(part) > before {
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
        part: &Path,
        reference: BlobReference,
        worker: Option<WorkerId>,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), Stop> {
        let hash = reference.hash;
        let keep = |source| Stop::Failed(TransferError::Cache { hash, source });
        let mut offset = part_bytes(part);
        if offset > reference.bytes {
            remove(part).map_err(keep)?;
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
                remove(part).map_err(keep)?;
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
        let mut file = open_part(part, start).await.map_err(keep)?;
        let mut present = start;
        progress(present);
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    file.flush()
                        .await
                        .map_err(|error| keep(disk("writing", part)(error)))?;
                    return Err(Stop::Interrupted(self.unreachable(error)));
                }
            };
            present += chunk.len() as u64;
            if present > reference.bytes {
                drop(file);
                remove(part).map_err(keep)?;
                return Err(wrong_length(reference, present));
            }
            let written = file.write_all(&chunk).await;
            written.map_err(|error| keep(disk("writing", part)(error)))?;
            progress(present);
        }
        file.flush()
            .await
            .map_err(|error| keep(disk("writing", part)(error)))?;
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

async fn open_part(part: &Path, start: u64) -> Result<tokio::fs::File, CacheError> {
    let mut options = tokio::fs::OpenOptions::new();
    if start == 0 {
        options.write(true).create(true).truncate(true);
    } else {
        options.append(true);
    }
    options.open(part).await.map_err(disk("opening", part))
}

/// Bytes that an earlier attempt left.
fn part_bytes(part: &Path) -> u64 {
    fs::metadata(part).map_or(0, |it| it.len())
}

async fn hash_file(path: &Path) -> Result<Hash, CacheError> {
    let owned = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(owned)?)?;
        io::Result::Ok(Hash(*hasher.finalize().as_bytes()))
    });
    hashed
        .await
        .expect("hashing a file does not panic")
        .map_err(disk("hashing", path))
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
