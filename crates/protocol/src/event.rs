//! The events of a run. Everything else about a run is a fold over these.

use serde::{Deserialize, Serialize};

use crate::{
    Hash,
    charter::Charter,
    command::SignedCommand,
    identity::Binding,
    succession::Succession,
    units::{BlobReference, MicroCredits, WorkerId},
};

/// Longest sample text kept in the log.
pub const SAMPLE_BYTES_MAX: usize = 4096;

/// One thing that happened to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The run began with this charter and this model.
    RunCreated {
        /// The charter; its hash is the run's id.
        charter: Box<Charter>,
        /// The model that round 1 starts from.
        model: ModelState,
        /// The whole checkpoint of that model.
        checkpoint: Checkpoint,
    },
    /// A worker joined, or joined again.
    WorkerJoined {
        /// Its signed command.
        command: SignedCommand,
    },
    /// A worker left.
    WorkerLeft {
        /// Its signed command.
        command: SignedCommand,
    },
    /// A key was bound to an account.
    IdentityBound {
        /// The statement signed by both.
        binding: Binding,
    },
    /// A round opened.
    RoundOpened {
        /// Number, from 1.
        round: u64,
        /// The model it starts from.
        base: ModelState,
        /// Seed of its samples.
        seed: Hash,
        /// Tokens of the run so far, accepted or waiting for their merge; sets the learning rate.
        tokens_before: u64,
        /// Last moment for commitments, Unix milliseconds.
        deadline_ms: u64,
        /// Workers by slot.
        assignments: Vec<WorkerId>,
    },
    /// A worker joined a round that was open already.
    SlotAdded {
        /// The round.
        round: u64,
        /// Its new slot.
        slot: u32,
        /// The worker.
        worker: WorkerId,
    },
    /// A worker committed to an update; if it is of an earlier round, it is a further slot of the round that is open.
    UpdateCommitted {
        /// Its signed command, a [`crate::command::Command::Commit`].
        command: SignedCommand,
    },
    /// Too few have committed: the round goes on for half a window, once.
    RoundExtended {
        /// The round.
        round: u64,
        /// New last moment for commitments, Unix milliseconds.
        deadline_ms: u64,
    },
    /// No further commitments in time: the round's time is up, or all who are there have committed.
    CommitmentsClosed {
        /// The round.
        round: u64,
        /// Last moment for the committed bytes, Unix milliseconds.
        reveal_deadline_ms: u64,
    },
    /// An update's bytes arrived and passed every check.
    UpdateAccepted {
        /// The round that merges it.
        round: u64,
        /// Its slot there.
        slot: u32,
        /// Its maker.
        worker: WorkerId,
        /// Its weight in the merge: accepted tokens, less for staleness.
        weight: u64,
    },
    /// An update was refused.
    UpdateRefused {
        /// The round that would have merged it.
        round: u64,
        /// Its slot there.
        slot: u32,
        /// Its maker.
        worker: WorkerId,
        /// Why.
        reason: RefusalReason,
    },
    /// An update's bytes did not arrive in time: it goes on, as late, to the round that is open now.
    UpdateDeferred {
        /// The round that did not wait for it.
        round: u64,
        /// Its slot there.
        slot: u32,
        /// Its maker.
        worker: WorkerId,
    },
    /// The accepted updates became the next model.
    RoundMerged {
        /// The round.
        round: u64,
        /// Rate of the step in units of 2^-16: the charter's, less below the quorum.
        rate_q16: u32,
        /// What was merged, by slot.
        updates: Vec<MergedUpdate>,
        /// The published delta.
        delta: BlobReference,
        /// The model after it.
        model: ModelState,
    },
    /// A round ended with nothing to merge; the model stays.
    RoundEmpty {
        /// The round.
        round: u64,
    },
    /// A checkpoint was stored whole.
    CheckpointPublished {
        /// The round whose merge it follows.
        round: u64,
        /// What was stored.
        checkpoint: Checkpoint,
    },
    /// A checkpoint was evaluated on the held-out tokens.
    ModelEvaluated {
        /// The round whose merge it follows.
        round: u64,
        /// What came out.
        evaluation: Evaluation,
    },
    /// A checkpoint wrote a text.
    SampleDrawn {
        /// The round whose merge it follows.
        round: u64,
        /// What it was given.
        prompt: String,
        /// What it wrote.
        text: String,
    },
    /// All tokens of the charter are spent.
    RunFinished {
        /// The last round.
        round: u64,
    },
    /// Another hub keeps the run from here on; it sealed this entry already.
    HubReplaced {
        /// The statement of a succession key.
        succession: Succession,
    },
}

