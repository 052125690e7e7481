//! Content-addressed bytes over HTTP: ranges down, resumable parts up.

use std::{net::SocketAddr, ops::Range};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use http_body_util::BodyExt;
use protocol::{
    Hash,
    api::{
        ApiError, UPLOAD_AUTHORISATION, UPLOAD_DOMAIN, UPLOAD_OFFSET, read_upload_authorisation,
    },
    units::{BlobReference, WorkerId},
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Shared, errors::Failure, mirrors::may_read, runs::is_operator};
use crate::{
    Hub,
    blobs::{PART_BYTES_MAX, Upload},
    run::Run,
};

/// Total length of an operator's upload.
const UPLOAD_BYTES: &str = "x-athome-bytes";
/// Set when a blob is whole.
const UPLOAD_COMPLETE: &str = "x-athome-complete";
/// Lets the hub count what it sends to whom.
const WORKER: &str = "x-athome-worker";
/// Code of the refusal of a part that is too long.
pub(super) const PART_TOO_LONG: &str = "part_too_long";
/// How long a part waits for memory.
const MEMORY_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
/// Largest blob that an operator may upload.
const OPERATOR_BYTES_MAX: u64 = 1 << 36;

/// A blob, or a range of it.
#[utoipa::path(get, path = "/api/v1/blobs/{hash}", tag = "blobs", params(("hash" = String, Path, description = "BLAKE3 of the bytes")), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 206, body = Vec<u8>, content_type = "application/octet-stream"), (status = 403, body = ApiError), (status = 404, body = ApiError), (status = 416, body = ApiError)))]
pub(super) async fn read_blob(
    State(hub): Shared,
    Path(hash): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let hash = parse(&hash)?;
    if let Some(run) = hub.private_in(&hash).await
        && !may_read(&hub, &run, hash, &headers).await
    {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "private",
            "this update becomes public when its round takes no more commitments",
        ));
    }
    let Some(length) = hub.blobs.length(&hash).await? else {
        return Err(Failure::not_found("this hub does not have that blob"));
    };
    let ranged = Ranged {
        length,
        asked: requested(&headers, length)?,
    };
    let part = ranged.part();
    let body = if method == Method::HEAD || part.is_empty() {
        Body::empty()
    } else {
        count_sent(&hub, &headers, part.end - part.start).await;
        Body::from_stream(hub.blobs.stream(&hash, part).await?)
    };
    ranged.response(&hash, body)
}

/// What is asked of bytes whose name is their hash.
pub(super) struct Ranged {
    pub(super) length: u64,
    /// A part, if one was asked for.
    pub(super) asked: Option<Range<u64>>,
}

impl Ranged {
    /// The part to be sent.
    pub(super) fn part(&self) -> Range<u64> {
        self.asked.clone().unwrap_or(0..self.length)
    }

    /// The answer with these bytes, which are the part.
    pub(super) fn response(&self, hash: &Hash, body: Body) -> Result<Response, Failure> {
        let part = self.part();
        let mut response = Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, format!("\"{hash}\""))
            .header(header::CACHE_CONTROL, "public, max-age=31536000, immutable")
            .header(header::CONTENT_LENGTH, part.end - part.start);
        if self.asked.is_some() {
            response = response.status(StatusCode::PARTIAL_CONTENT).header(
                header::CONTENT_RANGE,
                format!("bytes {}-{}/{}", part.start, part.end - 1, self.length),
            );
        }
        response
            .body(body)
            .map_err(|error| Failure::from(anyhow::Error::from(error)))
    }
}

/// How much of a blob the hub holds; 404 if nobody may upload it.
#[utoipa::path(get, path = "/api/v1/uploads/{hash}", tag = "blobs", params(("hash" = String, Path, description = "BLAKE3 of the bytes")), responses((status = 200, description = "`x-athome-offset` says how much; `x-athome-complete` that it is whole"), (status = 404, body = ApiError)))]
pub(super) async fn upload_progress(
    State(hub): Shared,
    Path(hash): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let hash = parse(&hash)?;
    let (held, is_whole) = hub.blobs.progress(&hash).await?;
    match hub.committed(&hash, None).await {
        Some((run, _, _)) => run.must_be_hub()?,
        None if is_whole || is_operator(&hub, peer, &headers) => {}
        None => {
            // A mirror may not know the commitment yet.
            for run in hub.all().await {
                run.must_be_hub()?;
            }
            return Err(Failure::not_found("nobody may upload that blob now"));
        }
    }
    Ok(progress(StatusCode::OK, held, is_whole))
}

