//! A run's model, recomputed from its log and the updates that the log names.
//!
//! The hub computes here what it publishes, and everyone else computes here whether that is true: the judgement on an
//! update's bytes, the rule for norms, the merge, the hashes, the stored checkpoint. One place, so that there is nothing
//! to disagree about. Pure functions of charter, log and bytes (design, "a run is a log").

pub mod copies;
pub mod proportion;
pub mod verify;

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    Hash,
    charter::Charter,
    event::{ModelState, RefusalReason},
    units::RunId,
    update::{self, UpdateHeader},
};
use thiserror::Error;

use self::proportion::Measured;
use crate::{
    charter::{self, CharterSettingsError},
    checkpoint::{self, CheckpointError},
    config::ModelConfig,
    update::{
        DecodeError, codec,
        decoded::DecodedUpdate,
        hash::parameters_hash,
        inner_start,
        merge::{MergeError, Merging, Norms, Share, Weighted},
        outer::{OuterState, OuterStateError},
        round::{self, MergedRound, merge_weighted},
        settings::{MergeSettings, UpdateSettings},
    },
};

/// What a charter means for the arithmetic.
#[derive(Clone, Debug)]
pub struct Rules {
    config: ModelConfig,
    lengths: Vec<usize>,
    update: UpdateSettings,
    merge: MergeSettings,
    norm_ratio_max_q16: u32,
}

/// What a round starts from and a merge makes. Clones share the vectors until one of them is merged into.
#[derive(Clone, Debug)]
pub struct RunModel {
    /// The model by hash, as the log names it.
    pub state: ModelState,
    /// The parameters, laid out as [`ModelConfig::layout`] says.
    pub parameters: Arc<Vec<f32>>,
    /// The public residual, and outer momentum where the charter has one.
    pub outer: Arc<OuterState>,
}

/// A model stored whole: the bytes of both blobs of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredModel {
    /// The parameters as safetensors.
    pub parameters: Vec<u8>,
    /// The public residual and outer momentum.
    pub outer: Vec<u8>,
}

