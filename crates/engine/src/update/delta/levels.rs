//! Eight levels that cover a factor of 16, and the scale that suits a chunk.

/// The magnitudes that a delta can say, times a power of two.
pub(super) const LEVELS: [u32; 8] = [1, 2, 3, 4, 6, 8, 12, 16];

/// The largest shift: 16 << 27 is the first power of two that no residual reaches.
pub(super) const SHIFT_MAX: u32 = 27;

/// Twice the midpoints between the levels, zero included.
const DOUBLE_MIDPOINTS: [u64; 8] = [1, 3, 5, 7, 10, 14, 20, 28];

/// How many scales below the one that cuts nothing are tried. Cutting a few large values (their rest stays in the
/// residual) can be worth finer steps for the many.
const SHIFTS_TRIED: u32 = 3;

/// The index of the level nearest to `magnitude` (ties to the smaller), `None` if that is zero.
#[inline]
pub(super) fn nearest(magnitude: u32, shift: u32) -> Option<u32> {
    let double = u64::from(magnitude) * 2;
    let above: u32 = DOUBLE_MIDPOINTS
        .iter()
        .map(|midpoint| u32::from(double > midpoint << shift))
        .sum();
    above.checked_sub(1)
}

/// The shift with the least sum of squared errors over these magnitudes (below 2³¹), ties to the larger: from the
/// smallest shift that cuts none of them down to two below.
pub(super) fn shift_for(magnitudes: &[u32]) -> u32 {
    let largest = u64::from(magnitudes.iter().copied().max().unwrap_or(0));
    let top = (0..SHIFT_MAX)
        .find(|&shift| largest <= 16 << shift)
        .unwrap_or(SHIFT_MAX);
    let lowest = top.saturating_sub(SHIFTS_TRIED - 1);
    (lowest..=top)
        .rev()
        .min_by_key(|&shift| squared_error(magnitudes, shift))
        .expect("at least one shift is tried")
}

fn squared_error(magnitudes: &[u32], shift: u32) -> u128 {
    let of_one = |&magnitude: &u32| {
        let level =
            nearest(magnitude, shift).map_or(0, |index| u64::from(LEVELS[index as usize]) << shift);
        let error = u64::from(magnitude).abs_diff(level);
        u128::from(error * error)
    };
    magnitudes.iter().map(of_one).sum()
}

/// Whether a level's half is no level: a chunk with such a level has the largest scale that it can have.
pub(super) fn is_odd(index: u32) -> bool {
    LEVELS[index as usize] % 2 == 1
}

/// The index of half of an even level.
pub(super) fn halved(index: u32) -> u32 {
    let half = LEVELS[index as usize] / 2;
    LEVELS
        .iter()
        .position(|&level| level == half)
        .expect("half of an even level is a level") as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_level_is_the_nearest() {
        for shift in [0, 1, 5] {
            for magnitude in 0..700u32 {
                let levels = std::iter::once(0).chain(LEVELS).map(|level| level << shift);
                let expected = levels
                    .min_by_key(|level| level.abs_diff(magnitude))
                    .unwrap();
                let found =
                    nearest(magnitude, shift).map_or(0, |index| LEVELS[index as usize] << shift);
                assert_eq!(found, expected, "{magnitude} at shift {shift}");
            }
        }
        assert_eq!(nearest(i32::MAX as u32, SHIFT_MAX), Some(7));
    }

    #[test]
    fn the_scale_holds_the_largest_or_errs_less() {
        assert_eq!(shift_for(&[16, 1, 3]), 0);
        assert_eq!(shift_for(&[32, 2, 6]), 1);
        assert_eq!(shift_for(&[17]), 1, "16 errs by 1 at either scale");
        assert_eq!(shift_for(&[i32::MAX as u32]), SHIFT_MAX);
        // One value four times the others' range: cutting it keeps the many exact.
        let mut magnitudes = vec![3; 4096];
        magnitudes.push(17);
        assert_eq!(shift_for(&magnitudes), 0);
    }
}