/// The next part of a blob, at most 4 MiB.
#[utoipa::path(patch, path = "/api/v1/uploads/{hash}", tag = "blobs", params(("hash" = String, Path, description = "BLAKE3 of the bytes")), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, description = "More is to come, from `x-athome-offset` on"), (status = 201, description = "The blob is whole"), (status = 403, body = ApiError), (status = 409, description = "The part does not begin at `x-athome-offset`"), (status = 422, body = ApiError)))]
pub(super) async fn upload_part(
    State(hub): Shared,
    Path(hash): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let hash = parse(&hash)?;
    let offset = number(&headers, UPLOAD_OFFSET)?;
    let (blob, run) = authorise(&hub, hash, peer, &headers).await?;
    let (bytes, _memory) = read_part(&hub.upload_memory, body).await?;
    hub.metrics.bytes_received.inc_by(bytes.len() as u64);
    if let Some((_, worker)) = &run {
        hub.admission.check_upload(worker, bytes.len())?;
        let bytes_max = hub.config.unused_bytes_max;
        if !hub.unused.take(bytes.len() as u64, bytes_max) {
            return Err(Failure::too_many(
                "the hub holds as many bytes of updates that nobody has accepted as it allows; try again later",
            ));
        }
    }
    match hub.blobs.append(&blob, offset, bytes).await? {
        Upload::Partial(held) => Ok(progress(StatusCode::OK, held, false)),
        Upload::Complete => {
            if let Some((run, _)) = run {
                run.uploaded(hash).await;
            }
            Ok(progress(StatusCode::CREATED, blob.bytes, true))
        }
        Upload::WrongOffset(held) => {
            let sentence = format!(
                "the part does not begin at {held} (`{UPLOAD_OFFSET}`), where the blob ends"
            );
            let failure = Failure::new(StatusCode::CONFLICT, "wrong_offset", sentence);
            let mut response = failure.into_response();
            let headers = response.headers_mut();
            headers.insert(UPLOAD_OFFSET, HeaderValue::from(held));
            Ok(response)
        }
        Upload::WrongHash => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "wrong_hash",
            "the bytes do not hash to the blob's name; they were dropped, send them again from the start",
        )),
        Upload::TooLong => Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "too_long",
            "these are more bytes than the blob was announced with",
        )),
    }
}

/// Who may upload what: a worker what it committed to, the operator anything.
async fn authorise(
    hub: &Hub,
    hash: Hash,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Result<(BlobReference, Option<(Run, WorkerId)>), Failure> {
    let refuse = |message: &str| Failure::new(StatusCode::FORBIDDEN, "not_yours", message);
    if let Some(given) = headers.get(UPLOAD_AUTHORISATION) {
        let (key, signature) = given
            .to_str()
            .ok()
            .and_then(read_upload_authorisation)
            .ok_or_else(|| Failure::bad("the upload's authorisation does not read"))?;
        key.verify(UPLOAD_DOMAIN, &hash.0, &signature)
            .map_err(|_| refuse("the upload's signature does not match"))?;
        let Some((run, commitment, blob)) = hub.committed(&hash, Some(WorkerId(key))).await else {
            for run in hub.all().await {
                if run.state.read().await.workers.contains_key(&WorkerId(key)) {
                    run.must_be_hub()?;
                }
            }
            return Err(refuse(
                "no round in progress waits for that blob from this worker",
            ));
        };
        run.must_be_hub()?;
        if blob.bytes > run.arithmetic.upload_bytes_max(blob == commitment.update) {
            return Err(refuse("no update of this run is that long"));
        }
        return Ok((blob, Some((run, WorkerId(key)))));
    }
    if !is_operator(hub, peer, headers) {
        return Err(refuse("an upload needs a worker's signature"));
    }
    let bytes = number(headers, UPLOAD_BYTES)?;
    if bytes > OPERATOR_BYTES_MAX {
        return Err(refuse("the blob is longer than a hub takes"));
    }
    if hub.blobs.length(&hash).await?.is_some() {
        // It is about to be named: it must not go meanwhile.
        hub.blobs.renew(&hash).await?;
    }
    Ok((BlobReference { hash, bytes }, None))
}

/// Reads a body of at most [`PART_BYTES_MAX`]; what all bodies that share this memory, in KiB, hold of it together is bounded.
pub(super) async fn read_part(
    memory: &Semaphore,
    mut body: Body,
) -> Result<(Bytes, SemaphorePermit<'_>), Failure> {
    let too_long = || {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            PART_TOO_LONG,
            "a part is at most 4 MiB",
        )
    };
    if body.size_hint().lower() > PART_BYTES_MAX as u64 {
        return Err(too_long());
    }
    let mut part = BytesMut::new();
    let mut held = admitted(memory, 0).await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "cut",
                format!("the part did not arrive: {error}; send it again from where the blob ends"),
            )
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if part.len() + data.len() > PART_BYTES_MAX {
            return Err(too_long());
        }
        // Of the whole, not of each frame: who sends single bytes takes no more of it than who sends them together.
        let kib = (part.len() + data.len()).div_ceil(1024) - part.len().div_ceil(1024);
        held.merge(admitted(memory, kib).await?);
        part.extend_from_slice(&data);
    }
    Ok((part.freeze(), held))
}

