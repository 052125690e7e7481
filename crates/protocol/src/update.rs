//! An update's envelope: who made it, of what, and what it commits to (`training.md` 1.5).
//!
//! The file that a worker uploads is `MAGIC`, the length of the header, the [`UpdateHeader`], the codec's payload.
//! Its hash is what the worker commits to. The worker's own id stands inside, so a copied payload has another hash; and so
//! does the payload's own hash, so that a copy shows before a byte of it is sent.

use serde::{Deserialize, Serialize};

use crate::{
    Hash,
    canonical::{self, CanonicalError},
    units::{BlobReference, RunId, WorkerId},
};

/// First bytes of every update file.
pub const MAGIC: [u8; 8] = *b"AIHupd01";
/// Largest header in bytes.
pub const HEADER_BYTES_MAX: usize = 1024;
/// Bytes of a file within which its header ends.
pub const HEAD_BYTES_MAX: usize = MAGIC.len() + 2 + HEADER_BYTES_MAX;

/// What an update says about itself; part of the worker's signed commitment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateHeader {
    /// The run.
    pub run: RunId,
    /// Its maker.
    pub worker: WorkerId,
    /// The round whose samples it used.
    pub round: u64,
    /// The slot within that round.
    pub slot: u32,
    /// The round whose merge made the model it started from; 0 for the first model.
    pub base_round: u64,
    /// Hash of those parameters.
    pub base: Hash,
    /// Inner steps done.
    pub steps: u32,
    /// Steps of those that were done before the base arrived, on the worker's own continued parameters.
    pub head_start_steps: u32,
    /// Tokens trained on: steps × batch rows × sequence.
    pub tokens: u64,
    /// Mean training loss in 10^-6 nats a token.
    pub loss_micronats: u64,
    /// Hash of what the worker carried into the round (error feedback; m and v where the charter carries them).
    pub carried_before: Hash,
    /// Hash of what it carries out when the update is merged.
    pub carried_after: Hash,
    /// Hash of what it carries out when the update is refused: the error feedback then keeps the work.
    pub carried_if_refused: Hash,
    /// Merkle root over the inner steps.
    pub steps_root: Hash,
    /// Plain hash of the payload, the codec's bytes after this header: what one worker committed to, no other can bring as
    /// its own under another header.
    pub payload: Hash,
    /// The optimiser's m and v that the worker carries out, uploaded beside the update while the run warms up: what others start from.
    pub inner_state: Option<BlobReference>,
}

/// Why an update's envelope was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Not an update file.
    #[error("this is not an update: it does not begin with the update format's mark")]
    Magic,
    /// The header's length exceeds the file or the limit.
    #[error("the update's header says {0} bytes, which is more than there are or may be")]
    HeaderLength(usize),
    /// The header does not decode.
    #[error("the update's header: {0}")]
    Header(#[from] CanonicalError),
}

/// Puts header and payload together.
#[must_use]
pub fn seal(header: &UpdateHeader, payload: &[u8]) -> Vec<u8> {
    let header = canonical::encode(header);
    let length = u16::try_from(header.len()).expect("headers are far below 64 KiB");
    let mut bytes = Vec::with_capacity(MAGIC.len() + 2 + header.len() + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes an update file apart; the payload is the codec's to check.
pub fn open(bytes: &[u8]) -> Result<(UpdateHeader, &[u8]), EnvelopeError> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(EnvelopeError::Magic)?;
    let (length, rest) = rest
        .split_first_chunk::<2>()
        .ok_or(EnvelopeError::HeaderLength(0))?;
    let length = usize::from(u16::from_le_bytes(*length));
    let (header, payload) = rest
        .split_at_checked(length)
        .ok_or(EnvelopeError::HeaderLength(length))?;
    Ok((canonical::decode(header, HEADER_BYTES_MAX)?, payload))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::SecretKey;

    pub(crate) fn sample_header() -> UpdateHeader {
        UpdateHeader {
            run: RunId(Hash([1; 32])),
            worker: WorkerId(SecretKey::from_entropy([2; 32]).public()),
            round: 3,
            slot: 4,
            base_round: 2,
            base: Hash([5; 32]),
            steps: 6,
            head_start_steps: 0,
            tokens: 768,
            loss_micronats: 4_000_000,
            carried_before: Hash([7; 32]),
            carried_after: Hash([8; 32]),
            carried_if_refused: Hash([10; 32]),
            steps_root: Hash([9; 32]),
            payload: Hash::of_blob(b"payload"),
            inner_state: None,
        }
    }

    #[test]
    fn round_trip_and_golden_hash() {
        let bytes = seal(&sample_header(), b"payload");
        let (header, payload) = open(&bytes).unwrap();
        assert_eq!(header, sample_header());
        assert_eq!(payload, b"payload");
        expect_test::expect!["b583a80b5ad5dfb8ff2f437966022bd5fcdcfd13aa00de1611f4a0d650cdaff4"]
            .assert_eq(&Hash::of_blob(&bytes).to_string());
    }

    #[test]
    fn broken_envelopes_are_refused() {
        let bytes = seal(&sample_header(), b"");
        assert_eq!(open(b"garbage!"), Err(EnvelopeError::Magic));
        assert_eq!(open(&bytes[..9]), Err(EnvelopeError::HeaderLength(0)));
        assert!(matches!(
            open(&bytes[..40]),
            Err(EnvelopeError::HeaderLength(_))
        ));
        for index in 8..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x40;
            if let Ok((header, _)) = open(&changed) {
                assert_ne!(header, sample_header(), "byte {index} does not count");
            }
        }
    }
}
