//! What Prometheus reads at `/metrics`.

use std::sync::Mutex;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use protocol::{event::Event, state::decide::RefusalCode};

/// The hub's counters.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    events: Family<KindLabel, Counter>,
    refusals: Family<CodeLabel, Counter>,
    rounds_merged: Counter,
    tokens: Counter,
    /// Bytes of blobs sent.
    pub(crate) bytes_sent: Counter,
    /// Bytes of blobs received.
    pub(crate) bytes_received: Counter,
    /// Questions for a blob answered with peers.
    pub(crate) named_peers: Counter,
    /// Long polls and event streams that are open.
    pub(crate) streams: Gauge,
    /// Requests answered, by class of status.
    pub(crate) requests: Family<StatusLabel, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabel {
    code: String,
}

/// The status of an answer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct StatusLabel {
    pub(crate) status: u16,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("athome");
        let metrics = Self {
            registry: Mutex::default(),
            events: Family::default(),
            refusals: Family::default(),
            rounds_merged: Counter::default(),
            tokens: Counter::default(),
            bytes_sent: Counter::default(),
            bytes_received: Counter::default(),
            named_peers: Counter::default(),
            streams: Gauge::default(),
            requests: Family::default(),
        };
        registry.register(
            "events",
            "Entries written to the logs",
            metrics.events.clone(),
        );
        registry.register("refusals", "Commands refused", metrics.refusals.clone());
        registry.register(
            "rounds_merged",
            "Rounds merged",
            metrics.rounds_merged.clone(),
        );
        registry.register(
            "tokens_accepted",
            "Tokens of merged updates",
            metrics.tokens.clone(),
        );
        registry.register(
            "blob_bytes_sent",
            "Bytes of blobs sent",
            metrics.bytes_sent.clone(),
        );
        registry.register(
            "blob_bytes_received",
            "Bytes of blobs received",
            metrics.bytes_received.clone(),
        );
        registry.register(
            "blobs_left_to_peers",
            "Questions for a blob answered with peers",
            metrics.named_peers.clone(),
        );
        registry.register(
            "streams_open",
            "Long polls and event streams that are open",
            metrics.streams.clone(),
        );
        registry.register("requests", "Requests answered", metrics.requests.clone());
        *metrics.lock() = registry;
        metrics
    }

    /// Counts an entry that is on the disk.
    pub(crate) fn happened(&self, event: &Event) {
        self.events
            .get_or_create(&KindLabel { kind: event.name() })
            .inc();
        if let Event::RoundMerged { updates, .. } = event {
            self.rounds_merged.inc();
            self.tokens.inc_by(updates.iter().map(|it| it.tokens).sum());
        }
    }

    /// Counts a refused command.
    pub(crate) fn refused(&self, code: RefusalCode) {
        let code = refusal_code(code);
        self.refusals.get_or_create(&CodeLabel { code }).inc();
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.lock()).expect("writing to a string does not fail");
        text
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A refusal's code as it stands in JSON.
pub(crate) fn refusal_code(code: RefusalCode) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(code)) => code,
        _ => unreachable!("refusal codes are unit variants"),
    }
}
