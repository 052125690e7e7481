//! The hash chain: each entry names the hash of the one before it, and the hub signs each entry's hash.

use serde::{Deserialize, Serialize};

use crate::{
    Hash, PublicKey, SecretKey, Signature,
    canonical::{self, CanonicalError},
    event::Event,
    key::KeyError,
    succession::SuccessionError,
    units::RunId,
};

/// Longest encoded entry; the charter's limit and a merge of 65,536 updates both fit.
pub const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;
const HASH_DOMAIN: &str = "AI@home 2026 log entry v1";
const SIGNATURE_DOMAIN: &str = "AI@home 2026 log head v1";

/// One entry of a run's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The run.
    pub run: RunId,
    /// Position, from 0 without gaps.
    pub index: u64,
    /// Hash of the entry before; zeros for the first.
    pub previous: Hash,
    /// When, in Unix milliseconds by the hub's clock; never decreasing.
    pub time_ms: u64,
    /// What happened.
    pub event: Event,
    /// The hub's signature over this entry's hash.
    pub signature: Signature,
}

/// The part of an entry that is hashed.
#[derive(Serialize)]
struct Unsigned<'a> {
    run: RunId,
    index: u64,
    previous: Hash,
    time_ms: u64,
    event: &'a Event,
}

/// Where a chain stands: what the next entry must continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Entries so far; the next entry's index.
    pub length: u64,
    /// Hash of the last entry.
    pub hash: Hash,
    /// Its time.
    pub time_ms: u64,
}

/// Why an entry does not continue a chain.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// The bytes are no entry.
    #[error("log entry {index}: {source}")]
    Encoding {
        /// Position expected.
        index: u64,
        /// What is wrong with the bytes.
        source: CanonicalError,
    },
    /// The entry belongs to another run.
    #[error("log entry {index} belongs to run {run}")]
    OtherRun {
        /// Position.
        index: u64,
        /// The run it names.
        run: RunId,
    },
    /// The entry does not follow.
    #[error("log entry {index} does not follow: {problem}")]
    NotNext {
        /// Position expected.
        index: u64,
        /// What does not fit.
        problem: &'static str,
    },
    /// The hub's signature does not hold.
    #[error("log entry {index}: {source}")]
    Signature {
        /// Position.
        index: u64,
        /// What is wrong with it.
        source: KeyError,
    },
    /// The entry names a new hub, and may not.
    #[error("log entry {index} names a new hub: {source}")]
    Succession {
        /// Position.
        index: u64,
        /// Why not.
        source: SuccessionError,
    },
}

impl Head {
    /// The head of an empty chain.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            length: 0,
            hash: Hash::default(),
            time_ms: 0,
        }
    }

    /// Makes and signs the next entry; the time never goes back even if the clock did.
    #[must_use]
    pub fn next(&self, key: &SecretKey, run: RunId, now_ms: u64, event: Event) -> Entry {
        let time_ms = now_ms.max(self.time_ms);
        let hash = entry_hash(run, self.length, self.hash, time_ms, &event);
        Entry {
            run,
            index: self.length,
            previous: self.hash,
            time_ms,
            event,
            signature: key.sign(SIGNATURE_DOMAIN, &hash.0),
        }
    }

    /// Checks that `entry` is the next of `run`'s chain, signed by `hub`, and moves the head onto it.
    pub fn advance(
        &mut self,
        run: RunId,
        hub: &PublicKey,
        entry: &Entry,
    ) -> Result<(), ChainError> {
        let mut next = *self;
        next.advance_unsigned(run, entry)?;
        hub.verify(SIGNATURE_DOMAIN, &next.hash.0, &entry.signature)
            .map_err(|source| ChainError::Signature {
                index: self.length,
                source,
            })?;
        *self = next;
        Ok(())
    }

    /// As [`Self::advance`] for an entry that the caller itself has just sealed: its signature is not checked.
    pub fn advance_unsigned(&mut self, run: RunId, entry: &Entry) -> Result<(), ChainError> {
        let index = self.length;
        if entry.run != run {
            return Err(ChainError::OtherRun {
                index,
                run: entry.run,
            });
        }
        let problem = if entry.index != index {
            Some("its index is not the next")
        } else if entry.previous != self.hash {
            Some("it names another predecessor")
        } else if entry.time_ms < self.time_ms {
            Some("its time is before its predecessor's")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(ChainError::NotNext { index, problem });
        }
        *self = Self {
            length: index + 1,
            hash: entry.hash(),
            time_ms: entry.time_ms,
        };
        Ok(())
    }
}

impl Entry {
    /// The entry's hash: over everything but the signature.
    #[must_use]
    pub fn hash(&self) -> Hash {
        entry_hash(
            self.run,
            self.index,
            self.previous,
            self.time_ms,
            &self.event,
        )
    }

    /// Whether this key sealed the entry; whether it was this key's to seal is the chain's to say.
    #[must_use]
    pub fn is_sealed_by(&self, key: &PublicKey) -> bool {
        key.verify(SIGNATURE_DOMAIN, &self.hash().0, &self.signature)
            .is_ok()
    }

    /// The bytes that are stored and served.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads an entry; [`Head::advance`] says whether it belongs.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CanonicalError> {
        canonical::decode(bytes, ENTRY_BYTES_MAX)
    }
}

fn entry_hash(run: RunId, index: u64, previous: Hash, time_ms: u64, event: &Event) -> Hash {
    let unsigned = Unsigned {
        run,
        index,
        previous,
        time_ms,
        event,
    };
    Hash::in_domain(HASH_DOMAIN, &canonical::encode(&unsigned))
}

#[cfg(test)]
mod tests;
