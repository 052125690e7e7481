//! Cuts a long text where the pre-tokenizer would cut it anyway, so that memory per call stays small.

/// A piece is cut at the first opportunity after so many bytes.
const PIECE_BYTES: usize = 32 << 10;

/// The pieces of a text, in order; joined they are the text.
///
/// GPT-2's pattern `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` has no match that
/// goes on from a visible character into white space, and looks ahead only from white space.
/// A cut between a visible ASCII character and a space or line feed therefore changes no token.
pub(super) struct Pieces<'a> {
    rest: &'a str,
}

impl<'a> Pieces<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { rest: text }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = self.rest.as_bytes();
        let cut = (PIECE_BYTES..bytes.len())
            .find(|&at| matches!(bytes[at], b' ' | b'\n') && bytes[at - 1].is_ascii_graphic())
            .unwrap_or(bytes.len());
        let (piece, rest) = self.rest.split_at(cut);
        self.rest = rest;
        Some(piece)
    }
}
