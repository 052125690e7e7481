//! What hubs, mirrors and their clients tell each other about who keeps a run.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Hash, PublicKey, SecretKey, Signature, canonical, log::Head, units::RunId};

/// Header of a mirror's refusal: the address of the run's hub.
pub const HUB_ADDRESS: &str = "x-athome-hub";
/// Header of a poll: the newest succession that the worker saw proof of, canonical bytes in hexadecimal.
pub const SUCCESSION: &str = "x-athome-succession";
/// Header of a mirror's requests for entries: a [`MirrorProof`] as text.
pub const MIRROR: &str = "x-athome-mirror";
/// Header of a mirror's requests for an update that is not public yet: a [`MirrorRead`] as text.
pub const MIRROR_READ: &str = "x-athome-mirror-read";
/// Domain of its signature; the message is run, length and head.
const MIRROR_DOMAIN: &str = "AI@home 2026 mirror v1";
/// Domain of a [`MirrorRead`]'s signature; the message is run, hub and blob.
const MIRROR_READ_DOMAIN: &str = "AI@home 2026 mirror read v1";
/// Longest text of a proof.
const PROOF_BYTES_MAX: usize = 512;
/// Longest proof of equivocation that a hub or mirror takes when it is shown one; of longer ones it learns by asking.
pub const SHOWN_PROOF_BYTES_MAX: usize = 4 << 20;
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
    /// Which process answers: another one may have a copy of its key.
    pub process: String,
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
    /// Why whoever answers seals nothing although the log names it as the run's hub: a proof that its key sealed two different
    /// entries. It waits for a takeover.
    #[serde(default)]
    pub stopped: Option<String>,
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

/// What a mirror that holds a succession key shows its hub: who it is, and up to where the log is on its disk. Such a mirror
/// is given the bytes of updates before they are public, and the hub waits for it before it acknowledges. It speaks of no more
/// entries than the mirror could go on from: not of a merge that it lacks the updates of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorProof {
    /// The succession key.
    pub key: PublicKey,
    /// Entries that are on the mirror's disk and that it could go on from.
    pub length: u64,
    /// Hash of the last of them.
    pub hash: Hash,
    signature: Signature,
}

impl MirrorProof {
    /// Says that the log of `run` up to `head` is on the disk of whoever holds `key`.
    #[must_use]
    pub fn sign(key: &SecretKey, run: RunId, head: &Head) -> Self {
        let message = canonical::encode(&(run, head.length, head.hash));
        Self {
            key: key.public(),
            length: head.length,
            hash: head.hash,
            signature: key.sign(MIRROR_DOMAIN, &message),
        }
    }

    /// Whether its key signed it for this run; whether the charter names the key is the caller's to ask.
    #[must_use]
    pub fn holds(&self, run: RunId) -> bool {
        let message = canonical::encode(&(run, self.length, self.hash));
        self.key
            .verify(MIRROR_DOMAIN, &message, &self.signature)
            .is_ok()
    }

    /// `key:length:hash:signature`, all but the number in hexadecimal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let signature = data_encoding::HEXLOWER.encode(&self.signature.0);
        format!("{}:{}:{}:{signature}", self.key, self.length, self.hash)
    }

    /// Reads the text; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if text.len() > PROOF_BYTES_MAX {
            return None;
        }
        let mut parts = text.split(':');
        let mut part = || parts.next();
        let proof = Self {
            key: part()?.parse().ok()?,
            length: part()?.parse().ok()?,
            hash: part()?.parse().ok()?,
            signature: Signature(
                data_encoding::HEXLOWER
                    .decode(part()?.as_bytes())
                    .ok()?
                    .try_into()
                    .ok()?,
            ),
        };
        parts.next().is_none().then_some(proof)
    }
}

/// That whoever asks a hub for a blob may take its run over, and so is given updates that are not public yet.
///
/// Of one blob and one hub: whoever sees it on its way can read with it what passes there anyway, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorRead {
    /// The succession key.
    pub key: PublicKey,
    signature: Signature,
}

impl MirrorRead {
    /// Asks the hub of this key for a blob.
    #[must_use]
    pub fn sign(key: &SecretKey, run: RunId, hub: PublicKey, blob: Hash) -> Self {
        let message = canonical::encode(&(run, hub, blob));
        Self {
            key: key.public(),
            signature: key.sign(MIRROR_READ_DOMAIN, &message),
        }
    }

    /// Whether its key asks this hub for this blob; whether the charter names the key is the caller's to ask.
    #[must_use]
    pub fn holds(&self, run: RunId, hub: PublicKey, blob: Hash) -> bool {
        let message = canonical::encode(&(run, hub, blob));
        self.key
            .verify(MIRROR_READ_DOMAIN, &message, &self.signature)
            .is_ok()
    }

    /// `key:signature` in hexadecimal.
    #[must_use]
    pub fn to_text(&self) -> String {
        let signature = data_encoding::HEXLOWER.encode(&self.signature.0);
        format!("{}:{signature}", self.key)
    }

    /// Reads the text; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let (key, signature) = text
            .split_once(':')
            .filter(|_| text.len() <= PROOF_BYTES_MAX)?;
        let signature = data_encoding::HEXLOWER.decode(signature.as_bytes()).ok()?;
        Some(Self {
            key: key.parse().ok()?,
            signature: Signature(signature.try_into().ok()?),
        })
    }
}

/// A request to a mirror to take a run over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TakeOver {
    /// Even though its hub answers.
    #[serde(default)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_one_key_run_and_head() {
        let key = SecretKey::from_entropy([1; 32]);
        let (run, other) = (RunId(Hash([2; 32])), RunId(Hash([3; 32])));
        let head = Head {
            length: 7,
            hash: Hash([4; 32]),
            time_ms: 1,
        };
        let proof = MirrorProof::sign(&key, run, &head);
        let read = MirrorProof::from_text(&proof.to_text()).unwrap();
        assert_eq!(read, proof);
        assert!(read.holds(run));
        assert!(!read.holds(other));
        assert!(!MirrorProof { length: 8, ..read }.holds(run));
        let read = MirrorRead::sign(&key, run, key.public(), Hash([5; 32]));
        assert_eq!(MirrorRead::from_text(&read.to_text()), Some(read));
        assert!(read.holds(run, key.public(), Hash([5; 32])));
        assert!(!read.holds(other, key.public(), Hash([5; 32])));
        assert!(!read.holds(run, PublicKey([6; 32]), Hash([5; 32])));
        assert!(!read.holds(run, key.public(), Hash([6; 32])));
        let text = read.to_text();
        for broken in ["", ":", &text[1..], &format!("{text}0"), &"a".repeat(600)] {
            assert!(MirrorRead::from_text(broken).is_none(), "{broken:.20}");
        }
        let text = proof.to_text();
        for broken in ["", "::", &text[1..], &format!("{text}:"), &"a".repeat(600)] {
            assert!(MirrorProof::from_text(broken).is_none(), "{broken:.20}");
        }
    }
}
