//! Whether a commitment fits its assignment; the decision and the fold ask the same.

use super::{Refusal, RefusalCode, refuse};
use crate::{
    Hash,
    command::Commitment,
    event::ModelState,
    state::{Round, SlotProgress, State, Worker, round::LATE_ROUNDS_MAX},
    units::WorkerId,
};

/// A worker may exceed the measured tokens of its time by this many steps, so that rounding refuses nobody.
const CLAIM_SLACK_STEPS: u64 = 3;
/// Largest update file accepted: dense 16-bit values, scales and header of the largest model of the charter's limits are far above this; raised when such a model is trained.
pub const UPDATE_BYTES_MAX: u64 = 1 << 32;
/// Largest training loss taken over into the curves, in 10^-6 nats a token: far above the logarithm of any vocabulary.
const LOSS_MICRONATS_MAX: u64 = 1_000_000_000;

/// How a commitment is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::state) enum Accepting {
    /// In its own round, at this slot.
    InTime(u32),
    /// As a further slot of the round that is open.
    Late,
}

/// The round that a commitment is of, as far as its checks go.
struct Assignment {
    opened_ms: u64,
    base: ModelState,
    slot: u32,
    is_warm_start: bool,
    accepting: Accepting,
}

/// What a worker carries that starts afresh: it lost its folder, or never had one.
///
/// Its error feedback is zero, and its m and v are the newest published ones ([`State::inner_start`]), or zero.
#[must_use]
pub fn fresh() -> Hash {
    Hash::default()
}

/// Whether and how a commitment fits at `now_ms`.
pub(in crate::state) fn check_commitment(
    state: &State,
    worker: WorkerId,
    commitment: &Commitment,
    now_ms: u64,
) -> Result<Accepting, Refusal> {
    let header = &commitment.header;
    let Some(record) = state.workers.get(&worker).filter(|it| it.joined) else {
        return refuse(RefusalCode::NotJoined, "the worker has not joined");
    };
    let assignment = assignment(state, worker, header.round)?;
    if header.run != state.run || header.worker != worker || header.slot != assignment.slot {
        return refuse(
            RefusalCode::NotAssigned,
            "the update names another run, worker or slot than was assigned",
        );
    }
    check_blobs(state, commitment)?;
    check_base(state, &assignment.base, commitment)?;
    let carried = header.carried_before;
    if record.carried.is_some_and(|it| it != carried)
        && record.carried_otherwise != Some(carried)
        && carried != fresh()
    {
        return refuse(
            RefusalCode::WrongBase,
            "the update carries another state than the worker's last commitment left",
        );
    }
    if header.inner_state.is_some() != assignment.is_warm_start {
        return refuse(
            RefusalCode::NotAssigned,
            "the optimiser's inner state is published in the warm start, and only there",
        );
    }
    check_claim(state, commitment)?;
    check_time(state, record, assignment.opened_ms, commitment, now_ms)?;
    Ok(assignment.accepting)
}

/// The worker's slot in a round that still takes its commitment.
fn assignment(state: &State, worker: WorkerId, number: u64) -> Result<Assignment, Refusal> {
    if let Some(round) = state.training.as_ref().filter(|it| it.round == number) {
        return in_time(round, worker);
    }
    let Some(closed) = state.closed.iter().find(|it| it.round == number) else {
        return refuse(
            RefusalCode::Late,
            &format!(
                "round {number} takes no more commitments; the run is at round {}",
                state.round
            ),
        );
    };
    let Some(slot) = closed.missing.get(&worker) else {
        return refuse(
            RefusalCode::NotAssigned,
            "the worker has no slot in that round, or committed to it already",
        );
    };
    let Some(open) = &state.training else {
        return refuse(
            RefusalCode::BetweenRounds,
            "the commitment is late, and no round is open that could take it up: send it again when the next one opens",
        );
    };
    let late = open.round - number;
    let taken_up = open.slots().len() as u64;
    if late > LATE_ROUNDS_MAX || taken_up >= 3 * u64::from(state.charter.round.slots_max) {
        return refuse(
            RefusalCode::Late,
            &format!("round {number} is {late} rounds ago, or too many are late"),
        );
    }
    Ok(Assignment {
        opened_ms: closed.opened_ms,
        base: closed.base,
        slot: *slot,
        is_warm_start: false,
        accepting: Accepting::Late,
    })
}

