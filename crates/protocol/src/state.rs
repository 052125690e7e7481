//! A run's state: the fold over its log, and what may happen next.
//!
//! [`decide`](decide::decide) turns a request into events or refuses it; [`State::apply`] folds an event.
//! Both are pure. The hub is the thin thing around them; the simulator and `athome run verify` are two others.

pub mod apply;
pub mod decide;
pub mod late;
pub mod round;

use std::collections::{BTreeMap, VecDeque};

use crate::{
    Hash,
    charter::Charter,
    command::{Commitment, Device},
    event::{Checkpoint, Evaluation, ModelState},
    log::Head,
    succession::Sealing,
    units::{AccountId, BlobReference, MicroCredits, RunId, WorkerId},
};

pub use round::{Round, Slot, SlotProgress};

/// Newest models that an update may start from: those of the rounds that a late update may be of, and their bases.
pub const MODELS_KEPT: usize = 8;
/// Most workers that one run's log admits.
pub const WORKERS_MAX: usize = 1 << 20;
/// Payloads remembered, newest first, so that nobody commits to one again: far more than those of the rounds that an
/// update may be late.
pub const PAYLOADS_KEPT: usize = 1 << 17;

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
    /// The newest models, oldest first, the newest of all last: what an update may start from.
    pub models: VecDeque<ModelState>,
    /// The round in which workers train and commit.
    pub training: Option<Round>,
    /// The round before it, while its bytes arrive and are merged.
    pub revealing: Option<Round>,
    /// Rounds closed lately, in which late commitments are still taken; oldest first.
    pub closed: VecDeque<Closed>,
    /// Updates merged in the last rounds, oldest round first: what a late update may be a copy of.
    pub merged: VecDeque<(u64, Vec<Shown>)>,
    /// Payloads that were committed to.
    pub payloads: Payloads,
    /// Whether all tokens are spent and nothing more follows.
    pub finished: bool,
    /// Seeds of the next two rounds: everyone knows two rounds ahead what to train on.
    pub ahead: [Hash; 2],
    /// The last round that was opened.
    pub round: u64,
    /// Time from the close of the last merged round to its merge, in milliseconds.
    pub merge_ms: u64,
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

/// A round that takes no more commitments in time, only late ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    /// Number.
    pub round: u64,
    /// The model that was the newest when it opened.
    pub base: ModelState,
    /// When it opened, Unix milliseconds.
    pub opened_ms: u64,
    /// Who has a slot in it and has not committed: worker and slot.
    pub missing: BTreeMap<WorkerId, u32>,
}

/// An update that others have seen, or may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The update file.
    pub update: BlobReference,
    /// Its maker.
    pub worker: WorkerId,
    /// The round that was open when it was committed to: it is private until that round is closed.
    pub taken_up: u64,
}

/// The payloads that were committed to lately, and in which round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Payloads {
    rounds: BTreeMap<Hash, u64>,
    order: VecDeque<Hash>,
}

impl Payloads {
    /// The round in which a payload was committed to.
    #[must_use]
    pub fn round_of(&self, payload: &Hash) -> Option<u64> {
        self.rounds.get(payload).copied()
    }

    fn add(&mut self, payload: Hash, round: u64) {
        if self.rounds.insert(payload, round).is_none() {
            self.order.push_back(payload);
        }
        if self.order.len() > PAYLOADS_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.rounds.remove(&oldest);
        }
    }
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
    /// Index of the log entry by which it joined first.
    pub joined_at: u64,
    /// Sequence number of its last command.
    pub sequence: u64,
    /// Hash of what it carries between rounds: what its last commitment left, or what that left when refused; `None`
    /// before the first.
    pub carried: Option<Hash>,
    /// What its last commitment would have left, if it was refused after the worker may have gone on from it.
    pub carried_otherwise: Option<Hash>,
    /// Up to when its claims of work fill its time, Unix milliseconds: no moment is claimed twice.
    pub busy_until_ms: u64,
    /// Tokens of its last merged update: what a round expects of it.
    pub tokens_last: u64,
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
    /// The newest round that an accepted update was made for lies so many before that one: none if it came in time. A byte,
    /// for there may be a million workers.
    pub last_late_by: u8,
    /// Slots in a row that it left without a commitment or without its bytes: who promises and brings nothing goes last
    /// when there are more machines than slots, and is not waited for.
    pub missed_in_a_row: u64,
}

impl Worker {
    /// The newest round that an accepted update of it was made for: before [`Self::last_round`] if that came late.
    #[must_use]
    pub fn last_of_round(&self) -> Option<u64> {
        self.last_round?.checked_sub(u64::from(self.last_late_by))
    }
}

impl State {
    /// The round that takes commitments, or the one that is being revealed if none does.
    #[must_use]
    pub fn current_round(&self) -> Option<&Round> {
        self.training.as_ref().or(self.revealing.as_ref())
    }

    /// The round in progress with this number.
    #[must_use]
    pub fn round_in_progress(&self, round: u64) -> Option<&Round> {
        self.rounds_in_progress().find(|it| it.round == round)
    }

    /// The rounds in progress, the older first.
    pub fn rounds_in_progress(&self) -> impl Iterator<Item = &Round> {
        self.revealing.iter().chain(&self.training)
    }

    /// Where the commitment that names this blob stands: its round, slot and commitment.
    #[must_use]
    pub fn commitment_of_blob(&self, blob: &Hash) -> Option<(&Round, u32, &Commitment)> {
        self.rounds_in_progress().find_map(|round| {
            let slot = round.slot_of_blob(blob)?;
            let commitment = round.slots()[slot as usize].commitment()?;
            Some((round, slot, commitment))
        })
    }

    /// Whether the run still warms up: one worker at a time, whose inner state is published.
    #[must_use]
    pub fn is_warming_up(&self) -> bool {
        self.tokens < self.charter.round.warm_start_tokens
    }

    /// Whether the run takes no further rounds.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Accepted tokens and those that wait for their merge.
    #[must_use]
    pub fn tokens_with_pending(&self) -> u64 {
        let pending = self.revealing.as_ref().map_or(0, Round::tokens_pending);
        self.tokens.saturating_add(pending)
    }

    /// The published model of this round and hash, if it is one of the newest.
    #[must_use]
    pub fn model_of(&self, round: u64, parameters: &Hash) -> Option<&ModelState> {
        self.models
            .iter()
            .find(|it| it.round == round && it.parameters == *parameters)
    }
}

#[cfg(test)]
pub(crate) mod tests;
