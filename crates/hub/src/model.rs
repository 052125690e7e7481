//! The run's model in memory: parameters and public residual, changed by merges alone.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use engine::{
    ModelConfig, checkpoint,
    update::{
        codec,
        decoded::DecodedUpdate,
        hash::parameters_hash,
        inner_start, norms,
        outer::OuterState,
        round::merge_round,
        settings::{MergeSettings, UpdateSettings},
    },
};
use protocol::{
    Hash,
    charter::Charter,
    event::{Checkpoint, Event, ModelState, RefusalReason},
    log::Entry,
    units::{BlobReference, RunId, WorkerId},
    update::{self, UpdateHeader},
};

use crate::{blobs::Blobs, store::Store};

/// Log entries read at once while merges are redone.
const REPLAY_PAGE: u64 = 500;

/// What a charter means for the arithmetic.
#[derive(Clone)]
pub(crate) struct Arithmetic {
    pub(crate) config: ModelConfig,
    pub(crate) lengths: Vec<usize>,
    update: UpdateSettings,
    merge: MergeSettings,
    norm_ratio_max_q16: u32,
}

/// One model: what a round starts from and a merge makes.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) state: ModelState,
    pub(crate) parameters: Arc<Vec<f32>>,
    outer: Arc<OuterState>,
}

/// A merge that was computed and not yet decided on.
pub(crate) struct Merge {
    pub(crate) model: Model,
    pub(crate) delta: Vec<u8>,
}

/// One update as a merge takes it.
pub(crate) struct Part {
    pub(crate) worker: WorkerId,
    pub(crate) weight: u64,
    pub(crate) update: Arc<DecodedUpdate>,
}

impl Arithmetic {
    /// Refuses charters beyond the engine's limits.
    pub(crate) fn new(charter: &Charter) -> Result<Self> {
        engine::charter::check(charter)?;
        let config = engine::charter::model_config(&charter.model);
        Ok(Self {
            lengths: config.layout().lengths(),
            config,
            update: engine::charter::update_settings(&charter.outer),
            merge: engine::charter::merge_settings(&charter.outer),
            norm_ratio_max_q16: charter.outer.norm_ratio_max_q16,
        })
    }

    /// The longest file that any honest update, or the inner state beside it, has.
    pub(crate) fn upload_bytes_max(&self, is_update: bool) -> u64 {
        if !is_update {
            return inner_start::bytes_of(self.lengths.iter().sum()) as u64;
        }
        let payload = codec::update_bytes_max(&self.lengths, &self.update);
        (payload + update::MAGIC.len() + 2 + update::HEADER_BYTES_MAX) as u64
    }

    /// Checks an update's bytes against what was committed to.
    pub(crate) fn judge(
        &self,
        bytes: &[u8],
        committed: &UpdateHeader,
    ) -> Result<DecodedUpdate, RefusalReason> {
        let (header, payload) =
            update::open(bytes).map_err(|error| RefusalReason::Envelope(error.to_string()))?;
        if header != *committed {
            return Err(RefusalReason::Envelope(
                "the file's header is not the one committed to".to_owned(),
            ));
        }
        let decoded = codec::decode(payload, &self.lengths, &self.update)
            .map_err(|error| RefusalReason::Payload(error.to_string()))?;
        if decoded.norm() == 0 {
            return Err(RefusalReason::Norm("the update changes nothing".to_owned()));
        }
        Ok(decoded)
    }

    /// Checks the optimiser's m and v that a warm start publishes.
    pub(crate) fn judge_inner_state(&self, bytes: &[u8]) -> Result<(), RefusalReason> {
        inner_start::from_bytes(bytes, self.lengths.iter().sum())
            .map(|_| ())
            .map_err(|error| RefusalReason::Payload(format!("its inner state: {error}")))
    }

    /// The updates whose norm is out of proportion to the round's median.
    pub(crate) fn outliers(&self, parts: &[Part]) -> Vec<(WorkerId, RefusalReason)> {
        let norms: Vec<u64> = parts.iter().map(|it| it.update.norm()).collect();
        let median = norms::median(norms.iter().copied());
        let limit = (u128::from(median) * u128::from(self.norm_ratio_max_q16)) >> 16;
        parts
            .iter()
            .zip(&norms)
            .filter(|(_, norm)| u128::from(**norm) > limit)
            .map(|(part, norm)| {
                let times = *norm as f64 / median.max(1) as f64;
                let reason = format!("its norm is {times:.1} times the round's median");
                (part.worker, RefusalReason::Norm(reason))
            })
            .collect()
    }

    /// The first model of a run.
    pub(crate) fn first_model(&self, parameters: Vec<f32>) -> Model {
        let outer = OuterState::new(parameters.len(), self.merge.momentum_q16.is_some());
        Model {
            state: ModelState {
                round: 0,
                parameters: Hash(parameters_hash(&parameters)),
                outer: Hash(outer.hash()),
            },
            parameters: Arc::new(parameters),
            outer: Arc::new(outer),
        }
    }

