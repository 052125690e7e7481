//! Byte-level BPE: text to token ids and back, without loss for any text.
//!
//! The `tokenizers` crate trains, encodes and writes `tokenizer.json`, so that the file opens in Hugging Face tokenizers and transformers.
//! This module bounds and checks what it is given, decodes (whole or as a stream), and keeps two promises of its own:
//! training is deterministic, and text never turns into the end-of-text token, even if it spells it.
//!
//! Byte-level BPE: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.

mod check;
mod pieces;
mod stream;

use std::{collections::HashSet, sync::Arc};

use protocol::Hash;
use tokenizers::{
    AddedToken, NormalizerWrapper, TokenizerBuilder, TokenizerImpl,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::byte_level::ByteLevel,
};

pub use stream::DecodeStream;

use pieces::Pieces;
use stream::TokenBytes;

/// What ends every document. As text inside a document it is ordinary characters.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The 256 bytes and [`END_OF_TEXT`].
pub const VOCABULARY_SIZE_MIN: u32 = 257;
/// Twice the largest vocabulary of a Llama; ids of three tokens fit into 64 bits.
pub const VOCABULARY_SIZE_MAX: u32 = 1 << 18;
/// Bytes of a `tokenizer.json` at most: that of a vocabulary of 128 k has about 10 MB.
pub const TOKENIZER_BYTES_MAX: usize = 64 << 20;

/// Pieces that are encoded at a time, on all cores: the `tokenizers` crate takes some hundred bytes of memory for each token.
const BATCH_PIECES: usize = 64;

/// Why a tokenizer was not trained or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is larger than [`TOKENIZER_BYTES_MAX`].
    #[error("tokenizer.json has {bytes} bytes, more than {TOKENIZER_BYTES_MAX}")]
    TooLarge {
        /// Bytes given.
        bytes: usize,
    },
    /// The file is not JSON.
    #[error("tokenizer.json is not valid JSON")]
    NotJson(#[source] serde_json::Error),
    /// The file asks for something else than lossless, deterministic byte-level BPE.
    #[error("tokenizer.json: {0}")]
    Unsupported(String),
    /// The `tokenizers` crate refused.
    #[error("the tokenizer cannot be {doing}")]
    Library {
        /// `trained`, `read` or `written`.
        doing: &'static str,
        /// The crate's words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A size outside [`VOCABULARY_SIZE_MIN`] to [`VOCABULARY_SIZE_MAX`].
    #[error(
        "a vocabulary of {0} tokens is not within {VOCABULARY_SIZE_MIN} to {VOCABULARY_SIZE_MAX}"
    )]
    VocabularySize(u32),
}

/// A byte-level BPE tokenizer and the exact bytes of its `tokenizer.json`. Ids are 0 to [`Tokenizer::vocabulary_size`] − 1.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Box<tokenizers::Tokenizer>,
    bytes: Arc<[u8]>,
    token_bytes: Arc<TokenBytes>,
    end_of_text: u32,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("hash", &self.hash())
            .field("vocabulary_size", &self.vocabulary_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// Files that are too large, not JSON, not byte-level BPE over all 256 bytes with the token [`END_OF_TEXT`],
    /// or that ask for a normalizer, a prefix space, dropout, truncation, padding or other added tokens.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        if bytes.len() > TOKENIZER_BYTES_MAX {
            return Err(TokenizerError::TooLarge { bytes: bytes.len() });
        }
        check::check(bytes)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(library("read"))?;
        inner.set_encode_special_tokens(true);
        let size = u32::try_from(inner.get_vocab_size(true)).unwrap_or(u32::MAX);
        if !(VOCABULARY_SIZE_MIN..=VOCABULARY_SIZE_MAX).contains(&size) {
            return Err(TokenizerError::VocabularySize(size));
        }
        let (token_bytes, end_of_text) = TokenBytes::of(&inner, size)?;
        Ok(Self {
            inner: Box::new(inner),
            bytes: bytes.into(),
            token_bytes: Arc::new(token_bytes),
            end_of_text,
        })
    }

    /// Trains on `texts` until the vocabulary has `vocabulary_size` tokens, or the texts have no two tokens left to merge.
    ///
    /// The same texts give the same bytes, whatever their order, the number of threads and the process:
    /// words are counted, and of two pairs that occur equally often the one with the smaller ids is merged first.
    ///
    /// # Errors
    /// A size out of bounds; a failure of the `tokenizers` crate.
    pub fn train<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        vocabulary_size: u32,
    ) -> Result<Self, TokenizerError> {
        if !(VOCABULARY_SIZE_MIN..=VOCABULARY_SIZE_MAX).contains(&vocabulary_size) {
            return Err(TokenizerError::VocabularySize(vocabulary_size));
        }
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocabulary_size as usize)
            .show_progress(false)
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<_>>())
            .build();
        let byte_level = ByteLevel::new(false, false, true);
        let mut untrained: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> =
            TokenizerBuilder::new()
                .with_model(BPE::default())
                .with_pre_tokenizer(Some(byte_level))
                .with_decoder(Some(byte_level))
                .build()
                .map_err(library("trained"))?;
        let json = untrained
            .train(&mut trainer, texts.flat_map(Pieces::of))
            .and_then(|trained| trained.to_string(true))
            .map_err(library("trained"))?;
        Self::from_bytes(json.as_bytes())
    }

    /// The bytes of `tokenizer.json`, as they were read or trained.
    #[must_use]
    pub fn to_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The content address of `tokenizer.json`.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of_blob(&self.bytes)
    }

    /// The ids of a text, without an end-of-text token. [`Tokenizer::decode`] gives the text back.
    ///
    /// # Panics
    /// If the `tokenizers` crate cannot encode; with the tokenizers that [`Tokenizer::from_bytes`] accepts it can encode any text.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut pieces = Pieces::of(text);
        loop {
            let batch: Vec<&str> = pieces.by_ref().take(BATCH_PIECES).collect();
            if batch.is_empty() {
                break;
            }
            let encodings = self
                .inner
                .encode_batch_fast(batch, false)
                .expect("byte-level BPE over all bytes encodes any text");
            for encoding in encodings {
                ids.extend_from_slice(encoding.get_ids());
            }
        }
        ids
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD; end of text and ids outside the vocabulary become nothing.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| self.token_bytes.of_id(id))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder that takes one id at a time and emits text as soon as its characters are whole.
    #[must_use]
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(Arc::clone(&self.token_bytes))
    }

    /// The number of tokens.
    #[must_use]
    pub fn vocabulary_size(&self) -> u32 {
        self.token_bytes.vocabulary_size()
    }

    /// The id of [`END_OF_TEXT`].
    #[must_use]
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }
}

fn library(
    doing: &'static str,
) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> TokenizerError {
    move |source| TokenizerError::Library { doing, source }
}

#[cfg(test)]
mod tests;
