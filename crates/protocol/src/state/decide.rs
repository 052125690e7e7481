//! What may happen next: a request and the state give events, or a refusal with its reason.

use super::{Phase, Round, SlotProgress, State, apply::merged_updates};
use crate::{
    command::{Command, Commitment, SignedCommand},
    event::{Checkpoint, Evaluation, Event, ModelState, RefusalReason},
    identity::Binding,
    sampling::round_seed,
    units::{BlobReference, WorkerId},
};

/// A worker may exceed its window's measured tokens by this many steps, so that rounding refuses nobody.
const CLAIM_SLACK_STEPS: u64 = 3;
/// Largest update file accepted: dense 16-bit values, scales and header of the largest model of the charter's limits are far above this; raised when such a model is trained.
pub const UPDATE_BYTES_MAX: u64 = 1 << 32;

/// Largest training loss taken over into the curves, in 10^-6 nats a token: far above the logarithm of any vocabulary.
const LOSS_MICRONATS_MAX: u64 = 1_000_000_000;

/// Something that the world asks of a run.
#[derive(Clone, Debug)]
pub enum Request {
    /// A worker's signed command.
    Worker(Box<SignedCommand>),
    /// A binding signed by both sides.
    Bind(Binding),
    /// Time passed; these workers were heard of lately.
    Clock {
        /// Present workers, any order.
        present: Vec<WorkerId>,
    },
    /// The bytes of an update arrived and were looked at.
    Judged {
        /// The round.
        round: u64,
        /// The update's maker.
        worker: WorkerId,
        /// What the checks said.
        verdict: Result<(), RefusalReason>,
    },
    /// The merge was computed.
    Merged {
        /// The round.
        round: u64,
        /// The published delta.
        delta: BlobReference,
        /// The model after it.
        model: ModelState,
    },
    /// A checkpoint was stored.
    Stored {
        /// The round whose merge it follows.
        round: u64,
        /// What was stored.
        checkpoint: Checkpoint,
    },
    /// A model was evaluated.
    Evaluated {
        /// The round.
        round: u64,
        /// What came out.
        evaluation: Evaluation,
    },
    /// A model wrote a text.
    Sampled {
        /// The round.
        round: u64,
        /// What it was given.
        prompt: String,
        /// What it wrote.
        text: String,
    },
}

/// Why a request becomes no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// Stable code for programs.
    pub code: RefusalCode,
    /// For people.
    pub sentence: String,
}

/// Stable codes of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Meant for another run.
    OtherRun,
    /// An older command came again.
    Replayed,
    /// The worker has not joined.
    NotJoined,
    /// Too late: the round takes no more commitments.
    Late,
    /// The commitment does not fit the assignment.
    NotAssigned,
    /// The commitment names another base, or carries another state than was last accepted.
    WrongBase,
    /// The claim of work is impossible.
    Claim,
    /// The run is finished or full.
    Closed,
    /// Signature or statement does not hold.
    Signature,
    /// The request does not fit the state; a fault of the hub's own.
    Order,
}

type Decision = Result<Vec<Event>, Refusal>;

/// Decides on a request at time `now_ms` (Unix milliseconds). An empty list means: nothing to do, or done already.
pub fn decide(state: &State, request: &Request, now_ms: u64) -> Decision {
    match request {
        Request::Worker(command) => decide_command(state, command, now_ms),
        Request::Bind(binding) => decide_binding(state, binding),
        Request::Clock { present } => Ok(decide_clock(state, present, now_ms)),
        Request::Judged {
            round,
            worker,
            verdict,
        } => decide_verdict(state, *round, *worker, verdict),
        Request::Merged {
            round,
            delta,
            model,
        } => decide_merged(state, *round, *delta, *model),
        Request::Stored { round, checkpoint } => {
            if *round != state.model.round || state.checkpoint.0 == *round && *round != 0 {
                return Ok(vec![]);
            }
            Ok(vec![Event::CheckpointPublished {
                round: *round,
                checkpoint: *checkpoint,
            }])
        }
        Request::Evaluated { round, evaluation } => Ok(vec![Event::ModelEvaluated {
            round: *round,
            evaluation: *evaluation,
        }]),
        Request::Sampled {
            round,
            prompt,
            text,
        } => Ok(vec![Event::SampleDrawn {
            round: *round,
            prompt: prompt.clone(),
            text: text.clone(),
        }]),
    }
}

