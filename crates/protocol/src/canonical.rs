//! The canonical binary encoding: postcard, accepted only in its one canonical form.
//!
//! Postcard's variable-length integers have several spellings of the same number;
//! a decoder that accepted them all would let one event have several hashes.
//! [`decode`] therefore encodes what it read again and refuses bytes that differ.

use serde::{Serialize, de::DeserializeOwned};

/// Why bytes were not accepted as a canonical encoding.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CanonicalError {
    /// The input is longer than the caller allows.
    #[error("{length} bytes are more than the {limit} allowed here")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes do not decode.
    #[error("the bytes do not decode: {0}")]
    Malformed(postcard::Error),
    /// The bytes decode, but another spelling of the same value is the canonical one.
    #[error("the bytes are not the canonical encoding of what they say")]
    NotCanonical,
}

/// Encodes a value of ours; fails only on a type that postcard cannot carry, which is a bug.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("protocol types are encodable by construction")
}

/// Decodes at most `limit` bytes, all of them, and only in canonical form.
pub fn decode<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    limit: usize,
) -> Result<T, CanonicalError> {
    if bytes.len() > limit {
        return Err(CanonicalError::TooLong {
            length: bytes.len(),
            limit,
        });
    }
    let value: T = postcard::from_bytes(bytes).map_err(CanonicalError::Malformed)?;
    if encode(&value) != bytes {
        return Err(CanonicalError::NotCanonical);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_only() {
        assert_eq!(decode::<u64>(&encode(&300_u64), 16), Ok(300));
        // 0x80 0x00 is a longer spelling of zero.
        assert_eq!(
            decode::<u64>(&[0x80, 0x00], 16),
            Err(CanonicalError::NotCanonical)
        );
        // Trailing bytes are not part of the value.
        assert_eq!(
            decode::<u64>(&[0x01, 0x01], 16),
            Err(CanonicalError::NotCanonical)
        );
        assert_eq!(
            decode::<u64>(&[0x01; 17], 16),
            Err(CanonicalError::TooLong {
                length: 17,
                limit: 16
            })
        );
        assert!(matches!(
            decode::<u64>(&[], 16),
            Err(CanonicalError::Malformed(_))
        ));
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        // A vector that claims 2^60 elements and brings none.
        let bytes = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        assert!(matches!(
            decode::<Vec<u64>>(&bytes, 64),
            Err(CanonicalError::Malformed(_))
        ));
    }
}
