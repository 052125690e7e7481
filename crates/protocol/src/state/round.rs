//! A round in progress: its slots, and what they come to.

use std::collections::BTreeMap;

use super::Shown;
use crate::{
    Hash,
    charter::Charter,
    command::Commitment,
    event::{MergedUpdate, ModelState, RefusalReason},
    schedule::outer_rate_q16,
    units::{MicroCredits, WorkerId},
};

/// Rounds that an update may be late and still count.
pub const LATE_ROUNDS_MAX: u64 = 3;
/// Weight of an update that is `s` rounds late: tokens × exp(−0.5·s), in units of 2^-16 (design.md, "Settled" 2).
pub const STALENESS_Q16: [u64; 4] = [65_536, 39_750, 24_109, 14_623];
/// Share of the expected tokens that makes a round ready to close at its deadline, in percent.
const READY_PERCENT: u128 = 80;
/// Share of the expected tokens below which a round is extended once, in percent.
const QUORUM_PERCENT: u128 = 30;
/// Workers that a round of the warm start is handed on to, one after the other.
const HOLDERS_MAX: usize = 4;
/// One in units of 2^-16.
const ONE_Q16: u64 = 1 << 16;

/// A round in progress.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Number.
    pub round: u64,
    /// The newest model when it opened.
    pub base: ModelState,
    /// Seed of its samples.
    pub seed: Hash,
    /// The run's tokens when it opened: accepted ones, and those of the round before that wait for their merge.
    pub tokens_before: u64,
    /// When it opened, Unix milliseconds.
    pub opened_ms: u64,
    /// End of the window: commitments are due, Unix milliseconds.
    pub deadline_ms: u64,
    /// Slots when it opened; sets the pace of the learning rate.
    pub slots_opened: u32,
    /// Whether it belongs to the warm start: one slot, whose inner state is published.
    pub is_warm_start: bool,
    /// Whether it was extended already for want of a quorum.
    pub is_extended: bool,
    /// When enough of the expected tokens had been committed, Unix milliseconds.
    pub ready_ms: Option<u64>,
    /// When commitments were closed, and the last moment for their bytes, Unix milliseconds.
    pub reveal: Option<Reveal>,
    slots: Vec<Slot>,
    by_worker: BTreeMap<WorkerId, u32>,
    by_blob: BTreeMap<Hash, u32>,
    undecided: u32,
    committed: u32,
    unjudged: u32,
    waiting: u32,
    accepted: u32,
    tokens_committed: u64,
    tokens_expected: u64,
}

/// The time in which a round's bytes arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reveal {
    /// When commitments were closed, Unix milliseconds.
    pub closed_ms: u64,
    /// Last moment for the bytes, Unix milliseconds.
    pub deadline_ms: u64,
}

/// One worker's part in a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Who has it.
    pub worker: WorkerId,
    /// The round whose samples it is of; an earlier one if it is late.
    pub of_round: u64,
    /// The round that was open when its commitment came; its own if that came in time, or did not come yet.
    pub taken_up: u64,
    /// Whether the round waits for its bytes: not for late ones, and not for who promised in vain before.
    pub is_waited_for: bool,
    /// How far it is.
    pub progress: SlotProgress,
}

/// How far a slot is.
#[derive(Clone, Debug, PartialEq)]
pub enum SlotProgress {
    /// Training, as far as the log knows.
    Assigned,
    /// Promised.
    Committed(Box<Commitment>),
    /// Checked and waiting for the merge.
    Accepted {
        /// What was promised and came.
        commitment: Box<Commitment>,
        /// Weight in the merge.
        weight: u64,
    },
    /// Its bytes did not come in time: it went on to the next round.
    Deferred(Box<Commitment>),
    /// Does not count.
    Refused(RefusalReason),
}

impl Slot {
    /// The commitment that counts in this round, if there is one.
    #[must_use]
    pub fn commitment(&self) -> Option<&Commitment> {
        match &self.progress {
            SlotProgress::Committed(commitment) | SlotProgress::Accepted { commitment, .. } => {
                Some(commitment)
            }
            SlotProgress::Assigned | SlotProgress::Deferred(_) | SlotProgress::Refused(_) => None,
        }
    }

