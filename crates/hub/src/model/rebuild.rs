//! The newest model after a start or a takeover: a stored checkpoint, and the merges since then done again.
//!
//! What the log names and is not here any more, or was never copied, is made anew where it can be: deltas and checkpoints
//! follow from the updates.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use engine::replay::proportion::Standings;
use protocol::{
    event::{Checkpoint, Event, MergedUpdate, ModelState},
    log::Entry,
    units::{BlobReference, RunId},
};

use super::{Arithmetic, Merged, Model, Part, Round};
use crate::{blobs::Blobs, store::Store};

/// Log entries read at once.
const PAGE: u64 = 500;

/// How far a model could be rebuilt.
pub(crate) struct Rebuilt {
    /// The newest one that could.
    pub(crate) model: Model,
    /// The entry whose merge could not be done again, and why; none if that is the log's newest model.
    pub(crate) stuck: Option<(u64, anyhow::Error)>,
}

/// The checkpoints that a log names.
struct Stored {
    /// By round: the model, its blobs, and how many entries the log had when the model was made.
    by_round: BTreeMap<u64, (ModelState, Checkpoint, u64)>,
    merges: BTreeMap<u64, (ModelState, u64)>,
}

impl Arithmetic {
    /// Rebuilds the newest model, or the newest one that can be rebuilt from what is here.
    ///
    /// # Errors
    /// The store, or no checkpoint is here.
    pub(crate) async fn rebuild(
        self: &Arc<Self>,
        run: RunId,
        store: &Store,
        blobs: &Blobs,
        bytes_max: usize,
    ) -> Result<Rebuilt> {
        let stored = Stored::read(run, store).await?;
        let (mut model, from) = self.newest_here(&stored, blobs).await?;
        let mut standings = Standings::default();
        let mut position = 0;
        loop {
            let entries = store.entries(run, position, PAGE).await?;
            if entries.is_empty() {
                return Ok(Rebuilt { model, stuck: None });
            }
            position += entries.len() as u64;
            for entry in entries {
                if from <= entry.index && matches!(entry.event, Event::RoundMerged { .. }) {
                    match self
                        .redo(&model, &entry, &standings, blobs, bytes_max)
                        .await
                    {
                        Ok(next) => model = next,
                        Err(error) => {
                            let stuck = Some((entry.index, error));
                            return Ok(Rebuilt { model, stuck });
                        }
                    }
                    self.store_again(&model, run, &stored, blobs).await?;
                }
                standings.count(merged_updates(&entry.event));
            }
        }
    }

    /// The newest checkpoint that is here whole, and the position that the merges after it begin at.
    async fn newest_here(&self, stored: &Stored, blobs: &Blobs) -> Result<(Model, u64)> {
        for (state, checkpoint, length) in stored.by_round.values().rev() {
            let mut is_here = true;
            for blob in [&checkpoint.parameters, &checkpoint.outer] {
                is_here &= blobs.length(&blob.hash).await? == Some(blob.bytes);
            }
            if is_here {
                let model = self.load(*state, checkpoint, blobs).await?;
                return Ok((model, *length));
            }
        }
        bail!("none of the checkpoints that the log names is here")
    }

    /// Makes a checkpoint that the log names and that is not here.
    async fn store_again(
        &self,
        model: &Model,
        run: RunId,
        stored: &Stored,
        blobs: &Blobs,
    ) -> Result<()> {
        let Some((_, named, _)) = stored.by_round.get(&model.state.round) else {
            return Ok(());
        };
        let made = self.store(model, run, blobs).await?;
        ensure!(
            made == *named,
            "a checkpoint comes out otherwise than the log names it"
        );
        Ok(())
    }

    /// Does a logged merge again from the updates it names, and keeps the delta.
    async fn redo(
        self: &Arc<Self>,
        model: &Model,
        entry: &Entry,
        standings: &Standings,
        blobs: &Blobs,
        bytes_max: usize,
    ) -> Result<Model> {
        let Event::RoundMerged {
            round,
            rate_q16,
            updates,
            delta,
            model: logged,
        } = &entry.event
        else {
            bail!("log entry {} is not a merge", entry.index);
        };
        let parts = updates.iter().map(|merged| Part {
            standing: standings.of(&merged.worker),
            merged: *merged,
            decoded: None,
        });
        let logged_round = Round {
            number: *round,
            rate_q16: *rate_q16,
            is_logged: true,
        };
        let redone = self.merge(model, logged_round, parts.collect(), blobs, bytes_max);
        let redone = match redone.await? {
            Merged::Whole(redone) => redone,
            Merged::Refused(refused) => match refused.first() {
                Some((hash, reason)) => bail!("the update {hash}: {}", reason.sentence()),
                None => bail!("an update of round {round} does not pass"),
            },
            Merged::Lost(lost) => bail!("the blob {} is missing", lost[0]),
        };
        ensure!(
            redone.model.state == *logged && BlobReference::of(&redone.delta) == *delta,
            "round {round} merges to another model than the log names"
        );
        blobs.put(redone.delta).await?;
        Ok(redone.model)
    }
}

impl Stored {
    async fn read(run: RunId, store: &Store) -> Result<Self> {
        let mut stored = Self {
            by_round: BTreeMap::new(),
            merges: BTreeMap::new(),
        };
        let mut position = 0;
        loop {
            let entries = store.entries(run, position, PAGE).await?;
            if entries.is_empty() {
                return Ok(stored);
            }
            position += entries.len() as u64;
            for entry in &entries {
                stored.note(entry)?;
            }
        }
    }

    fn note(&mut self, entry: &Entry) -> Result<()> {
        match &entry.event {
            Event::RunCreated {
                model, checkpoint, ..
            } => {
                self.by_round.insert(0, (*model, *checkpoint, 1));
            }
            Event::RoundMerged { model, .. } => {
                self.merges.insert(model.round, (*model, entry.index + 1));
            }
            Event::CheckpointPublished { round, checkpoint } => {
                // Merges may have followed while it was written.
                let merge = self.merges.get(round);
                let (model, length) = merge.context("a checkpoint stands before its merge")?;
                self.by_round.insert(*round, (*model, *checkpoint, *length));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The updates that an event merges.
fn merged_updates(event: &Event) -> &[MergedUpdate] {
    match event {
        Event::RoundMerged { updates, .. } => updates,
        _ => &[],
    }
}
