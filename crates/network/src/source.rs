//! Where a worker's blobs come from: other workers that the hub names, and the hub itself for whatever they don't give.
//!
//! The hub tells the first few who ask for a blob to take it from the hub, and everyone else who asked before them; so a
//! blob leaves the hub a constant number of times, however many workers there are. Peers are only ever tried for a bounded
//! time, and what they sent is not lost when the hub has to complete it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use protocol::{
    Hash, PublicKey, SecretKey,
    peers::{PEERS_REPORTED_MAX, PeerAddress, PeersQuestion, SignedPeersQuestion},
    units::{BlobReference, RunId, WorkerId},
};
use tokio::time::Instant;

use crate::{
    BlobCache, HubClient,
    blobs::{TransferError, cache::failed, download::Part},
    peers::{FetchError, Patience, Peers},
};

/// Questions to the hub for one blob; the second one names those that failed.
const QUESTIONS_MAX: usize = 2;
/// Peers tried after one question.
const PEERS_MAX: usize = 4;
/// Blobs below this size come from the hub: finding a peer costs as much.
const BYTES_MIN: u64 = 4 << 10;
/// Added to the wait for each 16 MiB of a blob.
const COMES_WITHIN: Duration = Duration::from_secs(1);
/// How long a peer that failed is not asked again.
const SHUN: Duration = Duration::from_secs(120);
/// Peers remembered for that at most.
const SHUNNED_MAX: usize = 1_024;

/// A worker's source of blobs. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Source {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: HubClient,
    cache: BlobCache,
    key: SecretKey,
    run: RunId,
    peers: Option<(Peers, Patience)>,
    from_peers: AtomicU64,
    from_hub: AtomicU64,
    experience: Mutex<Experience>,
}

/// How peers did.
#[derive(Debug, Default)]
struct Experience {
    shunned: HashMap<PublicKey, Instant>,
    /// For the next question.
    served: VecDeque<PublicKey>,
    failed: VecDeque<PublicKey>,
}

/// Bytes of blobs since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Fetched from peers.
    pub from_peers: u64,
    /// Fetched from the hub.
    pub from_hub: u64,
    /// Sent to peers.
    pub to_peers: u64,
}