    /// What others see of its update once its round is closed.
    #[must_use]
    pub fn shown(&self) -> Option<Shown> {
        Some(Shown {
            update: self.commitment()?.update,
            worker: self.worker,
            taken_up: self.taken_up,
        })
    }

    /// Weight in the merge of `round`: tokens × exp(−0.5·rounds late), at least 1.
    #[must_use]
    pub fn weight(&self, round: u64) -> u64 {
        let late = usize::try_from(round.saturating_sub(self.of_round)).unwrap_or(usize::MAX);
        let factor = STALENESS_Q16.get(late).copied().unwrap_or(0);
        let tokens = self.commitment().map_or(0, |it| it.header.tokens);
        let weighted = (u128::from(tokens) * u128::from(factor)) >> 16;
        u64::try_from(weighted).unwrap_or(u64::MAX).max(1)
    }
}

/// What opens a round.
pub(super) struct Opening {
    pub(super) round: u64,
    pub(super) base: ModelState,
    pub(super) seed: Hash,
    pub(super) tokens_before: u64,
    pub(super) opened_ms: u64,
    pub(super) deadline_ms: u64,
    pub(super) is_warm_start: bool,
}

impl Round {
    pub(super) fn open(opening: &Opening) -> Self {
        Self {
            round: opening.round,
            base: opening.base,
            seed: opening.seed,
            tokens_before: opening.tokens_before,
            opened_ms: opening.opened_ms,
            deadline_ms: opening.deadline_ms,
            slots_opened: 0,
            is_warm_start: opening.is_warm_start,
            is_extended: false,
            ready_ms: None,
            reveal: None,
            slots: Vec::new(),
            by_worker: BTreeMap::new(),
            by_blob: BTreeMap::new(),
            undecided: 0,
            committed: 0,
            unjudged: 0,
            waiting: 0,
            accepted: 0,
            tokens_committed: 0,
            tokens_expected: 0,
        }
    }

    /// Everyone's part, by slot.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The slot that a worker was given in this round.
    #[must_use]
    pub fn slot_of(&self, worker: &WorkerId) -> Option<(u32, &Slot)> {
        let slot = *self.by_worker.get(worker)?;
        Some((slot, &self.slots[slot as usize]))
    }

    /// Those of `workers`, who are in order, that were given no slot in this round.
    pub(super) fn without_slot(&self, workers: &[WorkerId]) -> Vec<WorkerId> {
        // Both are in order: one walk through both.
        let mut given = self.by_worker.keys().peekable();
        let has_none = |worker: &&WorkerId| {
            while given.next_if(|it| *it < *worker).is_some() {}
            given.peek() != Some(worker)
        };
        workers.iter().filter(has_none).copied().collect()
    }

    /// The slot whose commitment names this blob: the update, or the inner state beside it.
    #[must_use]
    pub fn slot_of_blob(&self, blob: &Hash) -> Option<u32> {
        self.by_blob.get(blob).copied()
    }

    /// Slots whose worker has not committed.
    #[must_use]
    pub fn undecided(&self) -> u32 {
        self.undecided
    }

    /// Commitments of this round's own slots.
    #[must_use]
    pub fn committed(&self) -> u32 {
        self.committed
    }

    /// Commitments that were neither accepted nor refused, late ones among them.
    #[must_use]
    pub fn unjudged(&self) -> u32 {
        self.unjudged
    }

    /// Commitments that the round waits for the bytes of.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Updates that were checked and wait for the merge.
    #[must_use]
    pub fn accepted(&self) -> u32 {
        self.accepted
    }

    /// Whether there is anything in it: a commitment of its own or a late one.
    #[must_use]
    pub fn has_commitments(&self) -> bool {
        self.slots.iter().any(|it| it.commitment().is_some())
    }

    /// The moment after which nobody is waited for: one and a half windows, two once extended.
    #[must_use]
    pub fn hard_cap_ms(&self, charter: &Charter) -> u64 {
        let window = charter.round.window_ms;
        let extension = if self.is_extended { window / 2 } else { 0 };
        self.opened_ms
            .saturating_add(window)
            .saturating_add(window / 2)
            .saturating_add(extension)
    }

