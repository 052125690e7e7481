//! The entries of a sparse chunk: how many, where, and a few bits for each.
//!
//! A chunk of `length` parameters that may keep `kept` of them is written as
//! - one bit: 1 if exactly `kept` follow; else 0 and the count in as many bits as `kept − 1` needs;
//! - what the codec adds once for the chunk (magnitudes, a shift), if the count isn't zero;
//! - for each entry, in rising order of position, the number of positions skipped since the last one in Rice code
//!   (quotient in unary, as zeros and a one, then the remainder) and the codec's bits.
//!
//! Gaps make positions sorted and distinct by construction. The Rice parameter follows from count and length, so it
//! isn't sent: ⌊log₂(length/count)⌋ − 1, within 2 % of the entropy of uniformly spread positions.

use super::DecodeError;
use super::bits::{BitReader, BitWriter, PEEK_BITS};
use super::chunks::CHUNK_MAX;

/// The most bits of a count with its flag.
pub(super) const COUNT_BITS_MAX: usize = 1 + CHUNK_MAX.ilog2() as usize;

/// Bits of a count below `kept`.
fn count_bits(kept: usize) -> u32 {
    usize::BITS - (kept - 1).leading_zeros()
}

/// Writes the count of a chunk that may keep `kept`.
pub(super) fn write_count(writer: &mut BitWriter, count: usize, kept: usize) {
    assert!(count <= kept, "{count} values are more than {kept}");
    writer.push(u32::from(count == kept), 1);
    if count < kept {
        writer.push(count as u32, count_bits(kept));
    }
}

/// Reads the count of a chunk that may keep `kept`.
pub(super) fn read_count(
    reader: &mut BitReader<'_>,
    kept: usize,
    chunk: usize,
) -> Result<usize, DecodeError> {
    let full = reader.read(1) == 1;
    let count = if full {
        kept
    } else {
        reader.read(count_bits(kept)) as usize
    };
    if reader.overran() {
        Err(DecodeError::Truncated)
    } else if !full && count >= kept {
        Err(DecodeError::NonCanonicalCount { chunk })
    } else {
        Ok(count)
    }
}

/// How the entries of one chunk are coded.
#[derive(Clone, Copy)]
pub(super) struct EntryCode {
    length: usize,
    rice: u32,
    value_bits: u32,
}

impl EntryCode {
    /// For `count` entries among `length` positions with `value_bits` bits each.
    pub(super) fn new(length: usize, count: usize, value_bits: u32) -> Self {
        let rice = (length / count.max(1)).max(1).ilog2().saturating_sub(1);
        Self {
            length,
            rice,
            value_bits,
        }
    }

    /// The most bits that these `count` entries take: the quotients add up to less than the length's. Rises with
    /// `count`, so the bound for all that may be kept holds for fewer.
    pub(super) fn bits_max(self, count: usize) -> usize {
        count * (1 + self.rice + self.value_bits) as usize + (self.length >> self.rice)
    }

    /// Writes an entry `gap` positions after the one before.
    #[inline]
    pub(super) fn write(self, writer: &mut BitWriter, gap: usize, value: u32) {
        let gap = gap as u32;
        let remainder = gap & ((1 << self.rice) - 1);
        writer.push_unary(gap >> self.rice);
        writer.push(
            remainder | (value << self.rice),
            self.rice + self.value_bits,
        );
    }

    /// Reads an entry after position `next`: its own position, below the chunk's length, and its bits.
    #[inline]
    pub(super) fn read(
        self,
        reader: &mut BitReader<'_>,
        next: usize,
    ) -> Result<(usize, u32), EntryFault> {
        let word = reader.peek();
        let zeros = word.trailing_zeros();
        let tail = self.rice + self.value_bits;
        if zeros + 1 + tail > PEEK_BITS {
            return self.read_long(reader, next);
        }
        let rest = word >> zeros >> 1;
        let gap = ((zeros as usize) << self.rice) + (rest & ((1 << self.rice) - 1)) as usize;
        let position = next + gap;
        reader.skip(zeros + 1 + tail);
        if position >= self.length {
            return Err(EntryFault::of(reader));
        }
        Ok((
            position,
            ((rest >> self.rice) & ((1 << self.value_bits) - 1)) as u32,
        ))
    }

    /// [`Self::read`] for a quotient that doesn't fit in one peek.
    #[cold]
    fn read_long(
        self,
        reader: &mut BitReader<'_>,
        next: usize,
    ) -> Result<(usize, u32), EntryFault> {
        let mut quotient = 0usize;
        loop {
            let zeros = reader.peek().trailing_zeros().min(PEEK_BITS - 1);
            reader.skip(zeros);
            quotient += zeros as usize;
            if next + (quotient << self.rice) >= self.length || reader.overran() {
                return Err(EntryFault::of(reader));
            }
            if zeros < PEEK_BITS - 1 {
                break;
            }
        }
        reader.skip(1);
        let position = next + (quotient << self.rice) + reader.read(self.rice) as usize;
        let value = reader.read(self.value_bits);
        if position >= self.length {
            return Err(EntryFault::of(reader));
        }
        Ok((position, value))
    }
}

/// An entry that can't be: its position lies outside the chunk, or the bytes end.
pub(super) struct EntryFault {
    overran: bool,
}

impl EntryFault {
    fn of(reader: &BitReader<'_>) -> Self {
        Self {
            overran: reader.overran(),
        }
    }

    /// The reason to give for chunk `chunk`.
    pub(super) fn reason(self, chunk: usize) -> DecodeError {
        if self.overran {
            DecodeError::Truncated
        } else {
            DecodeError::PositionOutOfRange { chunk }
        }
    }
}
