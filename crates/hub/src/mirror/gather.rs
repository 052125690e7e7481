//! The copy of a run's blobs: everything that its log names as part of the model, and what was committed to, as soon as the
//! hub gives it. Resumed where it stopped, checked by hash.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream};
use network::HubClient;
use protocol::{
    Hash, PublicKey, SecretKey,
    api::mirrors::{MIRROR_READ, MirrorRead},
    units::BlobReference,
};
use tokio_util::sync::CancellationToken;

use super::reach::Reach;
use crate::{
    blobs::{Blobs, PART_BYTES_MAX, Upload},
    run::{Parts, Run},
    sweep::Named,
};

/// Blobs fetched at once.
const PARALLEL: usize = 4;
/// Wait before what could not be had is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// A look at what is missing, even if no entry came.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What gathers a run's blobs.
pub(super) struct Gatherer {
    run: Run,
    parts: Parts,
    scope: Scope,
    /// Known to be here.
    held: HashSet<Hash>,
}

/// Which blobs.
enum Scope {
    /// Those without which nobody could go on from the log's end, and updates in progress. They don't wait for a large
    /// checkpoint that is on its way.
    Needed(Reach),
    /// All that the log names; those that are needed are left to the other.
    Named(Named),
}

impl Gatherer {
    /// For what is needed to go on from the log's end.
    pub(super) fn of_needed(run: Run, parts: Parts) -> Self {
        Self::new(run, parts, Scope::Needed(Reach::default()))
    }

    /// For everything that the log names.
    pub(super) fn of_named(run: Run, parts: Parts) -> Self {
        Self::new(run, parts, Scope::Named(Named::default()))
    }

    fn new(run: Run, parts: Parts, scope: Scope) -> Self {
        Self {
            run,
            parts,
            scope,
            held: HashSet::new(),
        }
    }