/// The round that waits for the hub to merge it: every commitment is judged, and enough are accepted.
#[must_use]
pub fn round_to_merge(state: &State) -> Option<&Round> {
    let Phase::Revealing(round) = &state.phase else {
        return None;
    };
    (!is_waiting(round) && accepted(round) >= state.charter.round.quorum as usize).then_some(round)
}

fn is_waiting(round: &Round) -> bool {
    round
        .slots
        .iter()
        .any(|it| matches!(it.progress, SlotProgress::Committed(_)))
}

fn accepted(round: &Round) -> usize {
    round
        .slots
        .iter()
        .filter(|it| matches!(it.progress, SlotProgress::Accepted { .. }))
        .count()
}

fn decide_command(state: &State, command: &SignedCommand, now_ms: u64) -> Decision {
    if command.run != state.run {
        return refuse(
            RefusalCode::OtherRun,
            "the command is meant for another run",
        );
    }
    if let Err(error) = command.check() {
        return refuse(RefusalCode::Signature, &error.to_string());
    }
    let record = state.workers.get(&command.worker);
    if record.is_some_and(|it| command.sequence <= it.sequence) {
        // The same command again: its reply was lost. Answer as the first time.
        if is_done(state, command) {
            return Ok(vec![]);
        }
        let last = record.map_or(0, |it| it.sequence);
        return refuse(
            RefusalCode::Replayed,
            &format!(
                "the command's sequence number {} is not above the last one, {last}",
                command.sequence
            ),
        );
    }
    match &command.command {
        Command::Join { name, device } => {
            // Saying the same again changes nothing and costs the log nothing.
            if record.is_some_and(|it| it.joined && it.name == *name && it.device == *device) {
                return Ok(vec![]);
            }
            if state.is_finished() {
                return refuse(RefusalCode::Closed, "the run is finished");
            }
            if record.is_none() && state.workers.len() >= super::WORKERS_MAX {
                return refuse(
                    RefusalCode::Closed,
                    "the run has as many workers as its log admits",
                );
            }
            Ok(vec![Event::WorkerJoined {
                command: command.clone(),
            }])
        }
        Command::Leave { .. } => {
            if !record.is_some_and(|it| it.joined) {
                return refuse(RefusalCode::NotJoined, "the worker has not joined");
            }
            Ok(vec![Event::WorkerLeft {
                command: command.clone(),
            }])
        }
        Command::Commit(commitment) => {
            check_commitment(state, command.worker, commitment, now_ms)?;
            Ok(vec![Event::UpdateCommitted {
                command: command.clone(),
            }])
        }
    }
}

/// Whether the state already shows what the command asks for.
fn is_done(state: &State, command: &SignedCommand) -> bool {
    let Some(record) = state.workers.get(&command.worker) else {
        return false;
    };
    match &command.command {
        Command::Join { name, device } => {
            command.sequence == record.sequence
                && record.joined
                && record.name == *name
                && record.device == *device
        }
        Command::Leave { .. } => command.sequence == record.sequence && !record.joined,
        Command::Commit(commitment) => state
            .current_round()
            .and_then(|it| it.slots.get(commitment.header.slot as usize))
            .and_then(super::Slot::commitment)
            .is_some_and(|it| *it == **commitment),
    }
}

