//! Which updates of a round are out of proportion to the others.
//!
//! Everything is compared with the round's median, and where two updates stand in the middle, the half whose makers
//! brought clearly more accepted work before decides which of them it is: in a round of two, a newcomer's tiny update does
//! not make an honest one look huge. Where neither did, neither of the two can have the other refused.

use std::collections::BTreeMap;

use protocol::{
    event::{MergedUpdate, RefusalReason},
    units::WorkerId,
};

use crate::update::norms;

/// What counts of an update here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Measured {
    /// [`crate::update::decoded::DecodedUpdate::norm`].
    pub norm: u64,
    /// Tokens that it is the work of.
    pub tokens: u64,
    /// [`Standings::of`] its maker.
    pub standing: u64,
}

/// Accepted tokens of everyone as a log's merges tell them: what a worker's word weighs.
#[derive(Clone, Debug, Default)]
pub struct Standings(BTreeMap<WorkerId, u64>);

impl Standings {
    /// Tokens of this worker's updates that were merged so far.
    pub fn of(&self, worker: &WorkerId) -> u64 {
        self.0.get(worker).copied().unwrap_or(0)
    }

    /// Counts a merge; those of its updates are asked for before.
    pub fn count(&mut self, merged: &[MergedUpdate]) {
        for update in merged {
            let tokens = self.0.entry(update.worker).or_default();
            *tokens = tokens.saturating_add(update.tokens);
        }
    }
}

/// Which updates, by place in the list, are more than `ratio_q16` times as large as the median, or smaller by more than
/// that; of an update with fewer tokens than the median's, less is expected in proportion.
pub(super) fn outliers(updates: &[Measured], ratio_q16: u32) -> Vec<(usize, RefusalReason)> {
    let Some((lower, upper)) = middle(updates) else {
        return Vec::new();
    };
    let ratio = u128::from(ratio_q16);
    let largest = (u128::from(upper.norm) * ratio) >> 16;
    let smallest = (u128::from(lower.norm) << 16) / ratio.max(1);
    let is_refused = |it: &Measured| {
        let tokens = it.tokens.min(lower.tokens);
        let smallest = smallest * u128::from(tokens) / u128::from(lower.tokens.max(1));
        let median = match u128::from(it.norm) {
            norm if norm > largest => upper.norm,
            norm if norm < smallest => lower.norm,
            _ => return None,
        };
        let times = it.norm as f64 / median.max(1) as f64;
        let reason = format!("its norm is {} times the round's median", rounded(times));
        Some(RefusalReason::Norm(reason))
    };
    let places = updates.iter().enumerate();
    places
        .filter_map(|(place, it)| Some((place, is_refused(it)?)))
        .collect()
}

/// The update that is the median by norm, twice; or the two that are when nothing tells which.
fn middle(updates: &[Measured]) -> Option<(Measured, Measured)> {
    let standing = |it: &Measured| (it.norm, it.standing);
    let mut sorted = updates.to_vec();
    sorted.sort_unstable_by_key(|it| (it.norm, it.standing, it.tokens));
    let pairs: Vec<(u64, u64)> = sorted.iter().map(standing).collect();
    let (lower, upper) = norms::middle(&pairs)?;
    Some((sorted[lower], sorted[upper]))
}

/// Readable from a millionth to a million.
fn rounded(times: f64) -> String {
    if times >= 0.1 {
        format!("{times:.1}")
    } else {
        format!("{times:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIO_Q16: u32 = 20 << 16;

    /// Places refused of updates of equal work: (norm, standing).
    fn refused(updates: &[(u64, u64)]) -> Vec<usize> {
        let measured: Vec<Measured> = updates
            .iter()
            .map(|&(norm, standing)| Measured {
                norm,
                tokens: 100,
                standing,
            })
            .collect();
        let outliers = outliers(&measured, RATIO_Q16).into_iter();
        outliers.map(|(place, _)| place).collect()
    }

    #[test]
    fn both_ends_are_bounded_by_the_median() {
        assert_eq!(refused(&[(10, 0), (11, 0), (12, 0), (1_000, 0)]), [3]);
        assert_eq!(refused(&[(1_000, 0), (1_100, 0), (1, 0)]), [2]);
        assert_eq!(
            refused(&[(10, 0), (200, 0), (10, 0)]),
            [0; 0],
            "twenty times"
        );
        assert_eq!(refused(&[(10, 0), (201, 0), (10, 0)]), [1]);
        assert_eq!(refused(&[]), [0; 0]);
        assert_eq!(refused(&[(7, 0)]), [0; 0], "alone");
    }

    #[test]
    fn of_two_the_one_who_brought_work_before_decides() {
        assert_eq!(refused(&[(1, 0), (100_000, 5_000)]), [0]);
        assert_eq!(refused(&[(5_000, 9), (1_000_000, 0)]), [1]);
        assert_eq!(refused(&[(1, 0), (100_000, 0)]), [0; 0], "newcomers both");
        assert_eq!(refused(&[(1, 9), (100_000, 5)]), [0; 0], "alike");
        // Two of four stand against two: their standing decides, not their number.
        assert_eq!(
            refused(&[(1, 0), (1, 0), (100_000, 70), (90_000, 80)]),
            [0, 1]
        );
    }

    #[test]
    fn less_is_expected_of_less_work() {
        let measured = |norm, tokens| Measured {
            norm,
            tokens,
            standing: 0,
        };
        // One step among three machines that did thirty.
        let slow = [
            measured(30_000, 3_000),
            measured(31_000, 3_000),
            measured(32_000, 3_000),
            measured(1_000, 100),
        ];
        assert_eq!(outliers(&slow, RATIO_Q16), []);
        let idle = [slow[0], slow[1], slow[2], measured(1_000, 3_000)];
        let [(3, RefusalReason::Norm(reason))] = &outliers(&idle, RATIO_Q16)[..] else {
            panic!("the last is refused");
        };
        assert_eq!(reason, "its norm is 3.3e-2 times the round's median");
        // Work that was claimed and not done does not raise what others must bring.
        let all = [measured(u64::MAX, u64::MAX), measured(u64::MAX, u64::MAX)];
        assert_eq!(outliers(&all, RATIO_Q16), []);
    }
}
