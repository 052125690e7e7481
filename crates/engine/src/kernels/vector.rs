//! Lane-wise sums and maxima, and the exponential that softmax and SwiGLU share.

use crate::arithmetic::specialised;

/// Lanes of every reduction: one AVX-512 register, two of AVX2, four of NEON.
pub(crate) const LANES: usize = 16;

/// Below this, `exp` would be subnormal: arguments are raised to it, results are at least 1.2e-38.
const EXP_MIN: f32 = -87.3;
/// Above this, `exp` would overflow: arguments are lowered to it.
const EXP_MAX: f32 = 88.3;

/// `e^x` to within 2 units in the last place for x in [-87.3, 88.3], clamped outside; NaN stays NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor polynomial of degree 7, 2^n by the exponent bits.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4; // 9 bits, so n·LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < EXP_MIN { EXP_MIN } else { x };
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        series = series * r + coefficient;
    }
    let power = (series * r * r + r) + 1.0;
    // The low bits of `shifted` hold n; moved to the exponent field they multiply by 2^n.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    power * scale
}

/// Sum of `map(index)` over `0..len`, in sixteen lanes.
#[inline(always)]
pub(crate) fn sum_lanes(len: usize, map: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len - len % LANES;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += map(start + lane);
        }
        start += LANES;
    }
    for (lane, sum) in lanes.iter_mut().enumerate().take(len - whole) {
        *sum += map(whole + lane);
    }
    tree(lanes, |left, right| left + right)
}

/// Largest element; negative infinity for none. A NaN may be passed over.
#[inline(always)]
pub(crate) fn max_lanes(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (largest, &value) in lanes.iter_mut().zip(chunk) {
            *largest = if value > *largest { value } else { *largest };
        }
    }
    for (largest, &value) in lanes.iter_mut().zip(rest) {
        *largest = if value > *largest { value } else { *largest };
    }
    tree(lanes, |left, right| if right > left { right } else { left })
}

/// Replaces each value by `exp(value − shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exp_in_place(values: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = values.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (value, sum) in chunk.iter_mut().zip(&mut lanes) {
            *value = exp(*value - shift);
            *sum += *value;
        }
    }
    for (value, sum) in chunks.into_remainder().iter_mut().zip(&mut lanes) {
        *value = exp(*value - shift);
        *sum += *value;
    }
    tree(lanes, |left, right| left + right)
}

#[inline(always)]
fn tree(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

specialised! {
    /// Sum of squares in f64: f32 lanes within blocks of 4096, f64 across blocks.
    pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
        let mut total = 0.0f64;
        for block in values.chunks(4096) {
            total += f64::from(sum_lanes(block.len(), |index| block[index] * block[index]));
        }
        total
    }
}

specialised! {
    /// `target[i] += source[i]`.
    pub(crate) fn add(target: &mut [f32], source: &[f32]) {
        for (sum, &value) in target.iter_mut().zip(source) {
            *sum += value;
        }
    }
}
