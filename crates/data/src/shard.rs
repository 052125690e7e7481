//! Data shards: tokens with their provenance, in one canonical form whose BLAKE3 hash is the shard's name.
//!
//! Layout, all integers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `AHSHARD\0` |
//! | 2 | version, 1 |
//! | 4 | length of the header in bytes |
//! | … | header: [`Header`] in canonical postcard |
//! | … | tokens, 2 bytes each if the vocabulary has at most 65,536 tokens, else 4 |
//!
//! One shard has one spelling: [`decode`] refuses every other. It never panics and never allocates more than a small multiple of its input.

use std::collections::BTreeMap;

use protocol::{
    Hash,
    canonical::{self, CanonicalError},
};
use serde::{Deserialize, Serialize};

use crate::{
    import::{
        LABEL_BYTES_MAX, METADATA_FIELDS_MAX, METADATA_NAME_BYTES_MAX, METADATA_VALUE_BYTES_MAX,
    },
    tokenizer::VOCABULARY_SIZE_MAX,
};

/// The first bytes of every data shard.
pub const MAGIC: [u8; 8] = *b"AHSHARD\0";
/// The version that this code writes and reads.
pub const VERSION: u16 = 1;
/// Bytes of a header at most.
pub const HEADER_BYTES_MAX: usize = 16 << 20;
/// Tokens of a data shard at most.
pub const TOKENS_MAX: usize = 1 << 26;

/// The largest vocabulary whose ids take two bytes.
const NARROW_VOCABULARY: u32 = 1 << 16;
const PREFIX_BYTES: usize = MAGIC.len() + 2 + 4;

/// Which side of the split a document is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Trained on.
    Training,
    /// Only ever measured on.
    HeldOut,
}

/// Tokens of whole documents of one source, licence and owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// What the tokens are.
    pub header: Header,
    /// The documents' tokens, one after the other, each below `header.vocabulary_size`.
    pub tokens: Vec<u32>,
}

/// Provenance and bounds of a shard's documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// BLAKE3 of the `tokenizer.json` that made the tokens.
    pub tokenizer_hash: Hash,
    /// Its number of tokens.
    pub vocabulary_size: u32,
    /// Its end-of-text token: the last token of every document, and nowhere else.
    pub end_of_text: u32,
    /// Which side of the split all documents are on.
    pub split: Split,
    /// The collection that all documents come from.
    pub source: String,
    /// The licence of all documents.
    pub licence: String,
    /// The owner of all documents.
    pub owner: String,
    /// The documents, in the order of their tokens; at least one.
    pub documents: Vec<DocumentBounds>,
}

/// One document of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentBounds {
    /// Position of its first token in the shard.
    pub first_token: u32,
    /// Its tokens, the end-of-text token included: at least 1.
    pub tokens: u32,
    /// Bytes of its text.
    pub text_bytes: u64,
    /// BLAKE3 of its text.
    pub text_hash: Hash,
    /// Its title.
    pub title: String,
    /// What else its source says about it.
    pub metadata: BTreeMap<String, String>,
}

/// Why bytes are not a data shard, or a shard is not well-formed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// Fewer bytes than a prefix and the header it announces.
    #[error("the data shard is cut short")]
    CutShort,
    /// Other first bytes.
    #[error("this is not a data shard")]
    OtherMagic,
    /// A version of another time.
    #[error("the data shard has version {0}, this program reads version {VERSION}")]
    OtherVersion(u16),
    /// A header that does not decode.
    #[error("the data shard's header is malformed")]
    Header(#[source] CanonicalError),
    /// A vocabulary that is empty or too large.
    #[error("a vocabulary of {0} tokens is not supported")]
    VocabularySize(u32),
    /// More or fewer token bytes than the documents say.
    #[error("the data shard has {found} bytes of tokens where its documents take {expected}")]
    TokenBytes {
        /// Bytes after the header.
        found: usize,
        /// Bytes that the documents take.
        expected: usize,
    },
    /// No document, or more than [`TOKENS_MAX`] tokens.
    #[error("the data shard has {documents} documents and {tokens} tokens")]
    Size {
        /// Documents of the header.
        documents: usize,
        /// Tokens of all documents.
        tokens: u64,
    },
    /// Documents that leave a gap, overlap or are empty.
    #[error("document {document} does not begin where the one before ends, or is empty")]
    Bounds {
        /// Counted from 0.
        document: usize,
    },
    /// A token outside the vocabulary.
    #[error("token {position} is {token}, outside the vocabulary")]
    Token {
        /// Counted from 0.
        position: usize,
        /// The id.
        token: u32,
    },
    /// A document that does not end with the end-of-text token, or has one inside.
    #[error("document {document} does not have its one end-of-text token at its end")]
    EndOfText {
        /// Counted from 0.
        document: usize,
    },
    /// A title, label or metadata over the importers' limits.
    #[error("the labels or the metadata of the data shard are too long")]
    Labels,
}

