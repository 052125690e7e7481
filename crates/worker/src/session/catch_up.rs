//! Fetching what is missing: the newest model, and the text of an assignment.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use network::{BlobCache, Source, blobs::TransferError, world};
use protocol::{
    api::Work,
    charter::Charter,
    sampling::assigned_shards,
    units::{BlobReference, WorkerId},
};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{Session, with_machine};
use crate::{
    Activity,
    machine::{Held, Newer},
    model::{self, DeltaStep, ENTRIES_BACK_MAX, Route, Target, merges},
    shards,
};

/// What became of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fetched {
    /// It is in the cache.
    Here,
    /// It did not come, and may later; or the owner said stop.
    NotNow,
    /// Whoever was asked does not have it, or something else under its name.
    Nowhere,
}

/// Fetches blobs one after the other in the background.
pub(super) fn fetch_ahead(
    source: &Source,
    blobs: Vec<BlobReference>,
    stop: &CancellationToken,
) -> AbortHandle {
    let (source, stop) = (source.clone(), stop.clone());
    let fetch = async move {
        for blob in blobs {
            if let Err(error) = source.download(blob, |_| {}).await {
                // Whoever needs it will ask again, and tell.
                tracing::debug!("fetching ahead: {:#}", anyhow::Error::from(error));
            }
        }
    };
    tokio::spawn(async move {
        stop.run_until_cancelled(fetch).await;
    })
    .abort_handle()
}

/// What is needed before the first step, in this order: the model, the optimiser's state, and the text of the rounds known ahead.
pub(super) fn needed_at_first(
    work: &Work,
    charter: &Charter,
    worker: WorkerId,
    held: Option<Held>,
    cache: &BlobCache,
) -> Result<Vec<BlobReference>> {
    let target = Target::of(work)?;
    // Whether deltas lead on from a model of long ago the log tells, and catching up asks it.
    let mut blobs = match target.needs_log(held) {
        true => vec![],
        false => target.route(held, None, |it| cache.contains(it)).blobs(),
    };
    if let Some(start) = work
        .inner_start
        .as_ref()
        .filter(|_| charter.inner.carry_inner_state && work.worker.carried.is_none())
    {
        blobs.push(BlobReference {
            hash: model::hash(&start.blob)?,
            bytes: start.bytes,
        });
    }
    let seeds = work.ahead.iter().filter_map(|it| it.seed.parse().ok());
    let shards = seeds.flat_map(|seed| assigned_shards(charter, &seed, &worker));
    let texts: BTreeSet<u32> = shards.collect();
    blobs.extend(
        texts
            .iter()
            .map(|&it| charter.data.training[it as usize].blob),
    );
    Ok(blobs)
}