    /// When the round closes by the clock: at its deadline if enough was committed by then; if that came later, after a
    /// grace of half the time left to the hard cap, less what merging took lately; at the hard cap in any case
    /// (`training.md` 1.3).
    #[must_use]
    pub fn closes_ms(&self, charter: &Charter, merge_ms: u64) -> u64 {
        let cap = self.hard_cap_ms(charter);
        match self.ready_ms {
            Some(ready) if ready <= self.deadline_ms => self.deadline_ms,
            Some(ready) => {
                let slack = cap.saturating_sub(ready).saturating_sub(merge_ms);
                ready.saturating_add(slack / 2).min(cap)
            }
            None if self.tokens_expected == 0 && self.committed > 0 => self.deadline_ms,
            None => cap,
        }
    }

    /// Whether fewer committed than a merge should have: the charter's quorum, or 30 % of the expected tokens.
    #[must_use]
    pub fn is_below_quorum(&self, charter: &Charter) -> bool {
        self.committed < charter.round.quorum
            || u128::from(self.tokens_committed) * 100
                < self.tokens_wanted(charter) * QUORUM_PERCENT
    }

    /// Rate of the merge in units of 2^-16: the charter's, times √(K/quorum) if only K updates were accepted.
    #[must_use]
    pub fn rate_q16(&self, charter: &Charter) -> u32 {
        outer_rate_q16(charter.outer.rate_q16, self.accepted, charter.round.quorum)
    }

    /// The expected tokens of as many machines as there are places: a quarter more than that are given slots.
    fn tokens_wanted(&self, charter: &Charter) -> u128 {
        let slots = u128::from(self.undecided + self.committed).max(1);
        let places = u128::from(charter.round.slots_max).min(slots);
        u128::from(self.tokens_expected) * places / slots
    }

    /// Whether a round of the warm start, whose slot nobody has used yet, may be handed on to another worker.
    #[must_use]
    pub fn takes_another_holder(&self) -> bool {
        self.is_warm_start && self.committed == 0 && self.slots.len() < HOLDERS_MAX
    }

    pub(super) fn assign(&mut self, worker: WorkerId, tokens_expected: u64, is_waited_for: bool) {
        let slot = self.push(Slot {
            worker,
            of_round: self.round,
            taken_up: self.round,
            is_waited_for,
            progress: SlotProgress::Assigned,
        });
        self.by_worker.insert(worker, slot);
        self.undecided += 1;
        self.tokens_expected = self.tokens_expected.saturating_add(tokens_expected);
    }

    /// Notes the commitment of a slot of this round.
    pub(super) fn commit(
        &mut self,
        charter: &Charter,
        slot: u32,
        commitment: Commitment,
        time_ms: u64,
    ) {
        self.name_blobs(&commitment, slot);
        self.undecided -= 1;
        self.committed += 1;
        self.tokens_committed = self
            .tokens_committed
            .saturating_add(commitment.header.tokens);
        let part = &mut self.slots[slot as usize];
        self.unjudged += 1;
        self.waiting += u32::from(part.is_waited_for);
        part.progress = SlotProgress::Committed(Box::new(commitment));
        let arrived = u128::from(self.tokens_committed) * 100;
        if self.ready_ms.is_none()
            && self.tokens_expected > 0
            && arrived >= self.tokens_wanted(charter) * READY_PERCENT
        {
            self.ready_ms = Some(time_ms);
        }
    }

    /// Takes up a late commitment as a further slot; nobody waits for it.
    pub(super) fn commit_late(
        &mut self,
        worker: WorkerId,
        commitment: Commitment,
        taken_up: u64,
    ) -> u32 {
        let slot = self.slots.len() as u32;
        self.name_blobs(&commitment, slot);
        self.unjudged += 1;
        self.push(Slot {
            worker,
            of_round: commitment.header.round,
            taken_up,
            is_waited_for: false,
            progress: SlotProgress::Committed(Box::new(commitment)),
        })
    }

