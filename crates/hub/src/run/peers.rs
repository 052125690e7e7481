//! Who can give a blob to whom: a tree for each blob, in the order in which workers asked for it.
//!
//! The first few are sent to the hub, everyone later to somebody who asked before; so a blob leaves the hub a constant
//! number of times, whoever is quick feeds whoever is slow, and nobody waits for a worker that has not heard of the blob
//! yet. All of it is in memory, bounded, and forgotten with the hub: whoever comes next is then first again.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use protocol::{
    Hash, PublicKey,
    peers::{PeerAddress, PeersQuestion},
    units::WorkerId,
};

/// Workers that take a blob from the hub while others can be reached: two, so that one that leaves holds up nobody.
const FIRST: usize = 2;
/// Workers sent to one peer for one blob, until [`AGAIN_MS`] have passed.
const CHILDREN_MAX: u32 = 3;
/// Peers named in one answer.
const NAMED_MAX: usize = 3;
/// After this long a peer is taken to have sent what it was asked for, and gets new ones to serve.
const AGAIN_MS: u64 = 60_000;
/// Different workers that must say that a peer can't be reached before it is named to nobody. Identities cost nothing: only
/// those count that have had an update accepted, and only about a peer that was named to them.
const COMPLAINTS_MAX: usize = 2;
/// Peers named to a worker lately, about which it may report.
const REPORTABLE_MAX: usize = 16;
/// Workers whose addresses are remembered: up to a kilobyte each. Those who come later take blobs and serve none.
const REACHED_MAX: usize = 65_536;
/// Blobs remembered; those asked for longest ago go first.
const BLOBS_MAX: usize = 4_096;
/// Places in all orders of asking together: 64 bytes each.
const PLACES_MAX: usize = 262_144;
/// Places looked at for one that is not full; those who left are between them until the next sweep.
const LOOKED_AT_MAX: usize = 64;
/// Places looked at for a second and third peer.
const PROBES: usize = 6;

/// Where workers are reached and what they asked for.
#[derive(Default)]
pub(crate) struct PeerBook {
    inner: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    workers: HashMap<WorkerId, Reached>,
    endpoints: HashMap<PublicKey, WorkerId>,
    blobs: HashMap<Hash, Order>,
    /// Who was named to whom lately, by the beginnings of endpoints; only of those whose word counts.
    named: HashMap<WorkerId, VecDeque<u64>>,
    /// Places in all orders.
    places: usize,
    swept_ms: u64,
}

/// A worker that serves.
struct Reached {
    address: PeerAddress,
    /// Who could not reach it since somebody last could.
    complaints: BTreeSet<WorkerId>,
}

/// Those who asked for a blob and may serve it, in order.
#[derive(Default)]
struct Order {
    places: Vec<Place>,
    of: HashMap<WorkerId, usize>,
    /// Places before this one are full.
    open: usize,
    since_ms: u64,
    asked_ms: u64,
}

struct Place {
    worker: WorkerId,
    children: u32,
}

