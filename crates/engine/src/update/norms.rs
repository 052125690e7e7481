//! Norms, their median, and the factor that clips each tensor of each update to it: integers throughout.
//!
//! An update whose tensor is larger than the median of the round's is scaled down to it, so one worker can't outweigh
//! the others by size (Covenant-72B, section 2.2). The median is over the updates that say anything about the tensor:
//! silence has no scale, and an update of nothing must not clip all others to nothing. Where two stand in the middle, it
//! is that of the half whose makers brought clearly more accepted work before ([`super::merge::Weighted::standing`]): a
//! newcomer with almost nothing must not clip to almost nothing the one other update of the round. Where neither did, it
//! is the lower of the two: what is much too large ruins a model, what is much too small only holds it up.

/// 1.0 in Q24, the fixed point of factors and weights.
pub const ONE_Q24: u32 = 1 << 24;

/// Of two halves of a round, the one with so many times the other's accepted work decides what is usual.
pub const CLEARLY_MORE: u128 = 2;

/// The norm whose exact square is given, rounded down; units are the square root of the square's.
pub fn norm(squared: u128) -> u64 {
    // A square root of 128 bits has at most 64.
    squared.isqrt() as u64
}

/// The median of the norms that aren't zero, each with the standing of its maker; 0 if all are.
pub fn median(norms: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    let mut norms: Vec<(u64, u64)> = norms.into_iter().filter(|it| it.0 != 0).collect();
    norms.sort_unstable();
    middle(&norms).map_or(0, |(lower, _)| norms[lower].0)
}

/// Where the median stands in a sorted list of norms and standings, twice; the two places in the middle if neither half
/// has [`CLEARLY_MORE`] standing than the other.
pub fn middle(sorted: &[(u64, u64)]) -> Option<(usize, usize)> {
    let upper = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        return Some((upper, upper));
    }
    let lower = upper.checked_sub(1)?;
    let standing = |half: &[(u64, u64)]| half.iter().map(|it| u128::from(it.1)).sum::<u128>();
    let (below, above) = (standing(&sorted[..upper]), standing(&sorted[upper..]));
    let is_clear = |more: u128, less: u128| more > 0 && more >= CLEARLY_MORE * less;
    Some(if is_clear(above, below) {
        (upper, upper)
    } else if is_clear(below, above) {
        (lower, lower)
    } else {
        (lower, upper)
    })
}

/// `min(1, median / norm)` in Q24, rounded down; 1 for a norm of zero.
pub fn clip_factor_q24(norm: u64, median: u64) -> u32 {
    if norm <= median || norm == 0 {
        return ONE_Q24;
    }
    (u128::from(median) * u128::from(ONE_Q24) / u128::from(norm)) as u32
}

/// The clip factor of every tensor of every update, from `norms[update][tensor]` and `standings[update]`.
///
/// Panics if updates have different numbers of tensors.
pub fn clip_factors_q24(norms: &[Vec<u64>], standings: &[u64]) -> Vec<Vec<u32>> {
    let tensors = norms.first().map_or(0, Vec::len);
    assert!(
        norms.iter().all(|of_update| of_update.len() == tensors),
        "the updates are of one model"
    );
    let medians: Vec<u64> = (0..tensors)
        .map(|tensor| {
            let of_tensor = norms.iter().map(|norms| norms[tensor]);
            median(of_tensor.zip(standings.iter().copied()))
        })
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
