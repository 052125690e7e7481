//! The event stream: each new log entry as a server-sent event, resumed by log position.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    response::{
        IntoResponse, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{Stream, stream};
use protocol::api::{ApiError, LogEntry};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Shared, errors::Failure, limits::Client, log::to_json, runs::find};
use crate::{Hub, run::Run};

/// Entries read at once.
const PAGE: u64 = 200;
/// Proxies drop streams that are silent for long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where to begin.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Entries after this position; without it and without `Last-Event-ID`, only new ones.
    after: Option<u64>,
}

/// New log entries as they are written: events named `entry`, the id is the log position.
#[utoipa::path(get, path = "/api/v1/runs/{run}/events", tag = "log", params(("run" = String, Path, description = "Id or name"), EventsQuery), responses((status = 200, body = LogEntry, content_type = "text/event-stream"), (status = 404, body = ApiError), (status = 429, body = ApiError)))]
pub(super) async fn follow_events(
    State(hub): Shared,
    Path(run): Path<String>,
    Query(query): Query<EventsQuery>,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Failure> {
    let run = find(&hub, &run).await?;
    let stream_guard = StreamGuard::open(&hub)?;
    let last = headers
        .get("last-event-id")
        .and_then(|it| it.to_str().ok()?.parse::<u64>().ok())
        .or(query.after);
    let next = last.map_or(*run.length.borrow(), |it| it.saturating_add(1));
    // What is in the log already counts as a page of it does; what is written from now on is news.
    let told_until = *run.length.borrow();
    let first = told_until.saturating_sub(next).min(PAGE);
    if first > 0 {
        hub.admission.check_page(client, first as usize)?;
    }
    let follower = Follower {
        hub,
        run,
        client,
        next,
        paid_until: next.saturating_add(first),
        told_until,
        page: Vec::new().into_iter(),
        _guard: stream_guard,
    };
    let events = follow(follower);
    // A proxy that collects the stream before passing it on would make it useless.
    let unbuffered = (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok((
        [unbuffered],
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)),
    ))
}

/// Where a follower stands.
struct Follower {
    hub: Arc<Hub>,
    run: Run,
    client: IpAddr,
    next: u64,
    /// Up to where its address has been charged for the log.
    paid_until: u64,
    /// Where the log ended when it began to follow.
    told_until: u64,
    page: std::vec::IntoIter<Event>,
    _guard: StreamGuard,
}

fn follow(follower: Follower) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(follower, |mut follower| async move {
        loop {
            if let Some(event) = follower.page.next() {
                return Some((Ok(event), follower));
            }
            let shutdown = follower.hub.shutdown.clone();
            let next = follower.next;
            tokio::select! {
                () = shutdown.cancelled() => return None,
                waited = follower.run.length.wait_for(|length| *length > next) => {
                    waited.ok()?;
                }
            }
            // Whoever asks for too much is cut off; where it goes on, it is told why.
            let page = follower.told_until.saturating_sub(next).min(PAGE);
            if next >= follower.paid_until && page > 0 {
                let admission = &follower.hub.admission;
                admission.check_page(follower.client, page as usize).ok()?;
                follower.paid_until = next + page;
            }
            let store = &follower.hub.store;
            let entries = match follower.run.entries(store, next, PAGE).await {
                Ok(entries) => entries,
                Err(error) => {
                    tracing::error!("can't read the log for a stream: {error:#}");
                    return None;
                }
            };
            follower.next += entries.len() as u64;
            let events: Vec<Event> = entries
                .iter()
                .filter_map(|entry| {
                    Event::default()
                        .event("entry")
                        .id(entry.index.to_string())
                        .json_data(to_json(entry))
                        .ok()
                })
                .collect();
            follower.page = events.into_iter();
        }
    })
}

/// Counts an open stream, and refuses one too many.
pub(super) struct StreamGuard {
    hub: Arc<Hub>,
}

impl StreamGuard {
    /// Takes a place among the streams.
    pub(super) fn open(hub: &Arc<Hub>) -> Result<Self, Failure> {
        let open = hub.metrics.streams.inc();
        let guard = Self {
            hub: Arc::clone(hub),
        };
        if open as usize >= hub.config.streams_max {
            return Err(Failure::too_many(
                "the hub has as many open connections as it allows; try again in a second",
            ));
        }
        Ok(guard)
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.hub.metrics.streams.dec();
    }
}
