//! ed25519 keys and signatures (RFC 8032), with a domain in every signed message.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash::{bytes_from_hex, deserialize_bytes, serialize_bytes};

/// An ed25519 public key, 32 bytes: the name of a worker, a hub or an account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// An ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

/// An ed25519 secret key; never printed, never serialised.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

/// Why a key or signature was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Text that is not a key.
    #[error("a key is 64 lower-case hexadecimal digits")]
    Text,
    /// Bytes that are no point of the curve.
    #[error("the public key is not a valid ed25519 key")]
    NotAKey,
    /// The signature is not this key's over this message.
    #[error("the signature does not match")]
    BadSignature,
}

impl PublicKey {
    /// Checks a signature over `message` in `domain`; refuses weak keys and malleable signatures.
    pub fn verify(
        &self,
        domain: &str,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), KeyError> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| KeyError::NotAKey)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&signed_bytes(domain, message), &signature)
            .map_err(|_| KeyError::BadSignature)
    }

    /// The first eight digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        HEXLOWER.encode(&self.0[..4])
    }
}

impl SecretKey {
    /// A key from 32 bytes of entropy.
    #[must_use]
    pub fn from_entropy(bytes: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&bytes))
    }

    /// A key from its text form, as kept in a key file.
    pub fn from_text(text: &str) -> Result<Self, KeyError> {
        bytes_from_hex(text.trim())
            .map(Self::from_entropy)
            .ok_or(KeyError::Text)
    }

    /// The text form, for the key file alone.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        HEXLOWER.encode(&self.0.to_bytes())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` in `domain`.
    #[must_use]
    pub fn sign(&self, domain: &str, message: &[u8]) -> Signature {
        Signature(self.0.sign(&signed_bytes(domain, message)).to_bytes())
    }
}

/// What is signed: the domain's length, the domain, the message.
fn signed_bytes(domain: &str, message: &[u8]) -> Vec<u8> {
    let length = u8::try_from(domain.len()).expect("signature domains are short constants");
    let mut bytes = Vec::with_capacity(1 + domain.len() + message.len());
    bytes.push(length);
    bytes.extend_from_slice(domain.as_bytes());
    bytes.extend_from_slice(message);
    bytes
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public().short())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", HEXLOWER.encode(&self.0[..4]))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        bytes_from_hex(text).map(Self).ok_or(KeyError::Text)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_bytes(deserializer).map(Self)
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_bytes(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_domain_and_message_only() {
        let key = SecretKey::from_entropy([7; 32]);
        let signature = key.sign("domain", b"message");
        assert_eq!(
            key.public().verify("domain", b"message", &signature),
            Ok(())
        );
        for (domain, message) in [
            ("other", b"message".as_slice()),
            ("domain", b"messagf"),
            ("domainm", b"essage"),
        ] {
            assert_eq!(
                key.public().verify(domain, message, &signature),
                Err(KeyError::BadSignature)
            );
        }
    }

    #[test]
    fn a_weak_key_signs_nothing() {
        // The neutral element would verify some signatures under any message without `verify_strict`.
        let mut neutral = [0_u8; 32];
        neutral[0] = 1;
        let mut signature = [0_u8; 64];
        signature[0] = 1;
        assert!(
            PublicKey(neutral)
                .verify("domain", b"message", &Signature(signature))
                .is_err()
        );
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let key = SecretKey::from_entropy([7; 32]);
        assert!(!format!("{key:?}").contains(&key.to_secret_text()[..8]));
        assert_eq!(
            SecretKey::from_text(&key.to_secret_text())
                .unwrap()
                .public(),
            key.public()
        );
    }
}
