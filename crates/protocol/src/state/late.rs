//! The updates of a round that were committed to late, and what they may be copies of.

use super::{Round, Shown, SlotProgress, State};

/// Late updates, and every update that one of them may be a copy of: merged lately, or to be merged with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LateUpdates {
    /// The late ones by slot.
    pub late: Vec<(u32, Shown)>,
    /// All that were shown; empty if none is late.
    pub shown: Vec<Shown>,
}

impl Shown {
    /// Whether the maker of this update may have copied `other`: another's, committed to in an earlier round.
    #[must_use]
    pub fn may_be_copy_of(&self, other: &Shown) -> bool {
        other.taken_up < self.taken_up && other.worker != self.worker
    }
}

impl State {
    /// The late among the accepted updates of a round in progress.
    #[must_use]
    pub fn late_updates(&self, round: &Round) -> LateUpdates {
        let accepted = (0..)
            .zip(round.slots())
            .filter(|(_, it)| matches!(it.progress, SlotProgress::Accepted { .. }));
        let beside: Vec<(u32, u64, Shown)> = accepted
            .filter_map(|(slot, it)| Some((slot, it.of_round, it.shown()?)))
            .collect();
        let late = beside
            .iter()
            .filter(|(_, of_round, it)| it.taken_up > *of_round);
        let late: Vec<(u32, Shown)> = late.map(|(slot, _, it)| (*slot, *it)).collect();
        if late.is_empty() {
            return LateUpdates::default();
        }
        let merged = self.merged.iter().flat_map(|it| &it.1);
        let shown = merged.chain(beside.iter().map(|it| &it.2));
        LateUpdates {
            shown: shown.copied().collect(),
            late,
        }
    }
}
