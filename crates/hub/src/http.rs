//! The router: every address of the hub, by who uses it. Handlers parse, call, render.

mod blobs;
mod errors;
mod live;
mod log;
mod runs;
mod summary;
mod web;
mod work;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use governor::{DefaultKeyedRateLimiter, Quota};
use tokio_util::sync::CancellationToken;
use tower_http::compression::{CompressionLayer, predicate::DefaultPredicate};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::errors::Failure;
use crate::{Hub, metrics::StatusLabel};

/// Longest body of a request that is no part of a blob.
const BODY_BYTES_MAX: usize = 512 * 1024;
/// An ordinary request that takes longer is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long open requests may take to end at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

pub(crate) type Shared = State<Arc<Hub>>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "AI@home hub",
        description = "The API of a hub: runs, their logs, work for workers, blobs. Everything shown is folded from the log; `event` fields are log positions.",
        version = "1",
        license(name = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "runs", description = "What people look at"),
        (name = "log", description = "The record"),
        (name = "work", description = "What workers use"),
        (name = "blobs", description = "Content-addressed bytes")
    )
)]
struct ApiDocument;

/// The OpenAPI document of this hub's API as pretty JSON; `docs/openapi.json` is a copy.
#[must_use]
pub fn openapi() -> String {
    let (_, document) = api().split_for_parts();
    let mut text = document
        .to_pretty_json()
        .expect("the document has a JSON form");
    text.push('\n');
    text
}

fn api() -> OpenApiRouter<Arc<Hub>> {
    OpenApiRouter::with_openapi(ApiDocument::openapi())
        .routes(routes!(runs::hub_info))
        .routes(routes!(runs::list_runs, runs::create_run))
        .routes(routes!(runs::show_run))
        .routes(routes!(runs::show_charter))
        .routes(routes!(runs::list_rounds))
        .routes(routes!(runs::show_round))
        .routes(routes!(runs::list_workers))
        .routes(routes!(runs::list_losses))
        .routes(routes!(runs::list_checkpoints))
        .routes(routes!(log::read_log))
        .routes(routes!(log::read_log_binary))
        .routes(routes!(live::follow_events))
        .routes(routes!(work::send_command))
        .routes(routes!(work::bind_identity))
        .routes(routes!(work::ask_for_work))
        .routes(routes!(blobs::read_blob))
        .routes(routes!(blobs::upload_progress, blobs::upload_part))
}

/// Serves until `shutdown`.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    hub: Arc<Hub>,
    shutdown: CancellationToken,
) -> Result<()> {
    let app = router(Arc::clone(&hub)).into_make_service_with_connect_info::<SocketAddr>();
    let stop = shutdown.clone();
    let serving =
        axum::serve(listener, app).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        served = serving => served.context("the hub's listener failed"),
        // Streams end by themselves at shutdown; whoever does not is not waited for.
        () = async { shutdown.cancelled().await; tokio::time::sleep(SHUTDOWN_GRACE).await } => Ok(()),
    }
}

/// Every address of the hub.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    let limits = Arc::new(Limits {
        rate: per_address(hub.config.requests_per_s_per_address),
        in_progress: tokio::sync::Semaphore::new(hub.config.requests_in_progress_max),
        of_addresses: Mutex::default(),
        per_address_max: hub.config.requests_in_progress_per_address_max,
    });
    let (api, document) = api().split_for_parts();
    let document = Arc::new(document.to_json().expect("the document has a JSON form"));
    api.route(
        "/api/v1/openapi.json",
        get(move || async move {
            (
                [(header::CONTENT_TYPE, "application/json")],
                document.as_str().to_owned(),
            )
        }),
    )
    .route("/metrics", get(runs::metrics))
    .fallback(web::file)
    .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
    .layer(CompressionLayer::new().compress_when(DefaultPredicate::new()))
    .layer(middleware::from_fn_with_state(
        (Arc::clone(&hub), limits),
        limit,
    ))
    .layer(middleware::from_fn_with_state(Arc::clone(&hub), finish))
    .with_state(hub)
}

/// What one address, and all together, may ask.
struct Limits {
    rate: DefaultKeyedRateLimiter<IpAddr>,
    in_progress: tokio::sync::Semaphore,
    of_addresses: Mutex<HashMap<IpAddr, u32>>,
    per_address_max: u32,
}

/// A request in progress, counted for its address until it is dropped.
struct InProgress {
    limits: Arc<Limits>,
    address: IpAddr,
}

impl InProgress {
    /// Counts one more, if the address has not its share already.
    fn begin(limits: &Arc<Limits>, address: IpAddr) -> Option<Self> {
        let mut of_addresses = limits.lock();
        let count = of_addresses.entry(address).or_default();
        if *count >= limits.per_address_max {
            return None;
        }
        *count += 1;
        drop(of_addresses);
        Some(Self {
            limits: Arc::clone(limits),
            address,
        })
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut of_addresses = self.limits.lock();
        if let Some(count) = of_addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                of_addresses.remove(&self.address);
            }
        }
    }
}

impl Limits {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.of_addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn per_address(requests_per_s: u32) -> DefaultKeyedRateLimiter<IpAddr> {
    let per_second = std::num::NonZeroU32::new(requests_per_s).unwrap_or(std::num::NonZeroU32::MIN);
    // A burst of two seconds' worth.
    DefaultKeyedRateLimiter::keyed(Quota::per_second(per_second).allow_burst(
        per_second.saturating_mul(std::num::NonZeroU32::new(2).expect("two is not zero")),
    ))
}

async fn limit(
    State((_hub, limits)): State<(Arc<Hub>, Arc<Limits>)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if limits.rate.check_key(&peer.ip()).is_err() {
        return Failure::too_many(
            "this address asks more often than the hub allows; wait a second",
        )
        .into_response();
    }
    if limits.rate.len() > 100_000 {
        limits.rate.retain_recent();
    }
    // Long polls and event streams wait without working; they have a limit of their own.
    if request.uri().path().ends_with("/work") || request.uri().path().ends_with("/events") {
        return next.run(request).await;
    }
    let Some(_share) = InProgress::begin(&limits, peer.ip()) else {
        return Failure::too_many("this address has too many requests in progress; let some end")
            .into_response();
    };
    let Ok(_permit) = limits.in_progress.try_acquire() else {
        return Failure::too_many("the hub is busy; try again in a second").into_response();
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "timeout",
            "the request took too long; resume it where it stopped",
        )
        .into_response(),
    }
}

/// Counts the answer and sets what every answer carries.
async fn finish(State(hub): Shared, request: Request, next: Next) -> Response {
    let is_api = request.uri().path().starts_with("/api/");
    let mut response = next.run(request).await;
    if is_api {
        response = errors::in_our_form(response).await;
    }
    let status = response.status().as_u16();
    hub.metrics
        .requests
        .get_or_create(&StatusLabel { status })
        .inc();
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

#[cfg(test)]
mod tests;
