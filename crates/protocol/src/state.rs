//! A run's state: the fold over its log, and what may happen next.
//!
//! [`decide`](decide::decide) turns a request into events or refuses it; [`State::apply`] folds an event.
//! Both are pure. The hub is the thin thing around them; the simulator and `athome run verify` are two others.

pub mod apply;
pub mod decide;

use std::collections::BTreeMap;

use crate::{
    Hash,
    charter::Charter,
    command::{Commitment, Device},
    event::{Checkpoint, Evaluation, ModelState, RefusalReason},
    log::Head,
    succession::Sealing,
    units::{AccountId, BlobReference, MicroCredits, RunId, WorkerId},
};

/// Most workers that one run's log admits.
pub const WORKERS_MAX: usize = 1 << 20;

/// A run as it stands after some entry of its log.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The run.
    pub run: RunId,
    /// Its charter.
    pub charter: Charter,
    /// Where the log stands.
    pub head: Head,
    /// Who seals the log: the charter's hub or its successors.
    pub sealing: Sealing,
    /// The newest model.
    pub model: ModelState,
    /// The newest whole checkpoint, and the round it follows.
    pub checkpoint: (u64, Checkpoint),
    /// Where the current round stands.
    pub phase: Phase,
    /// The last round that was opened.
    pub round: u64,
    /// Rounds that were merged.
    pub rounds_merged: u64,
    /// Accepted tokens of the whole run.
    pub tokens: u64,
    /// The newest published m and v of the optimiser: what a worker without carried state starts from.
    pub inner_start: Option<BlobReference>,
    /// Everyone who ever joined.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Accounts by bound key.
    pub bindings: BTreeMap<crate::PublicKey, AccountId>,
    /// The newest evaluation, and the round it is of.
    pub evaluation: Option<(u64, Evaluation)>,
    /// The newest round a sample was drawn of.
    pub sampled_round: Option<u64>,
}

/// Where the current round stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Between rounds.
    Idle,
    /// Workers train and commit.
    Training(Round),
    /// Commitments are closed; bytes still arrive.
    Revealing(Round),
    /// All tokens are spent.
    Finished,
}

/// A round in progress.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Number.
    pub round: u64,
    /// The model it started from.
    pub base: ModelState,
    /// Seed of its samples.
    pub seed: Hash,
    /// The run's accepted tokens when it opened.
    pub tokens_before: u64,
    /// When it opened, Unix milliseconds.
    pub opened_ms: u64,
    /// Last moment for commitments, Unix milliseconds.
    pub deadline_ms: u64,
    /// Last moment for the bytes, once commitments are closed.
    pub reveal_deadline_ms: Option<u64>,
    /// By slot.
    pub slots: Vec<Slot>,
}

/// One worker's part in a round.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Who has it.
    pub worker: WorkerId,
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
    /// Does not count.
    Refused(RefusalReason),
}

/// A worker's record.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// Name for people.
    pub name: String,
    /// The machine.
    pub device: Device,
    /// Whether it has joined and not left.
    pub joined: bool,
    /// Sequence number of its last command.
    pub sequence: u64,
    /// Hash of what it carries between rounds, as last committed and accepted; `None` before its first update.
    pub carried: Option<Hash>,
    /// Tokens of its accepted updates.
    pub tokens: u64,
    /// Credit for them.
    pub credits: MicroCredits,
    /// Accepted updates.
    pub updates_accepted: u64,
    /// Refused updates.
    pub updates_refused: u64,
    /// Last round it had an update accepted in.
    pub last_round: Option<u64>,
    /// Slots in a row that it left without a commitment: who promises speed and brings nothing goes last.
    pub missed_in_a_row: u64,
}

impl State {
    /// The round in progress, if one is.
    #[must_use]
    pub fn current_round(&self) -> Option<&Round> {
        match &self.phase {
            Phase::Training(round) | Phase::Revealing(round) => Some(round),
            Phase::Idle | Phase::Finished => None,
        }
    }

    /// Whether the run still warms up: one worker at a time, whose inner state is published.
    #[must_use]
    pub fn is_warming_up(&self) -> bool {
        self.tokens < self.charter.round.warm_start_tokens
    }

    /// Whether the run takes no further rounds.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Finished)
    }
}

impl Round {
    /// The slot of a worker.
    #[must_use]
    pub fn slot_of(&self, worker: &WorkerId) -> Option<(u32, &Slot)> {
        self.slots
            .iter()
            .enumerate()
            .find(|(_, slot)| slot.worker == *worker)
            .map(|(index, slot)| (index as u32, slot))
    }
}

#[cfg(test)]
pub(crate) mod tests;
