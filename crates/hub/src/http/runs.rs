//! What people look at: runs, rounds, workers, losses, checkpoints.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{ConnectInfo, Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use protocol::api::{
    ApiError, CheckpointSummary, CreateRun, CreatedRun, HubInfo, LossPoint, ROUNDS_PAGE_MAX,
    RoundSummary, RunSummary, WORKERS_PAGE_MAX, WorkerSummary,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Shared, errors::Failure, summary};
use crate::{Hub, run::Run};

/// Rounds in a page when nobody says how many.
const PAGE: u64 = 50;

/// Finds the run that an address names.
pub(super) async fn find(hub: &Hub, name: &str) -> Result<Run, Failure> {
    hub.find(name)
        .await
        .ok_or_else(|| Failure::not_found(format!("this hub has no run {name:?}")))
}

/// Operators have the token; while none is set, they are programs on this machine.
///
/// A page in this machine's browser is none, nor is whoever a proxy on this machine speaks for.
pub(super) fn is_operator(hub: &Hub, peer: SocketAddr, headers: &HeaderMap) -> bool {
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        let is_spoken_for = [header::ORIGIN, header::FORWARDED, header::VIA]
            .iter()
            .any(|it| headers.contains_key(it))
            || headers
                .keys()
                .any(|it| it.as_str().starts_with("x-forwarded"));
        return hub.config.operator_token.is_none()
            && peer.ip().is_loopback()
            && names_this_machine(headers)
            && !is_spoken_for;
    };
    let given = given
        .to_str()
        .ok()
        .and_then(|it| it.strip_prefix("Bearer "));
    match (&hub.config.operator_token, given) {
        // Hashes are compared, so that the time taken tells nothing.
        (Some(token), Some(given)) => {
            blake3::hash(token.as_bytes()) == blake3::hash(given.as_bytes())
        }
        _ => false,
    }
}

/// Whether the request was addressed to this machine by name: a page whose own name resolves to it was not.
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|it| it.to_str().ok()) else {
        return false;
    };
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|it| it.is_loopback())
}

/// Which hub this is.
#[utoipa::path(get, path = "/api/v1/hub", tag = "runs", responses((status = 200, body = HubInfo)))]
pub(super) async fn hub_info(State(hub): Shared) -> Json<HubInfo> {
    Json(HubInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        key: hub.key.public().to_string(),
        runs: hub.all().await.len() as u64,
        gateway: hub.config.gateway.clone(),
    })
}

/// All runs of this hub.
#[utoipa::path(get, path = "/api/v1/runs", tag = "runs", responses((status = 200, body = [RunSummary])))]
pub(super) async fn list_runs(State(hub): Shared) -> Result<Json<Vec<RunSummary>>, Failure> {
    let mut runs = Vec::new();
    for run in hub.all().await {
        runs.push(summary::run_summary(&hub, &run).await?);
    }
    runs.sort_by_key(|it| std::cmp::Reverse(it.created_ms));
    Ok(Json(runs))
}

/// Opens a run. For operators: from this machine, or with the operator's token.
#[utoipa::path(
    post, path = "/api/v1/runs", tag = "runs", request_body = CreateRun,
    responses((status = 201, body = CreatedRun), (status = 403, body = ApiError), (status = 409, body = ApiError), (status = 422, body = ApiError))
)]
pub(super) async fn create_run(
    State(hub): Shared,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(request): Json<CreateRun>,
) -> Result<(StatusCode, Json<CreatedRun>), Failure> {
    if !is_operator(&hub, peer, &headers) {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "not_operator",
            "only the hub's operator opens runs: on the hub's machine, or with its token",
        ));
    }
    let id = hub.create(request).await?;
    Ok((StatusCode::CREATED, Json(CreatedRun { id: id.to_string() })))
}

/// One run.
#[utoipa::path(get, path = "/api/v1/runs/{run}", tag = "runs", params(("run" = String, Path, description = "Id or name")), responses((status = 200, body = RunSummary), (status = 404, body = ApiError)))]
pub(super) async fn show_run(
    State(hub): Shared,
    Path(run): Path<String>,
) -> Result<Json<RunSummary>, Failure> {
    let run = find(&hub, &run).await?;
    Ok(Json(summary::run_summary(&hub, &run).await?))
}

