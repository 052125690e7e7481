//! One identity: an account's key and the keys bound to it, by statements that both sides sign.

use serde::{Deserialize, Serialize};

use crate::{
    PublicKey, SecretKey, Signature, canonical,
    key::KeyError,
    units::{AccountId, RunId},
};

const DOMAIN: &str = "AI@home 2026 identity binding v1";
const SIGN_IN_DOMAIN: &str = "AI@home 2026 sign-in v1";

/// What a bound key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// Signs a worker's commands.
    Worker,
    /// Signs in a BOINC client or a web session.
    Session,
    /// Receives money.
    Payout,
    /// Repairs the account when another key is lost.
    Recovery,
}

/// The statement "this key acts for this account in this role", signed by both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The run whose log carries it.
    pub run: RunId,
    /// The account.
    pub account: AccountId,
    /// The key.
    pub key: PublicKey,
    /// What for.
    pub role: KeyRole,
    /// The account's signature.
    pub account_signature: Signature,
    /// The key's own signature.
    pub key_signature: Signature,
}

/// A binding whose signatures hold, so that nobody checks them twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBinding(Binding);

impl CheckedBinding {
    /// The binding.
    #[must_use]
    pub fn get(&self) -> &Binding {
        &self.0
    }
}

impl Binding {
    /// Makes the statement; both secret keys are at hand.
    #[must_use]
    pub fn sign(run: RunId, account: &SecretKey, key: &SecretKey, role: KeyRole) -> Self {
        let account_id = AccountId(account.public());
        let public = key.public();
        Self {
            run,
            account: account_id,
            key: public,
            role,
            account_signature: sign_half(account, run, account_id, public, role),
            key_signature: sign_half(key, run, account_id, public, role),
        }
    }

    /// Checks both signatures, and remembers that they hold.
    pub fn checked(self) -> Result<CheckedBinding, KeyError> {
        self.check()?;
        Ok(CheckedBinding(self))
    }

    /// Checks both signatures.
    pub fn check(&self) -> Result<(), KeyError> {
        let message = message(self.run, self.account, self.key, self.role);
        self.account
            .0
            .verify(DOMAIN, &message, &self.account_signature)?;
        self.key.verify(DOMAIN, &message, &self.key_signature)
    }
}

/// One side's signature under the statement, where the two secret keys are in different places.
#[must_use]
pub fn sign_half(
    side: &SecretKey,
    run: RunId,
    account: AccountId,
    key: PublicKey,
    role: KeyRole,
) -> Signature {
    side.sign(DOMAIN, &message(run, account, key, role))
}

/// An account's signature by which it signs in at a hub, good for a few minutes around `time_ms` and at no other hub.
#[must_use]
pub fn sign_in(account: &SecretKey, hub: PublicKey, time_ms: u64) -> Signature {
    account.sign(SIGN_IN_DOMAIN, &canonical::encode(&(hub, time_ms)))
}

/// Checks [`sign_in`]; whether `time_ms` is now is for the hub's clock to say.
///
/// # Errors
/// The signature is not this account's for this hub and time.
pub fn check_sign_in(
    account: AccountId,
    hub: PublicKey,
    time_ms: u64,
    signature: &Signature,
) -> Result<(), KeyError> {
    let message = canonical::encode(&(hub, time_ms));
    account.0.verify(SIGN_IN_DOMAIN, &message, signature)
}

fn message(run: RunId, account: AccountId, key: PublicKey, role: KeyRole) -> Vec<u8> {
    canonical::encode(&(run, account, key, role))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    #[test]
    fn both_sides_must_have_signed() {
        let account = SecretKey::from_entropy([1; 32]);
        let key = SecretKey::from_entropy([2; 32]);
        let run = RunId(Hash([3; 32]));
        let binding = Binding::sign(run, &account, &key, KeyRole::Worker);
        assert_eq!(binding.check(), Ok(()));
        let mut stolen = binding.clone();
        stolen.account = AccountId(SecretKey::from_entropy([4; 32]).public());
        assert!(stolen.check().is_err());
        let mut promoted = binding.clone();
        promoted.role = KeyRole::Payout;
        assert!(promoted.check().is_err());
        let mut half = binding;
        half.key_signature = half.account_signature;
        assert!(half.check().is_err());
    }

    #[test]
    fn a_sign_in_is_for_one_hub_and_moment() {
        let account = SecretKey::from_entropy([1; 32]);
        let hub = SecretKey::from_entropy([2; 32]).public();
        let id = AccountId(account.public());
        let signature = sign_in(&account, hub, 7);
        assert_eq!(check_sign_in(id, hub, 7, &signature), Ok(()));
        assert!(check_sign_in(id, hub, 8, &signature).is_err());
        assert!(check_sign_in(id, account.public(), 7, &signature).is_err());
        assert!(check_sign_in(AccountId(hub), hub, 7, &signature).is_err());
    }
}
