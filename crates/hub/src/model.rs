//! The run's model in memory: parameters and public residual, changed by merges alone.
//!
//! What is computed is [`engine::replay`]'s, the same for the hub and for whoever checks it; here it meets store and blobs.

mod rebuild;

use std::sync::Arc;

use anyhow::{Context, Result};
use engine::{
    ModelConfig,
    replay::{Rules, RunModel, copies::Compared, proportion::Measured},
    update::{decoded::DecodedUpdate, merge::Weighted},
};
use protocol::{
    Hash,
    charter::Charter,
    event::{Checkpoint, ModelState, RefusalReason},
    units::{BlobReference, RunId},
    update::{self, UpdateHeader},
};

pub(crate) use self::rebuild::Rebuilt;
use crate::blobs::Blobs;

/// What a charter means for the arithmetic.
#[derive(Clone)]
pub(crate) struct Arithmetic {
    pub(crate) config: ModelConfig,
    rules: Rules,
}

/// One model: what a round starts from and a merge makes.
pub(crate) type Model = RunModel;

/// A merge that was computed and not yet decided on.
pub(crate) struct Merge {
    pub(crate) model: Model,
    pub(crate) delta: Vec<u8>,
}

/// One update as a merge takes it.
pub(crate) struct Part {
    pub(crate) hash: Hash,
    pub(crate) weight: u64,
    pub(crate) tokens: u64,
    /// Its maker's accepted tokens before the merge.
    pub(crate) standing: u64,
    pub(crate) update: Arc<DecodedUpdate>,
}

impl Arithmetic {
    /// Refuses charters beyond the engine's limits.
    pub(crate) fn new(charter: &Charter) -> Result<Self> {
        let rules = Rules::new(charter)?;
        Ok(Self {
            config: rules.config().clone(),
            rules,
        })
    }

    /// The longest file that any honest update, or the inner state beside it, has.
    pub(crate) fn upload_bytes_max(&self, is_update: bool) -> u64 {
        if is_update {
            self.rules.update_bytes_max()
        } else {
            self.rules.inner_state_bytes()
        }
    }

    /// Checks an update's bytes against what was committed to.
    pub(crate) fn judge(
        &self,
        bytes: &[u8],
        committed: &UpdateHeader,
    ) -> Result<DecodedUpdate, RefusalReason> {
        self.rules.judge(bytes, committed)
    }

    /// Checks the optimiser's m and v that a warm start publishes.
    pub(crate) fn judge_inner_state(&self, bytes: &[u8]) -> Result<(), RefusalReason> {
        self.rules.judge_inner_state(bytes)
    }

    /// The updates whose norm is out of proportion to the round's median.
    pub(crate) fn outliers(&self, parts: &[Part]) -> Vec<(Hash, RefusalReason)> {
        let measured: Vec<Measured> = parts
            .iter()
            .map(|it| Measured {
                norm: it.update.norm(),
                tokens: it.tokens,
                standing: it.standing,
            })
            .collect();
        let outliers = self.rules.outliers(&measured).into_iter();
        outliers
            .map(|(place, reason)| (parts[place].hash, reason))
            .collect()
    }

    /// Why a late update does not count beside what others had shown before (hash and file of each), if it does not.
    pub(crate) fn copied(
        &self,
        late: &Hash,
        bytes: &[u8],
        earlier: &[(Hash, bytes::Bytes)],
    ) -> Result<Option<RefusalReason>> {
        let decoded = |bytes| -> Result<DecodedUpdate> {
            let (_, payload) = update::open(bytes)?;
            Ok(self.rules.decode(payload)?)
        };
        let update = decoded(bytes)?;
        let compared = Compared::of(late, update.chunks().count());
        for (hash, bytes) in earlier {
            let copied = compared.copied(&update, &decoded(bytes)?, hash);
            if copied.is_some() {
                return Ok(copied);
            }
        }
        Ok(None)
    }

    /// The first model of a run.
    pub(crate) fn first_model(&self, parameters: Vec<f32>) -> Model {
        self.rules.first_model(parameters)
    }

    /// Computes a round's merge; a pure function of its arguments.
    pub(crate) fn merge(
        &self,
        model: &Model,
        round: u64,
        rate_q16: u32,
        parts: &[Part],
    ) -> Result<Merge> {
        let mut model = model.clone();
        let updates: Vec<Weighted<'_>> = parts
            .iter()
            .map(|it| Weighted {
                update: &it.update,
                weight: it.weight,
                standing: it.standing,
            })
            .collect();
        let merged = self.rules.merge(&mut model, round, rate_q16, &updates)?;
        if merged.saturated > 0 {
            tracing::warn!(
                round,
                saturated = merged.saturated,
                "values of the public residual were cut at its limit"
            );
        }
        Ok(Merge {
            model,
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
        let (rules, model) = (self.rules.clone(), model.clone());
        let stored = network::world::blocking(move || rules.store(&model, run)).await?;
        Ok(Checkpoint {
            parameters: blobs.put(stored.parameters).await?,
            outer: blobs.put(stored.outer).await?,
        })
    }

    /// Reads a stored model and checks that it is the one named.
    async fn load(&self, state: ModelState, stored: &Checkpoint, blobs: &Blobs) -> Result<Model> {
        let parameters = required(blobs, &stored.parameters).await?;
        let outer = required(blobs, &stored.outer).await?;
        Ok(self.rules.load(state, &parameters, &outer)?)
    }
}

async fn required(blobs: &Blobs, blob: &BlobReference) -> Result<bytes::Bytes> {
    blobs
        .read(blob)
        .await?
        .with_context(|| format!("the blob {} is missing", blob.hash))
}
