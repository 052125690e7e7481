//! The magnitude of a chunk's values in 13 bits: an 8-bit significand and a 5-bit shift.
//!
//! `significand << shift`, in units of 2⁻³⁰. One code for each number: below 256 the shift is zero, above it the
//! significand's top bit is set. Eight bits err by at most 1/256 of the magnitude, far less than two levels a chunk do,
//! and what they lose stays in the error feedback.

use super::VALUE_LIMIT;

/// Bits of a code.
pub(super) const MAGNITUDE_BITS: u32 = SIGNIFICAND_BITS + SHIFT_BITS;

const SIGNIFICAND_BITS: u32 = 8;
const SHIFT_BITS: u32 = 5;

/// The largest shift: 255 << 22 is the largest magnitude below 2³⁰.
const SHIFT_MAX: u32 = 22;

/// The code nearest to `units` (ties upwards), the largest code if it is out of range.
pub(super) fn to_code(units: u32) -> u32 {
    let mut shift = (u32::BITS - units.leading_zeros()).saturating_sub(SIGNIFICAND_BITS);
    let half = (1 << shift) >> 1;
    let mut significand = (u64::from(units) + half) >> shift;
    if significand == 1 << SIGNIFICAND_BITS {
        significand >>= 1;
        shift += 1;
    }
    if shift > SHIFT_MAX {
        return (SHIFT_MAX << SIGNIFICAND_BITS) | ((1 << SIGNIFICAND_BITS) - 1);
    }
    (shift << SIGNIFICAND_BITS) | significand as u32
}

/// The magnitude of a code in units; `None` if it isn't the number's one code.
pub(super) fn from_code(code: u32) -> Option<u32> {
    let (shift, significand) = (
        code >> SIGNIFICAND_BITS,
        code & ((1 << SIGNIFICAND_BITS) - 1),
    );
    let canonical =
        shift <= SHIFT_MAX && (shift == 0 || significand >> (SIGNIFICAND_BITS - 1) == 1);
    let units = canonical.then(|| significand << shift);
    debug_assert!(units.is_none_or(|units| units < VALUE_LIMIT));
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_canonical_or_refused() {
        let mut last = None;
        let mut canonical = 0;
        for code in 0..1 << MAGNITUDE_BITS {
            if let Some(units) = from_code(code) {
                assert_eq!(to_code(units), code);
                assert!(
                    last.is_none_or(|last| units > last),
                    "codes rise with their magnitudes"
                );
                last = Some(units);
                canonical += 1;
            }
        }
        assert_eq!(canonical, 256 + 22 * 128);
        assert_eq!(last, Some(255 << 22));
    }

    #[test]
    fn rounding_is_to_the_nearest() {
        let value = |units| from_code(to_code(units)).unwrap();
        assert_eq!(value(0), 0);
        assert_eq!(value(255), 255);
        assert_eq!(value(257), 258);
        assert_eq!(value(511), 512);
        assert_eq!(value(512 + 1), 512);
        assert_eq!(value(u32::MAX), 255 << 22);
        for units in (1..1 << 30).step_by(99_991) {
            assert!(value(units).abs_diff(units) <= units / 256 + 1, "{units}");
        }
    }
}
