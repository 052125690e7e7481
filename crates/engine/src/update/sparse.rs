//! The sparse codec of updates: of each chunk the largest values, two bits each.
//!
//! A chunk sends the positions of its largest values ([`super::settings::SparseSettings::kept_of`] of them at most,
//! never a zero), and for each its sign and one of two magnitudes: the values are split at their mean magnitude, and
//! each group is sent as its own mean. In the bit stream after the header, for each chunk:
//! - the count (`entries.rs`); nothing else if it is zero;
//! - the lower and the higher magnitude, 13 bits each; the higher is zero if one magnitude serves all;
//! - the entries, with one bit for the sign (1 is negative) and, if there are two magnitudes, one that is 1 for the
//!   higher.
//!
//! Both magnitudes must be in use and in rising order, so each set of values has one form.
//! Size at 128 of 4096: 0.034 byte a parameter; at 64: 0.0195 (uniformly spread positions).

use super::DecodeError;
use super::bits::{BitReader, BitWriter};
use super::chunks::Chunks;
use super::codec::{UPDATE_MAGIC, to_units};
use super::decoded::{CLASS_BITS, HIGH, NEGATIVE, SparseBody, SparseChunk};
use super::entries::{COUNT_BITS_MAX, EntryCode, read_count, write_count};
use super::header::{self, HEADER_BYTES};
use super::magnitude::{self, MAGNITUDE_BITS};
use super::select::largest;
use super::settings::SparseSettings;

