//! A whole round in one call, as the hub closes it and as anyone checks it.

use super::decoded::DecodedUpdate;
use super::delta::{self, Delta};
use super::merge::{self, MergeError, Merging, UpdateReport, Weighted};
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
    let mut merging = merge::begin(updates, settings, outer)?;
    check(theta, &merging)?;
    merge::add_all(&mut merging, updates, outer);
    Ok(finish(theta, outer, merging))
}

/// Whether a merge that has begun is of these parameters.
///
/// # Errors
/// [`MergeError::Length`].
pub fn check(theta: &[f32], merging: &Merging) -> Result<(), MergeError> {
    let expected = merging.chunks().total();
    let found = theta.len();
    match found == expected {
        true => Ok(()),
        false => Err(MergeError::Length { expected, found }),
    }
}

/// Takes the delta out of the residual when every window was added, and applies it.
///
/// # Panics
/// If windows are left, or [`check`] refuses the parameters.
pub fn finish(theta: &mut [f32], outer: &mut OuterState, merging: Merging) -> MergedRound {
    let (chunks, settings) = (merging.chunks().clone(), *merging.settings());
    let report = merging.finish();
    let delta = Delta::take(chunks.lengths(), &settings.delta, &mut outer.residual);
    delta::apply_delta(theta, &delta);
    MergedRound {
        delta_bytes: delta.encode(),
        delta,
        updates: report.updates,
        saturated: report.saturated,
    }
}
