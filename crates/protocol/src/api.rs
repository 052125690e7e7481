//! The hub's HTTP API: the JSON that `/api/v1` speaks, shared by hub, clients and the web app's generated types.
//!
//! Everything shown here is folded from the log; `event` fields are log positions, the answer to "why?".
//! Text of hashes and keys is hexadecimal. Times are Unix milliseconds.

pub mod accounts;
pub mod mirrors;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{PublicKey, Signature};

/// Header of a worker's authorisation to upload: `key:signature`, both hexadecimal.
pub const UPLOAD_AUTHORISATION: &str = "x-athome-upload";
/// Domain of that signature; the message is the blob's hash.
pub const UPLOAD_DOMAIN: &str = "AI@home 2026 blob upload v1";
/// Longest text of one.
const UPLOAD_AUTHORISATION_BYTES_MAX: usize = 256;
/// Offset of an upload's next byte, as a header of requests and replies.
pub const UPLOAD_OFFSET: &str = "x-athome-offset";
/// Most entries of one page of the log.
pub const LOG_PAGE_MAX: u64 = 1000;
/// Most workers of one page of workers.
pub const WORKERS_PAGE_MAX: u64 = 1000;
/// Most rounds of one page of rounds.
pub const ROUNDS_PAGE_MAX: u64 = 500;

/// The body of every error.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// Stable, for programs.
    pub code: String,
    /// A sentence for people: what happened, whether anything was lost, what to do.
    pub message: String,
}

/// A hub, as it introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HubInfo {
    /// `athome`'s version.
    pub version: String,
    /// The hub's public key.
    pub key: String,
    /// Runs it holds.
    pub runs: u64,
    /// Address of the gateway that serves its models, if the operator named one.
    pub gateway: Option<String>,
}

/// A run in a list, and the head of its page.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunSummary {
    /// The run's id: its charter's hash.
    pub id: String,
    /// Short name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// `idle`, `training`, `revealing` or `finished`.
    pub phase: String,
    /// When it was created.
    pub created_ms: u64,
    /// Entries in its log.
    pub log_length: u64,
    /// Last round opened.
    pub round: u64,
    /// Deadline for commitments of the round in progress.
    pub deadline_ms: Option<u64>,
    /// Rounds merged.
    pub rounds_merged: u64,
    /// Accepted tokens.
    pub tokens: u64,
    /// Tokens after which it is finished.
    pub tokens_max: u64,
    /// Accepted tokens a second over the last minute's rounds.
    pub tokens_per_s: f64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Workers that have joined and were heard of lately.
    pub workers_present: u64,
    /// Workers that ever joined.
    pub workers: u64,
    /// Newest evaluation.
    pub evaluation: Option<LossPoint>,
    /// Held-out losses of counting models, in nats a token: (unigram, bigram, trigram).
    pub baselines: BaselineLosses,
    /// Round of the newest whole checkpoint.
    pub checkpoint_round: u64,
    /// Accepted credit, in millionths.
    pub credits_micro: u64,
}

/// Held-out losses of n-gram models over the same tokens, nats a token.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct BaselineLosses {
    /// One-token frequencies.
    pub unigram: f64,
    /// Interpolated bigram model.
    pub bigram: f64,
    /// Interpolated trigram model.
    pub trigram: f64,
}

/// One point of the loss curves.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LossPoint {
    /// Round whose merge made the model; 0 for the first.
    pub round: u64,
    /// Accepted tokens up to then.
    pub tokens: u64,
    /// When.
    pub time_ms: u64,
    /// Mean training loss of the round's updates, nats a token.
    pub training_loss: Option<f64>,
    /// Held-out loss, nats a token.
    pub held_out_loss: Option<f64>,
    /// Held-out bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// Log position of the evaluation, or of the merge while there is none.
    pub event: u64,
}

/// One round on the timeline.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RoundSummary {
    /// Number.
    pub round: u64,
    /// `training`, `revealing`, `merged` or `empty`.
    pub phase: String,
    /// When it opened.
    pub opened_ms: u64,
    /// Last moment for commitments.
    pub deadline_ms: u64,
    /// When commitments were closed.
    pub closed_ms: Option<u64>,
    /// When it was merged, or ended empty.
    pub ended_ms: Option<u64>,
    /// Tokens accepted in it.
    pub tokens: u64,
    /// Bytes of the published delta.
    pub delta_bytes: Option<u64>,
    /// Hash of the parameters after it.
    pub parameters_hash: Option<String>,
    /// Held-out loss after it, nats a token.
    pub held_out_loss: Option<f64>,
    /// Everyone's part.
    pub contributions: Vec<Contribution>,
    /// Log position of its opening.
    pub opened_event: u64,
    /// Log position of its merge, or of its empty end.
    pub ended_event: Option<u64>,
}

