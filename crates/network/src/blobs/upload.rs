//! Sending a blob to the hub in pieces, resumed where the hub says it stands.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use protocol::{
    Hash,
    api::{UPLOAD_AUTHORISATION, UPLOAD_DOMAIN, UPLOAD_OFFSET},
};
use reqwest::{Method, Response, StatusCode, header::HeaderMap};
use tokio::time::Instant;

use super::{FAILURES_MAX, TransferError, UploadAuthorisation};
use crate::client::{ClientError, HubClient};

/// Header of a reply: the hub has the whole blob.
const COMPLETE: &str = "x-athome-complete";
/// Header of an operator's upload: length of the whole blob.
const TOTAL_BYTES: &str = "x-athome-bytes";
/// The hub takes no larger piece.
const PIECE_BYTES_MAX: usize = 4 << 20;
const PIECE_BYTES_MIN: usize = 64 << 10;
pub(super) const PIECE_BYTES_FIRST: usize = 256 << 10;
/// A piece should take about so long, so that a cut connection costs little and a slow one does not time out.
const PIECE_TIME: Duration = Duration::from_secs(4);
const PIECE_TIMEOUT: Duration = Duration::from_secs(120);
/// Offsets refused in a row before the hub counts as confused.
const CONFLICTS_MAX: u32 = 16;

/// How a piece was received.
enum Received {
    /// The hub now has so many bytes.
    UpTo(usize),
    /// The hub has so many bytes and expected others.
    Conflict(usize),
    /// The hub has all and the hash is right.
    Complete,
}