/// The shard's bytes.
///
/// # Errors
/// A shard that [`decode`] would refuse.
pub fn encode(shard: &Shard) -> Result<Vec<u8>, ShardError> {
    check(shard)?;
    let header = canonical::encode(&shard.header);
    if header.len() > HEADER_BYTES_MAX {
        return Err(ShardError::Header(CanonicalError::TooLong {
            length: header.len(),
            limit: HEADER_BYTES_MAX,
        }));
    }
    let width = token_bytes(shard.header.vocabulary_size);
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + header.len() + width * shard.tokens.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    let header_bytes = u32::try_from(header.len()).expect("headers are at most 16 MiB");
    bytes.extend_from_slice(&header_bytes.to_le_bytes());
    bytes.extend_from_slice(&header);
    for token in &shard.tokens {
        bytes.extend_from_slice(&token.to_le_bytes()[..width]);
    }
    Ok(bytes)
}

/// The shard that these bytes are, if they are its one spelling.
///
/// # Errors
/// Anything that [`encode`] would not have written.
pub fn decode(bytes: &[u8]) -> Result<Shard, ShardError> {
    let (prefix, rest) = bytes
        .split_first_chunk::<PREFIX_BYTES>()
        .ok_or(ShardError::CutShort)?;
    let [magic @ .., v0, v1, h0, h1, h2, h3] = prefix;
    if *magic != MAGIC {
        return Err(ShardError::OtherMagic);
    }
    let version = u16::from_le_bytes([*v0, *v1]);
    if version != VERSION {
        return Err(ShardError::OtherVersion(version));
    }
    let header_bytes = u32::from_le_bytes([*h0, *h1, *h2, *h3]) as usize;
    let (header, token_part) = rest
        .split_at_checked(header_bytes)
        .ok_or(ShardError::CutShort)?;
    let header: Header = canonical::decode(header, HEADER_BYTES_MAX).map_err(ShardError::Header)?;

    let tokens = token_count(&header)?;
    let width = token_bytes(header.vocabulary_size);
    if token_part.len() != tokens * width {
        return Err(ShardError::TokenBytes {
            found: token_part.len(),
            expected: tokens * width,
        });
    }
    let tokens = token_part
        .chunks_exact(width)
        .map(|token| {
            let mut wide = [0; 4];
            wide[..width].copy_from_slice(token);
            u32::from_le_bytes(wide)
        })
        .collect();
    let shard = Shard { header, tokens };
    check(&shard)?;
    Ok(shard)
}

impl Shard {
    /// The tokens of a document of this shard.
    ///
    /// # Panics
    /// If `bounds` are not those of one of this shard's documents.
    #[must_use]
    pub fn document_tokens(&self, bounds: &DocumentBounds) -> &[u32] {
        let first = bounds.first_token as usize;
        &self.tokens[first..first + bounds.tokens as usize]
    }
}

/// Bytes of one token.
fn token_bytes(vocabulary_size: u32) -> usize {
    if vocabulary_size <= NARROW_VOCABULARY {
        2
    } else {
        4
    }
}

/// The number of tokens that the header's documents cover without a gap.
fn token_count(header: &Header) -> Result<usize, ShardError> {
    if !(1..=VOCABULARY_SIZE_MAX).contains(&header.vocabulary_size) {
        return Err(ShardError::VocabularySize(header.vocabulary_size));
    }
    let mut end = 0_u64;
    for (document, bounds) in header.documents.iter().enumerate() {
        if u64::from(bounds.first_token) != end || bounds.tokens == 0 {
            return Err(ShardError::Bounds { document });
        }
        end += u64::from(bounds.tokens);
    }
    match usize::try_from(end) {
        Ok(tokens) if (1..=TOKENS_MAX).contains(&tokens) => Ok(tokens),
        _ => Err(ShardError::Size {
            documents: header.documents.len(),
            tokens: end,
        }),
    }
}

/// Everything that makes a shard well-formed.
fn check(shard: &Shard) -> Result<(), ShardError> {
    let header = &shard.header;
    let expected = token_count(header)?;
    if shard.tokens.len() != expected {
        let width = token_bytes(header.vocabulary_size);
        return Err(ShardError::TokenBytes {
            found: shard.tokens.len() * width,
            expected: expected * width,
        });
    }
    let outside = |&(_, &token): &(usize, &u32)| token >= header.vocabulary_size;
    if let Some((position, &token)) = shard.tokens.iter().enumerate().find(outside) {
        return Err(ShardError::Token { position, token });
    }
    for (document, bounds) in header.documents.iter().enumerate() {
        let tokens = shard.document_tokens(bounds);
        let end = tokens.iter().position(|&token| token == header.end_of_text);
        if end != Some(tokens.len() - 1) {
            return Err(ShardError::EndOfText { document });
        }
    }
    check_labels(header)
}

fn check_labels(header: &Header) -> Result<(), ShardError> {
    let label = |text: &String| !text.is_empty() && text.len() <= LABEL_BYTES_MAX;
    let document = |bounds: &DocumentBounds| {
        label(&bounds.title)
            && bounds.metadata.len() <= METADATA_FIELDS_MAX
            && bounds.metadata.iter().all(|(name, value)| {
                name.len() <= METADATA_NAME_BYTES_MAX && value.len() <= METADATA_VALUE_BYTES_MAX
            })
    };
    let labels = [&header.source, &header.licence, &header.owner];
    if labels.into_iter().all(label) && header.documents.iter().all(document) {
        Ok(())
    } else {
        Err(ShardError::Labels)
    }
}

#[cfg(test)]
mod tests;