impl Session<'_> {
    /// Brings the machine to the newest model. What fails and may be mended by waiting is shown, and the caller's loop
    /// comes here again.
    pub(super) async fn catch_up(&mut self, work: &Work) -> Result<()> {
        let target = match Target::of(work) {
            Ok(target) => target,
            Err(error) => {
                self.try_again("reading the hub's answer", &error).await;
                return Ok(());
            }
        };
        let held = self.held();
        let since = if target.needs_log(held) {
            self.merges_since(work).await
        } else {
            None
        };
        let is_here = |it: &BlobReference| self.cache.contains(it);
        let route = target.route(held, since.as_deref(), is_here);
        if self.is_cut_short(&route) {
            // What is held is of another log than the hub's: it listed the deltas after it, and nobody needs those.
            self.forget_model().await?;
            self.held_round.ask_for_all();
            self.wait_for_news(|it| it.held.is_none() || it.problem.is_some())
                .await;
            return Ok(());
        }
        match self.fetch_route(&route).await? {
            Fetched::Here => {}
            Fetched::NotNow => return Ok(()),
            Fetched::Nowhere => {
                // A hub that took the run over may lack a delta; the next checkpoint makes it needless.
                self.forget_model().await?;
                return Ok(());
            }
        }
        match self.apply_route(&route).await? {
            Ok(held) if held == target.model => {
                self.held_at = work.log_length;
                self.status.problem = None;
            }
            Ok(held) => {
                let error = anyhow::anyhow!(
                    "the hub's files give model {}, the hub says {}",
                    held.parameters.short(),
                    target.model.parameters.short()
                );
                self.forget_model().await?;
                self.try_again("loading the model", &error).await;
            }
            Err(error) => {
                self.forget_model().await?;
                self.try_again("loading the model", &error).await;
            }
        }
        Ok(())
    }

    /// Whether the hub left out deltas that the route by the checkpoint needs, because a newer model was said to be held.
    fn is_cut_short(&self, route: &Route) -> bool {
        let held = self.news.borrow().held;
        matches!((route.checkpoint, held), (Some((round, _)), Some(held)) if round < held)
    }

    /// The merges since the held model was the newest, from the log; `None` if that is too long ago or does not work.
    async fn merges_since(&self, work: &Work) -> Option<Vec<DeltaStep>> {
        let mut from = self.held_at;
        if from == 0 || work.log_length.saturating_sub(from) > ENTRIES_BACK_MAX {
            return None;
        }
        let mut found = Vec::new();
        while from < work.log_length {
            let left = work.log_length - from;
            let page = self.client.log_entries(self.run, from, left).await.ok()?;
            if page.entries.is_empty() {
                return None;
            }
            from += page.entries.len() as u64;
            found.extend(merges(&page.entries));
        }
        Some(found)
    }

    async fn fetch_route(&mut self, route: &Route) -> Result<Fetched> {
        let whole = route.checkpoint.map(|(_, blob)| ("the model", blob));
        let deltas = route.deltas.iter().map(|it| ("a delta", it.blob));
        for (what, blob) in whole.into_iter().chain(deltas) {
            match self.try_fetch(what, blob).await? {
                Fetched::Here => {}
                missing => return Ok(missing),
            }
        }
        Ok(Fetched::Here)
    }

    /// The model afterwards, or why there is none.
    async fn apply_route(&mut self, route: &Route) -> Result<Result<Held>> {
        let (route, cache) = (route.clone(), self.cache.clone());
        with_machine(&mut self.machine, move |machine| {
            let read = |blob: BlobReference| {
                cache
                    .get(&blob.hash)?
                    .with_context(|| format!("blob {} left the cache too early", blob.hash.short()))
            };
            if let Some((round, blob)) = route.checkpoint {
                machine.load_checkpoint(round, &read(blob)?)?;
            }
            for delta in &route.deltas {
                machine.apply_delta(delta.round, &read(delta.blob)?, delta.after)?;
            }
            machine.held().context("no model was loaded")
        })
        .await
    }

    /// Keeps the model that is held for the next start, if that of so many rounds ago is the last that was kept. Without it
    /// the next start downloads more, and nothing else.
    pub(super) async fn keep_model(&mut self, rounds: u64) {
        let Some(held) = self.held() else {
            return;
        };
        let is_due = self
            .kept_round
            .is_none_or(|it| it.saturating_add(rounds) <= held.round || held.round < it);
        if !is_due {
            return;
        }
        self.kept_round = Some(held.round);
        let (file, held_at) = (self.kept_model.clone(), self.held_at);
        let kept = with_machine(&mut self.machine, move |machine| {
            machine.keep_model(held_at, &file)
        });
        if let Err(error) = kept.await.flatten() {
            tracing::warn!("the model is not kept for the next start: {error:#}");
        }
    }

    async fn forget_model(&mut self) -> Result<()> {
        self.held_at = 0;
        with_machine(&mut self.machine, super::Machine::forget_model).await
    }

    /// Fetches a blob, shows how far it is; false if it did not come (then the problem was shown) or the owner said stop.
    ///
    /// # Errors
    /// What waiting does not mend: the cache is too small, the disk.
    pub(super) async fn fetch(&mut self, what: &'static str, blob: BlobReference) -> Result<bool> {
        Ok(self.try_fetch(what, blob).await? == Fetched::Here)
    }

    async fn try_fetch(&mut self, what: &'static str, blob: BlobReference) -> Result<Fetched> {
        if self.cache.contains(&blob) {
            self.source.publish(blob.hash);
            return Ok(Fetched::Here);
        }
        let (sender, mut receiver) = tokio::sync::watch::channel(0);
        let source = self.source.clone();
        let download = source.download(blob, move |bytes| {
            sender.send_replace(bytes);
        });
        tokio::pin!(download);
        let result = loop {
            let bytes = *receiver.borrow_and_update();
            self.show(Activity::Downloading {
                what,
                bytes,
                bytes_total: blob.bytes,
            });
            tokio::select! {
                biased;
                result = &mut download => break result,
                () = tokio::time::sleep(self.tell_every) => {}
                () = self.shutdown.cancelled() => return Ok(Fetched::NotNow),
            }
        };
        match result {
            Ok(()) => Ok(Fetched::Here),
            Err(error @ TransferError::Cache { .. }) => Err(error.into()),
            Err(error) => {
                let is_nowhere = !error.is_temporary();
                self.try_again(&format!("downloading {what}"), &error.into())
                    .await;
                Ok(match is_nowhere {
                    true => Fetched::Nowhere,
                    false => Fetched::NotNow,
                })
            }
        }
    }

    /// Fetches in the background what leads on from `base` to the newest model, if that is known by deltas; what it sends
    /// is in order.
    pub(super) fn follow_model(&self, work: &Work, base: Held) -> Option<JoinHandle<Vec<Newer>>> {
        let is_here = |it: &BlobReference| self.cache.contains(it);
        let deltas = Target::of(work).ok()?.route(Some(base), None, is_here);
        if deltas.checkpoint.is_some() || deltas.deltas.is_empty() {
            return None;
        }
        let (source, cache) = (self.source.clone(), self.cache.clone());
        Some(tokio::spawn(async move {
            let mut newer = Vec::new();
            for step in deltas.deltas {
                if let Err(error) = source.download(step.blob, |_| {}).await {
                    // The round goes on from its base; the next one asks again.
                    tracing::debug!("following the model: {:#}", anyhow::Error::from(error));
                    return vec![];
                }
                let Ok(Some(bytes)) = cache.get(&step.blob.hash) else {
                    return vec![];
                };
                newer.push(Newer {
                    round: step.round,
                    after: step.after,
                    delta: bytes.into(),
                });
            }
            newer
        }))
    }

    /// Fetches training text while the machine computes: all of it if half of the cache holds it, else that of the next
    /// two rounds, which are known ahead.
    pub(super) fn prefetch(&mut self, work: &Work) {
        let training = &self.charter.data.training;
        let total: u64 = training.iter().map(|it| it.blob.bytes).sum();
        let is_small = total <= self.cache.bytes_max() / 2;
        let shards: BTreeSet<u32> = if is_small {
            (0..training.len() as u32).collect()
        } else {
            work.ahead
                .iter()
                .filter_map(|it| it.seed.parse().ok())
                .flat_map(|seed| assigned_shards(&self.charter, &seed, &self.worker))
                .collect()
        };
        let is_busy = self
            .prefetching
            .as_ref()
            .is_some_and(|it| !it.is_finished());
        let blobs: Vec<BlobReference> = shards
            .iter()
            .map(|&it| training[it as usize].blob)
            .filter(|it| !self.cache.contains(it))
            .collect();
        if blobs.is_empty() || is_busy {
            return;
        }
        self.prefetching = Some(fetch_ahead(&self.source, blobs, &self.shutdown));
    }

    /// Brings the shards of an assignment into memory; false as with [`Self::fetch`].
    pub(super) async fn load_shards(&mut self, assigned: &[u32]) -> Result<bool> {
        self.shards.trim(assigned);
        for &shard in assigned {
            if self.shards.contains(shard) {
                continue;
            }
            let blob = self.charter.data.training[shard as usize].blob;
            if !self.fetch("training text", blob).await? {
                return Ok(false);
            }
            let (charter, cache) = (self.charter.clone(), self.cache.clone());
            let decoded = world::blocking(move || {
                let bytes = cache.get(&blob.hash)?;
                bytes
                    .map(|bytes| shards::decode(&charter, shard, &bytes))
                    .transpose()
            });
            // A blob that went bad on disk is fetched again the next time round.
            let Some(tokens) = decoded.await.context("reading training text panicked")?? else {
                return Ok(false);
            };
            self.shards.insert(shard, tokens);
        }
        Ok(true)
    }
}