    /// Gathers until told to stop.
    pub(super) async fn gather(mut self, stop: CancellationToken) {
        let mut length = self.run.length.clone();
        let mut complaint = String::new();
        loop {
            length.mark_unchanged();
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = self.look(self.run.copied.source()) => looked,
            };
            let (trouble, pause) = match looked {
                Ok(0) => (String::new(), LOOK_EVERY),
                Ok(_) => (String::new(), AGAIN),
                Err(error) => (format!("{error:#}"), AGAIN),
            };
            if trouble != complaint && !trouble.is_empty() {
                tracing::warn!(run.id = %self.run.id.short(), "blobs are missing: {trouble}");
            }
            complaint = trouble;
            let pause = tokio::time::sleep(pause);
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
                changed = length.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Fetches what is missing from `source`, once; how much could not be had.
    pub(super) async fn look(&mut self, source: Option<HubClient>) -> Result<u64> {
        let rewinds = self.run.copied.rewinds();
        let missing = self.missing().await?;
        self.note(missing.len(), rewinds);
        let Some(source) = source else {
            return Ok(missing.len() as u64);
        };
        let reader = self.reader().await;
        let mut left: HashSet<Hash> = missing.iter().map(|it| it.hash).collect();
        let wanted: Vec<BlobReference> = match &self.scope {
            Scope::Needed(_) => missing,
            Scope::Named(_) => {
                let copied = &self.run.copied;
                let others = missing.into_iter();
                others.filter(|it| !copied.is_needed(&it.hash)).collect()
            }
        };
        let mut outcome = Ok(());
        let (blobs, run) = (self.parts.blobs.clone(), self.run.id);
        let (blobs, source) = (&blobs, &source);
        let read = |blob: &BlobReference| {
            let (key, hub) = reader.as_ref()?;
            Some(MirrorRead::sign(key, run, *hub, blob.hash).to_text())
        };
        let mut fetching = stream::iter(wanted)
            .map(|blob| (blob, read(&blob)))
            .map(|(blob, read)| async move {
                (blob, fetch(blobs, source, &blob, read.as_deref()).await)
            })
            .buffer_unordered(PARALLEL);
        while let Some((blob, fetched)) = fetching.next().await {
            match fetched {
                Ok(true) => {
                    self.held.insert(blob.hash);
                    left.remove(&blob.hash);
                    self.note(left.len(), rewinds);
                }
                Ok(false) => {}
                Err(error) => outcome = Err(error),
            }
        }
        tracing::debug!(run.id = %run.short(), left = left.len(), "gathered blobs");
        outcome.map(|()| left.len() as u64)
    }

    /// What is not here of what this gatherer is for.
    async fn missing(&mut self) -> Result<Vec<BlobReference>> {
        let (store, id) = (&self.parts.store, self.run.id);
        let (named, in_progress) = match &mut self.scope {
            Scope::Needed(reach) => {
                reach.read_on(store, id).await.context("reading the log")?;
                let in_progress = in_progress(&self.run).await;
                (reach.blobs().collect::<Vec<_>>(), in_progress)
            }
            Scope::Named(named) => {
                named.read_on(store, id).await.context("reading the log")?;
                let sizes = named.sizes();
                let named = sizes.map(|(hash, bytes)| BlobReference { hash, bytes });
                (named.collect(), Vec::new())
            }
        };
        let mut missing = HashMap::new();
        for blob in named.into_iter().chain(in_progress.iter().copied()) {
            if self.held.contains(&blob.hash) {
                continue;
            }
            if self.parts.blobs.length(&blob.hash).await? == Some(blob.bytes) {
                self.held.insert(blob.hash);
            } else {
                missing.insert(blob.hash, blob);
            }
        }
        if let Scope::Needed(reach) = &mut self.scope {
            reach.length(|it| self.held.contains(it));
            let needed = reach.needed().chain(in_progress);
            let needed: HashSet<Hash> = needed.map(|it| it.hash).collect();
            missing.retain(|hash, _| needed.contains(hash));
            self.run.copied.needs(missing.keys().copied().collect());
        }
        Ok(missing.into_values().collect())
    }

    /// Says how far the copy is. An update in progress may not be sent yet: it does not count as missing.
    fn note(&mut self, missing: usize, rewinds: u64) {
        let copied = &self.run.copied;
        match &mut self.scope {
            Scope::Needed(reach) => {
                let length = reach.length(|it| self.held.contains(it));
                copied.reaches(length, rewinds);
            }
            Scope::Named(_) => {
                let missing = missing as u64;
                copied.blobs_missing.store(missing, Ordering::Relaxed);
            }
        }
    }

    /// The key by which the run's hub gives updates that are not public, and that hub's.
    async fn reader(&self) -> Option<(SecretKey, PublicKey)> {
        let state = self.run.state.read().await;
        let (key, _) = self.parts.mirroring.may_take_over(&state.sealing)?;
        Some((key.clone(), state.sealing.hub()))
    }
}

/// Updates and inner states that were committed to, and the inner state that newcomers start from.
async fn in_progress(run: &Run) -> Vec<BlobReference> {
    let state = run.state.read().await;
    let commitments = crate::commitments(&state);
    let blobs = commitments.flat_map(|it| [Some(it.update), it.header.inner_state]);
    blobs.flatten().chain(state.inner_start).collect()
}

/// Fetches a blob whole; false if the source does not have it (yet).
async fn fetch(
    blobs: &Blobs,
    source: &HubClient,
    blob: &BlobReference,
    read: Option<&str>,
) -> Result<bool> {
    loop {
        let (offset, is_whole) = blobs.progress(&blob.hash).await?;
        if is_whole {
            return Ok(true);
        }
        let header = read.map(|it| (MIRROR_READ, it));
        let part = source.blob_part(blob, offset, PART_BYTES_MAX, header).await;
        let part = match part {
            Ok(part) => part,
            Err(error) if matches!(error.refusal_code(), Some("not_found" | "private")) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        match blobs.append(blob, offset, part).await? {
            Upload::Complete => return Ok(true),
            Upload::Partial(_) | Upload::WrongOffset(_) => {}
            Upload::WrongHash | Upload::TooLong => {
                bail!("{} gave other bytes than {}", source.address(), blob.hash)
            }
        }
    }
}
