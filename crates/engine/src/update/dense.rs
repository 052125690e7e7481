//! The dense codec: every value as an 8- or 16-bit integer, one power-of-two scale a chunk.
//!
//! Used for updates on local networks and as the baseline (DiLoCo), and for deltas. After the header, for each chunk:
//! the shift in one byte, then the integers, little endian. `integer << shift` is the value in units of 2⁻³⁰.
//! One form for each set of values: the shift is the largest that loses nothing (an odd integer, or the last shift);
//! a chunk of zeros has shift 0; −128 and −32768 don't occur.

use super::DecodeError;
use super::chunks::Chunks;
use super::codec::{UPDATE_MAGIC, to_units};
use super::decoded::DenseBody;
use super::header::{self, HEADER_BYTES};
use super::settings::{DenseSettings, DenseWidth};

/// The range of a dense body.
#[derive(Clone, Copy)]
pub(super) struct Range {
    width: DenseWidth,
    shift_max: u32,
}

impl Range {
    /// For updates: values below 2³⁰ units.
    pub(super) fn update(width: DenseWidth) -> Self {
        let shift_max = match width {
            DenseWidth::Eight => 23,
            DenseWidth::Sixteen => 15,
        };
        Self { width, shift_max }
    }

    /// For deltas: values below 2³¹ units.
    pub(super) fn delta(width: DenseWidth) -> Self {
        Self {
            shift_max: Self::update(width).shift_max + 1,
            width,
        }
    }

    /// The largest integer.
    fn limit(self) -> u32 {
        match self.width {
            DenseWidth::Eight => 127,
            DenseWidth::Sixteen => 32767,
        }
    }
}

/// Writes an update; every value is finite.
pub(super) fn encode_update(
    chunks: &Chunks,
    settings: DenseSettings,
    accumulated: &[f32],
) -> Vec<u8> {
    let mut body = DenseBody::default();
    let mut units = Vec::new();
    for span in chunks.spans() {
        units.clear();
        units.extend(
            accumulated[span.start..span.start + span.length]
                .iter()
                .copied()
                .map(to_units),
        );
        quantise(&units, Range::update(settings.width), &mut body);
    }
    write(
        header::write(UPDATE_MAGIC, settings.into(), chunks),
        &body,
        chunks,
        settings.width,
    )
}

/// Reads an update.
pub(super) fn decode_update(
    bytes: &[u8],
    chunks: &Chunks,
    settings: DenseSettings,
) -> Result<DenseBody, DecodeError> {
    let body = header::check(bytes, UPDATE_MAGIC, settings.into(), chunks)?;
    read(body, chunks, Range::update(settings.width))
}

/// The length of every dense update and delta.
pub(super) fn bytes_max(chunks: &Chunks, settings: DenseSettings) -> usize {
    HEADER_BYTES + body_bytes(chunks, settings.width).expect("the model fits in memory")
}

fn body_bytes(chunks: &Chunks, width: DenseWidth) -> Option<usize> {
    chunks
        .total()
        .checked_mul(width.bytes())?
        .checked_add(chunks.count())
}

/// Appends a chunk: the values rounded to the nearest multiple of the smallest scale that holds them all, halves away
/// from zero.
pub(super) fn quantise(units: &[i32], range: Range, body: &mut DenseBody) {
    let limit = range.limit();
    let largest = units
        .iter()
        .map(|value| value.unsigned_abs())
        .max()
        .unwrap_or(0);
    let shift = (0..range.shift_max)
        .find(|&shift| largest <= limit << shift)
        .unwrap_or(range.shift_max);
    let start = body.values.len();
    let half = (1u32 << shift) >> 1;
    body.values.extend(units.iter().map(|&value| {
        let magnitude = ((value.unsigned_abs() + half) >> shift).min(limit) as i16;
        if value < 0 { -magnitude } else { magnitude }
    }));
    let values = &mut body.values[start..];
    // A zero has 16 trailing zeros, so only the others count.
    let spare = values
        .iter()
        .map(|value| value.trailing_zeros())
        .min()
        .unwrap_or(i16::BITS);
    if spare == i16::BITS {
        body.shifts.push(0);
        return;
    }
    let spare = spare.min(range.shift_max - shift);
    for value in values {
        *value >>= spare;
    }
    body.shifts.push((shift + spare) as u8);
}

/// Appends a body to a header.
pub(super) fn write(
    mut bytes: Vec<u8>,
    body: &DenseBody,
    chunks: &Chunks,
    width: DenseWidth,
) -> Vec<u8> {
    for (span, &shift) in chunks.spans().zip(&body.shifts) {
        let values = &body.values[span.start..span.start + span.length];
        bytes.push(shift);
        match width {
            DenseWidth::Eight => bytes.extend(values.iter().map(|&value| value as i8 as u8)),
            DenseWidth::Sixteen => {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()))
            }
        }
    }
    bytes
}

/// Reads a body. Its length is checked before anything is allocated.
pub(super) fn read(
    mut bytes: &[u8],
    chunks: &Chunks,
    range: Range,
) -> Result<DenseBody, DecodeError> {
    let expected = body_bytes(chunks, range.width).ok_or(DecodeError::Truncated)?;
    if bytes.len() < expected {
        return Err(DecodeError::Truncated);
    }
    if bytes.len() > expected {
        return Err(DecodeError::TrailingBytes {
            count: bytes.len() - expected,
        });
    }
    let mut body = DenseBody {
        shifts: Vec::with_capacity(chunks.count()),
        values: Vec::with_capacity(chunks.total()),
    };
    for (index, span) in chunks.spans().enumerate() {
        let (chunk, rest) = bytes.split_at(1 + span.length * range.width.bytes());
        bytes = rest;
        let start = body.values.len();
        match range.width {
            DenseWidth::Eight => body
                .values
                .extend(chunk[1..].iter().map(|&byte| i16::from(byte as i8))),
            DenseWidth::Sixteen => body.values.extend(
                chunk[1..]
                    .as_chunks()
                    .0
                    .iter()
                    .copied()
                    .map(i16::from_le_bytes),
            ),
        }
        check_chunk(&body.values[start..], chunk[0], range, index)?;
        body.shifts.push(chunk[0]);
    }
    Ok(body)
}

fn check_chunk(values: &[i16], shift: u8, range: Range, chunk: usize) -> Result<(), DecodeError> {
    let union = values.iter().fold(0, |bits, value| bits | value);
    let canonical = if union == 0 {
        shift == 0
    } else {
        union & 1 == 1 || u32::from(shift) == range.shift_max
    };
    if u32::from(shift) > range.shift_max || !canonical {
        return Err(DecodeError::NonCanonicalShift { chunk });
    }
    if values
        .iter()
        .any(|value| u32::from(value.unsigned_abs()) > range.limit())
    {
        return Err(DecodeError::ValueOutOfRange { chunk });
    }
    Ok(())
}