/// Whether a commitment fits its assignment; the fold asks the same of a log.
pub(super) fn check_commitment(
    state: &State,
    worker: WorkerId,
    commitment: &Commitment,
    now_ms: u64,
) -> Result<(), Refusal> {
    let header = &commitment.header;
    if !state.workers.get(&worker).is_some_and(|it| it.joined) {
        return refuse(RefusalCode::NotJoined, "the worker has not joined");
    }
    let round = match &state.phase {
        Phase::Training(round) if round.round == header.round && now_ms <= round.deadline_ms => {
            round
        }
        Phase::Training(_) | Phase::Revealing(_) | Phase::Idle | Phase::Finished => {
            return refuse(
                RefusalCode::Late,
                &format!(
                    "round {} takes no more commitments; the run is at round {}",
                    header.round, state.round
                ),
            );
        }
    };
    let Some((slot_index, slot)) = round.slot_of(&worker) else {
        return refuse(
            RefusalCode::NotAssigned,
            "the worker has no slot in this round",
        );
    };
    if header.run != state.run || header.worker != worker || header.slot != slot_index {
        return refuse(
            RefusalCode::NotAssigned,
            "the update names another run, worker or slot than was assigned",
        );
    }
    if slot.progress != SlotProgress::Assigned {
        return refuse(
            RefusalCode::NotAssigned,
            "the slot has another commitment already",
        );
    }
    let blobs = |it: &Commitment| {
        [
            Some(it.update.hash),
            it.header.inner_state.map(|it| it.hash),
        ]
    };
    let own = blobs(commitment);
    let is_named = |it: &Commitment| {
        blobs(it)
            .iter()
            .flatten()
            .any(|it| own.contains(&Some(*it)))
    };
    // Honest updates never share a hash: their maker's key stands inside.
    if own[0] == own[1]
        || round
            .slots
            .iter()
            .filter_map(super::Slot::commitment)
            .any(is_named)
    {
        return refuse(
            RefusalCode::NotAssigned,
            "another commitment of this round names the same bytes",
        );
    }
    if header.base_round != round.base.round || header.base != round.base.parameters {
        return refuse(
            RefusalCode::WrongBase,
            "the update starts from another model than the round's",
        );
    }
    let carried = state.workers.get(&worker).and_then(|it| it.carried);
    if carried.is_some_and(|it| it != header.carried_before) && header.carried_before != fresh() {
        return refuse(
            RefusalCode::WrongBase,
            "the update carries another state than the worker's last accepted update left",
        );
    }
    if header.inner_state.is_some() != state.is_warming_up() {
        return refuse(
            RefusalCode::NotAssigned,
            "the optimiser's inner state is published in the warm start, and only there",
        );
    }
    check_claim(state, worker, round, commitment, now_ms)
}

/// What a worker carries that starts afresh: it lost its folder, or never had one.
///
/// Its error feedback is zero, and its m and v are the newest published ones ([`State::inner_start`]), or zero.
#[must_use]
pub fn fresh() -> crate::Hash {
    crate::Hash::default()
}

fn check_claim(
    state: &State,
    worker: WorkerId,
    round: &Round,
    commitment: &Commitment,
    now_ms: u64,
) -> Result<(), Refusal> {
    let header = &commitment.header;
    let rules = &state.charter.round;
    let per_step = state.charter.tokens_per_step();
    if header.steps < rules.steps_min || header.steps > rules.steps_max {
        return refuse(
            RefusalCode::Claim,
            &format!(
                "{} steps are not within {} and {}",
                header.steps, rules.steps_min, rules.steps_max
            ),
        );
    }
    if header.tokens != u64::from(header.steps) * per_step || header.head_start_steps > header.steps
    {
        return refuse(
            RefusalCode::Claim,
            "the update's tokens are not its steps times the tokens of a step",
        );
    }
    if header.loss_micronats > LOSS_MICRONATS_MAX {
        return refuse(
            RefusalCode::Claim,
            "the claimed training loss is out of range",
        );
    }
    let inner_bytes = header.inner_state.map_or(1, |it| it.bytes);
    if !(1..=UPDATE_BYTES_MAX).contains(&commitment.update.bytes)
        || !(1..=UPDATE_BYTES_MAX).contains(&inner_bytes)
    {
        return refuse(RefusalCode::Claim, "the update's size is out of range");
    }
    let speed = state
        .workers
        .get(&worker)
        .map_or(0, |it| u64::from(it.device.tokens_per_s));
    // The head start before the round opened is bounded by the reveal time of the round before.
    let elapsed_ms = now_ms.saturating_sub(round.opened_ms) + rules.reveal_ms;
    let possible = (u128::from(speed) * u128::from(elapsed_ms) / 1_000
        * u128::from(rules.speed_ratio_max_q16))
        >> 16;
    if u128::from(header.tokens) > possible + u128::from(CLAIM_SLACK_STEPS * per_step) {
        return refuse(
            RefusalCode::Claim,
            &format!(
                "{} tokens are more than a machine of {speed} tokens/s does in {elapsed_ms} ms",
                header.tokens
            ),
        );
    }
    Ok(())
}

