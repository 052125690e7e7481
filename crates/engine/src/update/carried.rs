//! What a worker carries from one round to the next: its error feedback, and its inner optimiser's moments where the
//! charter carries them.
//!
//! An update commits to this state before and after, so that an auditor can repeat the round from it; the worker keeps
//! it over restarts in these bytes.

use std::io;

use thiserror::Error;

use super::hash::for_each_block;

const MAGIC: &[u8; 4] = b"AHcs";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 22;

/// The context of [`CarriedState::hash`].
const CONTEXT: &str = "athome 1 carried state";

/// The moments of AdamW, one of each for a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Running mean of gradients, m.
    pub first: Vec<f32>,
    /// Running mean of squared gradients, v; not negative.
    pub second: Vec<f32>,
}

/// Hands values over as bytes, little endian, block by block: for whoever keeps the parts of a state in files of their own.
///
/// # Errors
/// The first that `each` gives.
pub fn values_to_bytes(
    values: &[f32],
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut result = Ok(());
    for_each_block(values.iter().map(|value| value.to_le_bytes()), |block| {
        if result.is_ok() {
            result = each(block);
        }
    });
    result
}

/// The values of such bytes; what is left over at the end is ignored.
#[must_use]
pub fn values_of_bytes(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks().0.iter().copied();
    words.map(f32::from_le_bytes).collect()
}

/// A worker's state between rounds. All values are finite.
#[derive(Clone, Debug, PartialEq)]
pub struct CarriedState {
    /// Inner optimiser steps behind the moments: what AdamW's bias correction counts.
    pub step: u64,
    /// What earlier updates left out, one value for each parameter.
    pub error: Vec<f32>,
    /// The moments, if the charter carries them.
    pub moments: Option<Moments>,
}

/// Why the bytes of a carried state were refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum CarriedError {
    /// Not a carried state, or of an unknown version.
    #[error("not a carried state of version {VERSION}")]
    WrongFormat,
    /// With moments where the charter has none, or without where it has.
    #[error("the charter and the state disagree on moments")]
    WrongMoments,
    /// Of another model.
    #[error("the state is of {found} parameters, the model has {expected}")]
    WrongShape {
        /// Parameters of the model.
        expected: u64,
        /// Parameters that the bytes claim.
        found: u64,
    },
    /// Too few or too many bytes.
    #[error("{found} bytes instead of {expected}")]
    WrongLength {
        /// Bytes that such a state has.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A NaN or an infinity.
    #[error("value {index} is not finite")]
    NotFinite {
        /// Its place in error, m and v laid end to end.
        index: usize,
    },
    /// A second moment below zero, whose root AdamW would take.
    #[error("second moment {index} is negative")]
    NegativeSecondMoment {
        /// The parameter.
        index: usize,
    },
}

impl CarriedState {
    /// The state of a worker that starts: zeros.
    pub fn new(parameters: usize, moments: bool) -> Self {
        let zeros = || vec![0.0; parameters];
        Self {
            step: 0,
            error: zeros(),
            moments: moments.then(|| Moments {
                first: zeros(),
                second: zeros(),
            }),
        }
    }

    /// The hash that an update commits to: BLAKE3 of [`Self::to_bytes`] with a context of its own.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        self.write_bytes(|block| {
            hasher.update(block);
        });
        hasher.finalize().into()
    }

    /// The canonical bytes: magic, version, 1 if there are moments, step (`u64`), number of parameters (`u64`), error,
    /// m, v; little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(
            bytes_of(self.error.len(), self.moments.is_some()).unwrap_or_default(),
        );
        self.write_bytes(|block| bytes.extend_from_slice(block));
        bytes
    }

    /// Hands the canonical bytes to `sink`, block by block. Panics if the vectors have different lengths.
    pub fn write_bytes(&self, mut sink: impl FnMut(&[u8])) {
        sink(MAGIC);
        sink(&[VERSION, u8::from(self.moments.is_some())]);
        sink(&self.step.to_le_bytes());
        sink(&(self.error.len() as u64).to_le_bytes());
        let moments = self
            .moments
            .iter()
            .flat_map(|moments| [&moments.first, &moments.second]);
        for vector in std::iter::once(&self.error).chain(moments) {
            assert_eq!(
                vector.len(),
                self.error.len(),
                "one value for each parameter"
            );
            super::hash::for_each_block(vector.iter().map(|value| value.to_le_bytes()), &mut sink);
        }
    }

    /// Reads the state of a model with this many `parameters`, with or without moments as the charter says. Allocates
    /// only once the length is right.
    ///
    /// # Errors
    /// [`CarriedError`].
    pub fn from_bytes(
        bytes: &[u8],
        parameters: usize,
        moments: bool,
    ) -> Result<Self, CarriedError> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(CarriedError::WrongFormat)?;
        if header[..4] != *MAGIC || header[4] != VERSION || header[5] > 1 {
            return Err(CarriedError::WrongFormat);
        }
        if (header[5] == 1) != moments {
            return Err(CarriedError::WrongMoments);
        }
        let word =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let (step, found) = (word(6), word(14));
        if found != parameters as u64 {
            return Err(CarriedError::WrongShape {
                expected: parameters as u64,
                found,
            });
        }
        let expected = bytes_of(parameters, moments).unwrap_or(usize::MAX);
        if bytes.len() != expected {
            return Err(CarriedError::WrongLength {
                expected,
                found: bytes.len(),
            });
        }
        let values = body.as_chunks().0.iter().copied().map(f32::from_le_bytes);
        if let Some(index) = values.clone().position(|value| !value.is_finite()) {
            return Err(CarriedError::NotFinite { index });
        }
        let vector = |number: usize| {
            values
                .clone()
                .skip(number * parameters)
                .take(parameters)
                .collect::<Vec<f32>>()
        };
        let moments = moments.then(|| Moments {
            first: vector(1),
            second: vector(2),
        });
        if let Some(index) = moments
            .iter()
            .flat_map(|moments| &moments.second)
            .position(|&second| second < 0.0)
        {
            return Err(CarriedError::NegativeSecondMoment { index });
        }
        Ok(Self {
            step,
            error: vector(0),
            moments,
        })
    }
}

/// The length of a state's bytes; `None` if no machine could hold it.
fn bytes_of(parameters: usize, moments: bool) -> Option<usize> {
    parameters
        .checked_mul(if moments { 12 } else { 4 })?
        .checked_add(HEADER_BYTES)
}