/// What a model is, by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelState {
    /// The round whose merge made it; 0 for the first.
    pub round: u64,
    /// Hash of the f32 parameters.
    pub parameters: Hash,
    /// Hash of the public residual and outer momentum.
    pub outer: Hash,
}

/// Where a whole checkpoint lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The parameters as safetensors.
    pub parameters: BlobReference,
    /// The public residual and outer momentum.
    pub outer: BlobReference,
}

/// A loss over held-out text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss in 10^-6 nats a token.
    pub loss_micronats: u64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Bits per byte of text in 10^-6.
    pub microbits_per_byte: u64,
}

/// One update's part in a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergedUpdate {
    /// The slot.
    pub slot: u32,
    /// The round whose samples it is of; an earlier one than the merge's if it came late.
    pub of_round: u64,
    /// Its maker.
    pub worker: WorkerId,
    /// The update file.
    pub update: BlobReference,
    /// Tokens accepted.
    pub tokens: u64,
    /// Weight in the merge.
    pub weight: u64,
    /// Credit granted.
    pub credits: MicroCredits,
}

/// Why an update does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The bytes did not arrive in time.
    NotRevealed,
    /// The file's envelope is broken, or is not the one committed to.
    Envelope(String),
    /// The payload does not decode: shape, bounds, encoding.
    Payload(String),
    /// The norm is far from the round's median, or zero.
    Norm(String),
    /// It keeps the same values as an update that was public when it was committed to.
    Copied(String),
    /// The hub had accepted the bytes and lost them before the merge: no fault of the worker's.
    Lost,
}

impl RefusalReason {
    /// A sentence for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::NotRevealed => "the update's bytes did not arrive in time".to_owned(),
            Self::Envelope(detail) => format!("the update's envelope was refused: {detail}"),
            Self::Payload(detail) => format!("the update's content was refused: {detail}"),
            Self::Norm(detail) => format!("the update's size is out of range: {detail}"),
            Self::Copied(detail) => format!("the update is a copy: {detail}"),
            Self::Lost => "the hub lost the update's bytes after it had accepted them".to_owned(),
        }
    }
}

impl Event {
    /// The event's name as it stands in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunCreated { .. } => "run_created",
            Self::WorkerJoined { .. } => "worker_joined",
            Self::WorkerLeft { .. } => "worker_left",
            Self::IdentityBound { .. } => "identity_bound",
            Self::RoundOpened { .. } => "round_opened",
            Self::SlotAdded { .. } => "slot_added",
            Self::UpdateCommitted { .. } => "update_committed",
            Self::RoundExtended { .. } => "round_extended",
            Self::CommitmentsClosed { .. } => "commitments_closed",
            Self::UpdateAccepted { .. } => "update_accepted",
            Self::UpdateRefused { .. } => "update_refused",
            Self::UpdateDeferred { .. } => "update_deferred",
            Self::RoundMerged { .. } => "round_merged",
            Self::RoundEmpty { .. } => "round_empty",
            Self::CheckpointPublished { .. } => "checkpoint_published",
            Self::ModelEvaluated { .. } => "model_evaluated",
            Self::SampleDrawn { .. } => "sample_drawn",
            Self::RunFinished { .. } => "run_finished",
            Self::HubReplaced { .. } => "hub_replaced",
        }
    }
}

#[cfg(test)]
mod tests;