impl HubClient {
    /// Sends a blob, resumed where an earlier upload ended, and calls `progress` with the bytes that the hub has.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn upload(
        &self,
        hash: Hash,
        bytes: Bytes,
        authorisation: &UploadAuthorisation,
        progress: impl FnMut(u64) + Send,
    ) -> Result<(), TransferError> {
        // An update that fits into the first piece is sent without asking; if a part is there already, the answer says so.
        let is_short = bytes.len() <= PIECE_BYTES_FIRST;
        let is_worker = matches!(authorisation, UploadAuthorisation::Worker(_));
        let is_asked = !is_short || !is_worker;
        self.send_blob(hash, bytes, authorisation, is_asked, progress)
            .await
    }

    /// As [`Self::upload`] of what the hub has perhaps: it is asked first, however short the blob is.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn upload_again(
        &self,
        hash: Hash,
        bytes: Bytes,
        authorisation: &UploadAuthorisation,
        progress: impl FnMut(u64) + Send,
    ) -> Result<(), TransferError> {
        self.send_blob(hash, bytes, authorisation, true, progress)
            .await
    }

    async fn send_blob(
        &self,
        hash: Hash,
        bytes: Bytes,
        authorisation: &UploadAuthorisation,
        is_asked: bool,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<(), TransferError> {
        let headers = authorisation_headers(&hash, bytes.len(), authorisation);
        let mut failures = 0;
        let mut furthest = 0;
        loop {
            let is_asked = is_asked || 0 < failures;
            let error = match self
                .attempt_upload(hash, &bytes, &headers, is_asked, &mut |offset| {
                    if offset > furthest {
                        furthest = offset;
                        failures = 0;
                    }
                    progress(offset as u64);
                })
                .await
            {
                Ok(()) => return Ok(()),
                Err(error) if error.refusal_code() == Some("wrong_hash") => {
                    return Err(TransferError::WrongHash { hash });
                }
                Err(error) => error,
            };
            failures += 1;
            if failures >= FAILURES_MAX || !error.is_temporary() {
                return Err(TransferError::Client {
                    hash,
                    source: error,
                });
            }
            tracing::debug!(blob = %hash, failures, "upload interrupted: {error}");
            tokio::time::sleep(self.retry_policy().wait_after(failures)).await;
        }
    }

    async fn attempt_upload(
        &self,
        hash: Hash,
        bytes: &Bytes,
        headers: &[(&'static str, String)],
        is_asked: bool,
        progress: &mut (impl FnMut(usize) + Send),
    ) -> Result<(), ClientError> {
        let mut offset = 0;
        if is_asked {
            match self.upload_offset(hash, bytes.len(), headers).await? {
                Some(held) => offset = held,
                None => return Ok(()),
            }
        }
        let mut piece_bytes = PIECE_BYTES_FIRST;
        let mut conflicts = 0;
        loop {
            progress(offset);
            let end = bytes.len().min(offset + piece_bytes);
            let piece = bytes.slice(offset..end);
            let begun = Instant::now();
            match self
                .send_piece(hash, offset, piece, bytes.len(), headers)
                .await?
            {
                Received::Complete => {
                    progress(bytes.len());
                    return Ok(());
                }
                Received::UpTo(now) => {
                    piece_bytes = next_piece_bytes(end - offset, begun.elapsed());
                    if now <= offset && !bytes.is_empty() {
                        conflicts += 1;
                    }
                    offset = now;
                }
                Received::Conflict(now) => {
                    conflicts += 1;
                    offset = now;
                }
            }
            if conflicts > CONFLICTS_MAX {
                return Err(malformed("it names ever other offsets"));
            }
        }
    }

    /// Bytes that the hub has; `None` if it has all.
    async fn upload_offset(
        &self,
        hash: Hash,
        total: usize,
        headers: &[(&'static str, String)],
    ) -> Result<Option<usize>, ClientError> {
        let mut call = self.call(Method::GET, &format!("uploads/{hash}")).once();
        for (name, value) in headers {
            call = call.header(name, value.clone());
        }
        let is_operator = headers.iter().any(|(name, _)| *name == TOTAL_BYTES);
        match self.headers_and_bytes(call).await {
            Ok((headers, _)) if headers.contains_key(COMPLETE) => Ok(None),
            Ok((headers, _)) => offset_of(&headers, total).map(Some),
            // Nobody announced an operator's blob before its first piece.
            Err(ClientError::Refused { status: 404, .. }) if is_operator => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    async fn send_piece(
        &self,
        hash: Hash,
        offset: usize,
        piece: Bytes,
        total: usize,
        headers: &[(&'static str, String)],
    ) -> Result<Received, ClientError> {
        let mut call = self
            .call(Method::PATCH, &format!("uploads/{hash}"))
            .timeout(PIECE_TIMEOUT)
            .header(UPLOAD_OFFSET, offset.to_string())
            .bytes("application/octet-stream", piece);
        for (name, value) in headers {
            call = call.header(name, value.clone());
        }
        let response: Response = self.send(&call).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Received::Complete),
            StatusCode::OK => offset_of(response.headers(), total).map(Received::UpTo),
            StatusCode::CONFLICT if response.headers().contains_key(UPLOAD_OFFSET) => {
                offset_of(response.headers(), total).map(Received::Conflict)
            }
            _ => Err(self.refused(response).await),
        }
    }
}

fn authorisation_headers(
    hash: &Hash,
    total: usize,
    authorisation: &UploadAuthorisation,
) -> Vec<(&'static str, String)> {
    match authorisation {
        UploadAuthorisation::Worker(key) => {
            let signature = key.sign(UPLOAD_DOMAIN, &hash.0);
            let signature = HEXLOWER.encode(&signature.0);
            vec![(
                UPLOAD_AUTHORISATION,
                format!("{}:{signature}", key.public()),
            )]
        }
        UploadAuthorisation::Operator { token } => {
            let mut headers = vec![(TOTAL_BYTES, total.to_string())];
            if let Some(token) = token {
                headers.push(("authorization", format!("Bearer {token}")));
            }
            headers
        }
    }
}

fn offset_of(headers: &HeaderMap, total: usize) -> Result<usize, ClientError> {
    let offset = headers
        .get(UPLOAD_OFFSET)
        .and_then(|it| it.to_str().ok()?.parse::<usize>().ok())
        .ok_or_else(|| malformed("it names no offset"))?;
    if offset > total {
        return Err(malformed("its offset lies behind the blob's end"));
    }
    Ok(offset)
}

/// Twice as much if the last piece was quick, half if it was slow.
fn next_piece_bytes(sent: usize, took: Duration) -> usize {
    let next = if took < PIECE_TIME / 2 {
        sent.saturating_mul(2)
    } else if took > PIECE_TIME * 2 {
        sent / 2
    } else {
        sent
    };
    next.clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

fn malformed(problem: &str) -> ClientError {
    ClientError::Malformed {
        what: "an upload's answer",
        problem: problem.to_owned(),
    }
}