impl PeerBook {
    /// Whom to try for a blob, likeliest first; nobody for those who shall take it from the hub.
    ///
    /// The caller has checked the question, that its worker has joined, and that the blob is the run's. `from` is where the
    /// question came from, `is_present` tells who is still there; `is_proven` is whether its worker has had an update
    /// accepted, so that its word on others counts.
    pub(crate) fn ask(
        &self,
        question: &PeersQuestion,
        from: IpAddr,
        is_proven: bool,
        now_ms: u64,
        is_present: impl Fn(&WorkerId) -> bool,
    ) -> Vec<PeerAddress> {
        let mut book = self.lock();
        if now_ms.saturating_sub(book.swept_ms) > AGAIN_MS {
            book.sweep(now_ms, &is_present);
        }
        book.note(question);
        if is_proven {
            book.note_reports(question);
        }
        let named = book.named(question, from, now_ms, &is_present);
        if is_proven && !named.is_empty() && book.named.len() < REACHED_MAX {
            let lately = book.named.entry(question.worker).or_default();
            lately.extend(named.iter().map(|it| beginning(&it.endpoint)));
            lately.drain(..lately.len().saturating_sub(REPORTABLE_MAX));
        }
        book.place(question, now_ms);
        named
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // At worst a panic leaves a worker without a place: it is named to nobody.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Takes over where the worker is.
    fn note(&mut self, question: &PeersQuestion) {
        let worker = question.worker;
        let changed = self.workers.get(&worker).map(|it| &it.address) != question.address.as_ref();
        if changed {
            if let Some(before) = self.workers.remove(&worker) {
                self.endpoints.remove(&before.address.endpoint);
            }
            // An endpoint is whose it was first: nobody can have another's complained about.
            if let Some(address) = &question.address
                && self.workers.len() < REACHED_MAX
                && !self.endpoints.contains_key(&address.endpoint)
            {
                self.endpoints.insert(address.endpoint, worker);
                self.workers.insert(
                    worker,
                    Reached {
                        address: address.clone(),
                        complaints: BTreeSet::new(),
                    },
                );
            }
        }
    }

    /// Takes over what the worker says of others.
    fn note_reports(&mut self, question: &PeersQuestion) {
        let worker = question.worker;
        for endpoint in &question.failed {
            if let Some(reached) = self.reported(endpoint, &worker)
                && reached.complaints.len() < COMPLAINTS_MAX
            {
                reached.complaints.insert(worker);
            }
        }
        for endpoint in &question.served {
            if let Some(reached) = self.reported(endpoint, &worker) {
                reached.complaints.clear();
            }
        }
    }

    /// Somebody else, of whom `by` reports and who was named to it.
    fn reported(&mut self, endpoint: &PublicKey, by: &WorkerId) -> Option<&mut Reached> {
        let lately = self.named.get(by)?;
        lately.iter().find(|it| **it == beginning(endpoint))?;
        let worker = self.endpoints.get(endpoint).filter(|it| *it != by)?;
        self.workers.get_mut(worker)
    }

    fn named(
        &mut self,
        question: &PeersQuestion,
        from: IpAddr,
        now_ms: u64,
        is_present: &impl Fn(&WorkerId) -> bool,
    ) -> Vec<PeerAddress> {
        let Self { workers, blobs, .. } = self;
        let Some(order) = blobs.get_mut(&question.blob) else {
            return Vec::new();
        };
        let usable = |place: &Place| {
            let reached = workers.get(&place.worker)?;
            let is_reported = question.failed.contains(&reached.address.endpoint);
            (place.worker != question.worker
                && !is_reported
                && reached.complaints.len() < COMPLAINTS_MAX
                && is_present(&place.worker))
            .then(|| reached.address.for_asker_at(from))
            .flatten()
        };
        // Only those before it: two that wait for each other would wait in vain.
        let before = order.of.get(&question.worker).copied();
        let before = before.unwrap_or(order.places.len());
        let sources = order.places[..before].iter();
        if sources.filter_map(usable).take(FIRST).count() < FIRST {
            return Vec::new();
        }
        if now_ms.saturating_sub(order.since_ms) > AGAIN_MS {
            order.since_ms = now_ms;
            order.open = 0;
            order.places.iter_mut().for_each(|it| it.children = 0);
        }
        let is_full = |it: &Place| it.children >= CHILDREN_MAX;
        while order.open < before && is_full(&order.places[order.open]) {
            order.open += 1;
        }
        let mut named: Vec<PeerAddress> = Vec::new();
        let mut probe = spread(question);
        let open = (order.open..before).take(LOOKED_AT_MAX).find_map(|at| {
            let place = &order.places[at];
            let address = usable(place).filter(|_| !is_full(place))?;
            Some((at, address))
        });
        if let Some((at, address)) = open {
            order.places[at].children += 1;
            named.push(address);
        }
        for _ in 0..PROBES {
            if named.len() == NAMED_MAX {
                break;
            }
            probe = probe
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let place = &order.places[(probe >> 33) as usize % before];
            let other = usable(place).filter(|it| !named.contains(it));
            named.extend(other);
        }
        named
    }

    /// Appends the worker to the blob's order if it serves.
    fn place(&mut self, question: &PeersQuestion, now_ms: u64) {
        let reached = self.workers.get(&question.worker);
        let serves = reached.is_some_and(|it| {
            it.complaints.len() < COMPLAINTS_MAX
                && (!it.address.addresses.is_empty() || it.address.relay.is_some())
        });
        if let Some(order) = self.blobs.get_mut(&question.blob) {
            order.asked_ms = now_ms;
        }
        if !serves {
            return;
        }
        let order = self.blobs.entry(question.blob).or_insert_with(|| Order {
            since_ms: now_ms,
            asked_ms: now_ms,
            ..Order::default()
        });
        if !order.of.contains_key(&question.worker) {
            order.of.insert(question.worker, order.places.len());
            order.places.push(Place {
                worker: question.worker,
                children: 0,
            });
            self.places += 1;
        }
        while self.blobs.len() > BLOBS_MAX || self.places > PLACES_MAX {
            let oldest = self
                .blobs
                .iter()
                .min_by_key(|(hash, it)| (it.asked_ms, **hash));
            let Some(oldest) = oldest.map(|(hash, _)| *hash) else {
                break;
            };
            self.places -= self.blobs.remove(&oldest).map_or(0, |it| it.places.len());
        }
    }

    /// Forgets those who are gone.
    fn sweep(&mut self, now_ms: u64, is_present: &impl Fn(&WorkerId) -> bool) {
        self.swept_ms = now_ms;
        self.workers.retain(|worker, _| is_present(worker));
        self.named.retain(|worker, _| is_present(worker));
        let workers = &self.workers;
        self.endpoints
            .retain(|_, worker| workers.contains_key(worker));
        for order in self.blobs.values_mut() {
            order.places.retain(|it| workers.contains_key(&it.worker));
            let places = order.places.iter().enumerate();
            order.of = places.map(|(at, it)| (it.worker, at)).collect();
            order.open = 0;
        }
        self.blobs.retain(|_, it| !it.places.is_empty());
        self.places = self.blobs.values().map(|it| it.places.len()).sum();
    }
}

/// Enough of an endpoint to know it again among a few.
fn beginning(endpoint: &PublicKey) -> u64 {
    u64::from_le_bytes(endpoint.0[..8].try_into().expect("8 of 32"))
}

/// A number that differs from worker to worker and blob to blob.
fn spread(question: &PeersQuestion) -> u64 {
    let part = |bytes: &[u8; 32]| u64::from_le_bytes(bytes[..8].try_into().expect("8 of 32"));
    part(&question.worker.0.0) ^ part(&question.blob.0)
}

#[cfg(test)]
mod tests;
