//! What one address, and all together, may ask at once and in a second.

mod body;

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use governor::{DefaultKeyedRateLimiter, Quota};
use network::server::{Peer, Share, Shares, share_of};
use tokio_util::sync::CancellationToken;

use super::errors::Failure;
use crate::{
    Hub,
    blobs::PART_BYTES_MAX,
    boinc::{self, FILE_BYTES_MAX},
    config::Config,
};

/// An ordinary request that takes longer is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// A part of an upload over a slow line takes longer; its speed has a limit of its own.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// How often addresses that ask no more are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// What is counted.
pub(super) struct Limits {
    rate: DefaultKeyedRateLimiter<IpAddr>,
    in_progress: tokio::sync::Semaphore,
    /// Parts of blobs have places of their own: over slow lines they take long.
    parts_in_progress: tokio::sync::Semaphore,
    large_bodies: tokio::sync::Semaphore,
    of_addresses: Shares,
    streams_of_addresses: Shares,
    trusted_proxies: Vec<IpAddr>,
}

/// Whom a request counts for: the other end of its connection, or whom a trusted proxy speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client(pub(super) IpAddr);

impl Limits {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            rate: per_address(config.requests_per_s_per_address),
            in_progress: tokio::sync::Semaphore::new(config.requests_in_progress_max),
            parts_in_progress: tokio::sync::Semaphore::new(config.requests_in_progress_max),
            large_bodies: tokio::sync::Semaphore::new(body::LARGE_MAX),
            of_addresses: Shares::new(config.requests_in_progress_per_address_max),
            streams_of_addresses: Shares::new(config.streams_per_address_max),
            trusted_proxies: config
                .trusted_proxies
                .iter()
                .map(IpAddr::to_canonical)
                .collect(),
        }
    }

    /// Forgets addresses that ask no more, again and again until `shutdown`.
    pub(super) async fn forget(self: Arc<Self>, hub: Arc<Hub>, shutdown: CancellationToken) {
        let mut every = tokio::time::interval(FORGET_EVERY);
        while shutdown.run_until_cancelled(every.tick()).await.is_some() {
            self.rate.retain_recent();
            self.rate.shrink_to_fit();
            hub.admission.forget();
            if let Some(door) = &hub.door {
                door.forget();
            }
        }
    }
}

fn per_address(requests_per_s: u32) -> DefaultKeyedRateLimiter<IpAddr> {
    let per_second = std::num::NonZeroU32::new(requests_per_s).unwrap_or(std::num::NonZeroU32::MIN);
    // A burst of two seconds' worth.
    DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second).allow_burst(
        per_second.saturating_mul(std::num::NonZeroU32::new(2).expect("two is not zero")),
    ))
}

/// Notes whom a request counts for, and refuses what is too much.
pub(super) async fn limit(
    State(limits): State<Arc<Limits>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().map(|it| it.0);
    let told = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let Some(peer) = peer.or(told.map(|it| it.0)) else {
        return Failure::bad("nobody knows who asks").into_response();
    };
    let client = client_of(peer.ip(), request.headers(), &limits.trusted_proxies);
    request.extensions_mut().insert(ConnectInfo(peer));
    request.extensions_mut().insert(Client(client));
    if limits.rate.check_key(&share_of(client)).is_err() {
        return Failure::too_many(
            "this address asks more often than the hub allows; wait a second",
        )
        .into_response();
    }
    // Nobody is to send what nobody reads.
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|it| it.to_str().ok()?.parse().ok());
    let path = request.uri().path();
    let is_result = path == boinc::UPLOAD_PATH;
    let bytes_max = match path {
        boinc::UPLOAD_PATH => FILE_BYTES_MAX,
        // It says so itself, in the form that its clients show, and reads no more than anybody else.
        boinc::SCHEDULER_PATH => u64::MAX,
        _ => PART_BYTES_MAX as u64,
    };
    if announced.is_some_and(|it: u64| it > bytes_max) {
        return Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_long",
            "no body that this hub takes is that long",
        )
        .into_response();
    }
    // Long polls and event streams wait without working; they have limits of their own.
    if is_stream(request.uri().path()) {
        let Some(share) = limits.streams_of_addresses.begin(client) else {
            return Failure::too_many(
                "this address has as many open polls and event streams as the hub allows; close some",
            )
            .into_response();
        };
        let response = next.run(request).await;
        return response.map(|body| {
            Body::new(Held {
                body,
                _share: share,
            })
        });
    }
    let Some(_share) = limits.of_addresses.begin(client) else {
        return Failure::too_many("this address has too many requests in progress; let some end")
            .into_response();
    };
    let (places, longest) = if is_result {
        // It takes a place when its head says that it may.
        (None, UPLOAD_TIMEOUT)
    } else if request.method() == Method::PATCH {
        (Some(&limits.parts_in_progress), UPLOAD_TIMEOUT)
    } else {
        request = match body::read(request, &limits.large_bodies).await {
            Ok(request) => request,
            Err(failure) => return failure.into_response(),
        };
        (Some(&limits.in_progress), REQUEST_TIMEOUT)
    };
    let Ok(_permit) = places.map(tokio::sync::Semaphore::try_acquire).transpose() else {
        return Failure::too_many("the hub is busy; try again in a second").into_response();
    };
    match tokio::time::timeout(longest, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "the request took too long; resume it where it stopped",
        )
        .into_response(),
    }
}

fn is_stream(path: &str) -> bool {
    path.ends_with("/work") || path.ends_with("/events") || path == boinc::SCHEDULER_PATH
}

/// The other end of the connection; behind trusted proxies, the last address that they did not add themselves.
///
/// What anyone else writes into `X-Forwarded-For` counts for nothing.
fn client_of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpAddr]) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contains(&peer) {
        return peer;
    }
    headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .map(|it| it.trim().parse().map(|it: IpAddr| it.to_canonical()))
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .find(|it| !matches!(it, Ok(address) if trusted.contains(address)))
        // What a proxy of one's own wrote and does not read is nobody's address: the proxy's then.
        .and_then(Result::ok)
        .unwrap_or(peer)
}

/// A stream's body, which holds its address's share.
struct Held {
    body: Body,
    _share: Share,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(peer: &str, forwarded: &[&str], expected: &str) {
        let trusted = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let client = client_of(peer.parse().unwrap(), &headers, &trusted);
        assert_eq!(client.to_string(), expected);
    }

    #[test]
    fn only_trusted_proxies_speak_for_others() {
        check("192.0.2.7", &[], "192.0.2.7");
        check("192.0.2.7", &["198.51.100.1"], "192.0.2.7");
        check("::ffff:192.0.2.7", &[], "192.0.2.7");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["198.51.100.1"], "198.51.100.1");
        check(
            "10.0.0.1",
            &["1.2.3.4, 198.51.100.1, 10.0.0.2"],
            "198.51.100.1",
        );
        check("10.0.0.1", &["1.2.3.4", "198.51.100.1"], "198.51.100.1");
        check("10.0.0.1", &["198.51.100.1, nonsense"], "10.0.0.1");
    }
}
