//! The fold: one entry of the log onto the state. It trusts nobody: a log may come from a stranger.

use std::collections::BTreeMap;

use super::{Phase, Round, Slot, SlotProgress, State, WORKERS_MAX, Worker};
use crate::{
    command::{Command, CommandError, Commitment, SignedCommand},
    event::{Event, MergedUpdate},
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
            phase: Phase::Idle,
            round: 0,
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
        self.check_command(entry)?;
        self.fold(&entry.event, entry.time_ms)
            .map_err(|problem| ApplyError::Impossible {
                index: entry.index,
                event: entry.event.name(),
                problem,
            })?;
        self.head = head;
        Ok(())
    }

    fn check_command(&self, entry: &Entry) -> Result<(), ApplyError> {
        let (Event::WorkerJoined { command }
        | Event::WorkerLeft { command }
        | Event::UpdateCommitted { command }) = &entry.event
        else {
            return Ok(());
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
        Err(ApplyError::Impossible {
            index: entry.index,
            event: entry.event.name(),
            problem,
        })
    }

    /// Checks first, changes after, so that an error changes nothing.
    fn fold(&mut self, event: &Event, time_ms: u64) -> Result<(), &'static str> {
        match event {
            Event::RunCreated { .. } => Err("the run exists"),
            Event::WorkerJoined { command } => self.fold_joined(command),
            Event::WorkerLeft { command } => self.fold_left(command),
            Event::IdentityBound { binding } => {
                if binding.run != self.run || binding.check().is_err() {
                    return Err("the binding is not signed by both sides for this run");
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
                if self.phase != Phase::Idle {
                    return Err("another round is in progress or the run is finished");
                }
                if *round != self.round + 1
                    || *base != self.model
                    || *seed != round_seed(&self.charter, *round, &base.parameters)
                    || *tokens_before != self.tokens
                    || *deadline_ms < time_ms
                {
                    return Err("round, base, seed, tokens or deadline are not the state's");
                }
                self.check_assignments(assignments)?;
                self.round = *round;
                self.phase = Phase::Training(Round {
                    round: *round,
                    base: *base,
                    seed: *seed,
                    tokens_before: *tokens_before,
                    opened_ms: time_ms,
                    deadline_ms: *deadline_ms,
                    reveal_deadline_ms: None,
                    slots: assignments.iter().copied().map(Slot::assigned).collect(),
                });
                Ok(())
            }
            Event::SlotAdded {
                round,
                slot,
                worker,
            } => {
                let joined = self.workers.get(worker).is_some_and(|it| it.joined);
                let slots_max = self.charter.round.slots_max;
                if self.is_warming_up() {
                    return Err("a round of the warm start has one slot");
                }
                let open = self.training_round(*round)?;
                if !joined || open.slot_of(worker).is_some() {
                    return Err("the worker has not joined, or has a slot");
                }
                if *slot as usize != open.slots.len() || *slot >= slots_max {
                    return Err("the slot is not the next, or one too many");
                }
                open.slots.push(Slot::assigned(*worker));
                Ok(())
            }
            Event::UpdateCommitted { command } => self.fold_committed(command, time_ms),
            Event::CommitmentsClosed {
                round,
                reveal_deadline_ms,
            } => {
                if *reveal_deadline_ms != time_ms.saturating_add(self.charter.round.reveal_ms) {
                    return Err("the time to reveal is not the charter's");
                }
                let open = self.training_round(*round)?;
                open.reveal_deadline_ms = Some(*reveal_deadline_ms);
                let open = open.clone();
                self.count_missed(&open);
                self.phase = Phase::Revealing(open);
                Ok(())
            }
            Event::UpdateAccepted {
                round,
                worker,
                weight,
            } => {
                let slot = self.committed_slot(*round, worker)?;
                let SlotProgress::Committed(commitment) = &slot.progress else {
                    return Err("the update was not committed, or was judged already");
                };
                if *weight != super::decide::weight(*round, commitment) {
                    return Err("the weight is not what the update's tokens and lateness give");
                }
                slot.progress = SlotProgress::Accepted {
                    commitment: commitment.clone(),
                    weight: *weight,
                };
                Ok(())
            }
            Event::UpdateRefused {
                round,
                worker,
                reason,
            } => {
                let slot = self.committed_slot(*round, worker)?;
                if !matches!(
                    slot.progress,
                    SlotProgress::Committed(_) | SlotProgress::Accepted { .. }
                ) {
                    return Err("the update was not committed, or was refused already");
                }
                let kept = slot.commitment().map(|it| it.header.carried_if_refused);
                slot.progress = SlotProgress::Refused(reason.clone());
                if let Some(record) = self.workers.get_mut(worker) {
                    record.updates_refused += 1;
                    record.carried = kept.or(record.carried);
                }
                Ok(())
            }
            Event::RoundMerged {
                round,
                updates,
                model,
                ..
            } => {
                let Some(open) = super::decide::round_to_merge(self) else {
                    return Err("no round waits for its merge");
                };
                if open.round != *round || model.round != *round {
                    return Err("another round waits for its merge");
                }
                if updates.is_empty() || *updates != merged_updates(&self.charter, open) {
                    return Err("the merged updates are not the accepted ones");
                }
                for update in updates {
                    self.credit(*round, update);
                }
                self.model = *model;
                self.rounds_merged += 1;
                self.phase = Phase::Idle;
                Ok(())
            }
            Event::RoundEmpty { round } => {
                let Some(open) = self.current_round().filter(|it| it.round == *round) else {
                    return Err("that round is not in progress");
                };
                if super::decide::round_to_merge(self).is_some() {
                    return Err("enough updates are accepted: the round is to be merged");
                }
                let open = open.clone();
                if matches!(self.phase, Phase::Training(_)) {
                    self.count_missed(&open);
                }
                let kept: Vec<_> = open
                    .slots
                    .iter()
                    .filter_map(|it| Some((it.worker, it.commitment()?.header.carried_if_refused)))
                    .collect();
                for (worker, carried) in kept {
                    if let Some(record) = self.workers.get_mut(&worker) {
                        record.carried = Some(carried);
                    }
                }
                self.phase = Phase::Idle;
                Ok(())
            }
            Event::CheckpointPublished { round, checkpoint } => {
                if *round != self.model.round {
                    return Err("it is not the newest model's");
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
                if self.phase != Phase::Idle || self.tokens < self.charter.inner.tokens_max {
                    return Err("a round is in progress or tokens are left");
                }
                self.phase = Phase::Finished;
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
                sequence: 0,
                carried: None,
                tokens: 0,
                credits: MicroCredits(0),
                updates_accepted: 0,
                updates_refused: 0,
                last_round: None,
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

    fn fold_committed(
        &mut self,
        command: &SignedCommand,
        time_ms: u64,
    ) -> Result<(), &'static str> {
        let Command::Commit(commitment) = &command.command else {
            return Err("the command is not a commitment");
        };
        if super::decide::check_commitment(self, command.worker, commitment, time_ms).is_err() {
            return Err("the commitment does not fit its assignment");
        }
        let commitment: Commitment = (**commitment).clone();
        let round = commitment.header.round;
        let open = self.training_round(round)?;
        let slot = open
            .slots
            .get_mut(commitment.header.slot as usize)
            .filter(|it| it.worker == command.worker)
            .ok_or("the slot is not the worker's")?;
        if slot.progress != SlotProgress::Assigned {
            return Err("the slot has a commitment already");
        }
        slot.progress = SlotProgress::Committed(Box::new(commitment));
        if let Some(record) = self.workers.get_mut(&command.worker) {
            record.sequence = command.sequence;
        }
        Ok(())
    }

    fn check_assignments(&self, assignments: &[WorkerId]) -> Result<(), &'static str> {
        if assignments.is_empty() || assignments.len() > self.charter.round.slots_max as usize {
            return Err("it has no slot or too many");
        }
        if self.is_warming_up() && assignments.len() > 1 {
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

    fn training_round(&mut self, round: u64) -> Result<&mut Round, &'static str> {
        match &mut self.phase {
            Phase::Training(open) if open.round == round => Ok(open),
            Phase::Training(_) | Phase::Revealing(_) | Phase::Idle | Phase::Finished => {
                Err("that round takes no commitments")
            }
        }
    }

    fn committed_slot(&mut self, round: u64, worker: &WorkerId) -> Result<&mut Slot, &'static str> {
        let (Phase::Training(open) | Phase::Revealing(open)) = &mut self.phase else {
            return Err("no round is in progress");
        };
        if open.round != round {
            return Err("another round is in progress");
        }
        open.slots
            .iter_mut()
            .find(|it| it.worker == *worker)
            .ok_or("the worker has no slot in this round")
    }

    /// Notes who had a slot and committed to nothing.
    fn count_missed(&mut self, round: &Round) {
        for slot in &round.slots {
            if slot.progress == SlotProgress::Assigned
                && let Some(record) = self.workers.get_mut(&slot.worker)
            {
                record.missed_in_a_row += 1;
            }
        }
    }

    fn credit(&mut self, round: u64, update: &MergedUpdate) {
        self.tokens = self.tokens.saturating_add(update.tokens);
        let header = self
            .current_round()
            .and_then(|it| it.slots.get(update.slot as usize))
            .and_then(Slot::commitment)
            .map(|it| &it.header);
        let carried = header.map(|it| it.carried_after);
        self.inner_start = header.and_then(|it| it.inner_state).or(self.inner_start);
        if let Some(record) = self.workers.get_mut(&update.worker) {
            record.tokens = record.tokens.saturating_add(update.tokens);
            record.credits = MicroCredits(record.credits.0.saturating_add(update.credits.0));
            record.updates_accepted += 1;
            record.missed_in_a_row = 0;
            record.last_round = Some(round);
            record.carried = carried.or(record.carried);
        }
    }
}

/// The accepted updates of a round, by slot, as the merge event names them: with the cap on one identity's weight.
#[must_use]
pub fn merged_updates(charter: &crate::charter::Charter, round: &Round) -> Vec<MergedUpdate> {
    let flop = charter
        .model
        .training_flop_per_token(charter.inner.sequence);
    let mut updates: Vec<MergedUpdate> = Vec::new();
    for (index, slot) in round.slots.iter().enumerate() {
        if let SlotProgress::Accepted { commitment, weight } = &slot.progress {
            updates.push(MergedUpdate {
                slot: index as u32,
                worker: slot.worker,
                update: commitment.update,
                tokens: commitment.header.tokens,
                weight: *weight,
                credits: MicroCredits::for_tokens(commitment.header.tokens, flop),
            });
        }
    }
    let total: u128 = updates.iter().map(|it| u128::from(it.weight)).sum();
    let cap = (total * u128::from(charter.round.weight_cap_q16)) >> 16;
    for update in &mut updates {
        let capped = u128::from(update.weight).min(cap).max(1);
        update.weight = u64::try_from(capped).expect("not above the weight, which is 64 bits wide");
    }
    updates
}

impl Slot {
    fn assigned(worker: WorkerId) -> Self {
        Self {
            worker,
            progress: SlotProgress::Assigned,
        }
    }

    /// The commitment, if one was made and not refused.
    #[must_use]
    pub fn commitment(&self) -> Option<&Commitment> {
        match &self.progress {
            SlotProgress::Committed(commitment) | SlotProgress::Accepted { commitment, .. } => {
                Some(commitment)
            }
            SlotProgress::Assigned | SlotProgress::Refused(_) => None,
        }
    }
}
