//! Blobs between workers: an iroh endpoint (QUIC, known by its key) that serves what lies in the cache and fetches what
//! others have, checked against the blob's hash in pieces of 16 KiB.
//!
//! Only blobs that are public are served: those that their owner named by [`Peers::publish`], and whose bytes are in the
//! cache. Nothing is ever written for somebody else. No relay and no discovery server is asked unless the settings name
//! relays: who is where is told by the hub ([`crate::Source`]).

mod fetch;
mod rate;
mod serve;
pub(crate) mod tree;
pub(crate) mod wire;

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use iroh::{
    Endpoint, RelayMode, RelayUrl, SecretKey,
    endpoint::{QuicTransportConfig, VarInt, presets},
};
use protocol::{
    Hash, PublicKey,
    peers::{PEER_ADDRESSES_MAX, PeerAddress},
};
use tokio::sync::Notify;

pub use fetch::{FetchError, Patience};

use crate::BlobCache;
use rate::Rate;

/// The protocol's name in QUIC's handshake.
const ALPN: &[u8] = b"athome/blobs/1";
/// Public blobs remembered at most; a run has a few thousand at once.
const PUBLIC_MAX: usize = 65_536;
/// Requests that one connection may have open.
const STREAMS_MAX: u32 = 4;
/// Silence after which a peer counts as gone; it is asked for a sign of life three times within.
const SILENCE_MAX: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// What an owner allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen; port 0 for any free one.
    pub listen: SocketAddr,
    /// Addresses of relays (<https://docs.rs/iroh-relay>) for those who cannot be reached directly; none by default.
    pub relays: Vec<String>,
    /// Most bytes a second sent to peers, all together; no limit without one.
    pub upload_bytes_per_s_max: Option<u64>,
    /// Peers that are connected at once at most.
    pub connections_max: usize,
    /// Blobs that are sent at once at most.
    pub transfers_max: usize,
}

impl Settings {
    /// The defaults for an address to listen on.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            relays: Vec::new(),
            upload_bytes_per_s_max: None,
            connections_max: 64,
            transfers_max: 8,
        }
    }
}

/// Why no endpoint could be opened.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The address is taken, or is no address of this machine.
    #[error("can't listen for peers on {listen}: {problem}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What happened.
        problem: String,
    },
    /// A relay's address does not read.
    #[error("{relay:?} is not the address of a relay: {problem}")]
    Relay {
        /// As it was given.
        relay: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// An endpoint that serves and fetches blobs. Cheap to clone; clones are the same endpoint.
#[derive(Clone, Debug)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    cache: BlobCache,
    relays: Vec<RelayUrl>,
    rate: Rate,
    public: Mutex<HashSet<Hash>>,
    /// Wakes those who wait for a blob that will not come.
    given_up: Notify,
    sent: AtomicU64,
}

impl Peers {
    /// Opens the endpoint, under a key made for this start, and serves until [`Self::shutdown`].
    ///
    /// # Errors
    /// [`PeersError`].
    pub async fn start(cache: BlobCache, settings: &Settings) -> Result<Self, PeersError> {
        let relays: Vec<RelayUrl> = settings
            .relays
            .iter()
            .map(|relay| {
                relay.parse().map_err(|error| PeersError::Relay {
                    relay: relay.clone(),
                    problem: format!("{error}"),
                })
            })
            .collect::<Result<_, _>>()?;
        let relay_mode = match relays.is_empty() {
            true => RelayMode::Disabled,
            false => RelayMode::custom(relays.iter().cloned()),
        };
        let listen = settings.listen;
        let unbound = |problem: String| PeersError::Listen { listen, problem };
        let endpoint = Endpoint::builder(presets::Minimal)
            .clear_ip_transports()
            .bind_addr(listen)
            .map_err(|error| unbound(error.to_string()))?
            .relay_mode(relay_mode)
            .secret_key(SecretKey::generate())
            .alpns(vec![ALPN.to_vec()])
            .transport_config(transport())
            .bind()
            .await
            .map_err(|error| unbound(format!("{error:#}")))?;
        let inner = Arc::new(Inner {
            endpoint,
            cache,
            relays,
            rate: Rate::new(settings.upload_bytes_per_s_max),
            public: Mutex::default(),
            given_up: Notify::new(),
            sent: AtomicU64::new(0),
        });
        tokio::spawn(serve::serve(Arc::clone(&inner), settings.clone()));
        Ok(Self { inner })
    }

    /// Where this endpoint is reached, as far as it knows.
    #[must_use]
    pub fn address(&self) -> PeerAddress {
        let address = self.inner.endpoint.addr();
        PeerAddress {
            endpoint: PublicKey(*address.id.as_bytes()),
            addresses: address
                .ip_addrs()
                .take(PEER_ADDRESSES_MAX)
                .copied()
                .collect(),
            relay: address.relay_urls().next().map(ToString::to_string),
        }
    }

    /// Lets others have a blob, as soon as it is in the cache: those who ask before are kept waiting a little.
    pub fn publish(&self, hash: Hash) {
        let mut public = self.inner.lock();
        if public.len() >= PUBLIC_MAX {
            // What was published longest ago is not known; whatever is still wanted is published again when it is used.
            public.clear();
        }
        public.insert(hash);
    }

    /// Takes [`Self::publish`] back; nobody waits for the blob here any more.
    pub fn withdraw(&self, hash: &Hash) {
        self.inner.lock().remove(hash);
        self.inner.given_up.notify_waiters();
    }

    /// Bytes of blobs sent to peers so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.inner.sent.load(Ordering::Relaxed)
    }

    /// Ends all transfers and closes the endpoint.
    pub async fn shutdown(&self) {
        self.inner.endpoint.close().await;
    }
}

impl Inner {
    fn is_public(&self, hash: &Hash) -> bool {
        self.lock().contains(hash)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Hash>> {
        // A set is consistent after any panic: each change is one call.
        self.public.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Few streams, quick notice of a peer that is gone.
fn transport() -> QuicTransportConfig {
    let silence = SILENCE_MAX.try_into().expect("six seconds fit a timeout");
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(silence))
        .default_path_max_idle_timeout(SILENCE_MAX)
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .build()
}

#[cfg(test)]
pub(crate) mod tests;