fn decide_binding(state: &State, binding: &Binding) -> Decision {
    if binding.run != state.run {
        return refuse(
            RefusalCode::OtherRun,
            "the binding is meant for another run",
        );
    }
    if binding.check().is_err() {
        return refuse(
            RefusalCode::Signature,
            "the binding is not signed by both sides",
        );
    }
    if state.bindings.get(&binding.key) == Some(&binding.account) {
        return Ok(vec![]);
    }
    if state.bindings.len() >= super::WORKERS_MAX {
        return refuse(
            RefusalCode::Closed,
            "the run has as many bindings as its log admits",
        );
    }
    if state.bindings.contains_key(&binding.key) {
        return refuse(
            RefusalCode::Signature,
            "the key is bound to another account",
        );
    }
    Ok(vec![Event::IdentityBound {
        binding: binding.clone(),
    }])
}

fn decide_clock(state: &State, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    match &state.phase {
        Phase::Finished => vec![],
        Phase::Idle if state.tokens >= state.charter.inner.tokens_max => {
            vec![Event::RunFinished { round: state.round }]
        }
        Phase::Idle => open_round(state, present, now_ms),
        Phase::Training(round) => {
            let undecided = round
                .slots
                .iter()
                .any(|it| it.progress == SlotProgress::Assigned && present.contains(&it.worker));
            let committed = round
                .slots
                .iter()
                .any(|it| it.progress != SlotProgress::Assigned);
            if now_ms > round.deadline_ms || committed && !undecided {
                return close_commitments(state, round, now_ms);
            }
            add_slots(state, round, present, now_ms)
        }
        Phase::Revealing(round) => {
            let over = round.reveal_deadline_ms.is_some_and(|it| now_ms >= it);
            if is_waiting(round) && !over {
                return vec![];
            }
            end_reveal(state, round)
        }
    }
}

fn open_round(state: &State, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    let round = state.round + 1;
    let seed = round_seed(&state.charter, round, &state.model.parameters);
    let mut assignments: Vec<WorkerId> = present
        .iter()
        .copied()
        .filter(|it| state.workers.get(it).is_some_and(|it| it.joined))
        .collect();
    assignments.sort_unstable();
    assignments.dedup();
    if state.is_warming_up() {
        // The fastest trains alone, unless it missed its last slots; of equally fast ones the first by key.
        let rank = |it: &WorkerId| {
            let record = state.workers.get(it);
            let missed = record.map_or(0, |it| it.missed_in_a_row);
            let speed = record.map_or(0, |it| it.device.tokens_per_s);
            (missed, std::cmp::Reverse(speed))
        };
        assignments.sort_by_key(|it| (rank(it), *it));
        assignments.truncate(1);
    }
    // More machines than slots: the seed draws who has one, so that nobody is left out for good.
    assignments.sort_by_cached_key(|it| {
        crate::Hash::in_domain(
            "AI@home 2026 slot order v1",
            &[seed.0.as_slice(), it.0.0.as_slice()].concat(),
        )
    });
    assignments.truncate(state.charter.round.slots_max as usize);
    if assignments.len() < state.charter.round.quorum as usize {
        return vec![];
    }
    vec![Event::RoundOpened {
        round,
        base: state.model,
        seed,
        tokens_before: state.tokens,
        deadline_ms: now_ms.max(state.head.time_ms) + state.charter.round.window_ms,
        assignments,
    }]
}

