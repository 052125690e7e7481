//! Counters for Prometheus.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What the gateway counts.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    /// Tokens of prompts that were answered.
    pub(crate) prompt_tokens: Counter,
    /// Tokens of answers that came to their end.
    pub(crate) completion_tokens: Counter,
    running: Gauge,
    waiting: Gauge,
    models: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    status: u32,
}

impl Metrics {
    pub(crate) fn request(&self, endpoint: &'static str, status: u16) {
        self.requests
            .get_or_create(&RequestLabels {
                endpoint,
                status: u32::from(status),
            })
            .inc();
    }

    /// The OpenMetrics text, with the gauges set to these values.
    pub(crate) fn render(&self, running: usize, waiting: usize, models: usize) -> String {
        for (gauge, value) in [
            (&self.running, running),
            (&self.waiting, waiting),
            (&self.models, models),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        let mut registry = Registry::with_prefix("athome_gateway");
        registry.register(
            "requests",
            "Requests answered, by endpoint and status",
            self.requests.clone(),
        );
        registry.register(
            "prompt_tokens",
            "Tokens of prompts",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "completion_tokens",
            "Tokens of answers",
            self.completion_tokens.clone(),
        );
        registry.register(
            "answers_running",
            "Answers being computed",
            self.running.clone(),
        );
        registry.register(
            "answers_waiting",
            "Requests waiting for a place",
            self.waiting.clone(),
        );
        registry.register("models", "Checkpoints in memory", self.models.clone());
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut text, &registry);
        text
    }
}
