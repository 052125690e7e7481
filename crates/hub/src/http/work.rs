//! What workers use: commands, bindings, and the poll that tells what to do.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
};
use protocol::{
    api::{
        ApiError, CommandReply, Work, WorkAhead, WorkAssignment, WorkBlob, WorkModel, WorkWorker,
    },
    canonical,
    command::{Command, SignedCommand},
    identity::{Binding, CheckedBinding},
    state::SlotProgress,
    units::WorkerId,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Shared, deltas, errors::Failure, limits::Client, live::StreamGuard, mirrors::note_succession,
    runs::find, token,
};
use crate::{Hub, run::Run};

/// Longest wait of a poll, below the usual timeouts of proxies.
const WAIT_MS_MAX: u64 = 25_000;
/// Longest encoded binding.
const BINDING_BYTES_MAX: usize = 512;

/// A worker's signed command, as canonical bytes.
#[utoipa::path(post, path = "/api/v1/runs/{run}/commands", tag = "work", params(("run" = String, Path, description = "Id or name")), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, body = CommandReply), (status = 400, body = ApiError), (status = 403, body = ApiError), (status = 409, body = ApiError), (status = 503, body = ApiError)))]
pub(super) async fn send_command(
    State(hub): Shared,
    Path(run): Path<String>,
    Extension(Client(client)): Extension<Client>,
    body: Bytes,
) -> Result<Json<CommandReply>, Failure> {
    let run = find(&hub, &run).await?;
    run.must_be_hub()?;
    let command =
        SignedCommand::from_bytes(&body).map_err(|error| Failure::bad(error.to_string()))?;
    let asker = &mut client.into();
    hub.admission.check(&run, command.get(), asker).await?;
    if hub.names_known_blob(command.get()).await? {
        return Err(Failure::new(
            StatusCode::CONFLICT,
            "known_blob",
            "the commitment names bytes that this hub has already; an update's hash is its maker's alone",
        ));
    }
    let (worker, is_join) = (
        command.get().worker,
        matches!(command.get().command, Command::Join { .. }),
    );
    let is_fresh = is_fresh(&run, command.get()).await;
    let log_length = run.command(command).await?;
    // A join that everyone can read in the log and send again earns no token.
    let token = (is_join && is_fresh).then(|| token::of(&hub.key, run.id, worker));
    Ok(Json(CommandReply { log_length, token }))
}

/// Whether a command is newer than its worker's last: not a copy of one that stands in the log.
async fn is_fresh(run: &Run, command: &SignedCommand) -> bool {
    let state = run.state.read().await;
    let record = state.workers.get(&command.worker);
    record.is_none_or(|it| it.sequence < command.sequence)
}

/// A binding of a key to an account, signed by both, as canonical bytes.
#[utoipa::path(post, path = "/api/v1/runs/{run}/bindings", tag = "work", params(("run" = String, Path, description = "Id or name")), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 200, body = CommandReply), (status = 400, body = ApiError), (status = 403, body = ApiError)))]
pub(super) async fn bind_identity(
    State(hub): Shared,
    Path(run): Path<String>,
    Extension(Client(client)): Extension<Client>,
    body: Bytes,
) -> Result<Json<CommandReply>, Failure> {
    let run = find(&hub, &run).await?;
    run.must_be_hub()?;
    let binding: Binding = canonical::decode(&body, BINDING_BYTES_MAX)
        .map_err(|error| Failure::bad(error.to_string()))?;
    let binding = both_signed(binding)?;
    let asker = &mut client.into();
    hub.admission.check_binding(&run, &binding, asker).await?;
    let log_length = run.bind(binding).await?;
    Ok(Json(CommandReply {
        log_length,
        token: None,
    }))
}

/// A binding whose signatures hold, or the refusal.
pub(super) fn both_signed(binding: Binding) -> Result<CheckedBinding, Failure> {
    let text = "the binding is not signed by both sides";
    let checked = binding.checked();
    checked.map_err(|_| Failure::new(StatusCode::FORBIDDEN, "signature", text))
}

/// Who asks, and how long it is willing to wait.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WorkQuery {
    /// The worker's public key.
    worker: String,
    /// Entries of the log that the worker knows of; the answer comes when one more concerns it.
    after: Option<u64>,
    /// Round of the model that the worker holds: older deltas are left out.
    held: Option<u64>,
    /// Longest wait in milliseconds, 0 unless said, 25,000 at most.
    wait_ms: Option<u64>,
}

