//! What peers say to each other: one question on a stream, one byte as the answer, then the blob in windows.
//!
//! A window is its length as 4 bytes, little-endian, and [`super::tree`]'s encoding of up to 256 KiB of the blob.
//! Whoever asks knows the blob's size, so neither side ever reads more than that.

use protocol::{Hash, canonical};
use serde::{Deserialize, Serialize};

use super::tree::{GROUP_BYTES, WINDOW_BYTES};

/// Longest encoded question.
pub(super) const QUESTION_BYTES_MAX: usize = 64;
/// Longest encoded window: the bytes, and the hash pairs above 16 groups of a blob of any size.
pub(super) const WINDOW_ENCODED_MAX: usize = WINDOW_BYTES as usize + 64 * (16 + 64);

/// "Send me this blob, from here on."
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(super) hash: Hash,
    /// The blob's size.
    pub(super) bytes: u64,
    /// Where to begin: a multiple of 16 KiB below the size.
    pub(super) offset: u64,
    /// How long whoever asks is willing to wait if the blob is on its way.
    pub(super) wait_ms: u64,
}

/// The answer's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Windows follow.
    Here,
    /// It is not here, and not on its way, or did not come in time.
    NotHere,
    /// Too many others are served.
    Busy,
}

impl Question {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        canonical::encode(&self)
    }

    /// `None` for anything that is no question.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let question: Self = canonical::decode(bytes, QUESTION_BYTES_MAX).ok()?;
        let makes_sense =
            question.offset < question.bytes && question.offset.is_multiple_of(GROUP_BYTES);
        makes_sense.then_some(question)
    }
}

impl Answer {
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Here => 0,
            Self::NotHere => 1,
            Self::Busy => 2,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Here, Self::NotHere, Self::Busy]
            .into_iter()
            .find(|it| it.to_byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let question = Question {
            hash: Hash([7; 32]),
            bytes: 1 << 20,
            offset: 3 << 14,
            wait_ms: 1_000,
        };
        let bytes = question.to_bytes();
        assert_eq!(
            data_encoding::HEXLOWER.encode(&bytes),
            format!("{}80804080800{}", "07".repeat(32), "3e807")
        );
        assert_eq!(Question::from_bytes(&bytes), Some(question));
        assert_eq!(
            [0, 1, 2, 3].map(Answer::from_byte),
            [
                Some(Answer::Here),
                Some(Answer::NotHere),
                Some(Answer::Busy),
                None
            ]
        );
    }

    #[test]
    fn questions_that_make_no_sense_are_refused() {
        let read = |bytes, offset| {
            let question = Question {
                hash: Hash([7; 32]),
                bytes,
                offset,
                wait_ms: 0,
            };
            Question::from_bytes(&question.to_bytes()).is_some()
        };
        assert!(read(1, 0));
        assert!(!read(0, 0));
        assert!(!read(1 << 14, 1 << 14));
        assert!(!read(1 << 20, 1_000));
        let longest = Question {
            hash: Hash([7; 32]),
            bytes: u64::MAX,
            offset: u64::MAX - (u64::MAX % GROUP_BYTES),
            wait_ms: u64::MAX,
        };
        assert!(longest.to_bytes().len() <= QUESTION_BYTES_MAX);
        assert_eq!(Question::from_bytes(&[0; QUESTION_BYTES_MAX + 1]), None);
    }
}
