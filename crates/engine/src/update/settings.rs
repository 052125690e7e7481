//! Settings of the codecs and of the merge, as they stand in a charter: integers only, so that every reader sees the
//! same numbers. Fractions are fixed point: `_q16` counts 2⁻¹⁶.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::chunks::CHUNK_MAX;

/// 1.0 in Q16.
pub const ONE_Q16: u32 = 1 << 16;

/// The largest outer rate, 16.0: beyond it a step could leave `i64`'s comfortable range, and no run needs it.
pub const OUTER_RATE_Q16_MAX: u32 = 16 * ONE_Q16;

/// Top-k by magnitude with two magnitudes a chunk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SparseSettings {
    /// Parameters in a chunk.
    pub chunk: u32,
    /// Values kept of a whole chunk; of a short one in proportion, rounded up.
    pub kept: u32,
}

impl Default for SparseSettings {
    /// What converged best at small size: 128 of 4096.
    fn default() -> Self {
        Self {
            chunk: 4096,
            kept: 128,
        }
    }
}

/// The width of a dense value.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseWidth {
    /// 8 bits, −127 to 127.
    Eight,
    /// 16 bits, −32767 to 32767.
    Sixteen,
}

impl DenseWidth {
    /// Bytes for one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::Sixteen => 2,
        }
    }
}

/// Every value, with one power-of-two scale a chunk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DenseSettings {
    /// Parameters in a chunk.
    pub chunk: u32,
    /// Bits of a value.
    pub width: DenseWidth,
}

/// How a worker's update is written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateSettings {
    /// Top-k, for home uplinks.
    Sparse(SparseSettings),
    /// Everything, for local networks and as a baseline (DiLoCo).
    Dense(DenseSettings),
}

impl Default for UpdateSettings {
    fn default() -> Self {
        Self::Sparse(SparseSettings::default())
    }
}

/// How the published delta is written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeltaSettings {
    /// The largest values of each chunk, four bits each; the rest waits in the public residual.
    Sparse(SparseSettings),
    /// Every value in 16 bits or 8.
    Dense(DenseSettings),
}

impl Default for DeltaSettings {
    /// 512 of 4096.
    fn default() -> Self {
        Self::Sparse(SparseSettings {
            chunk: 4096,
            kept: 512,
        })
    }
}

/// How the updates of a round are merged.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSettings {
    /// The outer rate, Q16: what a merged step is multiplied by.
    pub outer_rate_q16: u32,
    /// Nesterov momentum of the outer step, Q16, below 1.0; absent for none.
    pub momentum_q16: Option<u32>,
    /// The least denominator of a coordinate as a part of all weights, Q16, at most 1.0: 0 is the mean over its
    /// senders, 1.0 the mean over all updates.
    pub denominator_floor_q16: u32,
    /// How the delta is written.
    pub delta: DeltaSettings,
}

impl Default for MergeSettings {
    /// Rate 1, no momentum, a floor of one half.
    fn default() -> Self {
        Self {
            outer_rate_q16: ONE_Q16,
            momentum_q16: None,
            denominator_floor_q16: ONE_Q16 / 2,
            delta: DeltaSettings::default(),
        }
    }
}

/// Why settings can't be used.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SettingsError {
    /// A chunk of no parameters, or of more than [`CHUNK_MAX`].
    #[error("a chunk of {chunk} parameters is not between 1 and {CHUNK_MAX}")]
    Chunk {
        /// The length asked for.
        chunk: u32,
    },
    /// Nothing kept, or more than there is.
    #[error("{kept} values can't be kept of a chunk of {chunk}")]
    Kept {
        /// Values asked for.
        kept: u32,
        /// Parameters in a chunk.
        chunk: u32,
    },
    /// An outer rate of zero or over [`OUTER_RATE_Q16_MAX`].
    #[error("the outer rate {rate_q16}/65536 is not between 0 and 16")]
    OuterRate {
        /// The rate asked for.
        rate_q16: u32,
    },
    /// A momentum of 1.0 or more, which never forgets.
    #[error("the outer momentum {momentum_q16}/65536 is not below 1")]
    Momentum {
        /// The momentum asked for.
        momentum_q16: u32,
    },
    /// A floor over 1.0.
    #[error("the denominator's floor {floor_q16}/65536 is over 1")]
    DenominatorFloor {
        /// The floor asked for.
        floor_q16: u32,
    },
}

impl SparseSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingsError::Chunk`], [`SettingsError::Kept`].
    pub fn check(&self) -> Result<(), SettingsError> {
        check_chunk(self.chunk)?;
        if self.kept == 0 || self.kept > self.chunk {
            return Err(SettingsError::Kept {
                kept: self.kept,
                chunk: self.chunk,
            });
        }
        Ok(())
    }

    /// How many values are kept of a chunk of `length` parameters: in proportion, rounded up.
    pub fn kept_of(&self, length: usize) -> usize {
        (self.kept as usize * length).div_ceil(self.chunk as usize)
    }
}

impl DenseSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingsError::Chunk`].
    pub fn check(&self) -> Result<(), SettingsError> {
        check_chunk(self.chunk)
    }
}

impl UpdateSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check(&self) -> Result<(), SettingsError> {
        match self {
            Self::Sparse(sparse) => sparse.check(),
            Self::Dense(dense) => dense.check(),
        }
    }
}

impl DeltaSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check(&self) -> Result<(), SettingsError> {
        match self {
            Self::Sparse(sparse) => sparse.check(),
            Self::Dense(dense) => dense.check(),
        }
    }
}

impl MergeSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check(&self) -> Result<(), SettingsError> {
        if self.outer_rate_q16 == 0 || self.outer_rate_q16 > OUTER_RATE_Q16_MAX {
            return Err(SettingsError::OuterRate {
                rate_q16: self.outer_rate_q16,
            });
        }
        if let Some(momentum_q16) = self.momentum_q16.filter(|&momentum| momentum >= ONE_Q16) {
            return Err(SettingsError::Momentum { momentum_q16 });
        }
        if self.denominator_floor_q16 > ONE_Q16 {
            return Err(SettingsError::DenominatorFloor {
                floor_q16: self.denominator_floor_q16,
            });
        }
        self.delta.check()
    }
}

fn check_chunk(chunk: u32) -> Result<(), SettingsError> {
    if chunk == 0 || chunk as usize > CHUNK_MAX {
        return Err(SettingsError::Chunk { chunk });
    }
    Ok(())
}
