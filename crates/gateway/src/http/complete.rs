//! `POST /v1/chat/completions` and `POST /v1/completions`: waits for a place, computes on a thread of its own, and
//! hands the text over as it comes. A client that goes away, or stops reading, frees its place.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse, Response, Sse, sse::KeepAlive},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    BODY_BYTES_MAX, Service,
    error::ApiError,
    render::{Chunks, Frame, Whole},
    request::{Endpoint, Request},
};
use crate::{
    answer::{Piece, answer},
    model::Model,
    queue::Place,
};

/// Pieces that wait for a client to read them.
const PIECES_WAITING_MAX: usize = 64;
/// A client that reads nothing for so long has gone.
const CLIENT_STALL_MAX: Duration = Duration::from_secs(30);
/// Time between comments on a stream that has nothing to say.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

type Pieces = mpsc::Receiver<Result<Piece, ApiError>>;

pub(crate) async fn chat(
    State(service): State<Service>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    complete(service, Endpoint::Chat, body).await
}

pub(crate) async fn completions(
    State(service): State<Service>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    complete(service, Endpoint::Completions, body).await
}

async fn complete(
    service: Service,
    endpoint: Endpoint,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    if service.stopping.is_cancelled() {
        return Err(ApiError::stopping());
    }
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(BODY_BYTES_MAX),
        _ => ApiError::body("the request's body did not arrive"),
    })?;
    let request = Request::from_body(endpoint, &body, random_u64()?)?;
    drop(body);
    let model = service
        .catalogue
        .find(&request.model)
        .ok_or_else(|| ApiError::model_not_found(&request.model))?;
    let place = service
        .queue
        .take()
        .await
        .map_err(|_full| ApiError::busy())?;
    let frame = Frame {
        endpoint,
        id: answer_id(endpoint)?,
        created_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: request.model.clone(),
        fingerprint: model.checkpoint.short(),
    };
    let (stream, choices, include_usage) =
        (request.stream, request.ask.choices, request.include_usage);
    let mut pieces = compute(&service, model, request, place);
    // The first piece tells whether there is an answer: only then the status is settled.
    let first = pieces
        .recv()
        .await
        .unwrap_or_else(|| Err(ApiError::internal()))?;
    if stream {
        let chunks = Chunks::new(frame, choices, include_usage);
        let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
        return Ok(Sse::new(events(first, pieces, chunks))
            .keep_alive(keep_alive)
            .into_response());
    }
    let mut whole = Whole::new(frame, choices);
    whole.push(first);
    while let Some(piece) = pieces.recv().await {
        whole.push(piece?);
    }
    whole
        .finish()
        .map(|answer| Json(answer).into_response())
        .ok_or_else(ApiError::internal)
}

fn events(
    first: Piece,
    pieces: Pieces,
    mut chunks: Chunks,
) -> impl Stream<Item = Result<axum::response::sse::Event, Infallible>> {
    let all = stream::once(async { Ok(first) }).chain(ReceiverStream::new(pieces));
    let with_end = all.map(Some).chain(stream::once(async { None }));
    with_end.flat_map(move |piece| {
        let events = match piece {
            Some(piece) => chunks.push(piece),
            None => chunks.finish(),
        };
        stream::iter(events.into_iter().map(Ok))
    })
}

/// Starts the answer on a thread of its own; it ends when the receiver is dropped.
fn compute(service: &Service, model: Model, request: Request, place: Place) -> Pieces {
    let (sender, receiver) = mpsc::channel(PIECES_WAITING_MAX);
    let (metrics, abort) = (service.metrics.clone(), service.abort.clone());
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || {
        let send = |piece: Result<Piece, ApiError>| match sender.try_send(piece) {
            Ok(()) => ControlFlow::Continue(()),
            Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
            Err(mpsc::error::TrySendError::Full(piece)) => {
                match handle.block_on(sender.send_timeout(piece, CLIENT_STALL_MAX)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            }
        };
        let mut emit = |piece: Piece| {
            match &piece {
                Piece::Started { prompt_tokens } => {
                    metrics.prompt_tokens.inc_by(*prompt_tokens as u64)
                }
                Piece::Text { .. } => 0,
                Piece::Finished { tokens, .. } => metrics.completion_tokens.inc_by(*tokens as u64),
            };
            send(Ok(piece))
        };
        let gone = || sender.is_closed() || abort.is_cancelled();
        let outcome = answer(&model, &request.ask, &mut emit, &gone);
        // Before the last word: whoever has read an answer to its end finds the place free.
        drop(place);
        if let Err(error) = outcome {
            let error = ApiError::from_answer(error, request.endpoint.prompt_param());
            let _gone = send(Err(error));
        }
    });
    receiver
}

fn answer_id(endpoint: Endpoint) -> Result<String, ApiError> {
    let prefix = match endpoint {
        Endpoint::Chat => "chatcmpl",
        Endpoint::Completions => "cmpl",
    };
    Ok(format!(
        "{prefix}-{:016x}{:016x}",
        random_u64()?,
        random_u64()?
    ))
}

fn random_u64() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!("the system has no entropy: {error}");
        ApiError::internal()
    })?;
    Ok(u64::from_le_bytes(bytes))
}