/// A worker that arrives within the first half of a window still has a use.
fn add_slots(state: &State, round: &Round, present: &[WorkerId], now_ms: u64) -> Vec<Event> {
    if state.is_warming_up() {
        return vec![];
    }
    let half = round.opened_ms + (round.deadline_ms - round.opened_ms) / 2;
    if now_ms > half {
        return vec![];
    }
    let free = (state.charter.round.slots_max as usize).saturating_sub(round.slots.len());
    present
        .iter()
        .filter(|it| state.workers.get(it).is_some_and(|it| it.joined))
        .filter(|it| round.slot_of(it).is_none())
        .take(free)
        .enumerate()
        .map(|(index, worker)| Event::SlotAdded {
            round: round.round,
            slot: (round.slots.len() + index) as u32,
            worker: *worker,
        })
        .collect()
}

fn close_commitments(state: &State, round: &Round, now_ms: u64) -> Vec<Event> {
    let committed = round.slots.iter().any(|it| {
        !matches!(
            it.progress,
            SlotProgress::Assigned | SlotProgress::Refused(_)
        )
    });
    if !committed {
        return vec![Event::RoundEmpty { round: round.round }];
    }
    vec![Event::CommitmentsClosed {
        round: round.round,
        reveal_deadline_ms: now_ms.max(state.head.time_ms) + state.charter.round.reveal_ms,
    }]
}

/// Whoever promised and did not bring is named; below the quorum the round ends without a merge.
fn end_reveal(state: &State, round: &Round) -> Vec<Event> {
    let mut events: Vec<Event> = round
        .slots
        .iter()
        .filter(|it| matches!(it.progress, SlotProgress::Committed(_)))
        .map(|it| Event::UpdateRefused {
            round: round.round,
            worker: it.worker,
            reason: RefusalReason::NotRevealed,
        })
        .collect();
    if accepted(round) < state.charter.round.quorum as usize {
        events.push(Event::RoundEmpty { round: round.round });
    }
    events
}

fn decide_verdict(
    state: &State,
    round: u64,
    worker: WorkerId,
    verdict: &Result<(), RefusalReason>,
) -> Decision {
    let slot = state
        .current_round()
        .filter(|it| it.round == round)
        .and_then(|it| it.slot_of(&worker));
    let Some((_, slot)) = slot else {
        return refuse(RefusalCode::Late, "the update's round is over");
    };
    match (&slot.progress, verdict) {
        (SlotProgress::Committed(commitment), Ok(())) => Ok(vec![Event::UpdateAccepted {
            round,
            worker,
            weight: weight(round, commitment),
        }]),
        (SlotProgress::Committed(_) | SlotProgress::Accepted { .. }, Err(reason)) => {
            Ok(vec![Event::UpdateRefused {
                round,
                worker,
                reason: reason.clone(),
            }])
        }
        // The bytes came twice.
        (SlotProgress::Accepted { .. }, Ok(())) | (SlotProgress::Refused(_), _) => Ok(vec![]),
        (SlotProgress::Assigned, _) => refuse(
            RefusalCode::NotAssigned,
            "the update was never committed to",
        ),
    }
}

/// Weight of an update that is `lateness` rounds late: tokens × exp(−0.5·s), in units of 2^-16.
pub const STALENESS_Q16: [u64; 4] = [65_536, 39_750, 24_109, 14_623];

pub(super) fn weight(merged_in: u64, commitment: &Commitment) -> u64 {
    let late = merged_in.saturating_sub(commitment.header.round) as usize;
    let factor = STALENESS_Q16.get(late).copied().unwrap_or(0);
    let weighted = (u128::from(commitment.header.tokens) * u128::from(factor)) >> 16;
    u64::try_from(weighted).unwrap_or(u64::MAX).max(1)
}

fn decide_merged(state: &State, round: u64, delta: BlobReference, model: ModelState) -> Decision {
    let Some(open) = round_to_merge(state).filter(|it| it.round == round) else {
        return refuse(RefusalCode::Order, "that round does not wait for its merge");
    };
    Ok(vec![Event::RoundMerged {
        round,
        updates: merged_updates(&state.charter, open),
        delta,
        model,
    }])
}

fn refuse<T>(code: RefusalCode, sentence: &str) -> Result<T, Refusal> {
    Err(Refusal {
        code,
        sentence: sentence.to_owned(),
    })
}
