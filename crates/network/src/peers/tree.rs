//! Pieces of a blob that prove themselves: BLAKE3 is a tree, and the hashes beside the way from its root to a piece show
//! that the piece belongs to the blob (verified streaming, "bao"; <https://docs.rs/bao-tree>).
//!
//! So a wrong byte is noticed within 16 KiB, whoever sent it, and what has arrived stays good when a peer goes away.

use std::{fs::File, io, ops::Range};

use bao_tree::{
    BaoTree, BlockSize, ChunkNum, ChunkRanges,
    io::{
        BaoContentItem,
        outboard::PreOrderMemOutboard,
        sync::{DecodeResponseIter, encode_ranges_validated, outboard},
    },
};
use protocol::units::BlobReference;

/// What is checked at once: 16 KiB.
pub(super) const GROUP_BYTES: u64 = 16 << 10;
/// What is sent at once: 256 KiB, of which 2 % are hashes at most.
pub(super) const WINDOW_BYTES: u64 = 256 << 10;
/// Groups of 2^4 chunks of 1 KiB.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
const CHUNK_BYTES: u64 = 1 << 10;

/// The hashes above a blob's groups: 64 bytes for each 16 KiB.
#[derive(Debug)]
pub(crate) struct Tree {
    hashes: PreOrderMemOutboard,
    bytes: u64,
}

/// A window that is not of the blob, or too short or too long.
#[derive(Debug, thiserror::Error)]
#[error("the bytes are not those of the blob")]
pub(crate) struct WrongBytes;

impl Tree {
    /// Reads the file; `None` if it is not the blob.
    pub(crate) fn of_file(file: &File, reference: BlobReference) -> io::Result<Option<Self>> {
        if file.metadata()?.len() != reference.bytes {
            return Ok(None);
        }
        let tree = BaoTree::new(reference.bytes, GROUP);
        let size = usize::try_from(tree.outboard_size()).map_err(io::Error::other)?;
        let mut hashes = PreOrderMemOutboard {
            root: blake3::Hash::from([0; 32]),
            tree,
            data: vec![0; size],
        };
        let root = outboard(
            io::BufReader::with_capacity(1 << 18, file),
            tree,
            &mut hashes,
        )?;
        hashes.root = root;
        Ok((*root.as_bytes() == reference.hash.0).then_some(Self {
            hashes,
            bytes: reference.bytes,
        }))
    }

    /// Memory that it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.hashes.data.len()
    }

    /// The window that begins at `offset`, with its proof; fails if the file has changed since.
    pub(crate) fn encode(&self, file: &File, offset: u64) -> io::Result<Vec<u8>> {
        let window = window(offset, self.bytes);
        let mut encoded = Vec::with_capacity(super::wire::WINDOW_ENCODED_MAX);
        encode_ranges_validated(file, &self.hashes, &chunks(&window), &mut encoded)
            .map_err(io::Error::other)?;
        Ok(encoded)
    }
}

/// The bytes of the window that begins at `offset`, once they have proven to be the blob's.
pub(crate) fn decode(
    reference: BlobReference,
    offset: u64,
    encoded: &[u8],
) -> Result<Vec<u8>, WrongBytes> {
    let window = window(offset, reference.bytes);
    let mut bytes = Vec::with_capacity((window.end - window.start) as usize);
    let mut rest = encoded;
    let ranges = chunks(&window);
    let items = DecodeResponseIter::new(
        blake3::Hash::from(reference.hash.0),
        BaoTree::new(reference.bytes, GROUP),
        &mut rest,
        &ranges,
    );
    for item in items {
        match item.map_err(|_| WrongBytes)? {
            BaoContentItem::Parent(_) => {}
            BaoContentItem::Leaf(leaf) => {
                if leaf.offset != window.start + bytes.len() as u64 {
                    return Err(WrongBytes);
                }
                bytes.extend_from_slice(&leaf.data);
            }
        }
    }
    let is_whole = bytes.len() as u64 == window.end - window.start && rest.is_empty();
    is_whole.then_some(bytes).ok_or(WrongBytes)
}

/// The window that begins at `offset` of a blob of so many bytes.
fn window(offset: u64, bytes: u64) -> Range<u64> {
    offset..offset.saturating_add(WINDOW_BYTES).min(bytes)
}

fn chunks(window: &Range<u64>) -> ChunkRanges {
    let first = ChunkNum(window.start / CHUNK_BYTES);
    let end = ChunkNum(window.end.div_ceil(CHUNK_BYTES));
    ChunkRanges::from(first..end)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use protocol::Hash;

    use super::*;

    fn blob(bytes: usize) -> (File, BlobReference, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|it| (it * 7 + it / 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let reference = BlobReference {
            hash: Hash::of_blob(&content),
            bytes: bytes as u64,
        };
        (file, reference, content)
    }

    #[test]
    fn windows_prove_themselves() {
        for bytes in [1, 1_024, 16_384, 16_385, 262_144, 262_145, 700_001] {
            let (file, reference, content) = blob(bytes);
            let tree = Tree::of_file(&file, reference).unwrap().unwrap();
            let mut got = Vec::new();
            while got.len() < bytes {
                let offset = got.len() as u64;
                let encoded = tree.encode(&file, offset).unwrap();
                assert!(encoded.len() <= super::super::wire::WINDOW_ENCODED_MAX);
                got.extend(decode(reference, offset, &encoded).unwrap());
            }
            assert_eq!(got, content);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let (file, reference, _) = blob(40_000);
        let tree = Tree::of_file(&file, reference).unwrap().unwrap();
        let encoded = tree.encode(&file, 0).unwrap();
        for index in (0..encoded.len()).step_by(97) {
            let mut changed = encoded.clone();
            changed[index] ^= 4;
            assert!(decode(reference, 0, &changed).is_err(), "byte {index}");
        }
        assert!(decode(reference, 0, &encoded[..encoded.len() - 1]).is_err());
        assert!(decode(reference, 0, &[&encoded[..], &[0]].concat()).is_err());
        assert!(decode(reference, 0, &[]).is_err());
    }

    #[test]
    fn a_window_of_another_place_or_size_is_refused() {
        let (file, reference, _) = blob(700_000);
        let tree = Tree::of_file(&file, reference).unwrap().unwrap();
        let second = tree.encode(&file, WINDOW_BYTES).unwrap();
        assert!(decode(reference, WINDOW_BYTES, &second).is_ok());
        assert!(decode(reference, 0, &second).is_err());
        let longer = BlobReference {
            bytes: reference.bytes * 1_000,
            ..reference
        };
        assert!(decode(longer, WINDOW_BYTES, &second).is_err());
    }

    #[test]
    fn a_file_that_is_not_the_blob_has_no_tree() {
        let (file, reference, _) = blob(50_000);
        let other = BlobReference {
            hash: Hash([1; 32]),
            ..reference
        };
        assert!(Tree::of_file(&file, other).unwrap().is_none());
        let shorter = BlobReference {
            bytes: 49_999,
            ..reference
        };
        assert!(Tree::of_file(&file, shorter).unwrap().is_none());
    }
}