/// Writes an update; every value is finite.
pub(super) fn encode(chunks: &Chunks, settings: SparseSettings, accumulated: &[f32]) -> Vec<u8> {
    let mut writer = BitWriter::after(header::write(UPDATE_MAGIC, settings.into(), chunks));
    let (mut magnitudes, mut scratch, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for span in chunks.spans() {
        let values = &accumulated[span.start..span.start + span.length];
        let kept = settings.kept_of(span.length);
        magnitudes.clear();
        magnitudes.extend(values.iter().map(|value| value.abs().to_bits()));
        largest(&magnitudes, kept, &mut scratch, &mut positions);
        // The kept values in units; those that round to zero, the smallest, aren't sent.
        positions.retain(|&position| to_units(values[usize::from(position)]) != 0);
        write_chunk(&mut writer, span.length, kept, values, &positions);
    }
    writer.finish()
}

fn write_chunk(
    writer: &mut BitWriter,
    length: usize,
    kept: usize,
    values: &[f32],
    positions: &[u16],
) {
    write_count(writer, positions.len(), kept);
    if positions.is_empty() {
        return;
    }
    let units = |position: u16| to_units(values[usize::from(position)]);
    let levels = Levels::of(
        positions
            .iter()
            .map(|&position| units(position).unsigned_abs()),
    );
    writer.push(levels.low, MAGNITUDE_BITS);
    writer.push(levels.high, MAGNITUDE_BITS);
    let code = EntryCode::new(length, positions.len(), levels.value_bits());
    let mut next = 0;
    for &position in positions {
        let value = units(position);
        let mut class = if value < 0 { NEGATIVE } else { 0 };
        if levels.high != 0 && u64::from(value.unsigned_abs()) * levels.count > levels.sum {
            class |= HIGH;
        }
        code.write(writer, usize::from(position) - next, class.into());
        next = usize::from(position) + 1;
    }
}

/// The two magnitudes of a chunk, as codes, and the mean that separates them, as a fraction.
struct Levels {
    low: u32,
    high: u32,
    sum: u64,
    count: u64,
}

impl Levels {
    /// Splits magnitudes (at least one, none zero) at their mean and rounds the means of both groups.
    fn of(magnitudes: impl Iterator<Item = u32> + Clone) -> Self {
        let sum = magnitudes.clone().map(u64::from).sum::<u64>();
        let count = magnitudes.clone().count() as u64;
        let above = magnitudes
            .map(u64::from)
            .filter(|magnitude| magnitude * count > sum);
        let (high_sum, high_count) = above.fold((0, 0), |(sum, count), magnitude| {
            (sum + magnitude, count + 1)
        });
        let low = rounded_mean(sum - high_sum, count - high_count);
        let high = if high_count == 0 {
            low
        } else {
            rounded_mean(high_sum, high_count)
        };
        if low == high {
            let both = rounded_mean(sum, count);
            return Self {
                low: both,
                high: 0,
                sum,
                count,
            };
        }
        Self {
            low,
            high,
            sum,
            count,
        }
    }

    /// Bits of an entry's class.
    fn value_bits(&self) -> u32 {
        if self.high == 0 { 1 } else { CLASS_BITS }
    }
}

/// The code of `sum / count`, rounded to the nearest (ties upwards) twice: to a unit, then to a code.
fn rounded_mean(sum: u64, count: u64) -> u32 {
    magnitude::to_code(((sum + count / 2) / count) as u32)
}

/// Reads an update.
pub(super) fn decode(
    bytes: &[u8],
    chunks: &Chunks,
    settings: SparseSettings,
) -> Result<SparseBody, DecodeError> {
    let body = header::check(bytes, UPDATE_MAGIC, settings.into(), chunks)?;
    // Each chunk takes at least its flag: no work for chunks that can't be there.
    if body.len().saturating_mul(8) < chunks.count() {
        return Err(DecodeError::Truncated);
    }
    let mut reader = BitReader::new(body);
    let mut decoded = SparseBody::default();
    for (index, span) in chunks.spans().enumerate() {
        let kept = settings.kept_of(span.length);
        let (low, high) = read_chunk(&mut reader, index, span.length, kept, &mut decoded.entries)?;
        decoded.chunks.push(SparseChunk {
            end: decoded.entries.len(),
            low,
            high,
        });
    }
    reader.finish()?;
    Ok(decoded)
}

/// Appends the entries of one chunk and gives its two magnitudes.
fn read_chunk(
    reader: &mut BitReader<'_>,
    index: usize,
    length: usize,
    kept: usize,
    entries: &mut Vec<u16>,
) -> Result<(u32, u32), DecodeError> {
    let count = read_count(reader, kept, index)?;
    if count == 0 {
        return Ok((0, 0));
    }
    let (low, high) = (reader.read(MAGNITUDE_BITS), reader.read(MAGNITUDE_BITS));
    if reader.overran() {
        return Err(DecodeError::Truncated);
    }
    let magnitude = |code| {
        magnitude::from_code(code).ok_or(DecodeError::NonCanonicalMagnitude { chunk: index })
    };
    let (low, high) = (magnitude(low)?, magnitude(high)?);
    if low == 0 {
        return Err(DecodeError::NonCanonicalMagnitude { chunk: index });
    }
    if high != 0 && high <= low {
        return Err(DecodeError::NonCanonicalLevels { chunk: index });
    }
    let code = EntryCode::new(length, count, if high == 0 { 1 } else { CLASS_BITS });
    let mut next = 0;
    let mut used = [false; 2];
    for _ in 0..count {
        let (position, class) = code
            .read(reader, next)
            .map_err(|fault| fault.reason(index))?;
        used[usize::from(class as u16 & HIGH != 0)] = true;
        entries.push((position << CLASS_BITS) as u16 | class as u16);
        next = position + 1;
    }
    if reader.overran() {
        return Err(DecodeError::Truncated);
    }
    if used != [true, high != 0] {
        return Err(DecodeError::NonCanonicalLevels { chunk: index });
    }
    Ok((low, high))
}

/// A length that no update exceeds.
pub(super) fn bytes_max(chunks: &Chunks, settings: SparseSettings) -> usize {
    let bits: usize = chunks
        .spans()
        .map(|span| {
            let kept = settings.kept_of(span.length);
            let head = COUNT_BITS_MAX + 2 * MAGNITUDE_BITS as usize;
            head + EntryCode::new(span.length, kept, CLASS_BITS).bits_max(kept)
        })
        .sum();
    HEADER_BYTES + bits.div_ceil(8)
}