fn in_time(round: &Round, worker: WorkerId) -> Result<Assignment, Refusal> {
    let Some((slot, part)) = round.slot_of(&worker) else {
        return refuse(
            RefusalCode::NotAssigned,
            "the worker has no slot in this round",
        );
    };
    if part.progress != SlotProgress::Assigned {
        return refuse(
            RefusalCode::NotAssigned,
            "the slot has another commitment already",
        );
    }
    Ok(Assignment {
        opened_ms: round.opened_ms,
        base: round.base,
        slot,
        is_warm_start: round.is_warm_start,
        accepting: Accepting::InTime(slot),
    })
}

/// Honest updates never share a hash: their maker's key stands inside. Nor do they share a payload: no two are of the same
/// samples. Who committed first is its maker.
fn check_blobs(state: &State, commitment: &Commitment) -> Result<(), Refusal> {
    let update = commitment.update.hash;
    let inner_state = commitment.header.inner_state.map(|it| it.hash);
    let is_known = |blob: &Hash| {
        state
            .rounds_in_progress()
            .any(|it| it.slot_of_blob(blob).is_some())
    };
    if inner_state == Some(update)
        || is_known(&update)
        || inner_state.is_some_and(|it| is_known(&it))
    {
        return refuse(
            RefusalCode::NotAssigned,
            "another commitment names the same bytes",
        );
    }
    if let Some(round) = state.payloads.round_of(&commitment.header.payload) {
        return refuse(
            RefusalCode::Copied,
            &format!("the update's payload is that of an update committed to in round {round}"),
        );
    }
    Ok(())
}

/// An update starts from the newest model when its round opened, or from a newer one of before its round.
fn check_base(state: &State, opening: &ModelState, commitment: &Commitment) -> Result<(), Refusal> {
    let header = &commitment.header;
    let is_known = state.model_of(header.base_round, &header.base).is_some();
    if !is_known || header.base_round < opening.round || header.base_round >= header.round {
        return refuse(
            RefusalCode::WrongBase,
            "the update starts from a model that is not of its round",
        );
    }
    if header.head_start_steps > 0 && header.base_round == opening.round {
        return refuse(
            RefusalCode::WrongBase,
            "the update claims steps from before its base, which is the round's first",
        );
    }
    Ok(())
}

fn check_claim(state: &State, commitment: &Commitment) -> Result<(), Refusal> {
    let header = &commitment.header;
    let rules = &state.charter.round;
    if header.steps < rules.steps_min || header.steps > rules.steps_max {
        return refuse(
            RefusalCode::Claim,
            &format!(
                "{} steps are not within {} and {}",
                header.steps, rules.steps_min, rules.steps_max
            ),
        );
    }
    if header.tokens != u64::from(header.steps) * state.charter.tokens_per_step()
        || header.head_start_steps > header.steps
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
    Ok(())
}

/// Up to when a claim of `tokens` fills the time of a machine of this speed, Unix milliseconds: from the opening of its
/// round or from the end of its last claim, whichever is later.
pub(in crate::state) fn claimed_until(
    state: &State,
    record: &Worker,
    opened_ms: u64,
    tokens: u64,
) -> u64 {
    let speed = u128::from(record.device.tokens_per_s.max(1))
        * u128::from(state.charter.round.speed_ratio_max_q16);
    let needed_ms = ((u128::from(tokens) * 1_000) << 16) / speed.max(1);
    record
        .busy_until_ms
        .max(opened_ms)
        .saturating_add(u64::try_from(needed_ms).unwrap_or(u64::MAX))
}

fn check_time(
    state: &State,
    record: &Worker,
    opened_ms: u64,
    commitment: &Commitment,
    now_ms: u64,
) -> Result<(), Refusal> {
    let slack = CLAIM_SLACK_STEPS * state.charter.tokens_per_step();
    let tokens = commitment.header.tokens.saturating_sub(slack);
    let until = claimed_until(state, record, opened_ms, tokens);
    if until > now_ms {
        return refuse(
            RefusalCode::Claim,
            &format!(
                "{} tokens are more than a machine of {} tokens/s does since its round opened and its last update ended ({} ms too early)",
                commitment.header.tokens,
                record.device.tokens_per_s,
                until - now_ms
            ),
        );
    }
    Ok(())
}
