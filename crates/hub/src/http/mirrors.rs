//! Who keeps a run: heads, proofs, takeovers.

use std::{net::SocketAddr, sync::atomic::Ordering};

use axum::{
    Json,
    body::Body,
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use protocol::{
    Hash,
    api::{
        ApiError,
        mirrors::{
            EquivocationSummary, MIRROR, MIRROR_READ, MirrorProof, MirrorRead, RunHead, SUCCESSION,
            TakeOver,
        },
    },
    canonical,
    equivocation::{Equivocation, Kind},
    succession::{SUCCESSION_BYTES_MAX, Succession},
};

use super::{
    Shared,
    blobs::read_part,
    errors::Failure,
    runs::{find, is_operator},
};
use crate::{
    Hub, mirror,
    run::{Role, Run},
    store::forks::Kept,
};

/// Where this copy of a run stands, and who keeps the run as far as is known here.
#[utoipa::path(get, path = "/api/v1/runs/{run}/head", tag = "log", params(("run" = String, Path, description = "Id or name")), responses((status = 200, body = RunHead), (status = 404, body = ApiError)))]
pub(super) async fn show_head(
    State(hub): Shared,
    Path(run): Path<String>,
) -> Result<Json<RunHead>, Failure> {
    let run = find(&hub, &run).await?;
    Ok(Json(head(&hub, &run).await?))
}

async fn head(hub: &Hub, run: &Run) -> Result<RunHead, Failure> {
    let set_aside = hub.store.set_aside(run.id).await?;
    let proofs = hub.store.equivocations(run.id).await?;
    let role = run.role.borrow().clone();
    let state = run.state.read().await;
    let hex = |it: &Succession| data_encoding::HEXLOWER.encode(&it.to_bytes());
    let (role, hub_address) = match role {
        Role::Hub => {
            let own = hub.mirroring.address.clone();
            ("hub", own.or(mirror::hub_address(&state, &hub.mirroring)))
        }
        Role::Mirror { hub_address } => ("mirror", hub_address),
    };
    // Until a takeover names another hub.
    let names_this = state.sealing.hub() == hub.key.public();
    let stopped = run.stopped.borrow().clone().filter(|_| names_this);
    Ok(RunHead {
        run: run.id.to_string(),
        role: role.to_owned(),
        key: hub.key.public().to_string(),
        process: hub.mirroring.process.clone(),
        hub: state.sealing.hub().to_string(),
        hub_address,
        generation: state.sealing.generation(),
        successions: state.sealing.successions().iter().map(hex).collect(),
        length: state.head.length,
        hash: state.head.hash.to_string(),
        current_ms: run.copied.current_ms.load(Ordering::Relaxed),
        blobs_missing: run.copied.blobs_missing.load(Ordering::Relaxed),
        entries_set_aside: set_aside,
        equivocations: proofs.iter().filter_map(summary).collect(),
        stopped,
    })
}

fn summary(kept: &Kept) -> Option<EquivocationSummary> {
    let proof = &kept.proof;
    let kind = proof.check().ok()?;
    let name = match kind {
        Kind::TwoEntries { .. } => "two_entries",
        Kind::TwoHubs { .. } => "two_hubs",
    };
    Some(EquivocationSummary {
        id: proof.id().to_string(),
        key: proof.key.to_string(),
        kind: name.to_owned(),
        sentence: kind.sentence(&proof.key),
        index: proof.first.index.min(proof.second.index),
        hashes: vec![
            proof.first.hash().to_string(),
            proof.second.hash().to_string(),
        ],
        found_ms: kept.found_ms,
    })
}

/// A proof that a key said two things that exclude each other, as canonical bytes.
#[utoipa::path(get, path = "/api/v1/runs/{run}/equivocations/{id}", tag = "log", params(("run" = String, Path, description = "Id or name"), ("id" = String, Path, description = "Id of the proof")), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404, body = ApiError)))]
pub(super) async fn show_equivocation(
    State(hub): Shared,
    Path((run, id)): Path<(String, String)>,
) -> Result<impl IntoResponse, Failure> {
    let run = find(&hub, &run).await?;
    let id: Hash = id
        .parse()
        .map_err(|_| Failure::bad("that is no id of a proof"))?;
    let found = hub.store.equivocation(run.id, &id).await?;
    let proof = found.ok_or_else(|| Failure::not_found("there is no such proof here"))?;
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([kind], proof.to_bytes()))
}

