//! The copy of a log: entries from the neighbour whose log counts, each checked, written as a hub writes its own.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use network::HubClient;
use protocol::{
    api::{LOG_PAGE_MAX, mirrors::MirrorProof},
    log::Entry,
    succession::{Choice, choose},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    hub_address,
    neighbours::{Neighbour, agreed, neighbours, part_ways},
};
use crate::{
    run::{Parts, Role, Run},
    store::Projected,
};

/// Time after which others are asked again whose log counts.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Longest wait of a poll for entries.
const WAIT_MS: u64 = 10_000;
/// Time between two questions for entries without a key by which the other end lets one wait.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Wait after something failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Addresses of hubs that are remembered beside those of the charter and the log.
const REMEMBERED_MAX: usize = 8;

/// How far a mirror's copy of a run is.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// When it was last known that all entries are here, Unix milliseconds.
    pub(crate) current_ms: AtomicU64,
    /// Blobs that the log names and that are not here.
    pub(crate) blobs_missing: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Where entries come from now.
    source: Option<HubClient>,
    /// When the run's hub was last heard of.
    hub_heard: Option<Instant>,
    /// Addresses that statements named.
    addresses: Vec<String>,
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one assignment: right after any panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            let trouble = match stop.run_until_cancelled(self.best()).await {
                None => return,
                Some(None) => "nobody who keeps or mirrors the run answers".to_owned(),
                Some(Some(source)) => match self.follow(source, &stop).await {
                    Ok(()) => String::new(),
                    Err(error) => format!("{error:#}"),
                },
            };
            if !trouble.is_empty() {
                self.run.copied.lock().source = None;
                if trouble != complaint {
                    tracing::warn!(run.id = %self.run.id.short(), "the copy is not up to date: {trouble}");
                }
                stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
            }
            complaint = trouble;
        }
    }

    /// The neighbour whose log counts and is the longest, its hub before other mirrors.
    pub(super) async fn best(&self) -> Option<Neighbour> {
        let own = self.run.state.read().await.sealing.clone();
        let mut best: Option<Neighbour> = None;
        for neighbour in neighbours(&self.run, &self.parts).await {
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
        best
    }

    /// Follows one neighbour until it is time to look around again.
    async fn follow(&self, source: Neighbour, stop: &CancellationToken) -> Result<()> {
        if stop
            .run_until_cancelled(self.join(&source))
            .await
            .transpose()?
            .is_none()
        {
            return Ok(());
        }
        self.run.copied.lock().source = Some(source.client.clone());
        let until = Instant::now() + LOOK_EVERY;
        while Instant::now() < until {
            let asked = stop.run_until_cancelled(self.ask(&source)).await;
            let Some(asked) = asked else {
                return Ok(());
            };
            let (entries, length) = asked?;
            self.take(entries).await?;
            if source.is_hub() {
                self.run.copied.lock().hub_heard = Some(Instant::now());
            }
            if length <= self.run.state.read().await.head.length {
                let now_ms = self.parts.clock.now_ms();
                self.run.copied.current_ms.store(now_ms, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Copies what a neighbour has beyond this log, once.
    pub(super) async fn catch_up(&self, source: &Neighbour) -> Result<()> {
        self.join(source).await?;
        loop {
            let from = self.run.state.read().await.head.length;
            let page = source.client.log_entries(self.run.id, from, LOG_PAGE_MAX);
            let entries = page.await?.entries;
            if entries.is_empty() {
                return Ok(());
            }
            self.take(entries).await?;
        }
    }

    /// Makes this log a beginning of the neighbour's, if that one counts by its takeovers; else it must be one already.
    async fn join(&self, source: &Neighbour) -> Result<()> {
        let agreed = agreed(&self.run, &self.parts, source).await?;
        let (length, own) = {
            let state = self.run.state.read().await;
            (state.head.length, state.sealing.clone())
        };
        if agreed == length || agreed == source.length && own == source.sealing {
            return Ok(());
        }
        if choose(&own, &source.sealing) != Choice::Second {
            part_ways(&self.run, &self.parts, source).await;
            anyhow::bail!(
                "the log at {} and this copy part at entry {agreed}, and no takeover says which counts",
                source.client.address()
            );
        }
        // The first entry is the run itself.
        ensure!(agreed > 0, "the logs have nothing in common");
        self.set_aside(agreed).await
    }

    /// Sets aside what this log has after its first `length` entries.
    pub(super) async fn set_aside(&self, length: u64) -> Result<()> {
        let mut state = self.run.state.write().await;
        let now_ms = self.parts.clock.now_ms();
        let count = state.head.length - length;
        *state = self.parts.store.rewind(self.run.id, length, now_ms).await?;
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
            let proof = MirrorProof::sign(key, run, &head);
            let page = source.client.log_entries_for_mirror(run, &proof, WAIT_MS);
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
