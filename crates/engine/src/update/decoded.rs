//! An update after decoding, in the compact form that the merge reads.

use std::ops::Range;

use super::chunks::Chunks;
use super::norms;

/// An update that passed every check of its codec: all values are integers in units of 2⁻³⁰, below 1.0 in magnitude.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DecodedUpdate {
    pub(super) chunks: Chunks,
    pub(super) body: Body,
}

/// Chunks that follow each other, and the parameters in them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Window {
    pub(super) chunks: Range<usize>,
    pub(super) values: Range<usize>,
}

/// An update's values in a window.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Piece {
    pub(super) body: Body,
    pub(super) first_chunk: usize,
    pub(super) first_value: usize,
}

/// The same, of a [`Piece`] or of a whole update.
#[derive(Clone, Copy, Debug)]
pub struct PieceRef<'a> {
    pub(super) body: &'a Body,
    pub(super) first_chunk: usize,
    pub(super) first_value: usize,
}

/// The values by codec.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Body {
    Sparse(SparseBody),
    Dense(DenseBody),
}

/// Two bytes a value: position in the chunk × 4 + class.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct SparseBody {
    pub(super) chunks: Vec<SparseChunk>,
    pub(super) entries: Vec<u16>,
}

/// Where a chunk's entries end, and its two magnitudes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SparseChunk {
    pub(super) end: usize,
    pub(super) low: u32,
    pub(super) high: u32,
}

/// Class bit: the value is negative.
pub(super) const NEGATIVE: u16 = 1;

/// Class bit: the value has the chunk's higher magnitude.
pub(super) const HIGH: u16 = 2;

/// Bits of a class.
pub(super) const CLASS_BITS: u32 = 2;

/// One integer a parameter and one shift a chunk.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct DenseBody {
    pub(super) shifts: Vec<u8>,
    pub(super) values: Vec<i16>,
}

impl SparseBody {
    /// The entries of chunk `index` with the values of the four classes.
    #[inline]
    pub(super) fn chunk(&self, index: usize) -> (&[u16], [i32; 4]) {
        let start = index
            .checked_sub(1)
            .map_or(0, |before| self.chunks[before].end);
        let SparseChunk { end, low, high } = self.chunks[index];
        let (low, high) = (low as i32, high as i32);
        (&self.entries[start..end], [low, -low, high, -high])
    }
}

impl SparseBody {
    /// The entries of these chunks alone.
    fn part(&self, chunks: &Range<usize>) -> Self {
        let end = |chunks: usize| {
            chunks
                .checked_sub(1)
                .map_or(0, |last| self.chunks[last].end)
        };
        let (start, end) = (end(chunks.start), end(chunks.end));
        let of_part = self.chunks[chunks.clone()].iter().map(|it| SparseChunk {
            end: it.end - start,
            ..*it
        });
        Self {
            chunks: of_part.collect(),
            entries: self.entries[start..end].to_vec(),
        }
    }
}

impl Piece {
    /// It by reference.
    pub fn as_ref(&self) -> PieceRef<'_> {
        PieceRef {
            body: &self.body,
            first_chunk: self.first_chunk,
            first_value: self.first_value,
        }
    }
}

impl DecodedUpdate {
    /// How the parameters are cut.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// Memory that the values take.
    pub fn memory_bytes(&self) -> usize {
        match &self.body {
            Body::Sparse(body) => size_of_val(&body.entries[..]) + size_of_val(&body.chunks[..]),
            Body::Dense(body) => size_of_val(&body.values[..]) + size_of_val(&body.shifts[..]),
        }
    }

