//! The leaves of a round's inner steps as a file: what a worker keeps for an auditor.
//!
//! An update commits to the root alone ([`super::steps`]); its worker keeps the leaves for some rounds and shows them when
//! a re-execution comes to another root, so that both see at which step they part. Magic `AHlv`, version 1, number of
//! leaves (`u32`), leaves of 144 bytes: the fields of [`StepLeaf`] in order, little endian.

use thiserror::Error;

use super::steps::{LEAVES_MAX, StepLeaf, StepTree};

const MAGIC: &[u8; 5] = b"AHlv\x01";
const HEADER_BYTES: usize = 9;
const LEAF_BYTES: usize = 144;

/// Why bytes are no list of leaves.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum LeavesError {
    /// Not a list of leaves, or of an unknown version.
    #[error("not a list of leaves of version 1")]
    WrongFormat,
    /// More leaves than a round may have.
    #[error("{0} leaves are more than a round has")]
    TooMany(u32),
    /// Too few or too many bytes.
    #[error("{found} bytes instead of {expected}")]
    WrongLength {
        /// Bytes that so many leaves have.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

/// The bytes of a round's leaves.
pub fn to_bytes(leaves: &[StepLeaf]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + leaves.len() * LEAF_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(leaves.len() as u32).to_le_bytes());
    for leaf in leaves {
        bytes.extend_from_slice(&leaf.step.to_le_bytes());
        for hash in [
            &leaf.parameters,
            &leaf.first_moment,
            &leaf.second_moment,
            &leaf.samples,
        ] {
            bytes.extend_from_slice(hash);
        }
        bytes.extend_from_slice(&leaf.loss_bits.to_le_bytes());
        bytes.extend_from_slice(&leaf.gradient_norm_bits.to_le_bytes());
    }
    bytes
}

/// Reads a list of leaves. Allocates only once the length is right.
///
/// # Errors
/// [`LeavesError`].
pub fn from_bytes(bytes: &[u8]) -> Result<Vec<StepLeaf>, LeavesError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(LeavesError::WrongFormat)?;
    let (count, rest) = rest
        .split_first_chunk::<4>()
        .ok_or(LeavesError::WrongFormat)?;
    let count = u32::from_le_bytes(*count);
    if count > LEAVES_MAX {
        return Err(LeavesError::TooMany(count));
    }
    let (leaves, tail) = rest.as_chunks::<LEAF_BYTES>();
    if leaves.len() != count as usize || !tail.is_empty() {
        return Err(LeavesError::WrongLength {
            expected: HEADER_BYTES + count as usize * LEAF_BYTES,
            found: bytes.len(),
        });
    }
    Ok(leaves.iter().map(leaf).collect())
}

fn leaf(bytes: &[u8; LEAF_BYTES]) -> StepLeaf {
    let hash = |at: usize| bytes[at..at + 32].try_into().expect("thirty-two bytes");
    let bits = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    StepLeaf {
        step: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
        parameters: hash(8),
        first_moment: hash(40),
        second_moment: hash(72),
        samples: hash(104),
        loss_bits: bits(136),
        gradient_norm_bits: bits(140),
    }
}

/// The root that an update with these leaves commits to.
pub fn root(leaves: &[StepLeaf]) -> [u8; 32] {
    let mut tree = StepTree::new();
    for leaf in leaves {
        tree.push(leaf);
    }
    tree.root()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves() -> Vec<StepLeaf> {
        let leaf = |number: u8| StepLeaf {
            step: u64::from(number),
            parameters: [number; 32],
            first_moment: [number + 1; 32],
            second_moment: [number + 2; 32],
            samples: [number + 3; 32],
            loss_bits: 1.5_f32.to_bits(),
            gradient_norm_bits: u32::from(number),
        };
        vec![leaf(5), leaf(10)]
    }

    #[test]
    fn golden_bytes_and_back() {
        let bytes = to_bytes(&leaves());
        assert_eq!(bytes.len(), HEADER_BYTES + 2 * LEAF_BYTES);
        assert_eq!(bytes[..17], *b"AHlv\x01\x02\0\0\0\x05\0\0\0\0\0\0\0");
        assert_eq!(bytes[17..49], [5; 32]);
        assert_eq!(bytes[145..153], [0, 0, 0xc0, 0x3f, 5, 0, 0, 0]);
        assert_eq!(from_bytes(&bytes), Ok(leaves()));
        assert_eq!(from_bytes(&to_bytes(&[])), Ok(vec![]));
    }

    #[test]
    fn everything_else_is_refused() {
        let bytes = to_bytes(&leaves());
        for length in 0..bytes.len() {
            assert!(from_bytes(&bytes[..length]).is_err(), "{length} bytes");
        }
        let long = [&bytes[..], &[0]].concat();
        assert!(matches!(
            from_bytes(&long),
            Err(LeavesError::WrongLength { found: 298, .. })
        ));
        let mut many = bytes.clone();
        many[5..9].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(from_bytes(&many), Err(LeavesError::TooMany(u32::MAX)));
        assert_eq!(from_bytes(b"AHim\x01"), Err(LeavesError::WrongFormat));
    }

    #[test]
    fn the_root_is_the_trees() {
        let mut other = leaves();
        other[1].loss_bits ^= 1;
        assert_ne!(root(&leaves()), root(&other));
        assert_eq!(root(&[]), StepTree::new().root());
    }
}
