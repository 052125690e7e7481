//! A worker's update as bytes, and back: the entry points of both codecs.

use thiserror::Error;

use super::chunks::Chunks;
use super::decoded::{Body, DecodedUpdate};
use super::settings::{SettingsError, UpdateSettings};
use super::{DecodeError, FRACTION_BITS, VALUE_LIMIT, dense, sparse};

/// The first bytes of an update.
pub(super) const UPDATE_MAGIC: &[u8; 4] = b"AHup";

/// Why an update can't be written.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum EncodeError {
    /// A NaN or an infinity: the inner steps diverged.
    #[error("parameter {index} is not finite")]
    NotFinite {
        /// Its place in the flat vector.
        index: usize,
    },
    /// The vector doesn't have as many elements as the tensors.
    #[error("{found} values for {expected} parameters")]
    Length {
        /// Parameters of the model.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// The settings can't be used.
    #[error("the settings can't be used")]
    Settings(#[source] SettingsError),
}

/// Writes the update that stands for `accumulated` (one value per parameter, tensors of these `lengths` end to end).
///
/// The same input gives the same bytes on every machine. Values of 1.0 and more are cut to just under 1.0; the
/// remainder is the caller's to keep ([`super::feedback`]).
///
/// # Errors
/// [`EncodeError`].
pub fn encode(
    lengths: &[usize],
    settings: &UpdateSettings,
    accumulated: &[f32],
) -> Result<Vec<u8>, EncodeError> {
    settings.check().map_err(EncodeError::Settings)?;
    let chunk = match settings {
        UpdateSettings::Sparse(sparse) => sparse.chunk,
        UpdateSettings::Dense(dense) => dense.chunk,
    };
    let chunks = Chunks::new(lengths, chunk);
    if chunks.total() != accumulated.len() {
        return Err(EncodeError::Length {
            expected: chunks.total(),
            found: accumulated.len(),
        });
    }
    if let Some(index) = accumulated.iter().position(|value| !value.is_finite()) {
        return Err(EncodeError::NotFinite { index });
    }
    Ok(match settings {
        UpdateSettings::Sparse(settings) => sparse::encode(&chunks, *settings, accumulated),
        UpdateSettings::Dense(settings) => dense::encode_update(&chunks, *settings, accumulated),
    })
}

/// Reads an update of a model with these tensor `lengths` under the charter's `settings`.
///
/// Memory is bounded by the length of `bytes`, time by that and the number of tensors. Use [`update_bytes_max`] to
/// refuse an upload before it is read.
///
/// # Errors
/// [`DecodeError`], for anything but the one byte string that [`encode`] could have written for the same values.
pub fn decode(
    bytes: &[u8],
    lengths: &[usize],
    settings: &UpdateSettings,
) -> Result<DecodedUpdate, DecodeError> {
    settings.check().map_err(DecodeError::Settings)?;
    Ok(match settings {
        UpdateSettings::Sparse(settings) => {
            let chunks = Chunks::new(lengths, settings.chunk);
            let body = sparse::decode(bytes, &chunks, *settings)?;
            DecodedUpdate {
                chunks,
                body: Body::Sparse(body),
            }
        }
        UpdateSettings::Dense(settings) => {
            let chunks = Chunks::new(lengths, settings.chunk);
            let body = dense::decode_update(bytes, &chunks, *settings)?;
            DecodedUpdate {
                chunks,
                body: Body::Dense(body),
            }
        }
    })
}

/// A length in bytes that no update of such a model exceeds.
///
/// Panics on settings that their `check` refuses.
pub fn update_bytes_max(lengths: &[usize], settings: &UpdateSettings) -> usize {
    match settings {
        UpdateSettings::Sparse(settings) => {
            sparse::bytes_max(&Chunks::new(lengths, settings.chunk), *settings)
        }
        UpdateSettings::Dense(settings) => {
            dense::bytes_max(&Chunks::new(lengths, settings.chunk), *settings)
        }
    }
}

/// A finite number in units of 2⁻³⁰: an exact scaling, then one rounding, halves away from zero, cut to what an update
/// may hold.
pub(super) fn to_units(value: f32) -> i32 {
    let units = (f64::from(value) * f64::from(1 << FRACTION_BITS)).round();
    let limit = f64::from(VALUE_LIMIT - 1);
    units.clamp(-limit, limit) as i32
}

/// A number of units as `f32`; exact when it has at most 24 significant bits, as every decoded value has.
#[inline]
pub(super) fn from_units(units: i32) -> f32 {
    const UNIT: f32 = 1.0 / (1u32 << FRACTION_BITS) as f32;
    units as f32 * UNIT
}
