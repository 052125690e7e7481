//! Norms, their median, and the factor that clips each tensor of each update to it: integers throughout.
//!
//! An update whose tensor is larger than the median of the round's is scaled down to it, so one worker can't outweigh
//! the others by size (Covenant-72B, section 2.2). The median is the lower one, over the updates that say anything about
//! the tensor: silence has no scale, and an update of nothing must not clip all others to nothing.

/// 1.0 in Q24, the fixed point of factors and weights.
pub const ONE_Q24: u32 = 1 << 24;

/// The norm whose exact square is given, rounded down; units are the square root of the square's.
pub fn norm(squared: u128) -> u64 {
    // A square root of 128 bits has at most 64.
    squared.isqrt() as u64
}

/// The lower median of the norms that aren't zero; 0 if all are.
pub fn median(norms: impl IntoIterator<Item = u64>) -> u64 {
    let mut norms: Vec<u64> = norms.into_iter().filter(|&norm| norm != 0).collect();
    if norms.is_empty() {
        return 0;
    }
    let middle = (norms.len() - 1) / 2;
    *norms.select_nth_unstable(middle).1
}

/// `min(1, median / norm)` in Q24, rounded down; 1 for a norm of zero.
pub fn clip_factor_q24(norm: u64, median: u64) -> u32 {
    if norm <= median || norm == 0 {
        return ONE_Q24;
    }
    (u128::from(median) * u128::from(ONE_Q24) / u128::from(norm)) as u32
}

/// The clip factor of every tensor of every update, from `norms[update][tensor]`.
///
/// Panics if updates have different numbers of tensors.
pub fn clip_factors_q24(norms: &[Vec<u64>]) -> Vec<Vec<u32>> {
    let tensors = norms.first().map_or(0, Vec::len);
    assert!(
        norms.iter().all(|of_update| of_update.len() == tensors),
        "the updates are of one model"
    );
    let medians: Vec<u64> = (0..tensors)
        .map(|tensor| median(norms.iter().map(|norms| norms[tensor])))
        .collect();
    norms
        .iter()
        .map(|norms| {
            norms
                .iter()
                .zip(&medians)
                .map(|(&norm, &median)| clip_factor_q24(norm, median))
                .collect()
        })
        .collect()
}