/// What a worker is to do. A long poll: it counts as a sign of life while it waits, if it shows the token of its join
/// (`Authorization: Bearer …`). Without it the answer says that the worker has not joined.
#[utoipa::path(get, path = "/api/v1/runs/{run}/work", tag = "work", params(("run" = String, Path, description = "Id or name"), WorkQuery), responses((status = 200, body = Work), (status = 404, body = ApiError)))]
pub(super) async fn ask_for_work(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<WorkQuery>,
    headers: HeaderMap,
) -> Result<Json<Work>, Failure> {
    let run = find(&hub, &run).await?;
    note_succession(&run, &headers).await;
    run.must_be_hub()?;
    let worker: WorkerId = query
        .worker
        .parse()
        .map_err(|_| Failure::bad("worker is not a public key"))?;
    let _stream = StreamGuard::open(&hub)?;
    let presence = Arc::clone(&run.presence);
    let has_token = token::is_shown(&headers, &hub.key, run.id, worker);
    let is_joined = has_token && {
        let state = run.state.read().await;
        state.workers.get(&worker).is_some_and(|it| it.joined)
    };
    // Strangers are answered and not remembered: memory is for those who joined.
    let waiting = is_joined.then(|| presence.wait(worker, hub.clock.now_ms()));
    if waiting.as_ref().is_some_and(|it| it.was_away) {
        run.look();
    }
    if let Some(after) = query.after {
        let wait = Duration::from_millis(query.wait_ms.unwrap_or(0).min(WAIT_MS_MAX));
        tokio::select! {
            biased;
            () = hub.shutdown.cancelled() => {}
            _ = tokio::time::timeout(wait, run.news_for(worker, after)) => {}
        }
    }
    // Another hub may have been shown meanwhile.
    run.must_be_hub()?;
    let mut work = work(&hub, &run, worker, query.held).await?;
    work.worker.joined &= has_token;
    Ok(Json(work))
}

/// The answer to a worker that has the model of round `held`.
pub(crate) async fn work(
    hub: &Hub,
    run: &Run,
    worker: WorkerId,
    held: Option<u64>,
) -> Result<Work, Failure> {
    // The state is read before the deltas, so that the deltas reach at least to its model.
    let state = ForWork::of(&*run.state.read().await, &worker);
    // Most polls need nothing that is not in memory.
    let last_refusal = match state.worker.updates_refused {
        0 => None,
        _ => hub.store.last_refusal(run.id, &worker).await?,
    };
    let deltas = deltas::of(hub, run, state.checkpoint.0, state.model.round, held).await?;
    Ok(Work {
        now_ms: hub.clock.now_ms(),
        log_length: state.log_length,
        generation: state.generation,
        finished: state.finished,
        model: WorkModel {
            round: state.model.round,
            parameters_hash: state.model.parameters.to_string(),
            checkpoint_round: state.checkpoint.0,
            checkpoint_blob: state.checkpoint.1.parameters.hash.to_string(),
            checkpoint_bytes: state.checkpoint.1.parameters.bytes,
            deltas,
        },
        assignment: state.assignment,
        late_rounds: state.late_rounds,
        ahead: state.ahead,
        inner_start: state.inner_start,
        worker: WorkWorker {
            last_refusal,
            ..state.worker
        },
    })
}

/// The little of a state that a poll needs, taken under the lock.
struct ForWork {
    log_length: u64,
    generation: u64,
    finished: bool,
    model: protocol::event::ModelState,
    checkpoint: (u64, protocol::event::Checkpoint),
    assignment: Option<WorkAssignment>,
    late_rounds: Vec<u64>,
    ahead: Vec<WorkAhead>,
    worker: WorkWorker,
    inner_start: Option<WorkBlob>,
}

impl ForWork {
    fn of(state: &protocol::state::State, worker: &WorkerId) -> Self {
        let record = state.workers.get(worker);
        let assignment = state.training.as_ref().and_then(|round| {
            let (slot, part) = round.slot_of(worker)?;
            Some(WorkAssignment {
                round: round.round,
                slot,
                seed: round.seed.to_string(),
                slots: round.slots_opened,
                tokens_before: round.tokens_before,
                base_round: round.base.round,
                base_hash: round.base.parameters.to_string(),
                deadline_ms: round.deadline_ms,
                committed: part.progress != SlotProgress::Assigned,
                publish_inner_state: round.is_warm_start,
            })
        });
        let late_rounds = state
            .closed
            .iter()
            .filter(|it| it.missing.contains_key(worker))
            .map(|it| it.round)
            .collect();
        let ahead = (1..)
            .zip(&state.ahead)
            .map(|(after, seed)| WorkAhead {
                round: state.round + after,
                seed: seed.to_string(),
            })
            .collect();
        Self {
            log_length: state.head.length,
            generation: state.sealing.generation(),
            finished: state.is_finished(),
            model: state.model,
            checkpoint: state.checkpoint,
            assignment,
            late_rounds,
            ahead,
            inner_start: state.inner_start.map(|it| WorkBlob {
                blob: it.hash.to_string(),
                bytes: it.bytes,
            }),
            worker: WorkWorker {
                joined: record.is_some_and(|it| it.joined),
                sequence: record.map_or(0, |it| it.sequence),
                carried: record.and_then(|it| it.carried).map(|it| it.to_string()),
                updates_accepted: record.map_or(0, |it| it.updates_accepted),
                updates_refused: record.map_or(0, |it| it.updates_refused),
                last_refusal: None,
                last_round: record.and_then(|it| it.last_round),
                tokens: record.map_or(0, |it| it.tokens),
                credits_micro: record.map_or(0, |it| it.credits.0),
            },
        }
    }
}
