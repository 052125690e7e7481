//! Ids and amounts as types of their own, so that a token count cannot be passed for a credit.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Hash, PublicKey};

/// The hash of a run's charter: the run's name among strangers.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RunId(pub Hash);

/// A worker's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub PublicKey);

/// An account's public key: the person or organisation behind workers, logins and payouts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub PublicKey);

/// Accepted work in millionths of a credit; one credit is 10^15 reference FLOP.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MicroCredits(pub u64);

/// Reference FLOP in one millionth of a credit.
pub const FLOP_PER_MICRO_CREDIT: u128 = 1_000_000_000;

impl MicroCredits {
    /// The credit for `tokens` tokens at `flop_per_token`, rounded down.
    #[must_use]
    pub fn for_tokens(tokens: u64, flop_per_token: u64) -> Self {
        let flop = u128::from(tokens) * u128::from(flop_per_token);
        Self(u64::try_from(flop / FLOP_PER_MICRO_CREDIT).unwrap_or(u64::MAX))
    }
}

/// A blob's content address and length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct BlobReference {
    /// BLAKE3 of the bytes.
    pub hash: Hash,
    /// Length in bytes.
    pub bytes: u64,
}

impl BlobReference {
    /// The reference of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            hash: Hash::of_blob(bytes),
            bytes: bytes.len() as u64,
        }
    }
}

macro_rules! text_form {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The first eight digits, for people.
            #[must_use]
            pub fn short(&self) -> String {
                self.0.short()
            }
        }
    )*};
}

text_form!(RunId, WorkerId, AccountId);

impl std::str::FromStr for RunId {
    type Err = crate::hash::HashTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl std::str::FromStr for WorkerId {
    type Err = crate::key::KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_flop_rounded_down() {
        assert_eq!(MicroCredits::for_tokens(1, 5_000_000_000), MicroCredits(5));
        assert_eq!(MicroCredits::for_tokens(1, 999), MicroCredits(0));
        assert_eq!(
            MicroCredits::for_tokens(u64::MAX, u64::MAX),
            MicroCredits(u64::MAX)
        );
    }
}
