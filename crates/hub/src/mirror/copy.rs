//! The copy of a log: entries from the neighbour whose log counts, each checked, written as a hub writes its own.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use network::HubClient;
use protocol::{
    Hash, PublicKey,
    api::{LOG_PAGE_MAX, mirrors::MirrorProof},
    log::{Entry, Head},
    succession::{Choice, choose},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    hub_address,
    neighbours::{Neighbour, agreed, exchange_proofs, is_from_a_living_hub, neighbours, part_ways},
};
use crate::{
    run::{Parts, Role, Run},
    store::Projected,
};

/// Time after which others are asked again whose log counts.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Longest wait of a poll for entries.
const WAIT: Duration = Duration::from_secs(10);
/// Time between two questions for entries without a key by which the other end lets one wait.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Wait after something failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Wait before a log that says otherwise than this copy is compared with it again: people decide which counts.
const PARTED_AGAIN: Duration = Duration::from_secs(5);
/// Addresses whose last answer is remembered.
const ANSWERED_MAX: usize = 64;
/// Proofs that are remembered as shown.
const SHOWN_MAX: usize = 256;
/// Addresses of hubs that are remembered beside those of the charter and the log.
const REMEMBERED_MAX: usize = 8;

/// How far a mirror's copy of a run is.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// When it was last known that all entries are here, Unix milliseconds.
    pub(crate) current_ms: AtomicU64,
    /// Blobs that the log names and that are not here.
    pub(crate) blobs_missing: AtomicU64,
    /// Entries that could be gone on from, and how often entries were set aside before that was found out.
    reach: watch::Sender<(u64, u64)>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Where entries come from now.
    source: Option<HubClient>,
    /// Whether that one gives no more than this copy has.
    is_current: bool,
    /// When the run's hub was last heard of.
    hub_heard: Option<Instant>,
    /// Entries that the hub was told are here, since some were set aside.
    confirmed: u64,
    /// Blobs without which the log can't be gone on from, and that are being fetched.
    needed: HashSet<Hash>,
    /// Addresses that statements named.
    addresses: Vec<String>,
    /// Whose key answered where.
    answered: HashMap<String, PublicKey>,
    /// Which process was shown which proof.
    shown: HashSet<(String, Hash)>,
}

impl Copied {
    /// Where entries and blobs come from now.
    pub(super) fn source(&self) -> Option<HubClient> {
        self.lock().source.clone()
    }

    /// When the run's hub was last heard of, if it was.
    pub(super) fn hub_heard(&self) -> Option<Instant> {
        self.lock().hub_heard
    }

    /// The run's hub said something, be it that it has no time.
    pub(super) fn hub_is_heard(&self) {
        self.lock().hub_heard = Some(Instant::now());
    }

    /// Whether whoever is copied from gives no more than what is here.
    pub(super) fn is_current(&self) -> bool {
        self.lock().is_current
    }

    /// A new follower begins: nobody is copied from yet.
    pub(super) fn begin(&self) {
        let mut inner = self.lock();
        inner.source = None;
        inner.is_current = false;
    }

    /// Entries that could be gone on from, as far as is known.
    pub(super) fn reach(&self) -> u64 {
        self.reach.borrow().0
    }

    /// How often entries were set aside: what is found out of the log meanwhile counts no more.
    pub(super) fn rewinds(&self) -> u64 {
        self.reach.borrow().1
    }

    /// So many entries could be gone on from, unless some were set aside since.
    pub(super) fn reaches(&self, length: u64, rewinds: u64) {
        self.reach.send_if_modified(|reach| {
            let is_news = reach.1 == rewinds && reach.0 != length;
            if is_news {
                reach.0 = length;
            }
            is_news
        });
    }

    /// Entries that the hub was told are here.
    pub(super) fn confirmed(&self) -> u64 {
        self.lock().confirmed
    }

    /// The hub is told that so many are here.
    pub(super) fn confirms(&self, length: u64) {
        let mut inner = self.lock();
        inner.confirmed = inner.confirmed.max(length);
    }

    /// What must be fetched first.
    pub(super) fn needs(&self, blobs: HashSet<Hash>) {
        self.lock().needed = blobs;
    }

    /// Whether a blob is fetched with those that come first.
    pub(super) fn is_needed(&self, hash: &Hash) -> bool {
        self.lock().needed.contains(hash)
    }

    /// Remembers whose key answered at an address.
    pub(super) fn answered(&self, address: &str, key: PublicKey) {
        let mut inner = self.lock();
        if inner.answered.len() >= ANSWERED_MAX {
            inner.answered.clear();
        }
        inner.answered.insert(address.to_owned(), key);
    }

    /// Whose key answered last at an address.
    pub(super) fn who_answered(&self, address: &str) -> Option<PublicKey> {
        self.lock().answered.get(address).copied()
    }

    /// Whether a process was shown this proof.
    pub(super) fn was_shown(&self, process: &str, proof: &Hash) -> bool {
        self.lock().shown.contains(&(process.to_owned(), *proof))
    }

