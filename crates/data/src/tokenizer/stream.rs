//! Decoding: what bytes a token stands for, and text from tokens that come one by one.

use std::{collections::HashMap, str, sync::Arc};

use super::{END_OF_TEXT, TokenizerError};

/// The bytes of every token; those of the end-of-text token are none.
#[derive(Debug)]
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// Token `id` has the bytes from `starts[id]` to `starts[id + 1]`.
    starts: Vec<u32>,
}

impl TokenBytes {
    /// Reads the vocabulary; also returns the id of the end-of-text token.
    ///
    /// Refuses vocabularies with holes, with letters that stand for no byte, or without one of the 256 bytes.
    pub(super) fn of(
        inner: &tokenizers::Tokenizer,
        vocabulary_size: u32,
    ) -> Result<(Self, u32), TokenizerError> {
        let unsupported = |reason: String| TokenizerError::Unsupported(reason);
        let byte_of = byte_of_letter();
        let mut table = Self {
            bytes: Vec::new(),
            starts: vec![0],
        };
        let mut end_of_text = None;
        let mut single = [false; 256];
        for id in 0..vocabulary_size {
            let token = inner
                .id_to_token(id)
                .ok_or_else(|| unsupported(format!("no token has the id {id}")))?;
            if token == END_OF_TEXT {
                end_of_text = Some(id);
            } else {
                let from = table.bytes.len();
                for letter in token.chars() {
                    let byte = byte_of.get(&letter).ok_or_else(|| {
                        unsupported(format!("{letter:?} in token {id} stands for no byte"))
                    })?;
                    table.bytes.push(*byte);
                }
                if let [byte] = table.bytes[from..] {
                    single[usize::from(byte)] = true;
                }
            }
            let end = u32::try_from(table.bytes.len())
                .map_err(|_| unsupported("the tokens are too long".to_owned()))?;
            table.starts.push(end);
        }
        if let Some(byte) = single.iter().position(|&present| !present) {
            return Err(unsupported(format!("byte {byte} has no token")));
        }
        let end_of_text =
            end_of_text.ok_or_else(|| unsupported(format!("there is no token {END_OF_TEXT}")))?;
        Ok((table, end_of_text))
    }

    pub(super) fn vocabulary_size(&self) -> u32 {
        u32::try_from(self.starts.len() - 1).expect("the vocabulary has at most 2^18 tokens")
    }

    /// The bytes of a token; none for ids outside the vocabulary.
    pub(super) fn of_id(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.starts.get(id..).and_then(|rest| rest.get(..2)) {
            Some(&[start, end]) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }
}

/// GPT-2's letters for bytes: printable Latin-1 stands for itself, the other 68 bytes for U+0100 onward
/// (openai/gpt-2 src/encoder.py, `bytes_to_unicode`).
fn byte_of_letter() -> HashMap<char, u8> {
    let mut others = 0x100..;
    (0..=u8::MAX)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let letter = if printable {
                u32::from(byte)
            } else {
                others.next().expect("the range has no end")
            };
            (
                char::from_u32(letter).expect("letters are below U+0144"),
                byte,
            )
        })
        .collect()
}

/// Turns ids that come one by one into text, never part of a character.
///
/// Everything that [`DecodeStream::push`] and then [`DecodeStream::finish`] return, joined,
/// is what [`super::Tokenizer::decode`] returns for all ids at once.
#[derive(Clone, Debug)]
pub struct DecodeStream {
    token_bytes: Arc<TokenBytes>,
    /// The beginning of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl DecodeStream {
    pub(super) fn new(token_bytes: Arc<TokenBytes>) -> Self {
        Self {
            token_bytes,
            pending: Vec::new(),
        }
    }

    /// Takes the next id and returns the text that is whole now, perhaps none.
    #[must_use]
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend_from_slice(self.token_bytes.of_id(id));
        let mut text = String::new();
        let mut bytes = self.pending.as_slice();
        loop {
            match str::from_utf8(bytes) {
                Ok(whole) => {
                    text.push_str(whole);
                    bytes = &[];
                    break;
                }
                Err(error) => {
                    let (whole, rest) = bytes.split_at(error.valid_up_to());
                    text.push_str(str::from_utf8(whole).expect("valid up to here"));
                    bytes = rest;
                    // Without a length the bytes may still become a character.
                    let Some(broken) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    bytes = &bytes[broken..];
                }
            }
        }
        self.pending = bytes.to_vec();
        text
    }

    /// Ends the stream: a character that never became whole is one U+FFFD.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
