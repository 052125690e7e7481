//! The HTTP surface: routes, limits, CORS, health and metrics. Everything under `/v1` answers in OpenAI's shapes.

mod complete;
mod error;
mod fields;
mod models;
mod render;
mod request;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower_http::{
    cors::{AllowHeaders, Any, CorsLayer},
    timeout::RequestBodyTimeoutLayer,
};

use crate::{metrics::Metrics, model::Catalogue, queue::Queue};
use error::ApiError;

/// Longest request body.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest silence while a request body arrives.
const BODY_STALL_MAX: Duration = Duration::from_secs(20);
/// How long a browser remembers that any origin may ask.
const CORS_AGE: Duration = Duration::from_secs(3600);

/// What every handler needs.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) queue: Queue,
    pub(crate) metrics: Arc<Metrics>,
    /// Whether the hub answered when it was last asked.
    pub(crate) hub_reached: Arc<std::sync::atomic::AtomicBool>,
    /// Cancelled when new requests are no longer taken.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when running answers must end too.
    pub(crate) abort: CancellationToken,
}

/// All routes.
pub(crate) fn router(service: Service) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .max_age(CORS_AGE);
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::one))
        .route("/v1/chat/completions", post(complete::chat))
        .route("/v1/completions", post(complete::completions))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(RequestBodyTimeoutLayer::new(BODY_STALL_MAX))
        .layer(middleware::from_fn_with_state(service.clone(), count))
        .layer(cors)
        .with_state(service)
}

/// Reads a body both ways that there are.
pub(crate) fn check_request(body: &[u8]) -> Result<(), String> {
    let read = |endpoint| request::Request::from_body(endpoint, body, 1).map(drop);
    read(request::Endpoint::Chat)
        .or_else(|_| read(request::Endpoint::Completions))
        .map_err(|error| error.message)
}

async fn health(State(service): State<Service>) -> Json<Value> {
    let hub_reached = service
        .hub_reached
        .load(std::sync::atomic::Ordering::Relaxed);
    Json(json!({
        "status": if service.stopping.is_cancelled() { "stopping" } else { "ok" },
        "models": service.catalogue.list().len(),
        "hub_reached": hub_reached,
    }))
}

async fn metrics(State(service): State<Service>) -> Response {
    let text = service.metrics.render(
        service.queue.running(),
        service.queue.waiting(),
        service.catalogue.checkpoints(),
    );
    let content_type =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

async fn unknown_url(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_url(method.as_str(), uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(method.as_str(), uri.path())
}

/// Counts requests by route and status, and forbids storing answers.
async fn count(State(service): State<Service>, request: Request, next: Next) -> Response {
    let endpoint = match request
        .extensions()
        .get::<MatchedPath>()
        .map(MatchedPath::as_str)
    {
        Some("/v1/models" | "/v1/models/{id}") => "models",
        Some("/v1/chat/completions") => "chat",
        Some("/v1/completions") => "completions",
        Some("/health" | "/metrics") => "operation",
        _ => "other",
    };
    let mut response = next.run(request).await;
    service
        .metrics
        .request(endpoint, response.status().as_u16());
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let no_sniffing = HeaderName::from_static("x-content-type-options");
    response
        .headers_mut()
        .insert(no_sniffing, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