    /// Computes a round's merge; a pure function of its arguments.
    pub(crate) fn merge(&self, model: &Model, round: u64, parts: &[Part]) -> Result<Merge> {
        let mut parameters = (*model.parameters).clone();
        let mut outer = (*model.outer).clone();
        let updates: Vec<(DecodedUpdate, u64)> = parts
            .iter()
            .map(|it| ((*it.update).clone(), it.weight))
            .collect();
        let merged = merge_round(&mut parameters, &mut outer, &updates, &self.merge)?;
        if merged.saturated > 0 {
            tracing::warn!(
                round,
                saturated = merged.saturated,
                "values of the public residual were cut at its limit"
            );
        }
        Ok(Merge {
            model: Model {
                state: ModelState {
                    round,
                    parameters: Hash(parameters_hash(&parameters)),
                    outer: Hash(outer.hash()),
                },
                parameters: Arc::new(parameters),
                outer: Arc::new(outer),
            },
            delta: merged.delta_bytes,
        })
    }

    /// Stores a model whole.
    pub(crate) async fn store(
        &self,
        model: &Model,
        run: RunId,
        blobs: &Blobs,
    ) -> Result<Checkpoint> {
        let (config, copy) = (self.config.clone(), model.clone());
        let (parameters, outer) = tokio::task::spawn_blocking(move || {
            let metadata = BTreeMap::from([
                ("athome.run".to_owned(), run.to_string()),
                ("athome.round".to_owned(), copy.state.round.to_string()),
                (
                    "athome.parameters".to_owned(),
                    copy.state.parameters.to_string(),
                ),
            ]);
            (
                checkpoint::to_safetensors(&config, &copy.parameters, &metadata),
                copy.outer.to_bytes(),
            )
        })
        .await?;
        Ok(Checkpoint {
            parameters: blobs.put(parameters).await?,
            outer: blobs.put(outer).await?,
        })
    }

    /// Reads a stored model and checks that it is the one named.
    async fn load(&self, state: ModelState, stored: &Checkpoint, blobs: &Blobs) -> Result<Model> {
        let parameters = required(blobs, &stored.parameters).await?;
        let outer = required(blobs, &stored.outer).await?;
        let parameters = checkpoint::from_safetensors(&parameters, &self.config)?;
        let outer = OuterState::from_bytes(&outer, parameters.len())?;
        ensure!(
            parameters_hash(&parameters) == state.parameters.0 && outer.hash() == state.outer.0,
            "the checkpoint of round {} is not the one that the log names",
            state.round
        );
        Ok(Model {
            state,
            parameters: Arc::new(parameters),
            outer: Arc::new(outer),
        })
    }

    /// Rebuilds the newest model after a start: the newest checkpoint, and the merges since then done again.
    pub(crate) async fn rebuild(&self, run: RunId, store: &Store, blobs: &Blobs) -> Result<Model> {
        let mut newest: Option<(ModelState, Checkpoint)> = None;
        let mut merges: Vec<Entry> = Vec::new();
        let mut from = 0;
        loop {
            let entries = store.entries(run, from, REPLAY_PAGE).await?;
            if entries.is_empty() {
                break;
            }
            from += entries.len() as u64;
            for entry in entries {
                match &entry.event {
                    Event::RunCreated {
                        model, checkpoint, ..
                    } => newest = Some((*model, *checkpoint)),
                    Event::CheckpointPublished { checkpoint, .. } => {
                        let Some(Event::RoundMerged { model, .. }) =
                            merges.last().map(|it| &it.event)
                        else {
                            bail!("a checkpoint stands before its merge");
                        };
                        newest = Some((*model, *checkpoint));
                        merges.clear();
                    }
                    Event::RoundMerged { .. } => merges.push(entry),
                    _ => {}
                }
            }
        }
        let (state, stored) = newest.context("the log has no checkpoint")?;
        let mut model = self.load(state, &stored, blobs).await?;
        for entry in merges {
            model = self.redo(&model, &entry, blobs).await?;
        }
        Ok(model)
    }

    /// Does a logged merge again from the updates it names.
    async fn redo(&self, model: &Model, entry: &Entry, blobs: &Blobs) -> Result<Model> {
        let Event::RoundMerged {
            round,
            updates,
            delta,
            model: logged,
        } = &entry.event
        else {
            bail!("log entry {} is not a merge", entry.index);
        };
        let mut parts = Vec::with_capacity(updates.len());
        for merged in updates {
            let bytes = required(blobs, &merged.update).await?;
            let (_, payload) = update::open(&bytes)?;
            parts.push(Part {
                worker: merged.worker,
                weight: merged.weight,
                update: Arc::new(codec::decode(payload, &self.lengths, &self.update)?),
            });
        }
        let redone = self.merge(model, *round, &parts)?;
        ensure!(
            redone.model.state == *logged && BlobReference::of(&redone.delta) == *delta,
            "round {round} merges to another model than the log names"
        );
        Ok(redone.model)
    }
}

async fn required(blobs: &Blobs, blob: &BlobReference) -> Result<bytes::Bytes> {
    blobs
        .read(blob)
        .await?
        .with_context(|| format!("the blob {} is missing", blob.hash))
}
