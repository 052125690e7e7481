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

use crate::{
    blobs::{PART_BYTES_MAX, Upload},
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
    named: Named,
    /// Known to be here.
    held: HashSet<Hash>,
}

impl Gatherer {
    pub(super) fn new(run: Run, parts: Parts) -> Self {
        Self {
            run,
            parts,
            named: Named::default(),
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

    /// Fetches what is missing from `source`, once; how much could not be had. Only what the log names counts as missing: an update in
    /// progress may not be sent yet.
    pub(super) async fn look(&mut self, source: Option<HubClient>) -> Result<u64> {
        self.named
            .read_on(&self.parts.store, self.run.id)
            .await
            .context("reading the log")?;
        let mut wanted: HashMap<Hash, u64> = self.named.sizes().collect();
        let in_progress: Vec<BlobReference> = {
            let state = self.run.state.read().await;
            let commitments = crate::commitments(&state);
            let blobs = commitments.flat_map(|it| [Some(it.update), it.header.inner_state]);
            blobs.flatten().chain(state.inner_start).collect()
        };
        let of_log = wanted.len();
        wanted.extend(in_progress.iter().map(|it| (it.hash, it.bytes)));
        let mut missing = Vec::new();
        for (hash, bytes) in wanted {
            if self.held.contains(&hash) {
                continue;
            }
            if self.parts.blobs.length(&hash).await? == Some(bytes) {
                self.held.insert(hash);
            } else {
                missing.push(BlobReference { hash, bytes });
            }
        }
        let is_pending = |hash: &Hash| in_progress.iter().any(|it| it.hash == *hash);
        let lacking = |missing: &[BlobReference]| {
            missing.iter().filter(|it| !is_pending(&it.hash)).count() as u64
        };
        let note = |left: u64| self.run.copied.blobs_missing.store(left, Ordering::Relaxed);
        note(lacking(&missing));
        if missing.is_empty() {
            return Ok(0);
        }
        let Some(source) = source else {
            return Ok(missing.len() as u64);
        };
        let reader = self.reader().await;
        let (this, source, reader) = (&*self, &source, reader.as_ref());
        let fetched: Vec<(BlobReference, Result<bool>)> = stream::iter(missing)
            .map(|blob| async move { (blob, this.fetch(source, &blob, reader).await) })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let mut outcome = Ok(());
        let mut left = Vec::new();
        for (blob, fetched) in fetched {
            match fetched {
                Ok(true) => {
                    self.held.insert(blob.hash);
                }
                Ok(false) => left.push(blob),
                Err(error) => {
                    left.push(blob);
                    outcome = Err(error);
                }
            }
        }
        let lacking = lacking(&left);
        self.run
            .copied
            .blobs_missing
            .store(lacking, Ordering::Relaxed);
        tracing::debug!(run.id = %self.run.id.short(), of_log, left = left.len(), "gathered blobs");
        outcome.map(|()| left.len() as u64)
    }

    /// The key by which the run's hub gives updates that are not public, and that hub's.
    async fn reader(&self) -> Option<(SecretKey, PublicKey)> {
        let state = self.run.state.read().await;
        let (key, _) = self.parts.mirroring.may_take_over(&state.sealing)?;
        Some((key.clone(), state.sealing.hub()))
    }

    /// Fetches a blob whole; false if the source does not have it (yet).
    async fn fetch(
        &self,
        source: &HubClient,
        blob: &BlobReference,
        reader: Option<&(SecretKey, PublicKey)>,
    ) -> Result<bool> {
        let read =
            reader.map(|(key, hub)| MirrorRead::sign(key, self.run.id, *hub, blob.hash).to_text());
        loop {
            let (offset, is_whole) = self.parts.blobs.progress(&blob.hash).await?;
            if is_whole {
                return Ok(true);
            }
            let header = read.as_deref().map(|it| (MIRROR_READ, it));
            let part = source.blob_part(blob, offset, PART_BYTES_MAX, header).await;
            let part = match part {
                Ok(part) => part,
                Err(error) if matches!(error.refusal_code(), Some("not_found" | "private")) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            };
            match self.parts.blobs.append(blob, offset, part).await? {
                Upload::Complete => return Ok(true),
                Upload::Partial(_) | Upload::WrongOffset(_) => {}
                Upload::WrongHash | Upload::TooLong => {
                    bail!("{} gave other bytes than {}", source.address(), blob.hash)
                }
            }
        }
    }
}
