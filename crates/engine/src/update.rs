//! What a worker sends after a round, and how the updates of a round become one published delta.
//!
//! A worker compresses the difference that its inner steps made ([`feedback`], [`codec`]); the hub checks, clips and
//! merges the updates of a round ([`norms`], [`merge`]) and publishes one [`delta`]; everyone applies that delta
//! ([`delta::apply_delta`]), which is the only way the parameters change. [`round`] does the whole of it in one call.
//!
//! **Same bits everywhere.** Whatever strangers must agree on is integer arithmetic in units of 2⁻³⁰
//! ([`FRACTION_BITS`]), or one `f32` subtraction of an exactly representable number, never fused. The order in which
//! updates arrive changes nothing. `f32` enters once, in the worker, where [`codec::encode`] turns each number into an
//! integer by an exact scaling and one rounding.
//!
//! **Hostile bytes.** Every decoder here takes the tensor lengths and the settings from the charter, never from the
//! bytes; it allocates no more than the bytes it was given can justify; exactly one byte string exists for each value,
//! so a hash of the bytes is a hash of the value.
//!
//! The parameters are one flat `f32` vector, the tensors laid end to end; functions take the tensors' lengths.
//! Signatures, identities and commitments wrap these payloads in the protocol crate, never here.
//!
//! Method: SparseLoCo (arXiv 2508.15706): top-k per chunk, few bits, local error feedback, clip to the median norm; the
//! denominator between "mean over senders" and "mean over all" is measured in the engine's reference, section 6.

mod bits;
mod entries;
mod header;
mod magnitude;
mod select;

pub mod chunks;
pub mod settings;

pub mod codec;
pub mod decoded;
pub mod dense;
pub mod feedback;
pub mod sparse;

pub mod delta;
pub mod merge;
pub mod norms;
pub mod outer;
pub mod round;

pub mod carried;
pub mod hash;
pub mod inner_start;
pub mod leaves;
pub mod steps;

use thiserror::Error;

/// All decoded values are integers in units of 2⁻³⁰: fine enough for differences of 1e-9, wide enough for ±1.
pub const FRACTION_BITS: u32 = 30;

/// Every value of an update is smaller in magnitude than this many units (1.0): what a sum of weighted values needs to
/// stay within `i64`.
pub const VALUE_LIMIT: u32 = 1 << FRACTION_BITS;

/// Why the bytes of an update or of a delta were refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DecodeError {
    /// The bytes end before the last chunk does.
    #[error("the bytes end too early")]
    Truncated,
    /// Bytes are left after the last chunk.
    #[error("{count} bytes are left over")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// The unused bits of the last byte are not zero.
    #[error("the padding is not zero")]
    NonZeroPadding,
    /// The first four bytes are not the format's.
    #[error("not this format")]
    WrongMagic,
    /// A version of the format that this decoder doesn't know.
    #[error("version {version} of the format is unknown")]
    UnknownVersion {
        /// The version that the bytes claim.
        version: u8,
    },
    /// Another codec than the charter's.
    #[error("codec {kind} is not the one that the charter names")]
    WrongCodec {
        /// The codec that the bytes claim.
        kind: u8,
    },
    /// Other settings than the charter's.
    #[error("the settings differ from the charter's")]
    WrongSettings,
    /// Another number of tensors or of parameters than the model's.
    #[error("{tensors} tensors of {total} parameters in all are not this model's")]
    WrongShape {
        /// The number of tensors that the bytes claim.
        tensors: u32,
        /// The number of parameters that the bytes claim.
        total: u64,
    },
    /// A chunk says the long way that it is full, or claims more values than may be kept.
    #[error("chunk {chunk} has no canonical count")]
    NonCanonicalCount {
        /// The chunk, counted over all tensors.
        chunk: usize,
    },
    /// A position lies outside its chunk.
    #[error("a position lies outside chunk {chunk}")]
    PositionOutOfRange {
        /// The chunk, counted over all tensors.
        chunk: usize,
    },
    /// A magnitude that has a shorter form, is zero where it may not be, or is too large.
    #[error("chunk {chunk} has a magnitude that is not canonical")]
    NonCanonicalMagnitude {
        /// The chunk, counted over all tensors.
        chunk: usize,
    },
    /// The two magnitudes of a chunk are not in rising order, or one of them is never used.
    #[error("chunk {chunk} names magnitudes out of order or unused")]
    NonCanonicalLevels {
        /// The chunk, counted over all tensors.
        chunk: usize,
    },
    /// A shift beyond the format's range, or one that a larger shift could replace.
    #[error("chunk {chunk} has a shift that is not canonical")]
    NonCanonicalShift {
        /// The chunk, counted over all tensors.
        chunk: usize,
    },
    /// The most negative integer, which no encoder writes.
    #[error("chunk {chunk} has a value outside the symmetric range")]
    ValueOutOfRange {
        /// The chunk, counted over all tensors.
        chunk: usize,
    },
    /// The settings that the caller passed can't be used.
    #[error("the settings can't be used")]
    Settings(#[source] settings::SettingsError),
}
