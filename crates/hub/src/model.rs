//! The run's model in memory: parameters and public residual, changed by merges alone.
//!
//! What is computed is [`engine::replay`]'s, the same for the hub and for whoever checks it; here it meets store and blobs.

mod merge;
mod rebuild;

use anyhow::{Context, Result};
use engine::{
    ModelConfig,
    replay::{Rules, RunModel},
    update::decoded::DecodedUpdate,
};
use protocol::{
    charter::Charter,
    event::{Checkpoint, ModelState, RefusalReason},
    units::{BlobReference, RunId},
    update::{self, UpdateHeader},
};

pub(crate) use self::{
    merge::{Merged, Part, Round},
    rebuild::Rebuilt,
};
use crate::blobs::Blobs;

/// What a charter means for the arithmetic.
#[derive(Clone)]
pub(crate) struct Arithmetic {
    pub(crate) config: ModelConfig,
    rules: Rules,
}

/// One model: what a round starts from and a merge makes.
pub(crate) type Model = RunModel;

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

    /// The values of an update's file that was accepted.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Result<DecodedUpdate> {
        let (_, payload) = update::open(bytes)?;
        Ok(self.rules.decode(payload)?)
    }

    /// The first model of a run.
    pub(crate) fn first_model(&self, parameters: Vec<f32>) -> Model {
        self.rules.first_model(parameters)
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
