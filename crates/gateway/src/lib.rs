//! The OpenAI-compatible API over the models of a hub.
//!
//! Stateless but for caches: it follows a hub, downloads each run's newest whole checkpoint and its tokenizer, checks
//! their hashes, and answers `/v1/models`, `/v1/chat/completions` and `/v1/completions` in process. Until a model has
//! passed the gate it is a research preview: labelled so, and served to this machine alone unless the operator says
//! otherwise.
//!
//! What is bounded: requests being answered, requests waiting, body sizes, lengths and counts of everything in them,
//! checkpoints in memory and on disk, and the time that a client may stall.

mod answer;
mod chat;
mod config;
mod follow;
mod http;
mod metrics;
mod model;
mod queue;
mod stop;

#[cfg(test)]
mod testing;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context;
use network::{
    BlobCache, HubClient,
    server::{Limits, raise_open_files},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::Config;

/// Connections at once.
const CONNECTIONS_MAX: usize = 4096;
/// Time that running answers get to end after a shutdown is asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Whether bytes read as a request of `/v1/chat/completions` or `/v1/completions`; for fuzzers.
///
/// # Errors
/// The sentence that the API would answer with, of the second.
pub fn check_request(body: &[u8]) -> Result<(), String> {
    http::check_request(body)
}

/// Serves until `shutdown` is cancelled; running answers then get 10 s to end.
///
/// # Errors
/// A configuration that is refused ([`Config::check`]), a cache folder or an address that cannot be used.
pub async fn serve(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let client = HubClient::new(&config.hub)?;
    let cache = BlobCache::open(&config.cache, config.cache_bytes_max)
        .with_context(|| format!("the cache at {} cannot be used", config.cache.display()))?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| {
            format!(
                "the gateway cannot listen on {}: is another one running? Choose another address with --listen",
                config.listen
            )
        })?;
    let service = http::Service {
        catalogue: Arc::default(),
        queue: queue::Queue::new(config.concurrent_answers, config.waiting_answers),
        metrics: Arc::default(),
        hub_reached: Arc::new(AtomicBool::new(false)),
        stopping: shutdown.clone(),
        abort: CancellationToken::new(),
    };
    let follower = follow::Follower {
        client,
        cache,
        catalogue: Arc::clone(&service.catalogue),
        hub_reached: Arc::clone(&service.hub_reached),
        checkpoints_kept: config.checkpoints_kept,
        poll: Duration::from_millis(config.poll_ms),
        runs: BTreeMap::new(),
        returned: None,
    };
    let following = tokio::spawn(follower.follow(shutdown.clone()));
    tracing::info!(address = %listener.local_addr()?, hub = config.hub, "the gateway listens");
    let abort = service.abort.clone();
    let limits = Limits {
        connections_max: CONNECTIONS_MAX.min(raise_open_files()),
        ..Limits::default()
    };
    let router = http::router(service);
    network::server::serve(listener, router, limits, shutdown.clone(), SHUTDOWN_GRACE).await;
    abort.cancel();
    shutdown.cancel();
    following
        .await
        .context("the task that follows the hub failed")
}
