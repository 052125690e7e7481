//! Error feedback: what an update leaves out is kept by its worker and added to the next one.
//!
//! `accumulated = decay · error + (start − trained)`, the update is what the codec makes of it, and the new error is
//! what is missing: `accumulated − decoded`. Three `f32` operations a parameter, never fused.
//! A worker that missed m rounds decays its error m times more; after a long absence it starts from zero (SparseLoCo,
//! arXiv 2508.15706, equation 2; dropping the error of lost work costs about 0.6 %, engine reference, section 6).

use super::codec::{self, EncodeError, from_units};
use super::decoded::DecodedUpdate;
use super::settings::UpdateSettings;

/// Turns a worker's error into what its update should say: `error ← decay · error + (base − theta)`.
///
/// `base` are the parameters that the round started from, `theta` the trained ones. Panics if lengths differ.
pub fn accumulate(error: &mut [f32], base: &[f32], theta: &[f32], decay: f32) {
    assert!(
        error.len() == base.len() && base.len() == theta.len(),
        "three vectors of one length"
    );
    for ((error, base), theta) in error.iter_mut().zip(base).zip(theta) {
        let kept = decay * *error;
        let moved = base - theta;
        *error = kept + moved;
    }
}

/// Takes what was sent out of what should have been: `accumulated ← accumulated − decoded`, the next round's error.
///
/// One rounding for each value sent, none for the others. Panics if the update is of another length.
pub fn subtract_decoded(accumulated: &mut [f32], update: &DecodedUpdate) {
    assert_eq!(
        accumulated.len(),
        update.chunks().total(),
        "the update is of another model"
    );
    update.for_each(|index, units| accumulated[index] -= from_units(units));
}

/// The worker's whole side: accumulates, encodes and leaves in `error` what the update doesn't say.
///
/// # Errors
/// [`EncodeError`]; `error` then holds the accumulated values, and the caller goes back to its carried state.
pub fn compress(
    lengths: &[usize],
    settings: &UpdateSettings,
    error: &mut [f32],
    base: &[f32],
    theta: &[f32],
    decay: f32,
) -> Result<Vec<u8>, EncodeError> {
    accumulate(error, base, theta, decay);
    let bytes = codec::encode(lengths, settings, error)?;
    let update =
        codec::decode(&bytes, lengths, settings).expect("what was just written can be read");
    subtract_decoded(error, &update);
    Ok(bytes)
}
