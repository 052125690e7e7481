//! The computing half of a worker: model, optimiser, error feedback, and the work of a round. Blocking, no network.

mod measure;
#[cfg(target_os = "linux")]
mod paused;
mod round;
mod steps;

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use engine::{
    ModelConfig,
    train::InnerState,
    update::{
        carried::CarriedState, codec::update_bytes_max, delta, delta::Delta, hash::parameters_hash,
        inner_start, settings::UpdateSettings,
    },
};
use protocol::{Hash, charter::Charter, state::decide::fresh};

pub(crate) use measure::Measurement;
#[cfg(target_os = "linux")]
pub(crate) use paused::PausedRound;
pub(crate) use round::{Sealed, Task, Trained};
pub(crate) use steps::Newer;
#[cfg(target_os = "linux")]
pub(crate) use steps::Progress;

use crate::{
    carried::CarriedStore,
    ground::Steps,
    kept_model::{Kept, KeptModel},
};

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
    trainer: Box<dyn Steps>,
    /// The published model; only deltas change it.
    base: Vec<f32>,
    held: Option<Held>,
    /// Error feedback.
    error: Vec<f32>,
    /// What error and moments in memory are; `None` in the middle of a round.
    carried: Option<Carried>,
}

/// What a machine carries into a round, by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// No error feedback; these published moments, or zeros.
    Fresh(Option<Hash>),
    /// The state of this hash.
    State(Hash),
}

impl Carried {
    /// What an update names as carried in.
    pub(crate) fn hash(self) -> Hash {
        match self {
            Self::Fresh(_) => fresh(),
            Self::State(hash) => hash,
        }
    }
}

/// Bytes that a machine for this charter takes.
pub(crate) fn memory_bytes(charter: &Charter) -> u64 {
    engine::charter::worker_memory_bytes(charter)
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
    pub(crate) fn new(charter: Arc<Charter>, trainer: Box<dyn Steps>) -> Self {
        let config: ModelConfig = engine::charter::model_config(&charter.model);
        let parameters = config.parameter_count();
        Self {
            lengths: config.layout().lengths(),
            settings: engine::charter::update_settings(&charter.outer),
            trainer,
            base: vec![0.0; parameters],
            held: None,
            error: vec![0.0; parameters],
            carried: Some(Carried::Fresh(None)),
            charter,
        }
    }

    /// The class of machines that compute the same bits as this one.
    pub(crate) fn arithmetic(&self) -> String {
        self.trainer.arithmetic()
    }

    /// The model that is held, if one is.
    pub(crate) fn held(&self) -> Option<Held> {
        self.held
    }

    /// The parameters of that model.
    #[cfg(target_os = "linux")]
    pub(crate) fn parameters(&self) -> &[f32] {
        &self.base
    }

    /// What is carried in or out, unless a round is in the middle.
    pub(crate) fn carried(&self) -> Option<Carried> {
        self.carried
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

    /// Applies the delta of `round`, which must give parameters of hash `after`; gives it decoded. On an error no model is
    /// held.
    pub(crate) fn apply_delta(&mut self, round: u64, bytes: &[u8], after: Hash) -> Result<Delta> {
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
        Ok(delta)
    }

    /// Keeps the model that is held, if one is.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn keep_model(&self, held_at: u64, file: &KeptModel) -> Result<()> {
        match self.held {
            Some(held) => file.write(&Kept { held, held_at }, &self.base),
            None => Ok(()),
        }
    }

    /// Takes up the model that was kept, if it is whole; gives the length of the log when it was the newest.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn restore_model(&mut self, file: &KeptModel) -> Result<Option<u64>> {
        let Some((kept, parameters)) = file.read(self.base.len())? else {
            return Ok(None);
        };
        self.base = parameters;
        self.held = Some(kept.held);
        Ok(Some(kept.held_at))
    }

    /// Lets go of a model that turned out wrong; the next one begins with a checkpoint.
    pub(crate) fn forget_model(&mut self) {
        self.held = None;
    }

    /// Brings what is carried to the state that the log names, from memory or from disk; false if it is in neither, or the
    /// log names none: then [`Self::begin_fresh`].
    pub(crate) fn continue_from(&mut self, wanted: Hash, store: &CarriedStore) -> Result<bool> {
        if self.carried == Some(Carried::State(wanted)) {
            return Ok(true);
        }
        if wanted == fresh() {
            return Ok(false);
        }
        if let Some(state) = store.read(&wanted, self.base.len())?
            && state.moments.is_some() == self.charter.inner.carry_inner_state
        {
            self.set_carried(state);
            self.carried = Some(Carried::State(wanted));
            return Ok(true);
        }
        Ok(false)
    }

    /// Begins without error feedback, from published moments (their hash and bytes) or zeros.
    ///
    /// # Errors
    /// The bytes are no moments of this model.
    pub(crate) fn begin_fresh(&mut self, start: Option<(Hash, Vec<u8>)>) -> Result<()> {
        let wanted = Carried::Fresh(start.as_ref().map(|(hash, _)| *hash));
        if self.carried == Some(wanted) {
            return Ok(());
        }
        self.carried = None;
        // A round that could not be sealed may have taken the vector with it.
        self.error.clear();
        self.error.resize(self.base.len(), 0.0);
        match start {
            Some((_, bytes)) => {
                let (step, moments) = inner_start::from_bytes(&bytes, self.base.len())
                    .context("the run's published inner state")?;
                self.trainer.set_inner_state(InnerState {
                    m: moments.first,
                    v: moments.second,
                    step,
                });
            }
            None => self.reset_moments(),
        }
        self.carried = Some(wanted);
        Ok(())
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
pub(crate) mod tests;
