//! A whole round in one call, as the hub closes it and as anyone checks it.

use super::decoded::DecodedUpdate;
use super::delta::{self, Delta};
use super::merge::{self, MergeError, UpdateReport, Weighted};
use super::outer::OuterState;
use super::settings::MergeSettings;

/// What a round publishes.
#[derive(Clone, Debug)]
pub struct MergedRound {
    /// The delta as everyone fetches it.
    pub delta_bytes: Vec<u8>,
    /// The same delta, decoded.
    pub delta: Delta,
    /// What became of each update, in the caller's order.
    pub updates: Vec<UpdateReport>,
    /// How often the outer state saturated: zero in a run that works.
    pub saturated: u64,
}

/// Merges the updates of a round (each with its weight; all with the same standing), takes the delta out of the residual and applies it.
///
/// A pure function of its arguments, the same bits on every machine; only the order of [`MergedRound::updates`] follows
/// that of the updates. Hash `theta` with [`super::hash::parameters_hash`] and `outer` with [`OuterState::hash`] for the
/// round's event.
///
/// # Errors
/// [`MergeError`]; `theta` and `outer` are then unchanged.
pub fn merge_round(
    theta: &mut [f32],
    outer: &mut OuterState,
    updates: &[(DecodedUpdate, u64)],
    settings: &MergeSettings,
) -> Result<MergedRound, MergeError> {
    let weighted: Vec<_> = updates
        .iter()
        .map(|(update, weight)| Weighted {
            update,
            weight: *weight,
            standing: 0,
        })
        .collect();
    merge_weighted(theta, outer, &weighted, settings)
}

/// [`merge_round`] of updates that somebody else holds.
///
/// # Errors
/// [`MergeError`]; `theta` and `outer` are then unchanged.
pub fn merge_weighted(
    theta: &mut [f32],
    outer: &mut OuterState,
    updates: &[Weighted<'_>],
    settings: &MergeSettings,
) -> Result<MergedRound, MergeError> {
    let first = updates.first().ok_or(MergeError::NoUpdates)?;
    let chunks = first.update.chunks();
    if theta.len() != chunks.total() {
        return Err(MergeError::Length {
            expected: chunks.total(),
            found: theta.len(),
        });
    }
    let report = merge::merge(updates, settings, outer)?;
    let delta = Delta::take(chunks.lengths(), &settings.delta, &mut outer.residual);
    delta::apply_delta(theta, &delta);
    Ok(MergedRound {
        delta_bytes: delta.encode(),
        delta,
        updates: report.updates,
        saturated: report.saturated,
    })
}
