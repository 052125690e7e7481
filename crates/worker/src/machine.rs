//! The computing half of a worker: model, optimiser, error feedback, and the work of a round. Blocking, no network.

mod measure;
mod round;

use std::sync::Arc;

use anyhow::{Result, bail};
use engine::{
    ModelConfig,
    train::{InnerState, Trainer},
    update::{
        carried::CarriedState, codec::update_bytes_max, delta, delta::Delta, hash::parameters_hash,
        settings::UpdateSettings,
    },
};
use protocol::{Hash, charter::Charter, state::decide::fresh};

pub(crate) use measure::Measurement;
pub(crate) use round::{Sealed, Task, Trained};

use crate::carried::CarriedStore;

/// Copies of the model's parameters beside the trainer's own: the base and the error feedback.
const COPIES: usize = 2;
/// Copies of m and v while a round's end is hashed and written.
const COPIES_AT_THE_END: usize = 2;

/// The model that a machine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The round whose merge made it.
    pub(crate) round: u64,
    /// Its parameters' hash.
    pub(crate) parameters: Hash,
}

/// Everything that training needs in memory.
pub(crate) struct Machine {
    charter: Arc<Charter>,
    lengths: Vec<usize>,
    settings: UpdateSettings,
    trainer: Trainer,
    /// The published model; only deltas change it.
    base: Vec<f32>,
    held: Option<Held>,
    /// Error feedback.
    error: Vec<f32>,
    /// The hash of error and moments as they are in memory; `None` in the middle of a round.
    carried: Option<Hash>,
}

/// Bytes that a machine for this charter takes.
pub(crate) fn memory_bytes(charter: &Charter) -> u64 {
    let config = engine::charter::model_config(&charter.model);
    let (rows, sequence) = batch(charter);
    let copies = 4 * config.parameter_count() * (COPIES + COPIES_AT_THE_END);
    (Trainer::memory_bytes(&config, rows, sequence) + copies) as u64
}

/// Upper bound of an update's payload in bytes.
pub(crate) fn upload_bytes_max(charter: &Charter) -> u64 {
    let config = engine::charter::model_config(&charter.model);
    let settings = engine::charter::update_settings(&charter.outer);
    update_bytes_max(&config.layout().lengths(), &settings) as u64
}

fn batch(charter: &Charter) -> (usize, usize) {
    (
        charter.inner.batch_rows as usize,
        charter.inner.sequence as usize,
    )
}

impl Machine {
    /// Allocates everything; the charter has passed [`engine::charter::check`].
    pub(crate) fn new(charter: Arc<Charter>, threads: usize) -> Self {
        let config: ModelConfig = engine::charter::model_config(&charter.model);
        let (rows, sequence) = batch(&charter);
        let trainer = Trainer::new(&config, rows, sequence, threads);
        let parameters = config.parameter_count();
        Self {
            lengths: config.layout().lengths(),
            settings: engine::charter::update_settings(&charter.outer),
            trainer,
            base: vec![0.0; parameters],
            held: None,
            error: vec![0.0; parameters],
            carried: Some(fresh()),
            charter,
        }
    }

    /// The model that is held, if one is.
    pub(crate) fn held(&self) -> Option<Held> {
        self.held
    }

    /// Takes a whole checkpoint as the model.
    pub(crate) fn load_checkpoint(&mut self, round: u64, safetensors: &[u8]) -> Result<()> {
        let config = engine::charter::model_config(&self.charter.model);
        self.held = None;
        self.base = engine::checkpoint::from_safetensors(safetensors, &config)?;
        let parameters = Hash(parameters_hash(&self.base));
        self.held = Some(Held { round, parameters });
        Ok(())
    }

    /// Applies the delta of `round`, which must give parameters of hash `after`. On an error no model is held.
    pub(crate) fn apply_delta(&mut self, round: u64, bytes: &[u8], after: Hash) -> Result<()> {
        let settings = engine::charter::merge_settings(&self.charter.outer).delta;
        let delta = Delta::decode(bytes, &self.lengths, &settings)?;
        self.held = None;
        delta::apply_delta(&mut self.base, &delta);
        let parameters = Hash(parameters_hash(&self.base));
        if parameters != after {
            bail!(
                "the delta of round {round} gives parameters {}, the hub says {}",
                parameters.short(),
                after.short()
            );
        }
        self.held = Some(Held { round, parameters });
        Ok(())
    }

    /// Lets go of a model that turned out wrong; the next one begins with a checkpoint.
    pub(crate) fn forget_model(&mut self) {
        self.held = None;
    }

    /// Brings what is carried to the state that the log names: from memory, from disk, or afresh. Gives the hash that
    /// the next update names as carried in.
    pub(crate) fn continue_from(
        &mut self,
        wanted: Option<Hash>,
        store: &CarriedStore,
    ) -> Result<Hash> {
        let wanted = wanted.unwrap_or_else(fresh);
        if self.carried == Some(wanted) {
            return Ok(wanted);
        }
        self.carried = None;
        if wanted != fresh() {
            if let Some(state) = store.read(&wanted, self.base.len())?
                && state.moments.is_some() == self.charter.inner.carry_inner_state
            {
                self.set_carried(state);
                self.carried = Some(wanted);
                return Ok(wanted);
            }
            tracing::warn!(carried = %wanted, "the carried state is not in this folder: starting afresh");
        }
        // A round that could not be sealed may have taken the vector with it.
        self.error.clear();
        self.error.resize(self.base.len(), 0.0);
        self.reset_moments();
        self.carried = Some(fresh());
        Ok(fresh())
    }

    fn set_carried(&mut self, state: CarriedState) {
        self.error = state.error;
        match state.moments {
            Some(moments) => self.trainer.set_inner_state(InnerState {
                m: moments.first,
                v: moments.second,
                step: state.step,
            }),
            None => self.reset_moments(),
        }
    }

    fn reset_moments(&mut self) {
        self.trainer
            .set_inner_state(InnerState::zeroed(self.base.len()));
    }
}

#[cfg(test)]
mod tests;
