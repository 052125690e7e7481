//! What the hub carries from round to round, in public: the part of the merged steps that no delta has published yet,
//! and the outer momentum where the charter has one. Anyone who replays the log has the same bits.

use thiserror::Error;

use super::hash::for_each_block;

const MAGIC: &[u8; 4] = b"AHos";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 14;

/// The context of [`OuterState::hash`].
const CONTEXT: &str = "athome 1 outer state";

/// The outer state of a run: integers in units of 2⁻³⁰, one for each parameter.
///
/// Both vectors saturate at ±(2³¹ − 1), that is ±2.0, instead of failing: a round must close whatever its updates say,
/// and no step of a run that works comes near it. [`super::merge::MergeReport::saturated`] counts the cases.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OuterState {
    /// What the published deltas still owe: parameters = start − (sum of steps) + residual.
    pub residual: Vec<i32>,
    /// Nesterov momentum.
    pub momentum: Option<Vec<i32>>,
}

/// Why the bytes of an outer state were refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OuterStateError {
    /// Not an outer state, or of an unknown version.
    #[error("not an outer state of version {VERSION}")]
    WrongFormat,
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
    /// −2³¹, which saturation excludes.
    #[error("a value lies outside the symmetric range")]
    ValueOutOfRange,
}

impl OuterState {
    /// The state before the first round: zeros.
    pub fn new(parameters: usize, momentum: bool) -> Self {
        Self {
            residual: vec![0; parameters],
            momentum: momentum.then(|| vec![0; parameters]),
        }
    }

    /// The hash that a round's event names: BLAKE3 of [`Self::to_bytes`] with a context of its own.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        self.write_bytes(|block| {
            hasher.update(block);
        });
        hasher.finalize().into()
    }

    /// The canonical bytes: magic, version, 1 if there is momentum, number of parameters (`u64`), residual, momentum;
    /// little endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.residual.len() * 8);
        self.write_bytes(|block| bytes.extend_from_slice(block));
        bytes
    }

    /// Hands the canonical bytes to `sink`, block by block.
    pub fn write_bytes(&self, mut sink: impl FnMut(&[u8])) {
        sink(MAGIC);
        sink(&[VERSION, u8::from(self.momentum.is_some())]);
        sink(&(self.residual.len() as u64).to_le_bytes());
        for_each_block(
            self.residual.iter().map(|units| units.to_le_bytes()),
            &mut sink,
        );
        if let Some(momentum) = &self.momentum {
            assert_eq!(
                momentum.len(),
                self.residual.len(),
                "one momentum for each parameter"
            );
            for_each_block(momentum.iter().map(|units| units.to_le_bytes()), &mut sink);
        }
    }

    /// Reads the state of a model with this many `parameters`. Allocates only once the length is right.
    ///
    /// # Errors
    /// [`OuterStateError`].
    pub fn from_bytes(bytes: &[u8], parameters: usize) -> Result<Self, OuterStateError> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER_BYTES>()
            .ok_or(OuterStateError::WrongFormat)?;
        if header[..4] != *MAGIC || header[4] != VERSION || header[5] > 1 {
            return Err(OuterStateError::WrongFormat);
        }
        let found = u64::from_le_bytes(header[6..].try_into().expect("eight bytes"));
        if found != parameters as u64 {
            return Err(OuterStateError::WrongShape {
                expected: parameters as u64,
                found,
            });
        }
        let vectors = 1 + usize::from(header[5]);
        let expected = parameters.saturating_mul(4 * vectors);
        if body.len() != expected {
            return Err(OuterStateError::WrongLength {
                expected: expected.saturating_add(HEADER_BYTES),
                found: bytes.len(),
            });
        }
        let (residual, momentum) = body.split_at(parameters * 4);
        let residual = read_words(residual)?;
        let momentum = if vectors == 2 {
            Some(read_words(momentum)?)
        } else {
            None
        };
        Ok(Self { residual, momentum })
    }
}

fn read_words(bytes: &[u8]) -> Result<Vec<i32>, OuterStateError> {
    let words: Vec<i32> = bytes
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(i32::from_le_bytes)
        .collect();
    if words.contains(&i32::MIN) {
        return Err(OuterStateError::ValueOutOfRange);
    }
    Ok(words)
}
