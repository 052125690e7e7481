//! Bodies that are no parts of blobs are read before a request takes a place at work: whoever sends slowly holds up nobody.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::StatusCode,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::Semaphore;

use super::Failure;
use crate::{blobs::PART_BYTES_MAX, http::BODY_BYTES_MAX};

/// Longest body but a charter's: commands, bindings and questions are shorter.
const SMALL_BYTES_MAX: usize = 16 * 1024;
/// Time for a body to come.
const SMALL_TIMEOUT: Duration = Duration::from_secs(15);
const LARGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Where a run is created: its charter may be long.
const CREATE_PATH: &str = "/api/v1/runs";
/// End of the path where proofs are shown: the entries in them may be long.
const PROOFS_PATH: &str = "/equivocations";

/// Bodies above the small size that are read at once.
pub(super) const LARGE_MAX: usize = 16;

/// The same request with its body in memory.
pub(super) async fn read(request: Request, large: &Semaphore) -> Result<Request, Failure> {
    if request.body().is_end_stream() {
        return Ok(request);
    }
    let path = request.uri().path();
    let (bytes_max, longest) = if path == CREATE_PATH {
        (BODY_BYTES_MAX, LARGE_TIMEOUT)
    } else if path.ends_with(PROOFS_PATH) {
        (PART_BYTES_MAX, LARGE_TIMEOUT)
    } else {
        (SMALL_BYTES_MAX, SMALL_TIMEOUT)
    };
    let _place = match bytes_max > SMALL_BYTES_MAX {
        true => Some(large.try_acquire().map_err(|_| {
            Failure::too_many("the hub reads as many long bodies as it may; try again in a minute")
        })?),
        false => None,
    };
    let (parts, body) = request.into_parts();
    let read = Limited::new(body, bytes_max).collect();
    let body = match tokio::time::timeout(longest, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_long",
                "no body that this address takes is that long",
            ));
        }
        Ok(Err(_)) => return Err(Failure::bad("the body was cut")),
        Err(_) => {
            return Err(Failure::new(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                "the body did not come in time; send it again",
            ));
        }
    };
    Ok(Request::from_parts(parts, Body::from(body)))
}

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, http::Request};

    use super::*;

    async fn check(path: &str, bytes: usize, is_taken: bool) {
        let body = vec![7; bytes];
        let request = Request::post(path).body(Body::from(body.clone())).unwrap();
        let read = read(request, &Semaphore::new(1)).await;
        assert_eq!(read.is_ok(), is_taken, "{path}, {bytes} bytes");
        if let Ok(request) = read {
            let found = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(found, body);
        }
    }

    #[tokio::test]
    async fn each_address_takes_what_it_needs() {
        check("/api/v1/runs/x/commands", 0, true).await;
        check("/api/v1/runs/x/commands", SMALL_BYTES_MAX, true).await;
        check("/api/v1/runs/x/commands", SMALL_BYTES_MAX + 1, false).await;
        check(CREATE_PATH, SMALL_BYTES_MAX + 1, true).await;
        check(CREATE_PATH, BODY_BYTES_MAX + 1, false).await;
        check("/api/v1/runs/x/equivocations", PART_BYTES_MAX, true).await;
        check("/api/v1/runs/x/equivocations", PART_BYTES_MAX + 1, false).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_is_given_up() {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from("a"))]);
        let endless = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        let request = Request::post("/api/v1/runs/x/commands");
        let request = request.body(Body::from_stream(endless)).unwrap();
        let begun = tokio::time::Instant::now();
        assert!(read(request, &Semaphore::new(1)).await.is_err());
        assert_eq!(begun.elapsed(), SMALL_TIMEOUT);
    }
}