/// Room for so many KiB more in memory.
async fn admitted(memory: &Semaphore, kib: usize) -> Result<SemaphorePermit<'_>, Failure> {
    let room = tokio::time::timeout(MEMORY_WAIT, memory.acquire_many(kib as u32));
    match room.await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Failure::too_many(
            "the hub reads as much at once as its memory allows; try again in a second",
        )),
    }
}

fn parse(hash: &str) -> Result<Hash, Failure> {
    hash.parse()
        .map_err(|error: protocol::hash::HashTextError| Failure::bad(error.to_string()))
}

fn number(headers: &HeaderMap, name: &str) -> Result<u64, Failure> {
    headers
        .get(name)
        .and_then(|it| it.to_str().ok()?.parse().ok())
        .ok_or_else(|| Failure::bad(format!("the header {name} must be a number")))
}

fn progress(status: StatusCode, held: u64, is_whole: bool) -> Response {
    let mut response = status.into_response();
    let headers = response.headers_mut();
    headers.insert(UPLOAD_OFFSET, HeaderValue::from(held));
    if is_whole {
        headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static("true"));
    }
    response
}

/// The range asked for; several ranges are answered with the whole, as the standard allows (RFC 9110, 14.2).
pub(super) fn requested(headers: &HeaderMap, length: u64) -> Result<Option<Range<u64>>, Failure> {
    let Some(text) = headers.get(header::RANGE).and_then(|it| it.to_str().ok()) else {
        return Ok(None);
    };
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .and_then(|it| it.split_once('-'))
    else {
        return Ok(None);
    };
    if last.contains(',') {
        return Ok(None);
    }
    let unsatisfiable = || {
        Failure::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range",
            format!("the blob has {length} bytes"),
        )
    };
    // Rust takes a sign before a number, the standard none.
    let number = |text: &str| match text.bytes().all(|it| it.is_ascii_digit()) {
        true => text.parse::<u64>().ok(),
        false => None,
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Some(first), None) if last.is_empty() => first..length,
        (None, Some(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
        _ => return Ok(None),
    };
    if range.start >= range.end {
        return Err(unsatisfiable());
    }
    Ok(Some(range))
}

async fn count_sent(hub: &Hub, headers: &HeaderMap, bytes: u64) {
    hub.metrics.bytes_sent.inc_by(bytes);
    let worker = headers
        .get(WORKER)
        .and_then(|it| it.to_str().ok()?.parse().ok());
    if let Some(worker) = worker {
        for run in hub.all().await {
            run.presence.sent(&worker, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_standards() {
        for (text, expected) in [
            ("bytes=0-4", Ok(Some(0..5))),
            ("bytes=2-", Ok(Some(2..10))),
            ("bytes=-3", Ok(Some(7..10))),
            ("bytes=8-99", Ok(Some(8..10))),
            ("bytes=10-", Err(())),
            ("bytes=-0", Err(())),
            // What is none, or several, is answered with the whole.
            ("bytes=+1-+2", Ok(None)),
            ("bytes=4-2", Ok(None)),
            ("bytes=-", Ok(None)),
            ("bytes=0-1,3-4", Ok(None)),
            ("lines=0-1", Ok(None)),
        ] {
            let headers = HeaderMap::from_iter([(header::RANGE, text.parse().unwrap())]);
            let found = requested(&headers, 10).map_err(|_| ());
            assert_eq!(found, expected, "{text}");
        }
    }
}
