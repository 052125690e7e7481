//! Who else has a blob: answered from memory, so that blobs travel between workers.

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
};
use protocol::{
    api::{ApiError, Peer, Peers},
    peers::SignedPeersQuestion,
};

use super::{Shared, errors::Failure, limits::Client, runs::find};

/// Who may have a blob, likeliest first; nobody for those who are to take it from the hub. The body is a worker's signed question, as canonical bytes, which also says where the worker itself is reached.
#[utoipa::path(post, path = "/api/v1/runs/{run}/peers", tag = "blobs", params(("run" = String, Path, description = "Id or name")), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, body = Peers), (status = 400, body = ApiError), (status = 403, body = ApiError), (status = 404, body = ApiError)))]
pub(super) async fn ask_for_peers(
    State(hub): Shared,
    Path(run): Path<String>,
    Extension(Client(from)): Extension<Client>,
    body: Bytes,
) -> Result<Json<Peers>, Failure> {
    let run = find(&hub, &run).await?;
    run.must_be_hub()?;
    let signed =
        SignedPeersQuestion::from_bytes(&body).map_err(|error| Failure::bad(error.to_string()))?;
    let mut question = signed.question;
    if question.run != run.id {
        return Err(Failure::bad("the question is for another run"));
    }
    let (is_joined, is_proven) = {
        let state = run.state.read().await;
        let record = state.workers.get(&question.worker);
        let is_proven = record.is_some_and(|it| it.updates_accepted > 0);
        (record.is_some_and(|it| it.joined), is_proven)
    };
    // Strangers get their blobs from the hub: memory is for those who joined.
    if !is_joined {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "not_joined",
            "only workers that have joined the run are told of each other",
        ));
    }
    let is_known = hub.blobs.length(&question.blob).await?.is_some();
    if !is_known || hub.private_in(&question.blob).await.is_some() {
        return Err(Failure::not_found("this hub does not have that blob"));
    }
    question.address = question.address.map(|it| it.as_seen_from(from));
    let now = hub.clock.now_ms();
    let is_present = |worker: &_| {
        let seen = run.presence.of(worker, now);
        seen.is_some_and(|(_, is_present)| is_present)
    };
    let peers = &run.presence.peers;
    let named = peers.ask(&question, from, is_proven, now, is_present);
    if !named.is_empty() {
        hub.metrics.named_peers.inc();
    }
    Ok(Json(Peers {
        peers: named.iter().map(Peer::from).collect(),
    }))
}
