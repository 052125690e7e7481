//! The delta: what a round publishes, and the only thing that changes the parameters.
//!
//! A delta takes the largest values of each chunk out of the public residual and leaves the rest there, exactly:
//! `residual before = residual after + delta`, in integers. In the bit stream after the header, for each chunk:
//! - the count (`entries.rs`); nothing else if it is zero;
//! - the shift, 5 bits;
//! - the entries, each with its sign (1 is negative) and the 3-bit index of its level, below.
//!
//! A value is `LEVELS[index] << shift` units of 2⁻³⁰. The dense form ([`super::dense`]) sends every value.
//! Size at 512 of 4096: 0.132 byte a parameter (uniformly spread positions).

mod levels;

use super::bits::{BitReader, BitWriter};
use super::chunks::Chunks;
use super::decoded::DenseBody;
use super::dense::{self, Range};
use super::entries::{COUNT_BITS_MAX, EntryCode, read_count, write_count};
use super::header::{self, HEADER_BYTES};
use super::select::largest;
use super::settings::{DeltaSettings, SparseSettings};
use super::{DecodeError, FRACTION_BITS};
use levels::{LEVELS, SHIFT_MAX};

/// The first bytes of a delta.
const DELTA_MAGIC: &[u8; 4] = b"AHde";

/// Bits of a shift.
const SHIFT_BITS: u32 = 5;

/// Bits of an entry: the sign, then the level's index.
const CODE_BITS: u32 = 4;

/// A published delta, decoded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delta {
    chunks: Chunks,
    settings: DeltaSettings,
    body: DeltaBody,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum DeltaBody {
    Sparse(SparseDelta),
    Dense(DenseBody),
}

/// Position in the chunk × 16 + code for each entry; where each chunk's entries end, and its shift.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct SparseDelta {
    chunks: Vec<(usize, u8)>,
    entries: Vec<u32>,
}

impl SparseDelta {
    fn chunk(&self, index: usize) -> (&[u32], u32) {
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.chunks[before].0);
        let (end, shift) = self.chunks[index];
        (&self.entries[start..end], shift.into())
    }
}

impl Delta {
    /// Takes a delta out of `residual` (units of 2⁻³⁰, one for each parameter): what the delta says is subtracted.
    ///
    /// Panics on settings that their `check` refuses and on a residual of another length.
    pub fn take(lengths: &[usize], settings: &DeltaSettings, residual: &mut [i32]) -> Self {
        let (chunks, body) = match settings {
            DeltaSettings::Sparse(sparse) => {
                let chunks = Chunks::new(lengths, sparse.chunk);
                assert_eq!(
                    residual.len(),
                    chunks.total(),
                    "the residual is of another model"
                );
                let body = DeltaBody::Sparse(take_sparse(&chunks, *sparse, residual));
                (chunks, body)
            }
            DeltaSettings::Dense(dense) => {
                let chunks = Chunks::new(lengths, dense.chunk);
                assert_eq!(
                    residual.len(),
                    chunks.total(),
                    "the residual is of another model"
                );
                let mut body = DenseBody::default();
                for span in chunks.spans() {
                    let values = &residual[span.start..span.start + span.length];
                    dense::quantise(values, Range::delta(dense.width), &mut body);
                }
                (chunks, DeltaBody::Dense(body))
            }
        };
        let delta = Self {
            chunks,
            settings: *settings,
            body,
        };
        if matches!(delta.body, DeltaBody::Dense(_)) {
            delta.for_each(|index, units| {
                residual[index] = (i64::from(residual[index]) - units) as i32
            });
        }
        delta
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        match (&self.body, &self.settings) {
            (DeltaBody::Sparse(body), DeltaSettings::Sparse(settings)) => {
                encode_sparse(body, &self.chunks, *settings)
            }
            (DeltaBody::Dense(body), DeltaSettings::Dense(settings)) => {
                let header = header::write(DELTA_MAGIC, (*settings).into(), &self.chunks);
                dense::write(header, body, &self.chunks, settings.width)
            }
            _ => unreachable!("a delta is made with its settings"),
        }
    }

