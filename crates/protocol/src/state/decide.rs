//! What may happen next: a request and the state give events, or a refusal with its reason.

mod clock;
mod commit;

use super::{Round, SlotProgress, State};
use crate::{
    Hash,
    command::{CheckedCommand, Command, SignedCommand},
    event::{Checkpoint, Evaluation, Event, ModelState, RefusalReason},
    identity::{Binding, CheckedBinding},
    units::{BlobReference, WorkerId},
};

pub use clock::next_moment_ms;
pub(super) use commit::{Accepting, check_commitment, claimed_until};
pub use commit::{UPDATE_BYTES_MAX, fresh};

/// Something that the world asks of a run.
#[derive(Clone, Debug)]
pub enum Request {
    /// A worker's signed command.
    Worker(Box<CheckedCommand>),
    /// A binding signed by both sides.
    Bind(CheckedBinding),
    /// Time passed; these workers were heard of lately.
    Clock {
        /// Present workers, in ascending order.
        present: Vec<WorkerId>,
    },
    /// The bytes of an update arrived and were looked at.
    Judged {
        /// The update file.
        update: Hash,
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
    /// Too late: more rounds have passed than an update may be late.
    Late,
    /// Late, and no round is open that could take it up: the same command is welcome when the next one opens.
    BetweenRounds,
    /// The commitment does not fit the assignment.
    NotAssigned,
    /// The commitment names another base, or carries another state than was last accepted.
    WrongBase,
    /// The claim of work is impossible.
    Claim,
    /// Another commitment names the same payload.
    Copied,
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
        Request::Worker(command) => decide_command(state, command.get(), now_ms),
        Request::Bind(binding) => decide_binding(state, binding.get()),
        Request::Clock { present } => Ok(clock::decide(state, present, now_ms)),
        Request::Judged { update, verdict } => decide_verdict(state, update, verdict),
        Request::Merged {
            round,
            delta,
            model,
        } => decide_merged(state, *round, *delta, *model),
        Request::Stored { round, checkpoint } => {
            if *round <= state.checkpoint.0 || !state.models.iter().any(|it| it.round == *round) {
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

/// The round that waits for the hub to merge it: everything is judged or left behind, and something is accepted.
#[must_use]
pub fn round_to_merge(state: &State) -> Option<&Round> {
    state
        .revealing
        .as_ref()
        .filter(|it| it.unjudged() == 0 && it.accepted() > 0)
}

fn decide_command(state: &State, command: &SignedCommand, now_ms: u64) -> Decision {
    if command.run != state.run {
        return refuse(
            RefusalCode::OtherRun,
            "the command is meant for another run",
        );
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
            .commitment_of_blob(&commitment.update.hash)
            .is_some_and(|(_, _, it)| *it == **commitment),
    }
}

fn decide_binding(state: &State, binding: &Binding) -> Decision {
    if binding.run != state.run {
        return refuse(
            RefusalCode::OtherRun,
            "the binding is meant for another run",
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

fn decide_verdict(state: &State, update: &Hash, verdict: &Result<(), RefusalReason>) -> Decision {
    // A blob that went on to the next round stands in both; where it is still a commitment, the verdict counts.
    let holding = state
        .rounds_in_progress()
        .filter_map(|it| Some((it, it.slot_of_blob(update)?)));
    let Some((round, slot)) = holding.max_by_key(|(it, _)| it.round) else {
        return refuse(RefusalCode::Late, "the update's round is over");
    };
    let part = &round.slots()[slot as usize];
    match (&part.progress, verdict) {
        (SlotProgress::Committed(_), Ok(())) => Ok(vec![Event::UpdateAccepted {
            round: round.round,
            slot,
            worker: part.worker,
            weight: part.weight(round.round),
        }]),
        (SlotProgress::Committed(_) | SlotProgress::Accepted { .. }, Err(reason)) => {
            Ok(vec![Event::UpdateRefused {
                round: round.round,
                slot,
                worker: part.worker,
                reason: reason.clone(),
            }])
        }
        // The bytes came twice.
        (
            SlotProgress::Accepted { .. }
            | SlotProgress::Refused(_)
            | SlotProgress::Deferred(_)
            | SlotProgress::Assigned,
            _,
        ) => Ok(vec![]),
    }
}

fn decide_merged(state: &State, round: u64, delta: BlobReference, model: ModelState) -> Decision {
    let Some(open) = round_to_merge(state).filter(|it| it.round == round) else {
        return refuse(RefusalCode::Order, "that round does not wait for its merge");
    };
    Ok(vec![Event::RoundMerged {
        round,
        rate_q16: open.rate_q16(&state.charter),
        updates: open.merged_updates(&state.charter),
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
