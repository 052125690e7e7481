//! What hubs, mirrors and their clients tell each other about who keeps a run.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Header of a mirror's refusal: the address of the run's hub.
pub const HUB_ADDRESS: &str = "x-athome-hub";
/// Header of a poll: the newest succession that the worker saw proof of, canonical bytes in hexadecimal.
pub const SUCCESSION: &str = "x-athome-succession";
/// Header of a mirror's requests: `key:signature` of a succession key of the charter, both hexadecimal.
pub const MIRROR: &str = "x-athome-mirror";
/// Domain of that signature; the message is the run's id and, for an acknowledgement, the log's length and head.
pub const MIRROR_DOMAIN: &str = "AI@home 2026 mirror v1";
/// Code of the refusal of a mirror that is asked for what only the run's hub can do (HTTP status 421).
pub const MIRROR_CODE: &str = "mirror";

/// Where a hub's or a mirror's copy of a run stands, and who keeps the run as far as it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunHead {
    /// The run.
    pub run: String,
    /// `hub` or `mirror`.
    pub role: String,
    /// Key of whoever answers.
    pub key: String,
    /// Key of the run's hub.
    pub hub: String,
    /// Where the run's hub is reached, if that is known.
    pub hub_address: Option<String>,
    /// Takeovers so far.
    pub generation: u64,
    /// The takeovers' statements, oldest first, each as canonical bytes in hexadecimal.
    pub successions: Vec<String>,
    /// Entries in the log.
    pub length: u64,
    /// Hash of the last one.
    pub hash: String,
    /// For a mirror: when it last heard that it has all entries; 0 for a hub.
    pub current_ms: u64,
    /// For a mirror: blobs that the log names and that are not here yet.
    pub blobs_missing: u64,
    /// Entries of this copy that another log, which counts, does not have; they are kept aside.
    pub entries_set_aside: u64,
    /// Proven statements that exclude each other.
    pub equivocations: Vec<EquivocationSummary>,
}

/// A key that said two things that exclude each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EquivocationSummary {
    /// Name of the proof: its bytes are at `equivocations/{id}`.
    pub id: String,
    /// The key.
    pub key: String,
    /// `two_entries` or `two_hubs`.
    pub kind: String,
    /// What happened, for people.
    pub sentence: String,
    /// Position of the first of the two entries.
    pub index: u64,
    /// Hashes of the two entries.
    pub hashes: Vec<String>,
    /// When this hub learnt of it.
    pub found_ms: u64,
}

/// A request to a mirror to take a run over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakeOver {
    /// Even though its hub answers.
    #[serde(default)]
    pub force: bool,
}