    /// Reads a delta of a model with these tensor `lengths` under the charter's `settings`.
    ///
    /// # Errors
    /// [`DecodeError`], for anything but the one byte string of a delta.
    pub fn decode(
        bytes: &[u8],
        lengths: &[usize],
        settings: &DeltaSettings,
    ) -> Result<Self, DecodeError> {
        settings.check().map_err(DecodeError::Settings)?;
        let (chunks, body) = match settings {
            DeltaSettings::Sparse(sparse) => {
                let chunks = Chunks::new(lengths, sparse.chunk);
                let bytes = header::check(bytes, DELTA_MAGIC, (*sparse).into(), &chunks)?;
                let body = DeltaBody::Sparse(decode_sparse(bytes, &chunks, *sparse)?);
                (chunks, body)
            }
            DeltaSettings::Dense(dense) => {
                let chunks = Chunks::new(lengths, dense.chunk);
                let bytes = header::check(bytes, DELTA_MAGIC, (*dense).into(), &chunks)?;
                let body =
                    DeltaBody::Dense(dense::read(bytes, &chunks, Range::delta(dense.width))?);
                (chunks, body)
            }
        };
        Ok(Self {
            chunks,
            settings: *settings,
            body,
        })
    }

    /// How the parameters are cut.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// How many values the delta sends.
    pub fn sent(&self) -> usize {
        match &self.body {
            DeltaBody::Sparse(body) => body.entries.len(),
            DeltaBody::Dense(body) => body.values.len(),
        }
    }

    /// Calls `each` with the index of every parameter that the delta sends and its value in units of 2⁻³⁰ (at most
    /// 2³¹), in rising order of index.
    pub fn for_each(&self, mut each: impl FnMut(usize, i64)) {
        for (index, span) in self.chunks.spans().enumerate() {
            match &self.body {
                DeltaBody::Sparse(body) => {
                    let (entries, shift) = body.chunk(index);
                    for &entry in entries {
                        each(
                            span.start + (entry >> CODE_BITS) as usize,
                            i64::from(level(entry)) << shift,
                        );
                    }
                }
                DeltaBody::Dense(body) => {
                    for at in span.start..span.start + span.length {
                        each(at, i64::from(body.values[at]) << body.shifts[index]);
                    }
                }
            }
        }
    }
}

/// Applies a delta: `theta[i] ← theta[i] − integer · 2^(shift − 30)`, the product exact, the difference rounded once.
///
/// Flush-to-zero modes don't change the result: deltas are multiples of 2⁻³⁰, so no difference with one is subnormal.
/// Panics if the delta is of another length.
pub fn apply_delta(theta: &mut [f32], delta: &Delta) {
    assert_eq!(
        theta.len(),
        delta.chunks.total(),
        "the delta is of another model"
    );
    for (index, span) in delta.chunks.spans().enumerate() {
        let theta = &mut theta[span.start..span.start + span.length];
        match &delta.body {
            DeltaBody::Sparse(body) => {
                let (entries, shift) = body.chunk(index);
                let scale = scale(shift);
                for &entry in entries {
                    let change = level(entry) as f32 * scale;
                    theta[(entry >> CODE_BITS) as usize] -= change;
                }
            }
            DeltaBody::Dense(body) => {
                let scale = scale(body.shifts[index].into());
                for (theta, &value) in theta.iter_mut().zip(&body.values[span.start..]) {
                    let change = f32::from(value) * scale;
                    *theta -= change;
                }
            }
        }
    }
}

/// A length in bytes that no delta of such a model exceeds.
///
/// Panics on settings that their `check` refuses.
pub fn delta_bytes_max(lengths: &[usize], settings: &DeltaSettings) -> usize {
    match settings {
        DeltaSettings::Dense(settings) => {
            dense::bytes_max(&Chunks::new(lengths, settings.chunk), *settings)
        }
        DeltaSettings::Sparse(settings) => {
            let of_chunk = |length| {
                let kept = settings.kept_of(length);
                COUNT_BITS_MAX
                    + SHIFT_BITS as usize
                    + EntryCode::new(length, kept, CODE_BITS).bits_max(kept)
            };
            let bits: usize = Chunks::new(lengths, settings.chunk)
                .spans()
                .map(|span| of_chunk(span.length))
                .sum();
            HEADER_BYTES + bits.div_ceil(8)
        }
    }
}

/// 2^(shift − 30), from its bits.
fn scale(shift: u32) -> f32 {
    f32::from_bits((127 + shift - FRACTION_BITS) << 23)
}

/// The signed level of an entry or code.
fn level(code: u32) -> i32 {
    let magnitude = LEVELS[(code >> 1 & 7) as usize] as i32;
    if code & 1 == 1 { -magnitude } else { magnitude }
}

