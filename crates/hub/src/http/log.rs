//! The record, as JSON for people and as canonical bytes for whoever verifies.

use std::time::Duration;

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, header},
    response::IntoResponse,
};
use network::world;
use protocol::{
    api::{ApiError, LOG_PAGE_MAX, LogEntry, LogPage, mirrors::MirrorProof},
    log::Entry,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Shared, admission::BINARY_IS_CHEAPER, errors::Failure, limits::Client, mirrors, runs::find,
};
use crate::{Hub, run::Run};

/// Entries in a page when nobody says how many.
const PAGE: u64 = 100;
/// Longest wait of a mirror's question.
const WAIT_MS_MAX: u64 = 25_000;

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// First position, 0 unless said.
    from: Option<u64>,
    /// At most this many, 100 unless said, 1,000 at most.
    limit: Option<u64>,
}

/// Which entries, as a mirror asks.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BinaryQuery {
    /// First position, 0 unless said.
    from: Option<u64>,
    /// At most this many, 100 unless said, 1,000 at most.
    limit: Option<u64>,
    /// Longest wait for an entry in milliseconds, 25,000 at most; for mirrors that show a succession key (`x-athome-mirror`).
    wait_ms: Option<u64>,
}

/// A page of the log as JSON.
#[utoipa::path(get, path = "/api/v1/runs/{run}/log", tag = "log", params(("run" = String, Path, description = "Id or name"), LogQuery), responses((status = 200, body = LogPage), (status = 404, body = ApiError)))]
pub(super) async fn read_log(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<LogQuery>,
    Extension(Client(client)): Extension<Client>,
) -> Result<impl IntoResponse, Failure> {
    let run = find(&hub, &run).await?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LOG_PAGE_MAX);
    let from = query.from.unwrap_or(0);
    let entries = run.entries(&hub.store, from, limit).await?;
    hub.admission.check_page(client, entries.len())?;
    let length = *run.length.borrow();
    // A long page takes a processor for a while: not one of those that answer everyone.
    let text = world::blocking(move || {
        let entries = entries.iter().map(to_json).collect();
        serde_json::to_vec(&LogPage { entries, length })
    });
    let text = text.await.map_err(anyhow::Error::from)?;
    let text = text.map_err(anyhow::Error::from)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text))
}

/// A page of the log as canonical bytes: for each entry its length (32 bits, little-endian) and its encoding.
///
/// A mirror that shows a succession key acknowledges with its question up to where it could go on from what is on its disk.
#[utoipa::path(get, path = "/api/v1/runs/{run}/log.bin", tag = "log", params(("run" = String, Path, description = "Id or name"), BinaryQuery), responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404, body = ApiError)))]
pub(super) async fn read_log_binary(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<BinaryQuery>,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Failure> {
    let mut run = find(&hub, &run).await?;
    if let Some(mirror) = mirrors::mirror_of(&run, &headers).await {
        acknowledged(&hub, &run, &mirror).await?;
        let wait = Duration::from_millis(query.wait_ms.unwrap_or(0).min(WAIT_MS_MAX));
        let known = query.from.unwrap_or(mirror.length);
        let news = run.length.wait_for(|it| known < *it);
        tokio::select! {
            () = hub.shutdown.cancelled() => {}
            _ = tokio::time::timeout(wait, news) => {}
        }
    }
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LOG_PAGE_MAX);
    let from = query.from.unwrap_or(0);
    let entries = run.entries(&hub.store, from, limit).await?;
    hub.admission
        .check_page(client, entries.len() / BINARY_IS_CHEAPER)?;
    let mut body = Vec::new();
    for entry in entries {
        let bytes = entry.to_bytes();
        body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        body.extend_from_slice(&bytes);
    }
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(
        "x-athome-log-length",
        HeaderValue::from(*run.length.borrow()),
    );
    Ok((headers, body))
}

/// Takes note of what a mirror has, if it is this log.
async fn acknowledged(hub: &Hub, run: &Run, mirror: &MirrorProof) -> anyhow::Result<()> {
    let head = run.state.read().await.head;
    let hash = match mirror.length {
        0 => return Ok(()),
        length if length == head.length => Some(head.hash),
        length => {
            let entries = hub.store.entries(run.id, length - 1, 1).await?;
            entries.first().map(Entry::hash)
        }
    };
    if hash == Some(mirror.hash) {
        run.acknowledged.note(mirror.length, &head);
    }
    Ok(())
}

/// An entry for people.
pub(super) fn to_json(entry: &Entry) -> LogEntry {
    let event = serde_json::to_value(&entry.event).expect("events have a JSON form");
    let body = event
        .get(entry.event.name())
        .cloned()
        .unwrap_or(serde_json::Value::Null);
    LogEntry {
        index: entry.index,
        hash: entry.hash().to_string(),
        previous: entry.previous.to_string(),
        time_ms: entry.time_ms,
        kind: entry.event.name().to_owned(),
        body,
        signature: data_encoding::HEXLOWER.encode(&entry.signature.0),
    }
}