    /// The whole update, where pieces are asked for.
    pub fn whole(&self) -> PieceRef<'_> {
        PieceRef {
            body: &self.body,
            first_chunk: 0,
            first_value: 0,
        }
    }

    /// A copy of what lies in a window.
    pub fn piece(&self, window: &Window) -> Piece {
        let body = match &self.body {
            Body::Sparse(body) => Body::Sparse(body.part(&window.chunks)),
            Body::Dense(body) => Body::Dense(DenseBody {
                shifts: body.shifts[window.chunks.clone()].to_vec(),
                values: body.values[window.values.clone()].to_vec(),
            }),
        };
        Piece {
            body,
            first_chunk: window.chunks.start,
            first_value: window.values.start,
        }
    }

    /// How many values the update sends.
    pub fn sent(&self) -> usize {
        match &self.body {
            Body::Sparse(body) => body.entries.len(),
            Body::Dense(body) => body.values.len(),
        }
    }

    /// Calls `each` with the index of every parameter that the update sends and its value in units of 2⁻³⁰, in rising
    /// order of index.
    pub fn for_each(&self, mut each: impl FnMut(usize, i32)) {
        for (index, span) in self.chunks.spans().enumerate() {
            match &self.body {
                Body::Sparse(body) => {
                    let (entries, values) = body.chunk(index);
                    for &entry in entries {
                        each(
                            span.start + usize::from(entry >> CLASS_BITS),
                            values[usize::from(entry & 3)],
                        );
                    }
                }
                Body::Dense(body) => {
                    for at in span.start..span.start + span.length {
                        each(at, i32::from(body.values[at]) << body.shifts[index]);
                    }
                }
            }
        }
    }

    /// Cosine of the angle to an update of the same model; 0 if either sends nothing.
    pub fn cosine(&self, other: &Self) -> f64 {
        let mut theirs = Vec::with_capacity(other.sent());
        let mut squares = (0.0, 0.0);
        other.for_each(|at, value| {
            theirs.push((at, value));
            squares.1 += f64::from(value).powi(2);
        });
        let (mut dot, mut next) = (0.0, 0);
        self.for_each(|at, value| {
            squares.0 += f64::from(value).powi(2);
            while theirs.get(next).is_some_and(|it| it.0 < at) {
                next += 1;
            }
            if let Some((place, their)) = theirs.get(next)
                && *place == at
            {
                dot += f64::from(value) * f64::from(*their);
            }
        });
        let norms = (squares.0 * squares.1).sqrt();
        if norms > 0.0 { dot / norms } else { 0.0 }
    }

    /// The places in the chunk `index` at which it sends a value; none with the dense codec, which sends every value and so
    /// keeps none in common with anybody.
    pub fn places(&self, index: usize) -> impl Iterator<Item = usize> {
        let entries = match &self.body {
            Body::Sparse(body) => body.chunk(index).0,
            Body::Dense(_) => &[],
        };
        entries.iter().map(|it| usize::from(it >> CLASS_BITS))
    }

    /// The norm of the whole update, rounded down, in units of 2⁻³⁰: what a charter's largest ratio to the round's
    /// median is compared with.
    pub fn norm(&self) -> u64 {
        norms::norm(self.squared_norms().iter().sum())
    }

    /// The squared norm of each tensor, exact, in units of 2⁻⁶⁰.
    pub fn squared_norms(&self) -> Vec<u128> {
        let mut norms = vec![0; self.chunks.lengths().len()];
        for (index, span) in self.chunks.spans().enumerate() {
            norms[span.tensor] += match &self.body {
                Body::Sparse(body) => {
                    let SparseChunk { low, high, .. } = body.chunks[index];
                    let entries = body.chunk(index).0;
                    let highs = entries.iter().filter(|&&entry| entry & HIGH != 0).count();
                    square(low) * (entries.len() - highs) as u128 + square(high) * highs as u128
                }
                Body::Dense(body) => {
                    let values = &body.values[span.start..span.start + span.length];
                    // At most 2³⁰ each and 2¹⁴ of them: the sum fits.
                    let sum: u64 = values
                        .iter()
                        .map(|&value| i64::from(value).pow(2) as u64)
                        .sum();
                    u128::from(sum) << (2 * u32::from(body.shifts[index]))
                }
            };
        }
        norms
    }
}

fn square(magnitude: u32) -> u128 {
    u128::from(u64::from(magnitude) * u64::from(magnitude))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::{
        codec,
        settings::{DenseSettings, DenseWidth, SparseSettings, UpdateSettings},
    };

    #[test]
    fn an_angle_is_that_of_the_values() {
        let lengths = [512, 256];
        let chunk = 128;
        for settings in [
            UpdateSettings::Sparse(SparseSettings { chunk, kept: 12 }),
            UpdateSettings::Dense(DenseSettings {
                chunk,
                width: DenseWidth::Eight,
            }),
        ] {
            let update = |factor: u32, sign: f32| {
                let values = (1..=768_u32).map(|at| (at.wrapping_mul(factor) % 1_009) as f32);
                let values: Vec<f32> = values.map(|it| sign * (it - 504.0) * 1e-5).collect();
                let payload = codec::encode(&lengths, &settings, &values).unwrap();
                codec::decode(&payload, &lengths, &settings).unwrap()
            };
            let dense = |update: &DecodedUpdate| {
                let mut values = vec![0.0; 768];
                update.for_each(|at, value| values[at] = f64::from(value));
                values
            };
            let (one, other) = (update(2_654_435_761, 1.0), update(40_503, 1.0));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (a, b) = (dense(&one), dense(&other));
            let expected = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
            assert!((one.cosine(&other) - expected).abs() < 1e-12);
            assert!((one.cosine(&one) - 1.0).abs() < 1e-12);
            assert!((one.cosine(&update(2_654_435_761, -1.0)) + 1.0).abs() < 1e-12);
            assert!(one.cosine(&update(0, 0.0)).abs() < 1e-12);
        }
    }
}