/// Shows this hub or mirror such a proof, which it checks and keeps. A hub whose own key it is of seals nothing more.
#[utoipa::path(post, path = "/api/v1/runs/{run}/equivocations", tag = "log", params(("run" = String, Path, description = "Id or name")), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 204), (status = 400, body = ApiError), (status = 404, body = ApiError)))]
pub(super) async fn take_equivocation(
    State(hub): Shared,
    Path(run): Path<String>,
    body: Body,
) -> Result<StatusCode, Failure> {
    let run = find(&hub, &run).await?;
    // A part of an upload may be as long as that, and this counts as one.
    let bytes = read_part(&hub.upload_memory, body).await?.0;
    let refuse = |why: String| Failure::bad(format!("that proves nothing of this run: {why}"));
    let proof = Equivocation::from_bytes(&bytes).map_err(|error| refuse(error.to_string()))?;
    // Whoever shows it may be gone before it is kept and acted on: that is not given up half-way.
    let keeping = tokio::spawn(async move { mirror::keep(&run, &hub.parts(), &proof).await });
    let is_kept = keeping.await.map_err(anyhow::Error::from)?;
    if !is_kept {
        return Err(refuse("it is another run's or key's".to_owned()));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Has this mirror become the run's hub. For operators: from this machine, or with the operator's token.
#[utoipa::path(post, path = "/api/v1/runs/{run}/takeover", tag = "runs", params(("run" = String, Path, description = "Id or name")), request_body = TakeOver, responses((status = 200, body = RunHead), (status = 403, body = ApiError), (status = 404, body = ApiError), (status = 409, body = ApiError)))]
pub(super) async fn take_over(
    State(hub): Shared,
    Path(run): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Json(request): Json<TakeOver>,
) -> Result<Json<RunHead>, Failure> {
    if !is_operator(&hub, peer, &headers) {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "not_operator",
            "only the mirror's operator has it take over: on the mirror's machine, or with its token",
        ));
    }
    let mut run = find(&hub, &run).await?;
    run.take_over(request.force).await?;
    // The answer tells of the hub that this process has become.
    let _ = run.role.wait_for(|it| *it == Role::Hub).await;
    Ok(Json(head(&hub, &run).await?))
}

/// Takes note of a takeover that whoever asks has seen.
pub(super) async fn note_succession(run: &Run, headers: &HeaderMap) {
    let shown = headers.get(SUCCESSION).and_then(|it| it.to_str().ok());
    let Some(text) = shown.filter(|it| it.len() <= 2 * SUCCESSION_BYTES_MAX) else {
        return;
    };
    let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
    let statement = bytes
        .ok()
        .and_then(|it| canonical::decode::<Succession>(&it, SUCCESSION_BYTES_MAX).ok());
    if let Some(statement) = statement {
        run.shown(statement).await;
    }
}

/// Whether whoever asks is a mirror that may take the run over, and what it has on its disk.
pub(super) async fn mirror_of(run: &Run, headers: &HeaderMap) -> Option<MirrorProof> {
    let text = headers.get(MIRROR)?.to_str().ok()?;
    let proof = MirrorProof::from_text(text)?;
    let may = run.state.read().await.sealing.names(&proof.key);
    (may && proof.holds(run.id)).then_some(proof)
}

/// Whether whoever asks for this blob is a mirror that may take the run over, and asks nobody but this hub.
pub(super) async fn may_read(hub: &Hub, run: &Run, blob: Hash, headers: &HeaderMap) -> bool {
    let shown = headers.get(MIRROR_READ).and_then(|it| it.to_str().ok());
    let Some(read) = shown.and_then(MirrorRead::from_text) else {
        return false;
    };
    let may = run.state.read().await.sealing.names(&read.key);
    may && read.holds(run.id, hub.key.public(), blob)
}