/// A run's charter as TOML.
#[utoipa::path(get, path = "/api/v1/runs/{run}/charter", tag = "runs", params(("run" = String, Path, description = "Id or name")), responses((status = 200, body = String, content_type = "application/toml"), (status = 404, body = ApiError)))]
pub(super) async fn show_charter(
    State(hub): Shared,
    Path(run): Path<String>,
) -> Result<impl IntoResponse, Failure> {
    let run = find(&hub, &run).await?;
    let text = run.charter.to_toml();
    Ok(([(header::CONTENT_TYPE, "application/toml")], text))
}

/// Which rounds.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RoundsQuery {
    /// Only rounds below this one.
    before: Option<u64>,
    /// At most this many, 50 unless said, 500 at most.
    limit: Option<u64>,
}

/// Rounds, newest first.
#[utoipa::path(get, path = "/api/v1/runs/{run}/rounds", tag = "runs", params(("run" = String, Path, description = "Id or name"), RoundsQuery), responses((status = 200, body = [RoundSummary]), (status = 404, body = ApiError)))]
pub(super) async fn list_rounds(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<RoundsQuery>,
) -> Result<Json<Vec<RoundSummary>>, Failure> {
    let run = find(&hub, &run).await?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, ROUNDS_PAGE_MAX);
    let before = query.before.unwrap_or(u64::MAX);
    Ok(Json(hub.store.rounds(run.id, before, limit).await?))
}

/// One round.
#[utoipa::path(get, path = "/api/v1/runs/{run}/rounds/{round}", tag = "runs", params(("run" = String, Path, description = "Id or name"), ("round" = u64, Path, description = "Number")), responses((status = 200, body = RoundSummary), (status = 404, body = ApiError)))]
pub(super) async fn show_round(
    State(hub): Shared,
    Path((run, round)): Path<(String, u64)>,
) -> Result<Json<RoundSummary>, Failure> {
    let run = find(&hub, &run).await?;
    let rounds = hub.store.rounds(run.id, round.saturating_add(1), 1).await?;
    match rounds.into_iter().find(|it| it.round == round) {
        Some(found) => Ok(Json(found)),
        None => Err(Failure::not_found(format!("the run has no round {round}"))),
    }
}

/// Which workers.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WorkersQuery {
    /// So many are left out, 0 unless said.
    offset: Option<u64>,
    /// At most this many, 1,000 unless said, and at most.
    limit: Option<u64>,
}

/// Workers that ever joined, those with most accepted tokens first.
#[utoipa::path(get, path = "/api/v1/runs/{run}/workers", tag = "runs", params(("run" = String, Path, description = "Id or name"), WorkersQuery), responses((status = 200, body = [WorkerSummary]), (status = 404, body = ApiError)))]
pub(super) async fn list_workers(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<WorkersQuery>,
) -> Result<Json<Vec<WorkerSummary>>, Failure> {
    let run = find(&hub, &run).await?;
    let limit = query.limit.unwrap_or(u64::MAX).clamp(1, WORKERS_PAGE_MAX);
    let workers = summary::workers(&hub, &run, query.offset.unwrap_or(0), limit).await?;
    Ok(Json(workers))
}

/// The loss curves, oldest first, at most 2,000 points.
#[utoipa::path(get, path = "/api/v1/runs/{run}/losses", tag = "runs", params(("run" = String, Path, description = "Id or name")), responses((status = 200, body = [LossPoint]), (status = 404, body = ApiError)))]
pub(super) async fn list_losses(
    State(hub): Shared,
    Path(run): Path<String>,
) -> Result<Json<Vec<LossPoint>>, Failure> {
    let run = find(&hub, &run).await?;
    Ok(Json(hub.store.losses(run.id).await?))
}

/// How many checkpoints.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct CheckpointsQuery {
    /// At most this many, 50 unless said, 500 at most.
    limit: Option<u64>,
}

/// Whole checkpoints with their samples, newest first.
#[utoipa::path(get, path = "/api/v1/runs/{run}/checkpoints", tag = "runs", params(("run" = String, Path, description = "Id or name"), CheckpointsQuery), responses((status = 200, body = [CheckpointSummary]), (status = 404, body = ApiError)))]
pub(super) async fn list_checkpoints(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<CheckpointsQuery>,
) -> Result<Json<Vec<CheckpointSummary>>, Failure> {
    let run = find(&hub, &run).await?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, ROUNDS_PAGE_MAX);
    Ok(Json(hub.store.checkpoints(run.id, limit).await?))
}

/// What Prometheus reads.
pub(super) async fn metrics(State(hub): Shared) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        hub.metrics.text(),
    )
}
