//! Tokens as the model takes them: rows of one token more than there are predictions.

use crate::workspace::Sizes;

/// Rows of `sequence + 1` tokens: each position's input, and the token after it as its target.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    tokens: &'a [u32],
    sequence: usize,
}

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not a whole number of rows, or more rows than the workspace holds, or none.
    #[error("{tokens} tokens are not 1 to {rows_max} rows of {row_tokens}")]
    Size {
        /// Tokens given.
        tokens: usize,
        /// Most rows.
        rows_max: usize,
        /// Tokens of a row: sequence + 1.
        row_tokens: usize,
    },
    /// A token that the vocabulary does not have.
    #[error("token {token} is not below the vocabulary's size {vocabulary}")]
    Token {
        /// The first such token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
}

impl<'a> Batch<'a> {
    pub(crate) fn new(tokens: &'a [u32], sizes: &Sizes) -> Result<Self, BatchError> {
        let row_tokens = sizes.heads.sequence + 1;
        if tokens.is_empty()
            || !tokens.len().is_multiple_of(row_tokens)
            || tokens.len() / row_tokens > sizes.batch
        {
            return Err(BatchError::Size {
                tokens: tokens.len(),
                rows_max: sizes.batch,
                row_tokens,
            });
        }
        if let Some(&token) = tokens
            .iter()
            .find(|&&token| token as usize >= sizes.vocabulary)
        {
            return Err(BatchError::Token {
                token,
                vocabulary: sizes.vocabulary,
            });
        }
        Ok(Batch {
            tokens,
            sequence: sizes.heads.sequence,
        })
    }

    /// Positions whose next token is predicted.
    pub(crate) fn positions(&self) -> usize {
        self.tokens.len() / (self.sequence + 1) * self.sequence
    }

    /// Each position's token.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = u32> {
        self.tokens
            .chunks_exact(self.sequence + 1)
            .flat_map(|row| row[..row.len() - 1].iter().copied())
    }

    /// The token after each position.
    pub(crate) fn targets(&self) -> impl Iterator<Item = u32> {
        self.tokens
            .chunks_exact(self.sequence + 1)
            .flat_map(|row| row[1..].iter().copied())
    }
}