/// One worker's part in a round.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Contribution {
    /// The slot.
    pub slot: u32,
    /// The worker.
    pub worker: String,
    /// Its name.
    pub name: String,
    /// `assigned`, `committed`, `accepted`, `merged`, `refused`, `lost` (the round ended without it), or, when it counts in
    /// a later round, `late` (committed after the close) or `deferred` (its bytes came after the merge).
    pub state: String,
    /// The round whose samples it is of; an earlier one if it came late.
    pub of_round: Option<u64>,
    /// Inner steps claimed.
    pub steps: Option<u32>,
    /// Tokens claimed.
    pub tokens: Option<u64>,
    /// Training loss, nats a token.
    pub training_loss: Option<f64>,
    /// Size of the update.
    pub update_bytes: Option<u64>,
    /// Weight in the merge.
    pub weight: Option<u64>,
    /// Credit granted, in millionths.
    pub credits_micro: Option<u64>,
    /// When it committed.
    pub committed_ms: Option<u64>,
    /// When its bytes were accepted or refused.
    pub judged_ms: Option<u64>,
    /// Why it was refused, a sentence.
    pub refusal: Option<String>,
    /// Log position of the newest event about it.
    pub event: u64,
}

/// A worker of a run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkerSummary {
    /// Its public key.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Whether it was heard of lately.
    pub present: bool,
    /// When it was last heard of, if this hub remembers.
    pub last_seen_ms: Option<u64>,
    /// When it first joined.
    pub joined_ms: u64,
    /// Its arithmetic class.
    pub arithmetic: String,
    /// Its threads.
    pub threads: u32,
    /// Its own benchmark, tokens a second.
    pub tokens_per_s: u32,
    /// Tokens of its accepted updates.
    pub tokens: u64,
    /// Credit, in millionths.
    pub credits_micro: u64,
    /// Accepted updates.
    pub updates_accepted: u64,
    /// Refused updates.
    pub updates_refused: u64,
    /// Why the last one was refused.
    pub last_refusal: Option<String>,
    /// Log position of that refusal.
    pub last_refusal_event: Option<u64>,
    /// Last round with an accepted update.
    pub last_round: Option<u64>,
    /// Bytes it sent: accepted updates.
    pub bytes_up: u64,
    /// Bytes this hub sent it since the hub started.
    pub bytes_down: u64,
    /// Log position of its newest join.
    pub event: u64,
}

/// A checkpoint that is kept whole.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckpointSummary {
    /// Round whose merge it follows.
    pub round: u64,
    /// When it was stored.
    pub time_ms: u64,
    /// Hash of its safetensors file.
    pub blob: String,
    /// Size of that file.
    pub bytes: u64,
    /// Hash of the parameters.
    pub parameters_hash: String,
    /// Held-out loss, nats a token.
    pub held_out_loss: Option<f64>,
    /// What it was given to continue.
    pub prompt: Option<String>,
    /// What it wrote.
    pub sample: Option<String>,
    /// Log position.
    pub event: u64,
}

/// One log entry as JSON, for people and the event stream.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Position.
    pub index: u64,
    /// The entry's hash.
    pub hash: String,
    /// The hash before it.
    pub previous: String,
    /// When.
    pub time_ms: u64,
    /// The event's name.
    pub kind: String,
    /// The event's content.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
    /// The hub's signature.
    pub signature: String,
}

/// A page of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    /// Entries from the position asked for.
    pub entries: Vec<LogEntry>,
    /// Entries in the whole log.
    pub length: u64,
}

/// What a worker is to do now; the answer to its poll.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Work {
    /// The hub's clock, so that a worker whose clock is wrong still meets deadlines.
    pub now_ms: u64,
    /// Entries in the log: pass it to wait for news.
    pub log_length: u64,
    /// Changes of the run's hub so far: an answer with fewer than the worker has proof of is of a hub that was replaced.
    #[serde(default)]
    pub generation: u64,
    /// Whether the run is finished.
    pub finished: bool,
    /// The newest model.
    pub model: WorkModel,
    /// The round in progress, if it takes commitments and the worker has a slot.
    pub assignment: Option<WorkAssignment>,
    /// Closed rounds that still take this worker's commitment, as late.
    pub late_rounds: Vec<u64>,
    /// The next two rounds: what to have ready.
    pub ahead: Vec<WorkAhead>,
    /// What the hub knows of this worker.
    pub worker: WorkWorker,
    /// The newest published m and v of the optimiser: what a worker without carried state starts from.
    pub inner_start: Option<WorkBlob>,
}

/// A blob and its size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkBlob {
    /// Its hash.
    pub blob: String,
    /// Its size.
    pub bytes: u64,
}

