//! The fold: one entry of the log onto the state. It trusts nobody: a log may come from a stranger.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Closed, MODELS_KEPT, Payloads, Round, Slot, SlotProgress, State, WORKERS_MAX, Worker,
    decide::{Accepting, check_commitment, claimed_until, round_to_merge},
    round::{LATE_ROUNDS_MAX, Opening, Reveal},
};
use crate::{
    command::{Command, CommandError, Commitment, SignedCommand},
    event::{Event, MergedUpdate, ModelState, RefusalReason},
    log::{ChainError, Entry, Head},
    sampling::round_seed,
    succession::Sealing,
    units::{MicroCredits, WorkerId},
};

/// Why an entry cannot be part of this run's log.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The chain of hashes and signatures does not hold.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A worker's command inside an event does not hold.
    #[error("log entry {index}: {source}")]
    Command {
        /// Position.
        index: u64,
        /// What is wrong with the command.
        source: CommandError,
    },
    /// The event cannot happen in this state.
    #[error("log entry {index}: {event} cannot follow: {problem}")]
    Impossible {
        /// Position.
        index: u64,
        /// The event's name.
        event: &'static str,
        /// Why not.
        problem: &'static str,
    },
}

impl State {
    /// The state after a log's first entry, which must create a run with a valid charter.
    pub fn create(entry: &Entry) -> Result<Self, ApplyError> {
        let impossible = |problem| ApplyError::Impossible {
            index: 0,
            event: entry.event.name(),
            problem,
        };
        let Event::RunCreated {
            charter,
            model,
            checkpoint,
        } = &entry.event
        else {
            return Err(impossible("a log begins with run_created"));
        };
        charter
            .check()
            .map_err(|_| impossible("its charter is not valid"))?;
        let run = charter.id();
        let mut head = Head::empty();
        head.advance(run, &charter.hub, entry)?;
        if model.round != 0 {
            return Err(impossible("its model is not that of round 0"));
        }
        Ok(Self {
            run,
            charter: (**charter).clone(),
            head,
            sealing: Sealing::of(charter),
            model: *model,
            checkpoint: (0, *checkpoint),
            models: VecDeque::from([*model]),
            training: None,
            revealing: None,
            closed: VecDeque::new(),
            merged: VecDeque::new(),
            payloads: Payloads::default(),
            finished: false,
            ahead: [1, 2].map(|round| round_seed(charter, round, &model.parameters)),
            round: 0,
            merge_ms: 0,
            rounds_merged: 0,
            tokens: 0,
            inner_start: None,
            workers: BTreeMap::new(),
            bindings: BTreeMap::new(),
            evaluation: None,
            sampled_round: None,
        })
    }

