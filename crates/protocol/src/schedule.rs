//! The learning rate as an integer function of accepted tokens, and the outer rate as one of accepted updates: the same
//! on every machine.

use crate::charter::Inner;

const ONE: u128 = 1 << 32;

/// The learning rate in 10^-9 after `tokens` tokens of the run.
///
/// Linear rise over `warmup_tokens`, then a fall to `final_rate_ppm` of the peak along 1 − 3x² + 2x³:
/// the cubic with a cosine's end points and slopes (largest difference 0.01), in integers.
#[must_use]
pub fn learning_rate_nano(inner: &Inner, tokens: u64) -> u64 {
    let peak = u128::from(inner.learning_rate_peak_nano);
    if tokens < inner.warmup_tokens {
        // The first step's rate is not zero: one part in a hundred of the peak at least.
        let risen = peak * u128::from(tokens) / u128::from(inner.warmup_tokens);
        return narrow(risen.max(peak / 100).max(1));
    }
    let span = u128::from(inner.tokens_max - inner.warmup_tokens);
    let passed = u128::from(tokens - inner.warmup_tokens).min(span);
    let x = passed * ONE / span;
    let fallen = 3 * x * x / ONE - 2 * (x * x / ONE) * x / ONE;
    let share = ONE - fallen.min(ONE);
    let end = peak * u128::from(inner.final_rate_ppm) / 1_000_000;
    narrow(end + (peak - end) * share / ONE)
}

/// The outer rate in units of 2^-16 of a round with so many accepted updates: the charter's, times √(accepted/quorum)
/// below the quorum.
#[must_use]
pub fn outer_rate_q16(rate_q16: u32, accepted: u32, quorum: u32) -> u32 {
    let quorum = u64::from(quorum.max(1));
    let accepted = u64::from(accepted).min(quorum);
    let share_q16 = ((accepted << 32) / quorum).isqrt();
    let rate = (u64::from(rate_q16) * share_q16) >> 16;
    u32::try_from(rate.max(1)).expect("at most the charter's rate, which is 32 bits wide")
}

fn narrow(rate: u128) -> u64 {
    u64::try_from(rate).expect("a rate is at most the peak, which is 64 bits wide")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::charter::tests::sample_charter;

    #[test]
    fn fewer_updates_than_the_quorum_make_a_smaller_step() {
        assert_eq!(outer_rate_q16(65_536, 4, 4), 65_536);
        assert_eq!(outer_rate_q16(65_536, 9, 4), 65_536);
        assert_eq!(outer_rate_q16(65_536, 1, 4), 32_768);
        assert_eq!(outer_rate_q16(65_536, 2, 4), 46_340);
        assert_eq!(outer_rate_q16(65_536, 0, 0), 1);
    }

    #[test]
    fn rises_then_falls_to_its_share() {
        let mut inner = sample_charter().inner;
        inner.learning_rate_peak_nano = 3_000_000;
        inner.warmup_tokens = 1_000;
        inner.tokens_max = 11_000;
        inner.final_rate_ppm = 100_000;
        let rate = |tokens| learning_rate_nano(&inner, tokens);
        assert_eq!(rate(0), 30_000);
        assert_eq!(rate(500), 1_500_000);
        assert_eq!(rate(1_000), 3_000_000);
        // Half-way between peak and end, like the cosine; one unit of rounding.
        assert!((1_649_999..=1_650_001).contains(&rate(6_000)));
        assert_eq!(rate(11_000), 300_000);
        assert_eq!(rate(u64::MAX), 300_000);
        for tokens in (1_000..11_000).step_by(100) {
            assert!(rate(tokens + 100) < rate(tokens));
            let x = (tokens - 1_000) as f64 / 10_000.0;
            let cosine = 300_000.0 + 2_700_000.0 * (1.0 + (std::f64::consts::PI * x).cos()) / 2.0;
            assert!((rate(tokens) as f64 - cosine).abs() < 30_000.0);
        }
    }
}
