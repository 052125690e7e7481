//! Bit streams: least significant bit first, zero padding in the last byte.

use super::DecodeError;

/// The most bits that one [`BitReader::peek`] is sure to hold: eight bytes less the seven bits before the position.
pub(super) const PEEK_BITS: u32 = 57;

/// The most bits that one [`BitWriter::push`] takes.
const PUSH_BITS_MAX: u32 = 32;

/// Appends bit fields to bytes.
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    buffer: u64,
    filled: u32,
}

impl BitWriter {
    /// Starts on a byte boundary after `bytes`.
    pub(super) fn after(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            buffer: 0,
            filled: 0,
        }
    }

    /// Appends the low `width` bits of `value`; the others must be zero.
    pub(super) fn push(&mut self, value: u32, width: u32) {
        assert!(
            width <= PUSH_BITS_MAX && u64::from(value) >> width == 0,
            "{value} needs more than {width} bits"
        );
        self.buffer |= u64::from(value) << self.filled;
        self.filled += width;
        if self.filled >= 32 {
            self.bytes
                .extend_from_slice(&(self.buffer as u32).to_le_bytes());
            self.buffer >>= 32;
            self.filled -= 32;
        }
    }

    /// Appends `count` zeros and a one.
    pub(super) fn push_unary(&mut self, mut count: u32) {
        while count >= PUSH_BITS_MAX {
            self.push(0, PUSH_BITS_MAX);
            count -= PUSH_BITS_MAX;
        }
        self.push(1 << count, count + 1);
    }

    /// Pads with zeros to a whole byte.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let rest = self.filled.div_ceil(8) as usize;
        self.bytes
            .extend_from_slice(&self.buffer.to_le_bytes()[..rest]);
        self.bytes
    }
}

/// Reads bit fields. Beyond the end it reads zeros and remembers that it did, so that the caller may check once a chunk.
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    /// Starts at the first bit of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next bits without taking them; at least [`PEEK_BITS`] of them count.
    #[inline]
    pub(super) fn peek(&self) -> u64 {
        let start = self.position / 8;
        let word = match self.bytes.get(start..start + 8) {
            Some(eight) => u64::from_le_bytes(eight.try_into().expect("the slice has eight bytes")),
            None => {
                let rest = self.bytes.get(start..).unwrap_or_default();
                let mut eight = [0; 8];
                eight[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(eight)
            }
        };
        word >> (self.position % 8)
    }

    /// Goes on by `width` bits.
    #[inline]
    pub(super) fn skip(&mut self, width: u32) {
        self.position += width as usize;
    }

    /// Takes `width` bits, at most 32.
    #[inline]
    pub(super) fn read(&mut self, width: u32) -> u32 {
        debug_assert!(width <= 32);
        let value = self.peek() & ((1 << width) - 1);
        self.skip(width);
        value as u32
    }

    /// Whether more was read than there is.
    #[inline]
    pub(super) fn overran(&self) -> bool {
        self.position > self.bytes.len() * 8
    }

    /// Checks that only zero padding of less than a byte is left.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.overran() {
            return Err(DecodeError::Truncated);
        }
        let used = self.position.div_ceil(8);
        if used < self.bytes.len() {
            return Err(DecodeError::TrailingBytes {
                count: self.bytes.len() - used,
            });
        }
        let odd = self.position % 8;
        if odd != 0 && self.bytes[used - 1] >> odd != 0 {
            return Err(DecodeError::NonZeroPadding);
        }
        Ok(())
    }
}
