//! The router: every address of the hub, by who uses it. Handlers parse, call, render.

mod accounts;
mod admission;
mod blobs;
mod boinc;
mod deltas;
mod errors;
mod limits;
mod live;
mod log;
mod mirrors;
mod peers;
mod runs;
mod summary;
mod token;
mod web;
mod work;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use tokio_util::sync::CancellationToken;
use tower_http::{
    CompressionLevel,
    compression::{
        CompressionLayer,
        predicate::{DefaultPredicate, NotForContentType, Predicate, SizeAbove},
    },
};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::limits::Limits;
pub(crate) use self::{
    admission::{Admission, Asker},
    deltas::Deltas,
    errors::Failure,
    work::work,
};
use crate::{Hub, metrics::StatusLabel};

/// Longest body of a request that is no part of a blob.
const BODY_BYTES_MAX: usize = 512 * 1024;
/// Answers as long as this are compressed: for each, the compressor has a third of a MiB of memory emptied, which takes longer
/// than all else that a short answer needs.
const COMPRESSED_BYTES_MIN: u16 = 8 * 1024;
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
        (name = "blobs", description = "Content-addressed bytes"),
        (name = "accounts", description = "Accounts and their BOINC machines, where the operator opened the door to them")
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
        .routes(routes!(mirrors::show_head))
        .routes(routes!(mirrors::show_equivocation))
        .routes(routes!(mirrors::take_equivocation))
        .routes(routes!(mirrors::take_over))
        .routes(routes!(live::follow_events))
        .routes(routes!(work::send_command))
        .routes(routes!(work::bind_identity))
        .routes(routes!(work::ask_for_work))
        .routes(routes!(peers::ask_for_peers))
        .routes(routes!(blobs::read_blob))
        .routes(routes!(blobs::upload_progress, blobs::upload_part))
        .routes(routes!(accounts::show_project))
        .routes(routes!(accounts::sessions::create_account))
        .routes(routes!(
            accounts::sessions::sign_in,
            accounts::sessions::sign_out
        ))
        .routes(routes!(accounts::show_account))
        .routes(routes!(accounts::show_identity))
        .routes(routes!(accounts::sessions::make_link))
        .routes(routes!(accounts::set_consent))
        .routes(routes!(accounts::keys::attach_worker))
        .routes(routes!(accounts::keys::link_key))
        .routes(routes!(accounts::hosts::list_hosts))
        .routes(routes!(
            accounts::devices::list_devices,
            accounts::devices::make_device
        ))
        .routes(routes!(accounts::devices::revoke_device))
        .routes(routes!(
            accounts::teams::list_teams,
            accounts::teams::create_team
        ))
        .routes(routes!(
            accounts::teams::join_team,
            accounts::teams::leave_team
        ))
}

/// Serves until `shutdown`, with limits on connections and on what they ask.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    hub: Arc<Hub>,
    shutdown: CancellationToken,
) {
    let limits = Arc::new(Limits::new(&hub.config));
    let forgetting = tokio::spawn(Arc::clone(&limits).forget(Arc::clone(&hub), shutdown.clone()));
    let connections = hub.config.connections();
    let app = limited(hub, limits);
    network::server::serve(listener, app, connections, shutdown.clone(), SHUTDOWN_GRACE).await;
    shutdown.cancel();
    let _ = forgetting.await;
}

/// Every address of the hub.
pub(crate) fn router(hub: Arc<Hub>) -> Router {
    let limits = Arc::new(Limits::new(&hub.config));
    limited(hub, limits)
}

fn limited(hub: Arc<Hub>, limits: Arc<Limits>) -> Router {
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
    .merge(for_clients())
    .fallback(web::file)
    .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
    .layer(
        CompressionLayer::new()
            .quality(CompressionLevel::Fastest)
            .compress_when(compressible()),
    )
    .layer(middleware::from_fn_with_state(limits, limits::limit))
    .layer(middleware::from_fn_with_state(Arc::clone(&hub), finish))
    .with_state(hub)
}

/// What BOINC's clients call.
fn for_clients() -> Router<Arc<Hub>> {
    Router::new()
        .route("/", get(boinc::front))
        .route("/get_project_config.php", get(boinc::project_config))
        .route("/create_account.php", get(boinc::create_account))
        .route("/lookup_account.php", get(boinc::look_up_account))
        .route(crate::boinc::SCHEDULER_PATH, post(boinc::schedule))
        .route(crate::boinc::UPLOAD_PATH, post(boinc::upload))
        .route("/boinc/files/{hash}", get(boinc::download))
        .route("/stats/{name}", get(boinc::statistics))
}

/// What is worth compressing: not blobs and logs, whose bytes are as good as random. Compressed they would cost the hub its
/// processor, and whoever asks the length and ranges by which a download goes on. Nor what is short.
fn compressible() -> impl Predicate {
    DefaultPredicate::new()
        .and(SizeAbove::new(COMPRESSED_BYTES_MIN))
        .and(NotForContentType::const_new("application/octet-stream"))
}

/// Counts the answer and sets what every answer carries.
async fn finish(State(hub): Shared, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_api = path.starts_with("/api/");
    let agent = request.headers().get(header::USER_AGENT);
    let is_of_client = crate::boinc::is_of_client(path, agent.and_then(|it| it.to_str().ok()));
    let mut response = next.run(request).await;
    if is_of_client {
        *response.status_mut() = boinc::for_client(response.status());
    }
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