impl Source {
    /// A source for the worker that has `key`; without `peers`, the hub alone.
    #[must_use]
    pub fn new(
        client: HubClient,
        cache: BlobCache,
        key: SecretKey,
        run: RunId,
        peers: Option<(Peers, Patience)>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                client,
                cache,
                key,
                run,
                peers,
                from_peers: AtomicU64::new(0),
                from_hub: AtomicU64::new(0),
                experience: Mutex::default(),
            }),
        }
    }

    /// Where the blobs are kept.
    #[must_use]
    pub fn cache(&self) -> &BlobCache {
        &self.inner.cache
    }

    /// Lets peers have a public blob that is in the cache already, or that this worker made itself.
    pub fn publish(&self, hash: Hash) {
        if let Some((peers, _)) = &self.inner.peers {
            peers.publish(hash);
        }
    }

    /// Ends what peers are being sent, and closes the endpoint.
    pub async fn shutdown(&self) {
        if let Some((peers, _)) = &self.inner.peers {
            peers.shutdown().await;
        }
    }

    /// Bytes so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let peers = self.inner.peers.as_ref();
        Traffic {
            from_peers: self.inner.from_peers.load(Ordering::Relaxed),
            from_hub: self.inner.from_hub.load(Ordering::Relaxed),
            to_peers: peers.map_or(0, |(peers, _)| peers.bytes_sent()),
        }
    }

    /// Fetches a public blob into the cache, unless it is there, and calls `progress` with the bytes present so far.
    ///
    /// At most `reference.bytes` bytes are kept. From then on peers can have it from here.
    ///
    /// # Errors
    /// [`TransferError`], the hub's: what peers do wrong costs time only.
    pub async fn download(
        &self,
        reference: BlobReference,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<(), TransferError> {
        let Inner { client, cache, .. } = &*self.inner;
        let hash = reference.hash;
        let _claim = cache.claim(&hash).await;
        if cache.contains(&reference) {
            self.publish(hash);
            return Ok(());
        }
        let keep = |source| TransferError::Cache { hash, source };
        cache.make_room(reference.bytes, None).map_err(keep)?;
        let coming = Coming::new(self, hash);
        if let Some((peers, patience)) = &self.inner.peers
            && reference.bytes >= BYTES_MIN
            && self
                .by_peers(peers, *patience, reference, &mut progress)
                .await?
        {
            coming.arrived();
            return Ok(());
        }
        let before = Part::of(cache, &hash).bytes();
        let worker = WorkerId(self.inner.key.public());
        client
            .download_claimed(cache, reference, Some(worker), &mut progress)
            .await?;
        let bytes = reference.bytes.saturating_sub(before);
        self.inner.from_hub.fetch_add(bytes, Ordering::Relaxed);
        coming.arrived();
        Ok(())
    }

    /// Whether the blob came from peers.
    async fn by_peers(
        &self,
        peers: &Peers,
        patience: Patience,
        reference: BlobReference,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<bool, TransferError> {
        let cache = &self.inner.cache;
        let hash = reference.hash;
        let keep = |source| TransferError::Cache { hash, source };
        let part = Part::of(cache, &hash);
        // A large blob takes its time to come to whoever is waited for.
        let until = Instant::now() + patience.wait + COMES_WITHIN * blocks(reference.bytes);
        for _ in 0..QUESTIONS_MAX {
            let candidates = self.candidates(peers, hash).await;
            if candidates.is_empty() {
                return Ok(false);
            }
            for candidate in candidates.iter().take(PEERS_MAX) {
                let before = part.bytes();
                let patience = Patience {
                    wait: until.saturating_duration_since(Instant::now()),
                    ..patience
                };
                let fetched = peers
                    .fetch(&part.path, reference, candidate, patience, progress)
                    .await;
                let bytes = part.bytes().saturating_sub(before);
                self.inner.from_peers.fetch_add(bytes, Ordering::Relaxed);
                self.experienced(candidate.endpoint, &fetched);
                match fetched {
                    Ok(()) => {}
                    Err(FetchError::Disk(source)) => {
                        return Err(keep(failed("writing", &part.path)(source)));
                    }
                    Err(error) => {
                        tracing::debug!(blob = %hash.short(), peer = %candidate.endpoint.short(), "{error}");
                        continue;
                    }
                }
                // What the hub or an earlier start had left at the file's beginning was not proven.
                if part.hash().await.map_err(keep)? == hash {
                    cache
                        .adopt(&hash, &part.path, reference.bytes)
                        .map_err(keep)?;
                    return Ok(true);
                }
                part.remove().map_err(keep)?;
            }
        }
        Ok(false)
    }

    /// Whom the hub names for a blob, less those that failed lately.
    async fn candidates(&self, peers: &Peers, blob: Hash) -> Vec<PeerAddress> {
        let inner = &self.inner;
        let (served, failed) = {
            let mut experience = inner.experience();
            let now = Instant::now();
            experience.shunned.retain(|_, until| *until > now);
            let mut take = |list: fn(&mut Experience) -> &mut VecDeque<PublicKey>| {
                std::mem::take(list(&mut experience)).into()
            };
            (take(|it| &mut it.served), take(|it| &mut it.failed))
        };
        let question = PeersQuestion {
            run: inner.run,
            worker: WorkerId(inner.key.public()),
            blob,
            address: Some(peers.address()),
            served,
            failed,
        };
        let signed = SignedPeersQuestion::sign(&inner.key, question);
        let named = match inner.client.peers(&signed).await {
            Ok(answer) => answer.peers,
            Err(error) => {
                tracing::debug!("asking for peers: {error}");
                return Vec::new();
            }
        };
        let experience = inner.experience();
        named
            .iter()
            .filter_map(protocol::api::Peer::address)
            .filter(|it| !experience.shunned.contains_key(&it.endpoint))
            .collect()
    }

    fn experienced(&self, endpoint: PublicKey, fetched: &Result<(), FetchError>) {
        let mut experience = self.inner.experience();
        let is_fault = fetched.as_ref().is_err_and(FetchError::is_peers_fault);
        if is_fault {
            if experience.shunned.len() < SHUNNED_MAX {
                experience.shunned.insert(endpoint, Instant::now() + SHUN);
            }
            note(&mut experience.failed, endpoint);
        } else if fetched.is_ok() {
            note(&mut experience.served, endpoint);
        }
    }
}

impl Inner {
    fn experience(&self) -> MutexGuard<'_, Experience> {
        self.experience
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pieces of 16 MiB.
fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes >> 24).unwrap_or(u32::MAX)
}

/// Appends to a report, which loses its oldest when it is full.
fn note(report: &mut VecDeque<PublicKey>, endpoint: PublicKey) {
    if report.contains(&endpoint) {
        return;
    }
    if report.len() >= PEERS_REPORTED_MAX {
        report.pop_front();
    }
    report.push_back(endpoint);
}

/// A blob on its way: peers that ask for it are kept waiting, unless it turns out not to come.
struct Coming<'a> {
    source: &'a Source,
    hash: Hash,
    has_arrived: bool,
}

impl<'a> Coming<'a> {
    fn new(source: &'a Source, hash: Hash) -> Self {
        source.publish(hash);
        Self {
            source,
            hash,
            has_arrived: false,
        }
    }

    fn arrived(mut self) {
        self.has_arrived = true;
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if !self.has_arrived
            && let Some((peers, _)) = &self.source.inner.peers
        {
            peers.withdraw(&self.hash);
        }
    }
}

#[cfg(test)]
mod tests;