    /// A process was shown this proof.
    pub(super) fn is_shown(&self, process: &str, proof: Hash) {
        let mut inner = self.lock();
        if inner.shown.len() >= SHOWN_MAX {
            inner.shown.clear();
        }
        inner.shown.insert((process.to_owned(), proof));
    }

    /// Remembers where a statement says that a hub is.
    pub(crate) fn remember(&self, address: &str) {
        let mut inner = self.lock();
        if !inner.addresses.iter().any(|it| it == address) {
            inner.addresses.truncate(REMEMBERED_MAX - 1);
            inner.addresses.insert(0, address.to_owned());
        }
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.lock().addresses.clone()
    }

    /// What is after the first `length` entries was set aside.
    fn is_cut_to(&self, length: u64) {
        self.reach.send_modify(|reach| {
            reach.0 = reach.0.min(length);
            reach.1 += 1;
        });
        let mut inner = self.lock();
        inner.confirmed = inner.confirmed.min(length);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment: right after any panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two logs say different things, and no takeover says which counts.
#[derive(Debug, thiserror::Error)]
#[error(
    "the log at {address} and this copy part at entry {agreed}, and no takeover says which counts"
)]
struct Parted {
    address: String,
    agreed: u64,
}

/// What copies a run's log.
#[derive(Clone)]
pub(super) struct Copier {
    pub(super) run: Run,
    pub(super) parts: Parts,
    pub(super) length: watch::Sender<u64>,
    pub(super) role: watch::Sender<Role>,
}

