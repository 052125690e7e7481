//! What this crate reads of strangers' bytes apart from its calls, as plain functions: for whoever looks for bytes that break
//! them.

use std::{
    fs::File,
    io::{self, Seek},
};

use protocol::{api::mirrors::RunHead, succession::Sealing, units::BlobReference};

use crate::{client, peers};

/// A peer's question for a blob, written again; `None` if the bytes are none.
#[must_use]
pub fn question(bytes: &[u8]) -> Option<Vec<u8>> {
    peers::wire::Question::from_bytes(bytes).map(peers::wire::Question::to_bytes)
}

/// A window of a blob as a peer sends it.
///
/// # Errors
/// The file is not the blob, or can't be read.
pub fn encode_window(mut file: &File, blob: BlobReference, offset: u64) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let tree = peers::tree::Tree::of_file(file, blob)?;
    let tree = tree.ok_or_else(|| io::Error::other("the file is not the blob"))?;
    tree.encode(file, offset)
}

/// The bytes of the window of a blob that begins at `offset`, if that is what a peer sent.
#[must_use]
pub fn window(blob: BlobReference, offset: u64, encoded: &[u8]) -> Option<Vec<u8>> {
    peers::tree::decode(blob, offset, encoded).ok()
}

/// Who keeps a run by what a hub or mirror shows, checked; why not, if that does not hold.
///
/// # Errors
/// In words, what does not hold.
pub fn sealing(head: &RunHead, begun: &Sealing) -> Result<Sealing, String> {
    client::sealing_of(head, begun)
}