fn take_sparse(chunks: &Chunks, settings: SparseSettings, residual: &mut [i32]) -> SparseDelta {
    let mut delta = SparseDelta::default();
    let (mut magnitudes, mut scratch, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for span in chunks.spans() {
        let values = &mut residual[span.start..span.start + span.length];
        magnitudes.clear();
        magnitudes.extend(values.iter().map(|value| value.unsigned_abs()));
        largest(
            &magnitudes,
            settings.kept_of(span.length),
            &mut scratch,
            &mut positions,
        );
        scratch.clear();
        scratch.extend(
            positions
                .iter()
                .map(|&position| magnitudes[usize::from(position)]),
        );
        let shift = levels::shift_for(&scratch);
        let start = delta.entries.len();
        for (&position, &magnitude) in positions.iter().zip(&scratch) {
            let Some(index) = levels::nearest(magnitude, shift) else {
                continue;
            };
            let value = &mut values[usize::from(position)];
            let code = (index << 1) | u32::from(*value < 0);
            *value = (i64::from(*value) - (i64::from(level(code)) << shift)) as i32;
            delta
                .entries
                .push((u32::from(position) << CODE_BITS) | code);
        }
        let entries = &mut delta.entries[start..];
        let shift = if entries.is_empty() {
            0
        } else {
            shift + make_canonical(entries, shift)
        };
        delta.chunks.push((delta.entries.len(), shift as u8));
    }
    delta
}

/// Doubles the scale and halves the levels while that loses nothing; gives by how many doublings.
fn make_canonical(entries: &mut [u32], shift: u32) -> u32 {
    let mut raised = 0;
    while shift + raised < SHIFT_MAX && !entries.iter().any(|entry| levels::is_odd(entry >> 1 & 7))
    {
        for entry in &mut *entries {
            let halved = levels::halved(*entry >> 1 & 7);
            *entry = (*entry & !0b1110) | (halved << 1);
        }
        raised += 1;
    }
    raised
}

fn encode_sparse(body: &SparseDelta, chunks: &Chunks, settings: SparseSettings) -> Vec<u8> {
    let mut writer = BitWriter::after(header::write(DELTA_MAGIC, settings.into(), chunks));
    for (index, span) in chunks.spans().enumerate() {
        let (entries, shift) = body.chunk(index);
        write_count(&mut writer, entries.len(), settings.kept_of(span.length));
        if entries.is_empty() {
            continue;
        }
        writer.push(shift, SHIFT_BITS);
        let code = EntryCode::new(span.length, entries.len(), CODE_BITS);
        let mut next = 0;
        for &entry in entries {
            let position = (entry >> CODE_BITS) as usize;
            code.write(&mut writer, position - next, entry & 15);
            next = position + 1;
        }
    }
    writer.finish()
}

fn decode_sparse(
    bytes: &[u8],
    chunks: &Chunks,
    settings: SparseSettings,
) -> Result<SparseDelta, DecodeError> {
    // Each chunk takes at least its flag: no work for chunks that can't be there.
    if bytes.len().saturating_mul(8) < chunks.count() {
        return Err(DecodeError::Truncated);
    }
    let mut reader = BitReader::new(bytes);
    let mut delta = SparseDelta::default();
    for (index, span) in chunks.spans().enumerate() {
        let count = read_count(&mut reader, settings.kept_of(span.length), index)?;
        let shift = if count == 0 {
            0
        } else {
            reader.read(SHIFT_BITS)
        };
        let code = EntryCode::new(span.length, count, CODE_BITS);
        let mut next = 0;
        let mut odd = false;
        for _ in 0..count {
            let (position, bits) = code
                .read(&mut reader, next)
                .map_err(|fault| fault.reason(index))?;
            odd |= levels::is_odd(bits >> 1);
            delta.entries.push(((position as u32) << CODE_BITS) | bits);
            next = position + 1;
        }
        if reader.overran() {
            return Err(DecodeError::Truncated);
        }
        if shift > SHIFT_MAX || (count > 0 && !odd && shift < SHIFT_MAX) {
            return Err(DecodeError::NonCanonicalShift { chunk: index });
        }
        delta.chunks.push((delta.entries.len(), shift as u8));
    }
    reader.finish()?;
    Ok(delta)
}