impl Copier {
    /// Copies until told to stop; never stops within a write.
    pub(super) async fn copy(self, stop: CancellationToken) {
        let mut complaint = String::new();
        while !stop.is_cancelled() {
            let mut pause = AGAIN;
            let trouble = match stop.run_until_cancelled(self.best()).await {
                None => return,
                Some(Err(trouble)) => trouble,
                Some(Ok(source)) => match self.follow(&source, &stop).await {
                    Ok(()) => String::new(),
                    Err(error) => {
                        if source.is_hub() && is_from_a_living_hub(&error) {
                            self.run.copied.hub_is_heard();
                        }
                        if error.is::<Parted>() {
                            pause = PARTED_AGAIN;
                        }
                        format!("{error:#}")
                    }
                },
            };
            if !trouble.is_empty() {
                self.run.copied.begin();
                if trouble != complaint {
                    tracing::warn!(run.id = %self.run.id.short(), "the copy is not up to date: {trouble}");
                }
                stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
            complaint = trouble;
        }
    }

    /// The neighbour whose log counts and is the longest, its hub before other mirrors; why there is none.
    pub(super) async fn best(&self) -> Result<Neighbour, String> {
        let own = self.run.state.read().await.sealing.clone();
        let mut best: Option<Neighbour> = None;
        let answers = neighbours(&self.run, &self.parts).await;
        for neighbour in answers.neighbours {
            exchange_proofs(&self.run, &self.parts, &neighbour).await;
            match choose(&own, &neighbour.sealing) {
                Choice::First => continue,
                Choice::Undecided => {
                    part_ways(&self.run, &self.parts, &neighbour).await;
                    continue;
                }
                Choice::Same | Choice::Second => {}
            }
            let is_better =
                best.as_ref()
                    .is_none_or(|best| match choose(&best.sealing, &neighbour.sealing) {
                        Choice::First | Choice::Undecided => false,
                        Choice::Second => true,
                        Choice::Same => {
                            (best.is_hub(), best.length) < (neighbour.is_hub(), neighbour.length)
                        }
                    });
            if is_better {
                best = Some(neighbour);
            }
        }
        best.ok_or_else(|| match answers.busy_hub {
            Some(address) => format!("the run's hub at {address} has no time to answer"),
            None => "nobody who keeps or mirrors the run answers".to_owned(),
        })
    }

    /// Follows one neighbour until it is time to look around again.
    async fn follow(&self, source: &Neighbour, stop: &CancellationToken) -> Result<()> {
        let joined = stop.run_until_cancelled(self.join(source)).await;
        let Some(cut) = joined.transpose()? else {
            return Ok(());
        };
        if let Some(length) = cut {
            self.set_aside(length).await?;
        }
        self.run.copied.lock().source = Some(source.client.clone());
        let until = Instant::now() + LOOK_EVERY;
        let mut reach = self.run.copied.reach.subscribe();
        let mut is_current = false;
        while Instant::now() < until {
            reach.mark_unchanged();
            let asked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                asked = self.ask(source) => asked,
                // The hub waits to hear how far this copy can be gone on from.
                _ = reach.changed(), if is_current => continue,
            };
            let (entries, length) = asked?;
            let is_empty = entries.is_empty();
            self.take(entries).await?;
            if source.is_hub() {
                self.run.copied.hub_is_heard();
            }
            let has_all = length <= self.run.state.read().await.head.length;
            is_current = has_all || is_empty;
            self.run.copied.lock().is_current = is_current;
            if has_all {
                let now_ms = self.parts.clock.now_ms();
                self.run.copied.current_ms.store(now_ms, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Copies what a neighbour has beyond this log, as much as comes until then; never stops within a write.
    pub(super) async fn catch_up(&self, source: &Neighbour, until: Instant) -> Result<()> {
        let late = || format!("{} takes too long", source.client.address());
        let joined = tokio::time::timeout_at(until, self.join(source)).await;
        if let Some(length) = joined.with_context(late)?? {
            self.set_aside(length).await?;
        }
        loop {
            let from = self.run.state.read().await.head.length;
            let page = source.client.log_entries(self.run.id, from, LOG_PAGE_MAX);
            let page = tokio::time::timeout_at(until, page).await;
            let entries = page.with_context(late)??.entries;
            if entries.is_empty() {
                return Ok(());
            }
            self.take(entries).await?;
        }
    }

    /// How many entries of this log to keep, so that it is a beginning of the neighbour's, if that one counts by its takeovers;
    /// none if it is one already. Else it must be one.
    async fn join(&self, source: &Neighbour) -> Result<Option<u64>> {
        let agreed = agreed(&self.run, &self.parts, source).await?;
        let (length, own) = {
            let state = self.run.state.read().await;
            (state.head.length, state.sealing.clone())
        };
        if agreed == length || agreed == source.length && own == source.sealing {
            return Ok(None);
        }
        if choose(&own, &source.sealing) != Choice::Second {
            part_ways(&self.run, &self.parts, source).await;
            let address = source.client.address().to_owned();
            return Err(Parted { address, agreed }.into());
        }
        // The first entry is the run itself.
        ensure!(agreed > 0, "the logs have nothing in common");
        Ok(Some(agreed))
    }

    /// Sets aside what this log has after its first `length` entries. While the database is brought there, which takes as long
    /// as the log is, everyone is answered from before: nobody else writes the log of a run that is mirrored.
    pub(super) async fn set_aside(&self, length: u64) -> Result<()> {
        let now_ms = self.parts.clock.now_ms();
        let rewound = self.parts.store.rewind(self.run.id, length, now_ms).await?;
        let count = {
            let mut state = self.run.state.write().await;
            let count = state.head.length - length;
            *state = rewound;
            count
        };
        self.run.copied.is_cut_to(length);
        self.run.acknowledged.forget();
        self.length.send_replace(length);
        tracing::warn!(
            run.id = %self.run.id.short(), entries = count, from = length,
            "entries of this copy count no more: they are set aside"
        );
        Ok(())
    }

    async fn ask(&self, source: &Neighbour) -> Result<(Vec<Entry>, u64)> {
        let (head, sealing) = {
            let state = self.run.state.read().await;
            (state.head, state.sealing.clone())
        };
        let run = self.run.id;
        if let Some((key, _)) = self.parts.mirroring.may_take_over(&sealing) {
            let known = self.could_go_on_from(&head).await?;
            let proof = MirrorProof::sign(key, run, &known);
            self.run.copied.confirms(known.length);
            // Not longer than this mirror is patient: a hub that has nothing to say is not silent.
            let patience = self.parts.mirroring.take_over_after;
            let wait = patience.map_or(WAIT, |it| WAIT.min(it / 2)).as_millis() as u64;
            let page = source
                .client
                .log_entries_for_mirror(run, head.length, &proof, wait);
            let page = page.await?;
            return Ok((page.entries, page.length));
        }
        let page = source.client.log_entries(run, head.length, LOG_PAGE_MAX);
        let page = page.await?;
        if page.entries.is_empty() {
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok((page.entries, page.length))
    }

    /// The end of what could be gone on from with the blobs that are here.
    async fn could_go_on_from(&self, head: &Head) -> Result<Head> {
        let reach = self.run.copied.reach();
        if head.length <= reach {
            return Ok(*head);
        }
        let Some(before) = reach.checked_sub(1) else {
            return Ok(Head::empty());
        };
        let entries = self.parts.store.entries(self.run.id, before, 1).await?;
        let last = entries.first().context("the log is shorter")?;
        Ok(Head {
            length: reach,
            hash: last.hash(),
            time_ms: last.time_ms,
        })
    }

    /// Folds and writes entries; those before one that does not hold are kept.
    async fn take(&self, entries: Vec<Entry>) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut state = self.run.state.write().await;
        let mut folded = Vec::with_capacity(entries.len());
        let mut outcome = Ok(());
        for entry in entries {
            let mut projected = Projected::before(&state, &entry.event);
            if let Err(error) = state.apply(&entry) {
                outcome = Err(error).context("the log that is copied does not hold");
                break;
            }
            projected.tokens = state.tokens;
            folded.push((entry, projected));
        }
        if let Err(error) = self.parts.store.append(&folded).await {
            *state = self.parts.store.replay(self.run.id).await?;
            return Err(error).context("can't write the log");
        }
        self.parts.clock.is_at_least(state.head.time_ms);
        self.run.note(&self.parts.metrics, &folded);
        self.length.send_replace(state.head.length);
        let hub_address = hub_address(&state, &self.parts.mirroring);
        drop(state);
        let mirror = Role::Mirror { hub_address };
        self.role.send_if_modified(|role| {
            let is_news = *role != mirror;
            *role = mirror;
            is_news
        });
        outcome
    }
}