    /// The commitment of a slot is accepted.
    pub(super) fn accept(&mut self, slot: u32, weight: u64) -> Result<(), &'static str> {
        let part = self.part(slot)?;
        let SlotProgress::Committed(commitment) = &part.progress else {
            return Err("the update was not committed, or was judged already");
        };
        if weight != part.weight(self.round) {
            return Err("the weight is not what the update's tokens and lateness give");
        }
        let commitment = commitment.clone();
        self.stop_waiting(slot);
        self.accepted += 1;
        self.slots[slot as usize].progress = SlotProgress::Accepted { commitment, weight };
        Ok(())
    }

    /// The commitment of a slot is refused; gives it back.
    pub(super) fn refuse(
        &mut self,
        slot: u32,
        reason: &RefusalReason,
    ) -> Result<Commitment, &'static str> {
        let part = self.part(slot)?;
        let Some(commitment) = part.commitment().cloned() else {
            return Err("the update was not committed, or was refused already");
        };
        if matches!(part.progress, SlotProgress::Accepted { .. }) {
            self.accepted -= 1;
        } else {
            self.stop_waiting(slot);
        }
        self.slots[slot as usize].progress = SlotProgress::Refused(reason.clone());
        Ok(commitment)
    }

    /// The bytes of a slot did not come: gives its commitment, and the round that it came in, to the next round.
    pub(super) fn defer(&mut self, slot: u32) -> Result<(Commitment, u64), &'static str> {
        let part = self.part(slot)?;
        let SlotProgress::Committed(commitment) = &part.progress else {
            return Err("the update was not committed, or was judged already");
        };
        let (commitment, taken_up) = (commitment.clone(), part.taken_up);
        self.stop_waiting(slot);
        self.slots[slot as usize].progress = SlotProgress::Deferred(commitment.clone());
        Ok((*commitment, taken_up))
    }

    fn part(&self, slot: u32) -> Result<&Slot, &'static str> {
        self.slots
            .get(slot as usize)
            .ok_or("the round has no such slot")
    }

    fn push(&mut self, slot: Slot) -> u32 {
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("slots are bounded by the charter")
    }

    fn stop_waiting(&mut self, slot: u32) {
        let part = &self.slots[slot as usize];
        self.waiting -= u32::from(part.is_waited_for);
        self.unjudged -= 1;
    }

    fn name_blobs(&mut self, commitment: &Commitment, slot: u32) {
        self.by_blob.insert(commitment.update.hash, slot);
        if let Some(inner_state) = commitment.header.inner_state {
            self.by_blob.insert(inner_state.hash, slot);
        }
    }

    /// The accepted updates by slot, as the merge event names them: with the cap on one identity's weight.
    #[must_use]
    pub fn merged_updates(&self, charter: &Charter) -> Vec<MergedUpdate> {
        let flop = charter
            .model
            .training_flop_per_token(charter.inner.sequence);
        let mut updates: Vec<MergedUpdate> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if let SlotProgress::Accepted { commitment, weight } = &slot.progress {
                updates.push(MergedUpdate {
                    slot: index as u32,
                    of_round: slot.of_round,
                    worker: slot.worker,
                    update: commitment.update,
                    tokens: commitment.header.tokens,
                    weight: *weight,
                    credits: MicroCredits::for_tokens(commitment.header.tokens, flop),
                });
            }
        }
        cap_weights(&mut updates, charter.round.weight_cap_q16);
        updates
    }

    /// Tokens that wait for the merge: committed and not refused.
    #[must_use]
    pub fn tokens_pending(&self) -> u64 {
        self.slots
            .iter()
            .filter_map(|it| Some(it.commitment()?.header.tokens))
            .fold(0, u64::saturating_add)
    }
}

/// No identity has more than its share of the whole weight, even with an update of this round and late ones.
fn cap_weights(updates: &mut [MergedUpdate], cap_q16: u32) {
    if u64::from(cap_q16) >= ONE_Q16 {
        return;
    }
    let total: u128 = updates.iter().map(|it| u128::from(it.weight)).sum();
    let cap = (total * u128::from(cap_q16)) >> 16;
    let mut of_worker: BTreeMap<WorkerId, u128> = BTreeMap::new();
    for update in &*updates {
        *of_worker.entry(update.worker).or_default() += u128::from(update.weight);
    }
    for update in updates {
        let whole = of_worker[&update.worker];
        if whole > cap {
            let capped = (u128::from(update.weight) * cap / whole).max(1);
            update.weight = u64::try_from(capped).expect("not above the weight of 64 bits");
        }
    }
}
