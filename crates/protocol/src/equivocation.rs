//! The proof that a key said two things that exclude each other: two entries that carry its signatures.
//!
//! A hub seals one entry at each place of its log, and a succession key names one hub for each generation. Two that differ
//! prove a lie, a copied key, or a hub that was restored from an old copy; nobody can take them back, anyone can check
//! them, and no rule prefers one of the two. They are shown to people.

use serde::{Deserialize, Serialize};

use crate::{
    Hash, PublicKey,
    canonical::{self, CanonicalError},
    event::Event,
    log::{ENTRY_BYTES_MAX, Entry},
};

/// Longest encoded proof.
pub const EQUIVOCATION_BYTES_MAX: usize = 2 * ENTRY_BYTES_MAX + 64;
const DOMAIN: &str = "AI@home 2026 equivocation v1";

/// Two statements of one key that exclude each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Equivocation {
    /// Who said both.
    pub key: PublicKey,
    /// The entry whose hash comes first, so that a proof has one spelling.
    pub first: Entry,
    /// The other.
    pub second: Entry,
}

/// What was said twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A hub sealed two entries at one position.
    TwoEntries {
        /// The position.
        index: u64,
    },
    /// A succession key named two hubs for one generation.
    TwoHubs {
        /// The generation.
        generation: u64,
    },
}

/// Why a proof proves nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EquivocationError {
    /// The bytes are no proof.
    #[error("the proof does not read")]
    Encoding(#[from] CanonicalError),
    /// The same entry twice, or the larger hash first.
    #[error("the proof's entries are not two, by ascending hash")]
    Order,
    /// The entries can both be true.
    #[error("the proof's entries do not exclude each other, or are not both signed by its key")]
    Compatible,
}

impl Equivocation {
    /// The proof that `key` made, if these entries are one.
    #[must_use]
    pub fn find(key: PublicKey, one: &Entry, other: &Entry) -> Option<Self> {
        let (first, second) = if one.hash() < other.hash() {
            (one, other)
        } else {
            (other, one)
        };
        let proof = Self {
            key,
            first: first.clone(),
            second: second.clone(),
        };
        proof.check().is_ok().then_some(proof)
    }

    /// Checks that it proves something, and says what.
    ///
    /// # Errors
    /// [`EquivocationError`].
    pub fn check(&self) -> Result<Kind, EquivocationError> {
        if self.first.hash() >= self.second.hash() {
            return Err(EquivocationError::Order);
        }
        if self.first.run != self.second.run {
            return Err(EquivocationError::Compatible);
        }
        let sealed = |entry: &Entry| entry.is_sealed_by(&self.key);
        if self.first.index == self.second.index && sealed(&self.first) && sealed(&self.second) {
            return Ok(Kind::TwoEntries {
                index: self.first.index,
            });
        }
        let (Event::HubReplaced { succession: one }, Event::HubReplaced { succession: other }) =
            (&self.first.event, &self.second.event)
        else {
            return Err(EquivocationError::Compatible);
        };
        let said = |it: &crate::succession::Succession| it.key == self.key && it.check().is_ok();
        if one != other
            && one.run == other.run
            && one.generation == other.generation
            && said(one)
            && said(other)
        {
            return Ok(Kind::TwoHubs {
                generation: one.generation,
            });
        }
        Err(EquivocationError::Compatible)
    }

    /// The proof's name: the hash of its bytes.
    #[must_use]
    pub fn id(&self) -> Hash {
        Hash::in_domain(DOMAIN, &self.to_bytes())
    }

    /// The bytes that are stored and served.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads and checks a proof.
    ///
    /// # Errors
    /// [`EquivocationError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EquivocationError> {
        let proof: Self = canonical::decode(bytes, EQUIVOCATION_BYTES_MAX)?;
        proof.check()?;
        Ok(proof)
    }
}

impl Kind {
    /// A sentence for people.
    #[must_use]
    pub fn sentence(&self, key: &PublicKey) -> String {
        match self {
            Self::TwoEntries { index } => {
                format!("hub {} sealed two different entries {index}", key.short())
            }
            Self::TwoHubs { generation } => format!(
                "succession key {} named two hubs for generation {generation}",
                key.short()
            ),
        }
    }
}

#[cfg(test)]
mod tests;