    /// Folds the next entry; on an error the state is as before.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let mut head = self.head;
        let hub = self.sealing.sealer(&head, entry)?;
        head.advance(self.run, &hub, entry)?;
        self.check_signed(entry)?;
        self.fold_entry(entry, head)
    }

    /// Folds an entry that the caller itself has just made of what [`super::decide::decide`] said and sealed with
    /// [`Head::next`]: as [`Self::apply`] does, but the signatures, checked or made a moment ago, are not checked again.
    ///
    /// Also for a hub's own log, read back from its disk: each entry names the hash of the one before it, so when the last
    /// is found to be sealed ([`Self::check_head`]), all are whole.
    pub fn apply_decided(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let mut head = self.head;
        head.advance_unsigned(self.run, entry)?;
        self.fold_entry(entry, head)
    }

    /// Checks that `last` is the entry that this state stands after, and sealed by the run's hub.
    pub fn check_head(&self, last: &Entry) -> Result<(), ApplyError> {
        let hub = self.sealing.hub();
        if last.hash() != self.head.hash || !last.is_sealed_by(&hub) {
            return Err(ApplyError::Impossible {
                index: last.index,
                event: last.event.name(),
                problem: "it is not the last entry that the run's hub sealed",
            });
        }
        Ok(())
    }

    fn fold_entry(&mut self, entry: &Entry, head: Head) -> Result<(), ApplyError> {
        self.fold(&entry.event, entry.time_ms)
            .map_err(|problem| ApplyError::Impossible {
                index: entry.index,
                event: entry.event.name(),
                problem,
            })?;
        self.head = head;
        Ok(())
    }

    /// Checks what others than the hub signed.
    fn check_signed(&self, entry: &Entry) -> Result<(), ApplyError> {
        let impossible = |problem| ApplyError::Impossible {
            index: entry.index,
            event: entry.event.name(),
            problem,
        };
        let command = match &entry.event {
            Event::WorkerJoined { command }
            | Event::WorkerLeft { command }
            | Event::UpdateCommitted { command } => command,
            Event::IdentityBound { binding } => {
                let unsigned = "the binding is not signed by both sides";
                return binding.check().map_err(|_| impossible(unsigned));
            }
            _ => return Ok(()),
        };
        command.check().map_err(|source| ApplyError::Command {
            index: entry.index,
            source,
        })?;
        let last = self.workers.get(&command.worker).map(|it| it.sequence);
        let problem = if command.run != self.run {
            "the command is meant for another run"
        } else if last.is_some_and(|it| command.sequence <= it) {
            "the command was used before"
        } else {
            return Ok(());
        };
        Err(impossible(problem))
    }

    /// Checks first, changes after, so that an error changes nothing.
    fn fold(&mut self, event: &Event, time_ms: u64) -> Result<(), &'static str> {
        match event {
            Event::RunCreated { .. } => Err("the run exists"),
            Event::WorkerJoined { command } => self.fold_joined(command),
            Event::WorkerLeft { command } => self.fold_left(command),
            Event::IdentityBound { binding } => {
                if binding.run != self.run {
                    return Err("the binding is meant for another run");
                }
                if self.bindings.len() >= WORKERS_MAX || self.bindings.contains_key(&binding.key) {
                    return Err(
                        "the key is bound already, or the log has as many bindings as it admits",
                    );
                }
                self.bindings.insert(binding.key, binding.account);
                Ok(())
            }
            Event::RoundOpened {
                round,
                base,
                seed,
                tokens_before,
                deadline_ms,
                assignments,
            } => {
                let opening = Opening {
                    round: *round,
                    base: *base,
                    seed: *seed,
                    tokens_before: *tokens_before,
                    opened_ms: time_ms,
                    deadline_ms: *deadline_ms,
                    is_warm_start: self.is_warming_up(),
                };
                self.fold_opened(&opening, assignments)
            }
            Event::SlotAdded {
                round,
                slot,
                worker,
            } => self.fold_slot_added(*round, *slot, *worker),
            Event::UpdateCommitted { command } => self.fold_committed(command, time_ms),
            Event::RoundExtended { round, deadline_ms } => {
                let half = self.charter.round.window_ms / 2;
                let open = training(&mut self.training, *round)?;
                if open.is_extended || *deadline_ms != open.deadline_ms.saturating_add(half) {
                    return Err("a round is extended once, by half a window");
                }
                open.is_extended = true;
                open.deadline_ms = *deadline_ms;
                Ok(())
            }
            Event::CommitmentsClosed {
                round,
                reveal_deadline_ms,
            } => self.fold_closed(*round, *reveal_deadline_ms, time_ms),
            Event::UpdateAccepted {
                round,
                slot,
                worker,
                weight,
            } => self
                .slot_in_progress(*round, *slot, worker)?
                .accept(*slot, *weight),
            Event::UpdateRefused {
                round,
                slot,
                worker,
                reason,
            } => self.fold_refused(*round, *slot, *worker, reason),
            Event::UpdateDeferred {
                round,
                slot,
                worker,
            } => self.fold_deferred(*round, *slot, *worker),
            Event::RoundMerged {
                round,
                rate_q16,
                updates,
                model,
                ..
            } => self.fold_merged(*round, *rate_q16, updates, model, time_ms),
            Event::RoundEmpty { round } => self.fold_empty(*round, time_ms),
            Event::CheckpointPublished { round, checkpoint } => {
                if *round <= self.checkpoint.0 || !self.models.iter().any(|it| it.round == *round) {
                    return Err(
                        "it is not one of the newest models', or an older one than the last",
                    );
                }
                self.checkpoint = (*round, *checkpoint);
                Ok(())
            }
            Event::ModelEvaluated { round, evaluation } => {
                if *round > self.model.round {
                    return Err("that round is not merged yet");
                }
                if self.evaluation.is_none_or(|(last, _)| last <= *round) {
                    self.evaluation = Some((*round, *evaluation));
                }
                Ok(())
            }
            Event::SampleDrawn { round, .. } => {
                if *round > self.model.round {
                    return Err("that round is not merged yet");
                }
                self.sampled_round = self.sampled_round.max(Some(*round));
                Ok(())
            }
            Event::RunFinished { .. } => {
                if self.training.is_some()
                    || self.revealing.is_some()
                    || self.finished
                    || self.tokens < self.charter.inner.tokens_max
                {
                    return Err("a round is in progress or tokens are left");
                }
                self.finished = true;
                Ok(())
            }
            Event::HubReplaced { succession } => self
                .sealing
                .replace(succession)
                .map_err(|_| "no succession key of the charter says so"),
        }
    }

    fn fold_joined(&mut self, command: &SignedCommand) -> Result<(), &'static str> {
        let Command::Join { name, device } = &command.command else {
            return Err("the command is not a join");
        };
        if self.workers.len() >= WORKERS_MAX && !self.workers.contains_key(&command.worker) {
            return Err("the run has as many workers as a log admits");
        }
        let record = self
            .workers
            .entry(command.worker)
            .or_insert_with(|| Worker {
                name: name.clone(),
                device: device.clone(),
                joined: true,
                joined_at: self.head.length,
                sequence: 0,
                carried: None,
                carried_otherwise: None,
                busy_until_ms: 0,
                tokens_last: 0,
                tokens: 0,
                credits: MicroCredits(0),
                updates_accepted: 0,
                updates_refused: 0,
                last_round: None,
                last_late_by: 0,
                missed_in_a_row: 0,
            });
        record.name.clone_from(name);
        record.device.clone_from(device);
        record.joined = true;
        record.sequence = command.sequence;
        Ok(())
    }

    fn fold_left(&mut self, command: &SignedCommand) -> Result<(), &'static str> {
        if !matches!(command.command, Command::Leave { .. }) {
            return Err("the command is not a leave");
        }
        let record = self
            .workers
            .get_mut(&command.worker)
            .ok_or("the worker never joined")?;
        record.joined = false;
        record.sequence = command.sequence;
        Ok(())
    }

    fn fold_opened(
        &mut self,
        opening: &Opening,
        assignments: &[WorkerId],
    ) -> Result<(), &'static str> {
        if self.finished || self.training.is_some() {
            return Err("another round takes commitments, or the run is finished");
        }
        if opening.is_warm_start && self.revealing.is_some() {
            return Err("a round of the warm start begins when the one before it is merged");
        }
        if opening.round != self.round + 1
            || opening.base != self.model
            || opening.seed != self.ahead[0]
            || opening.tokens_before != self.tokens_with_pending()
            || opening.deadline_ms
                != opening
                    .opened_ms
                    .saturating_add(self.charter.round.window_ms)
        {
            return Err("round, base, seed, tokens or deadline are not the state's");
        }
        self.check_assignments(assignments, opening.is_warm_start)?;
        let mut round = Round::open(opening);
        for worker in assignments {
            self.assign(&mut round, *worker);
        }
        round.slots_opened = assignments.len() as u32;
        let after_next = round_seed(&self.charter, opening.round + 2, &self.model.parameters);
        self.ahead = [self.ahead[1], after_next];
        self.round = opening.round;
        self.training = Some(round);
        Ok(())
    }

    fn assign(&self, round: &mut Round, worker: WorkerId) {
        let record = self.workers.get(&worker);
        let keeps_word = record.is_some_and(|it| it.missed_in_a_row == 0);
        let expected = record.map_or(0, |it| it.tokens_last);
        round.assign(worker, if keeps_word { expected } else { 0 }, keeps_word);
    }

    fn fold_slot_added(
        &mut self,
        number: u64,
        slot: u32,
        worker: WorkerId,
    ) -> Result<(), &'static str> {
        let joined = self.workers.get(&worker).is_some_and(|it| it.joined);
        let assigned_max = self.charter.round.assigned_max();
        let open = training(&mut self.training, number)?;
        if open.is_warm_start && !open.takes_another_holder() {
            return Err("a round of the warm start has one slot, and it is used");
        }
        if !joined || open.slot_of(&worker).is_some() {
            return Err("the worker has not joined, or has a slot");
        }
        let is_full = open.undecided() + open.committed() >= assigned_max;
        if slot as usize != open.slots().len() || is_full && !open.is_warm_start {
            return Err("the slot is not the next, or one too many");
        }
        let mut open = self.training.take().expect("it was there a moment ago");
        self.assign(&mut open, worker);
        self.training = Some(open);
        Ok(())
    }

    fn fold_committed(
        &mut self,
        command: &SignedCommand,
        time_ms: u64,
    ) -> Result<(), &'static str> {
        let Command::Commit(commitment) = &command.command else {
            return Err("the command is not a commitment");
        };
        let Ok(accepting) = check_commitment(self, command.worker, commitment, time_ms) else {
            return Err("the commitment does not fit its assignment");
        };
        let commitment: Commitment = (**commitment).clone();
        let (worker, header) = (command.worker, commitment.header.clone());
        let open = self.training.as_mut().ok_or("no round is open")?;
        let opened_ms = match accepting {
            Accepting::InTime(slot) => {
                open.commit(&self.charter, slot, commitment, time_ms);
                open.opened_ms
            }
            Accepting::Late => {
                open.commit_late(worker, commitment, open.round);
                let closed = self.closed.iter_mut().find(|it| it.round == header.round);
                let closed = closed.expect("checked with the commitment");
                closed.missing.remove(&worker);
                closed.opened_ms
            }
        };
        let taken_up = open.round;
        self.payloads.add(header.payload, taken_up);
        let until = self
            .workers
            .get(&worker)
            .map_or(0, |it| claimed_until(self, it, opened_ms, header.tokens));
        if let Some(record) = self.workers.get_mut(&worker) {
            record.sequence = command.sequence;
            record.busy_until_ms = until.min(time_ms);
            record.carried = Some(header.carried_after);
            record.carried_otherwise = None;
        }
        Ok(())
    }

    fn fold_closed(
        &mut self,
        number: u64,
        reveal_deadline_ms: u64,
        time_ms: u64,
    ) -> Result<(), &'static str> {
        if reveal_deadline_ms != time_ms.saturating_add(self.charter.round.reveal_ms) {
            return Err("the time to reveal is not the charter's");
        }
        if self.revealing.is_some() {
            return Err("the round before it is not merged yet");
        }
        if !training(&mut self.training, number)?.has_commitments() {
            return Err("nobody committed to it");
        }
        let mut round = self.training.take().expect("it was there a moment ago");
        round.reveal = Some(Reveal {
            closed_ms: time_ms,
            deadline_ms: reveal_deadline_ms,
        });
        self.leave(&round);
        self.revealing = Some(round);
        Ok(())
    }

    /// Notes who had a slot in a round and has not committed: it missed the round, and may still come late.
    fn leave(&mut self, round: &Round) {
        let missing: BTreeMap<WorkerId, u32> = (0..)
            .zip(round.slots())
            .filter(|(_, it)| it.progress == SlotProgress::Assigned)
            .map(|(slot, it)| (it.worker, slot))
            .collect();
        for worker in missing.keys() {
            if let Some(record) = self.workers.get_mut(worker) {
                record.missed_in_a_row += 1;
            }
        }
        if round.is_warm_start {
            return;
        }
        self.closed.push_back(Closed {
            round: round.round,
            base: round.base,
            opened_ms: round.opened_ms,
            missing,
        });
        while self
            .closed
            .front()
            .is_some_and(|it| it.round + LATE_ROUNDS_MAX < round.round + 1)
        {
            self.closed.pop_front();
        }
    }

    fn fold_refused(
        &mut self,
        round: u64,
        slot: u32,
        worker: WorkerId,
        reason: &RefusalReason,
    ) -> Result<(), &'static str> {
        let commitment = self
            .slot_in_progress(round, slot, &worker)?
            .refuse(slot, reason)?;
        if let Some(record) = self.workers.get_mut(&worker) {
            record.updates_refused += 1;
            if *reason == RefusalReason::NotRevealed {
                record.missed_in_a_row += 1;
            }
            let after = Some(commitment.header.carried_after);
            if record.carried == after {
                record.carried = Some(commitment.header.carried_if_refused);
                record.carried_otherwise = after;
            }
        }
        Ok(())
    }

    fn fold_deferred(
        &mut self,
        round: u64,
        slot: u32,
        worker: WorkerId,
    ) -> Result<(), &'static str> {
        let from = self
            .revealing
            .as_mut()
            .filter(|it| it.round == round)
            .ok_or("that round is not being revealed")?;
        let to = self.training.as_mut().ok_or("no round could take it up")?;
        let part = from.slots().get(slot as usize);
        let part = part.filter(|it| it.worker == worker);
        let of_round = part.ok_or("the slot is not the worker's")?.of_round;
        if to.round - of_round > LATE_ROUNDS_MAX {
            return Err("it is too late for the next round");
        }
        let (commitment, taken_up) = from.defer(slot)?;
        to.commit_late(worker, commitment, taken_up);
        if let Some(record) = self.workers.get_mut(&worker) {
            record.missed_in_a_row += 1;
        }
        Ok(())
    }

    fn fold_merged(
        &mut self,
        number: u64,
        rate_q16: u32,
        updates: &[MergedUpdate],
        model: &ModelState,
        time_ms: u64,
    ) -> Result<(), &'static str> {
        let Some(open) = round_to_merge(self) else {
            return Err("no round waits for its merge");
        };
        if open.round != number || model.round != number {
            return Err("another round waits for its merge");
        }
        if *updates != open.merged_updates(&self.charter) {
            return Err("the merged updates are not the accepted ones");
        }
        if rate_q16 != open.rate_q16(&self.charter) {
            return Err("the rate is not what the charter and the quorum give");
        }
        let round = self.revealing.take().expect("it waited for its merge");
        for update in updates {
            self.credit(&round, update);
        }
        let accepted = round.slots().iter();
        let accepted = accepted.filter(|it| matches!(it.progress, SlotProgress::Accepted { .. }));
        let shown = accepted.filter_map(Slot::shown).collect();
        self.merged.push_back((number, shown));
        while (self.merged.front()).is_some_and(|it| it.0 + LATE_ROUNDS_MAX <= number) {
            self.merged.pop_front();
        }
        self.merge_ms = round
            .reveal
            .map_or(0, |it| time_ms.saturating_sub(it.closed_ms));
        self.model = *model;
        self.models.push_back(*model);
        if self.models.len() > MODELS_KEPT {
            self.models.pop_front();
        }
        self.rounds_merged += 1;
        Ok(())
    }

    /// A round without a commitment, or one whose commitments all came to nothing.
    fn fold_empty(&mut self, number: u64, time_ms: u64) -> Result<(), &'static str> {
        if let Some(round) = self.revealing.take_if(|it| it.round == number) {
            if round.unjudged() > 0 || round.accepted() > 0 {
                self.revealing = Some(round);
                return Err("the round has commitments that are not judged, or updates to merge");
            }
            return Ok(());
        }
        let open = training(&mut self.training, number)?;
        if open.has_commitments() || time_ms < open.deadline_ms {
            return Err("the round has commitments, or time left for them");
        }
        let round = self.training.take().expect("it was there a moment ago");
        self.leave(&round);
        Ok(())
    }

    fn check_assignments(
        &self,
        assignments: &[WorkerId],
        is_warm_start: bool,
    ) -> Result<(), &'static str> {
        if assignments.is_empty() || assignments.len() > self.charter.round.assigned_max() as usize
        {
            return Err("it has no slot or too many");
        }
        if is_warm_start && assignments.len() > 1 {
            return Err("a round of the warm start has one slot");
        }
        let mut seen = std::collections::BTreeSet::new();
        for worker in assignments {
            if !self.workers.get(worker).is_some_and(|it| it.joined) || !seen.insert(worker) {
                return Err("a slot's worker has not joined or has two slots");
            }
        }
        Ok(())
    }

    /// The round in progress that holds this slot of this worker.
    fn slot_in_progress(
        &mut self,
        round: u64,
        slot: u32,
        worker: &WorkerId,
    ) -> Result<&mut Round, &'static str> {
        self.revealing
            .iter_mut()
            .chain(&mut self.training)
            .find(|it| it.round == round)
            .ok_or("that round is not in progress")
            .and_then(|it| {
                let part = it.slots().get(slot as usize);
                match part.is_some_and(|part| part.worker == *worker) {
                    true => Ok(it),
                    false => Err("the slot is not the worker's"),
                }
            })
    }

    fn credit(&mut self, round: &Round, update: &MergedUpdate) {
        self.tokens = self.tokens.saturating_add(update.tokens);
        let part = &round.slots()[update.slot as usize];
        let inner_state = part.commitment().and_then(|it| it.header.inner_state);
        self.inner_start = inner_state.or(self.inner_start);
        if let Some(record) = self.workers.get_mut(&update.worker) {
            record.tokens = record.tokens.saturating_add(update.tokens);
            record.credits = MicroCredits(record.credits.0.saturating_add(update.credits.0));
            record.updates_accepted += 1;
            record.missed_in_a_row = 0;
            record.tokens_last = update.tokens;
            // One that came late may be accepted after the next round's.
            let before = record.last_of_round().unwrap_or(0);
            let late_by = round.round.saturating_sub(part.of_round.max(before));
            record.last_round = Some(round.round);
            debug_assert!(late_by <= LATE_ROUNDS_MAX);
            record.last_late_by = u8::try_from(late_by).unwrap_or(u8::MAX);
        }
    }
}

fn training(training: &mut Option<Round>, number: u64) -> Result<&mut Round, &'static str> {
    training
        .as_mut()
        .filter(|it| it.round == number)
        .ok_or("that round takes no commitments")
}