/// The newest model, and how to come to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkModel {
    /// Round whose merge made it.
    pub round: u64,
    /// Hash of its parameters.
    pub parameters_hash: String,
    /// Round of the newest whole checkpoint.
    pub checkpoint_round: u64,
    /// Its safetensors blob.
    pub checkpoint_blob: String,
    /// Its size.
    pub checkpoint_bytes: u64,
    /// Deltas of the merges since that checkpoint, oldest first.
    pub deltas: Vec<WorkDelta>,
}

/// One published delta.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkDelta {
    /// Round whose merge it is.
    pub round: u64,
    /// Its blob.
    pub blob: String,
    /// Its size.
    pub bytes: u64,
    /// Hash of the parameters after it.
    pub parameters_hash: String,
}

/// A round that has not opened yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkAhead {
    /// The round.
    pub round: u64,
    /// Seed of its samples.
    pub seed: String,
}

/// A worker's slot in the round in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkAssignment {
    /// The round.
    pub round: u64,
    /// The slot.
    pub slot: u32,
    /// Seed of the samples.
    pub seed: String,
    /// Slots when the round opened.
    pub slots: u32,
    /// Tokens before it, accepted or waiting for their merge.
    pub tokens_before: u64,
    /// Round whose merge was the newest when it opened: the oldest model that an update may start from.
    pub base_round: u64,
    /// Hash of that model's parameters.
    pub base_hash: String,
    /// Last moment for the commitment, by the hub's clock.
    pub deadline_ms: u64,
    /// Whether this worker's commitment is there.
    pub committed: bool,
    /// Whether the run warms up: the update must name the optimiser's m and v, uploaded beside it.
    pub publish_inner_state: bool,
}

/// What the hub knows of the worker that asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WorkWorker {
    /// Whether it has joined, and showed the token that its join was answered with; if not, it joins (again).
    pub joined: bool,
    /// Sequence number of its last command; the next is larger.
    pub sequence: u64,
    /// Hash of the state it carries, as last settled.
    pub carried: Option<String>,
    /// Accepted updates.
    pub updates_accepted: u64,
    /// Refused updates.
    pub updates_refused: u64,
    /// Why the last one was refused.
    pub last_refusal: Option<String>,
    /// Last round with an accepted update.
    pub last_round: Option<u64>,
    /// Tokens of accepted updates.
    pub tokens: u64,
    /// Credit, in millionths.
    pub credits_micro: u64,
}

/// The answer to a command.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommandReply {
    /// Entries in the log after it.
    pub log_length: u64,
    /// After a join: what the worker shows with each poll (`Authorization: Bearer …`), so that nobody else can be present
    /// in its name. A secret; joining again gives it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A request to open a run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateRun {
    /// The charter as TOML; `hub` may be left to the hub itself by all zeros.
    pub charter: String,
    /// Initial parameters as an uploaded safetensors blob; left out, the hub draws them from the charter's seed.
    pub parameters: Option<String>,
}

/// A freshly created run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreatedRun {
    /// Its id.
    pub id: String,
}

/// Who may have a blob that a worker asked for ([`crate::peers`]), likeliest first; empty where the hub is the one to ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Peers {
    /// The peers, at most 4.
    pub peers: Vec<Peer>,
}

/// Where a peer is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Peer {
    /// Public key of its endpoint.
    pub endpoint: String,
    /// Its socket addresses.
    pub addresses: Vec<String>,
    /// The relay it can be met at.
    pub relay: Option<String>,
}

impl From<&crate::peers::PeerAddress> for Peer {
    fn from(address: &crate::peers::PeerAddress) -> Self {
        Self {
            endpoint: address.endpoint.to_string(),
            addresses: address.addresses.iter().map(ToString::to_string).collect(),
            relay: address.relay.clone(),
        }
    }
}

impl Peer {
    /// The address in its parts; `None` for texts that are none, or too many.
    #[must_use]
    pub fn address(&self) -> Option<crate::peers::PeerAddress> {
        if self.addresses.len() > crate::peers::PEER_ADDRESSES_MAX {
            return None;
        }
        let addresses = self.addresses.iter().map(|it| it.parse().ok());
        Some(crate::peers::PeerAddress {
            endpoint: self.endpoint.parse().ok()?,
            addresses: addresses.collect::<Option<_>>()?,
            relay: self.relay.clone(),
        })
    }
}

/// Whose authorisation to upload a text is, and the signature over the blob's hash, which is not checked; `None` for
/// anything else.
#[must_use]
pub fn read_upload_authorisation(text: &str) -> Option<(PublicKey, Signature)> {
    if text.len() > UPLOAD_AUTHORISATION_BYTES_MAX {
        return None;
    }
    let (key, signature) = text.split_once(':')?;
    let signature = data_encoding::HEXLOWER.decode(signature.as_bytes()).ok()?;
    Some((key.parse().ok()?, Signature(signature.try_into().ok()?)))
}