/// Why a stored model was not taken.
#[derive(Debug, Error)]
pub enum StoredModelError {
    /// The parameters don't read.
    #[error("the stored parameters don't read")]
    Parameters(#[from] CheckpointError),
    /// The outer state doesn't read.
    #[error("the stored outer state doesn't read")]
    Outer(#[from] OuterStateError),
    /// They are another model's.
    #[error("the {what} stored for round {round} hash to {found}, the log says {expected}")]
    Other {
        /// Parameters or outer state.
        what: &'static str,
        /// The round that they are stored for.
        round: u64,
        /// Their hash.
        found: Hash,
        /// The hash in the log.
        expected: Hash,
    },
}

impl Rules {
    /// What this charter says.
    ///
    /// # Errors
    /// A charter beyond the engine's limits.
    pub fn new(charter: &Charter) -> Result<Self, CharterSettingsError> {
        charter::check(charter)?;
        let config = charter::model_config(&charter.model);
        Ok(Self {
            lengths: config.layout().lengths(),
            config,
            update: charter::update_settings(&charter.outer),
            merge: charter::merge_settings(&charter.outer),
            norm_ratio_max_q16: charter.outer.norm_ratio_max_q16,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Lengths of the model's tensors.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The charter's outer rate, Q16: what a merge takes where the log names no other.
    pub fn rate_q16(&self) -> u32 {
        self.merge.outer_rate_q16
    }

    /// How merges and deltas of the run are written.
    pub fn merge_settings(&self) -> &MergeSettings {
        &self.merge
    }

    /// The longest update file that an honest worker sends, in bytes.
    pub fn update_bytes_max(&self) -> u64 {
        let payload = codec::update_bytes_max(&self.lengths, &self.update);
        (payload + update::MAGIC.len() + 2 + update::HEADER_BYTES_MAX) as u64
    }

    /// The length of the inner state that a warm start publishes, in bytes.
    pub fn inner_state_bytes(&self) -> u64 {
        inner_start::bytes_of(self.parameters()) as u64
    }

    /// Reads an update's payload.
    ///
    /// # Errors
    /// It is not what the codec writes.
    pub fn decode(&self, payload: &[u8]) -> Result<DecodedUpdate, DecodeError> {
        codec::decode(payload, &self.lengths, &self.update)
    }

    /// Checks an update's bytes against what was committed to.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn judge(
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
        let decoded = self
            .decode(payload)
            .map_err(|error| RefusalReason::Payload(error.to_string()))?;
        if header.payload != Hash::of_blob(payload) {
            return Err(RefusalReason::Envelope(
                "its payload is not the one that its header names".to_owned(),
            ));
        }
        if decoded.norm() == 0 {
            return Err(RefusalReason::Norm("the update changes nothing".to_owned()));
        }
        Ok(decoded)
    }

    /// Checks the optimiser's m and v that a warm start publishes.
    ///
    /// # Errors
    /// Why they don't count.
    pub fn judge_inner_state(&self, bytes: &[u8]) -> Result<(), RefusalReason> {
        inner_start::from_bytes(bytes, self.parameters())
            .map(|_| ())
            .map_err(|error| RefusalReason::Payload(format!("its inner state: {error}")))
    }

    /// Which of a round's updates, by place in the list, are out of proportion to the round's median.
    pub fn outliers(&self, updates: &[Measured]) -> Vec<(usize, RefusalReason)> {
        proportion::outliers(updates, self.norm_ratio_max_q16)
    }

    /// The first model of a run.
    pub fn first_model(&self, parameters: Vec<f32>) -> RunModel {
        let outer = OuterState::new(parameters.len(), self.merge.momentum_q16.is_some());
        RunModel {
            state: ModelState {
                round: 0,
                parameters: Hash(parameters_hash(&parameters)),
                outer: Hash(outer.hash()),
            },
            parameters: Arc::new(parameters),
            outer: Arc::new(outer),
        }
    }

    /// Merges a round's updates into the model with this outer rate (Q16): what the hub does once and everyone can do
    /// again. Vectors that no clone shares are changed in place.
    ///
    /// # Errors
    /// [`MergeError`]; the model is then as before.
    pub fn merge(
        &self,
        model: &mut RunModel,
        round: u64,
        rate_q16: u32,
        updates: &[Weighted<'_>],
    ) -> Result<MergedRound, MergeError> {
        let settings = self.merge_settings_at(rate_q16);
        let merged = merge_weighted(
            &mut Arc::make_mut(&mut model.parameters)[..],
            Arc::make_mut(&mut model.outer),
            updates,
            &settings,
        )?;
        name(model, round);
        Ok(merged)
    }

    /// Begins [`Self::merge`] for updates that are not all in memory: each was measured, and every window of
    /// [`Merging::windows`] is added to the model's outer state before [`Self::finish_merge`].
    ///
    /// # Errors
    /// [`MergeError`].
    pub fn begin_merge(
        &self,
        model: &RunModel,
        rate_q16: u32,
        norms: Norms,
        shares: &[Share],
    ) -> Result<Merging, MergeError> {
        let settings = self.merge_settings_at(rate_q16);
        let merging = Merging::begin(norms, shares, &settings, &model.outer)?;
        round::check(&model.parameters, &merging)?;
        Ok(merging)
    }

    /// Ends a merge: takes the delta out of the residual and applies it.
    ///
    /// # Panics
    /// If windows are left, or the model is not the one that the merge began with.
    pub fn finish_merge(&self, model: &mut RunModel, round: u64, merging: Merging) -> MergedRound {
        let merged = round::finish(
            &mut Arc::make_mut(&mut model.parameters)[..],
            Arc::make_mut(&mut model.outer),
            merging,
        );
        name(model, round);
        merged
    }

    fn merge_settings_at(&self, rate_q16: u32) -> MergeSettings {
        MergeSettings {
            outer_rate_q16: rate_q16,
            ..self.merge
        }
    }

    /// A model as a checkpoint stores it. The same model gives the same bytes.
    pub fn store(&self, model: &RunModel, run: RunId) -> StoredModel {
        let metadata = BTreeMap::from(
            [
                ("athome.run", run.to_string()),
                ("athome.round", model.state.round.to_string()),
                ("athome.parameters", model.state.parameters.to_string()),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        StoredModel {
            parameters: checkpoint::to_safetensors(&self.config, &model.parameters, &metadata),
            outer: model.outer.to_bytes(),
        }
    }

    /// Reads a stored model and checks that it is the one named.
    ///
    /// # Errors
    /// [`StoredModelError`].
    pub fn load(
        &self,
        state: ModelState,
        parameters: &[u8],
        outer: &[u8],
    ) -> Result<RunModel, StoredModelError> {
        let parameters = checkpoint::from_safetensors(parameters, &self.config)?;
        let outer = OuterState::from_bytes(outer, parameters.len())?;
        for (what, found, expected) in [
            ("parameters", parameters_hash(&parameters), state.parameters),
            ("outer state", outer.hash(), state.outer),
        ] {
            if found != expected.0 {
                return Err(StoredModelError::Other {
                    what,
                    round: state.round,
                    found: Hash(found),
                    expected,
                });
            }
        }
        Ok(RunModel {
            state,
            parameters: Arc::new(parameters),
            outer: Arc::new(outer),
        })
    }
}

/// Names the model that a round's merge made.
fn name(model: &mut RunModel, round: u64) {
    model.state = ModelState {
        round,
        parameters: Hash(parameters_hash(&model.parameters)),
        outer: Hash(model.outer.hash()),
    };
}

#[cfg(test)]
mod tests;
