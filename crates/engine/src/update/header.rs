//! The first bytes of an update and of a delta: which format, which settings, which model.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic |
//! | 1 | version, 1 |
//! | 1 | codec: 1 sparse, 2 dense |
//! | 4 | parameters in a chunk |
//! | 4 | sparse: values kept of a chunk; dense: bits of a value |
//! | 4 | number of tensors |
//! | 8 | number of parameters |
//!
//! Integers are little endian. A decoder knows all of these and only compares them: the header makes a wrong file an
//! early, named error, and keeps updates of different runs from being taken for each other.

use super::DecodeError;
use super::chunks::Chunks;
use super::settings::{DenseSettings, DenseWidth, SparseSettings};

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 26;

const VERSION: u8 = 1;
const SPARSE: u8 = 1;
const DENSE: u8 = 2;

/// What a header says of the codec.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Codec {
    kind: u8,
    chunk: u32,
    parameter: u32,
}

impl From<SparseSettings> for Codec {
    fn from(settings: SparseSettings) -> Self {
        Self {
            kind: SPARSE,
            chunk: settings.chunk,
            parameter: settings.kept,
        }
    }
}

impl From<DenseSettings> for Codec {
    fn from(settings: DenseSettings) -> Self {
        let bits = match settings.width {
            DenseWidth::Eight => 8,
            DenseWidth::Sixteen => 16,
        };
        Self {
            kind: DENSE,
            chunk: settings.chunk,
            parameter: bits,
        }
    }
}

/// The header for these settings and tensors.
pub(super) fn write(magic: &[u8; 4], codec: Codec, chunks: &Chunks) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&[VERSION, codec.kind]);
    bytes.extend_from_slice(&codec.chunk.to_le_bytes());
    bytes.extend_from_slice(&codec.parameter.to_le_bytes());
    bytes.extend_from_slice(&(chunks.lengths().len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(chunks.total() as u64).to_le_bytes());
    bytes
}

/// Compares the header with what it must be and gives the bytes after it.
pub(super) fn check<'a>(
    bytes: &'a [u8],
    magic: &[u8; 4],
    codec: Codec,
    chunks: &Chunks,
) -> Result<&'a [u8], DecodeError> {
    let (header, body) = bytes
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or(DecodeError::Truncated)?;
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let total = u64::from_le_bytes(header[18..26].try_into().expect("eight bytes"));
    if header[..4] != *magic {
        return Err(DecodeError::WrongMagic);
    }
    if header[4] != VERSION {
        return Err(DecodeError::UnknownVersion { version: header[4] });
    }
    if header[5] != codec.kind {
        return Err(DecodeError::WrongCodec { kind: header[5] });
    }
    if (field(6), field(10)) != (codec.chunk, codec.parameter) {
        return Err(DecodeError::WrongSettings);
    }
    if (field(14) as usize, total) != (chunks.lengths().len(), chunks.total() as u64) {
        return Err(DecodeError::WrongShape {
            tensors: field(14),
            total,
        });
    }
    Ok(body)
}
