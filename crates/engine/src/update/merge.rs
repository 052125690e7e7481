//! The merge: the updates of a round become one step, added to the public residual.
//!
//! For each coordinate, with weights `w` normalised to Q24 and clip factors `c` of its tensor:
//!
//! ```text
//! f_i = (w_i · c_i) >> 24                       S = Σ f_i · value_i     over the updates that send the coordinate
//! P   = Σ w_i over the same updates             G = S / max(P, floor)   rounded, halves away from zero
//! step = rate · G                               or, with momentum:  m ← μ·m + G,  step = rate · (G + μ·m)
//! residual ← residual + step                    saturating at ±(2³¹ − 1)
//! ```
//!
//! Sums of integers don't depend on their order. Bounds: Σ f_i ≤ 2²⁴ and |value| < 2³⁰, so |S| < 2⁵⁴, and |G| < 2³⁰.
//! The floor lies between "mean over senders" (lonely coordinates overshoot when rounds are short) and "mean over all"
//! (they starve); one half converged best (engine reference, section 6).
//!
//! Chunk by chunk, all updates of a chunk before the next one: the accumulators stay in the cache.

use thiserror::Error;

use super::chunks::{CHUNK_MAX, Chunks, Span};
use super::decoded::{Body, CLASS_BITS, DecodedUpdate, PieceRef, Window};
use super::norms::{self, ONE_Q24};
use super::outer::OuterState;
use super::settings::{MergeSettings, SettingsError};

/// An update and what it counts.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<'a> {
    /// The update.
    pub update: &'a DecodedUpdate,
    /// Its weight: accepted tokens × what its lateness leaves; any unit, at least 1.
    pub weight: u64,
    /// Its maker's accepted tokens before this merge; 0 for all where nobody knows or asks.
    pub standing: u64,
}

/// What the merge made of one update.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UpdateReport {
    /// Its part of all weights, Q24.
    pub weight_q24: u32,
    /// The norm of the whole update, rounded down, units of 2⁻³⁰.
    pub norm: u64,
    /// How many tensors were clipped.
    pub tensors_clipped: usize,
    /// The smallest clip factor of its tensors, Q24.
    pub clip_factor_min_q24: u32,
}

/// What a merge did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MergeReport {
    /// For each update, in the caller's order.
    pub updates: Vec<UpdateReport>,
    /// How often the residual or the momentum was cut at ±2.0: zero in a run that works.
    pub saturated: u64,
}

/// Why updates can't be merged. Nothing was changed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum MergeError {
    /// A round without updates has no step.
    #[error("no updates")]
    NoUpdates,
    /// An update that counts for nothing must not take part: it would take part in the medians.
    #[error("update {update} has no weight")]
    ZeroWeight {
        /// Its place in the list.
        update: usize,
    },
    /// Updates of different models or chunk lengths.
    #[error("update {update} is cut differently from the first")]
    ShapeMismatch {
        /// Its place in the list.
        update: usize,
    },
    /// Parameters or outer state of another length than the updates.
    #[error("{found} elements for {expected} parameters")]
    Length {
        /// Parameters that the updates are of.
        expected: usize,
        /// Elements of the vector given.
        found: usize,
    },
    /// The settings name a momentum that the state doesn't have, or the other way round.
    #[error("the settings and the outer state disagree on momentum")]
    Momentum,
    /// The settings can't be used.
    #[error("the settings can't be used")]
    Settings(#[source] SettingsError),
}

/// What a merge must know of all its updates before it adds the first: their norms. The updates themselves may come one
/// after the other.
#[derive(Clone, Debug, Default)]
pub struct Norms {
    chunks: Option<Chunks>,
    squared: Vec<Vec<u128>>,
    memory_bytes: usize,
}

impl Norms {
    /// Takes the next update.
    ///
    /// # Errors
    /// It is cut differently from the first.
    pub fn push(&mut self, update: &DecodedUpdate) -> Result<(), MergeError> {
        let chunks = self.chunks.get_or_insert_with(|| update.chunks().clone());
        if update.chunks() != chunks {
            let update = self.squared.len();
            return Err(MergeError::ShapeMismatch { update });
        }
        self.squared.push(update.squared_norms());
        self.memory_bytes += update.memory_bytes();
        Ok(())
    }

    /// The norm of each whole update, as [`DecodedUpdate::norm`] gives it.
    pub fn whole(&self) -> impl Iterator<Item = u64> {
        let squared = self.squared.iter();
        squared.map(|it| norms::norm(it.iter().sum()))
    }
}

/// What an update counts, apart from its values.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// See [`Weighted::weight`].
    pub weight: u64,
    /// See [`Weighted::standing`].
    pub standing: u64,
}

/// A merge under way: window after window, each with the pieces of all updates in it.
pub struct Merging {
    settings: MergeSettings,
    chunks: Chunks,
    norms: Norms,
    weights_q24: Vec<u32>,
    clips_q24: Vec<Vec<u32>>,
    accumulator: Accumulator,
    saturated: u64,
    done: usize,
}

impl Merging {
    /// Begins the merge of updates that were measured, each with its share, in the same order.
    ///
    /// # Errors
    /// [`MergeError`].
    ///
    /// # Panics
    /// If there are more shares than updates, or fewer.
    pub fn begin(
        norms: Norms,
        shares: &[Share],
        settings: &MergeSettings,
        outer: &OuterState,
    ) -> Result<Self, MergeError> {
        assert_eq!(norms.squared.len(), shares.len(), "a share for each update");
        settings.check().map_err(MergeError::Settings)?;
        let chunks = norms.chunks.clone().ok_or(MergeError::NoUpdates)?;
        if let Some(update) = shares.iter().position(|it| it.weight == 0) {
            return Err(MergeError::ZeroWeight { update });
        }
        check_outer(&chunks, settings, outer)?;
        let of_tensors: Vec<Vec<u64>> = norms
            .squared
            .iter()
            .map(|of_update| of_update.iter().map(|&it| norms::norm(it)).collect())
            .collect();
        let standings: Vec<u64> = shares.iter().map(|it| it.standing).collect();
        Ok(Self {
            settings: *settings,
            chunks,
            weights_q24: normalise(shares),
            clips_q24: norms::clip_factors_q24(&of_tensors, &standings),
            norms,
            accumulator: Accumulator::new(),
            saturated: 0,
            done: 0,
        })
    }

    /// All chunks in windows, of which each has about so many bytes of all updates' values, at least one chunk.
    pub fn windows(&self, bytes_max: usize) -> Vec<Window> {
        let windows = self.norms.memory_bytes.div_ceil(bytes_max.max(1)).max(1);
        let length = self.chunks.count().div_ceil(windows).max(1);
        let spans: Vec<Span> = self.chunks.spans().collect();
        (0..)
            .zip(spans.chunks(length))
            .map(|(index, spans): (usize, _)| {
                let (first, last) = (spans[0], spans[spans.len() - 1]);
                let start = index * length;
                Window {
                    chunks: start..start + spans.len(),
                    values: first.start..last.start + last.length,
                }
            })
            .collect()
    }

    /// Adds the step of the next window: the pieces are the updates' in the order in which they were measured, each the
    /// whole update or what of it lies in the window.
    ///
    /// # Panics
    /// If a window is left out, or a piece.
    pub fn add(&mut self, window: &Window, pieces: &[PieceRef<'_>], outer: &mut OuterState) {
        assert_eq!(window.chunks.start, self.done, "the windows in order");
        assert_eq!(pieces.len(), self.weights_q24.len(), "every update");
        self.done = window.chunks.end;
        let spans = self.chunks.spans().enumerate();
        let spans = spans.skip(window.chunks.start).take(window.chunks.len());
        for (chunk, span) in spans {
            let of_updates = self.weights_q24.iter().zip(&self.clips_q24);
            for (piece, (&weight, clips)) in pieces.iter().zip(of_updates) {
                let factor = (u64::from(weight) * u64::from(clips[span.tensor])) >> 24;
                self.accumulator
                    .add(*piece, chunk, span, factor as i64, weight);
            }
            self.saturated += self.accumulator.finish(span, &self.settings, outer);
        }
    }

    /// How the parameters are cut.
    pub fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    /// How deltas are written.
    pub fn settings(&self) -> &MergeSettings {
        &self.settings
    }

    /// What was done.
    ///
    /// # Panics
    /// If windows are left.
    pub fn finish(self) -> MergeReport {
        assert_eq!(self.done, self.chunks.count(), "every window");
        let reports = self
            .weights_q24
            .iter()
            .zip(&self.norms.squared)
            .zip(&self.clips_q24)
            .map(|((&weight_q24, squared), clips)| UpdateReport {
                weight_q24,
                norm: norms::norm(squared.iter().sum()),
                tensors_clipped: clips.iter().filter(|&&clip| clip < ONE_Q24).count(),
                clip_factor_min_q24: clips.iter().copied().min().unwrap_or(ONE_Q24),
            });
        MergeReport {
            updates: reports.collect(),
            saturated: self.saturated,
        }
    }
}

/// Adds the step that these updates make to `outer`'s residual. The order of the updates changes only that of the report.
///
/// # Errors
/// [`MergeError`]; `outer` is then unchanged.
pub fn merge(
    updates: &[Weighted<'_>],
    settings: &MergeSettings,
    outer: &mut OuterState,
) -> Result<MergeReport, MergeError> {
    let mut merging = begin(updates, settings, outer)?;
    add_all(&mut merging, updates, outer);
    Ok(merging.finish())
}

pub(super) fn begin(
    updates: &[Weighted<'_>],
    settings: &MergeSettings,
    outer: &OuterState,
) -> Result<Merging, MergeError> {
    settings.check().map_err(MergeError::Settings)?;
    let mut norms = Norms::default();
    for it in updates {
        norms.push(it.update)?;
    }
    let share = |it: &Weighted<'_>| Share {
        weight: it.weight,
        standing: it.standing,
    };
    let shares: Vec<Share> = updates.iter().map(share).collect();
    Merging::begin(norms, &shares, settings, outer)
}

pub(super) fn add_all(merging: &mut Merging, updates: &[Weighted<'_>], outer: &mut OuterState) {
    let pieces: Vec<PieceRef<'_>> = updates.iter().map(|it| it.update.whole()).collect();
    for window in merging.windows(usize::MAX) {
        merging.add(&window, &pieces, outer);
    }
}

fn check_outer(
    chunks: &Chunks,
    settings: &MergeSettings,
    outer: &OuterState,
) -> Result<(), MergeError> {
    if settings.momentum_q16.is_some() != outer.momentum.is_some() {
        return Err(MergeError::Momentum);
    }
    for vector in std::iter::once(&outer.residual).chain(&outer.momentum) {
        if vector.len() != chunks.total() {
            return Err(MergeError::Length {
                expected: chunks.total(),
                found: vector.len(),
            });
        }
    }
    Ok(())
}

/// Each weight as a part of all, Q24, rounded down; their sum is at most 1.0.
fn normalise(shares: &[Share]) -> Vec<u32> {
    let sum: u128 = shares.iter().map(|it| u128::from(it.weight)).sum();
    shares
        .iter()
        .map(|it| (u128::from(it.weight) * u128::from(ONE_Q24) / sum) as u32)
        .collect()
}

/// One coordinate of the chunk being merged.
#[derive(Clone, Copy, Default)]
struct Cell {
    /// The weighted sum of its values, S.
    sum: i64,
    /// The weight of its senders, P.
    weight: u32,
}

/// The coordinates of one chunk; all zero between chunks. Sum and weight side by side: one cache line for each value.
struct Accumulator {
    cells: Box<[Cell; CHUNK_MAX]>,
    touched: Box<[u16; CHUNK_MAX]>,
}

impl Accumulator {
    fn new() -> Self {
        Self {
            cells: Box::new([Cell::default(); CHUNK_MAX]),
            touched: Box::new([0; CHUNK_MAX]),
        }
    }

    /// Adds an update's part of a chunk.
    fn add(&mut self, piece: PieceRef<'_>, chunk: usize, span: Span, factor: i64, weight: u32) {
        let chunk = chunk - piece.first_chunk;
        match piece.body {
            Body::Sparse(body) => {
                let (entries, values) = body.chunk(chunk);
                let products = values.map(|value| factor * i64::from(value));
                for &entry in entries {
                    let cell = &mut self.cells[usize::from(entry >> CLASS_BITS)];
                    cell.sum += products[usize::from(entry & 3)];
                    cell.weight += weight;
                }
            }
            Body::Dense(body) => {
                let factor = factor << body.shifts[chunk];
                let start = span.start - piece.first_value;
                let values = &body.values[start..start + span.length];
                for (cell, &value) in self.cells.iter_mut().zip(values) {
                    cell.sum += factor * i64::from(value);
                    cell.weight += weight;
                }
            }
        }
    }

    /// Adds the chunk's step to the residual, goes back to zero, and counts saturations.
    fn finish(&mut self, span: Span, settings: &MergeSettings, outer: &mut OuterState) -> u64 {
        let rate = i64::from(settings.outer_rate_q16);
        let range = span.start..span.start + span.length;
        let residual = &mut outer.residual[range.clone()];
        let mut saturated = 0;
        if let (Some(momentum), Some(decay)) = (&mut outer.momentum, settings.momentum_q16) {
            let decay = i64::from(decay);
            for ((cell, momentum), residual) in self
                .cells
                .iter_mut()
                .zip(&mut momentum[range])
                .zip(residual)
            {
                let mean = std::mem::take(cell).mean(settings);
                let kept = times_q16(i64::from(*momentum), decay) + mean;
                *momentum = saturate(kept, &mut saturated);
                let step = times_q16(mean + times_q16(i64::from(*momentum), decay), rate);
                *residual = saturate(i64::from(*residual) + step, &mut saturated);
            }
            return saturated;
        }
        // Listing what was touched before dividing costs a pass, and saves a branch that no processor can guess.
        let mut count = 0;
        for (position, cell) in self.cells[..span.length].iter().enumerate() {
            self.touched[count] = position as u16;
            // Without weight there is no sum: factors are at most weights.
            count += usize::from(cell.weight != 0);
        }
        for &position in &self.touched[..count] {
            let position = usize::from(position);
            let mean = std::mem::take(&mut self.cells[position]).mean(settings);
            let residual = &mut residual[position];
            *residual = saturate(i64::from(*residual) + times_q16(mean, rate), &mut saturated);
        }
        saturated
    }
}

impl Cell {
    /// G = S / max(P, floor).
    #[inline]
    fn mean(self, settings: &MergeSettings) -> i64 {
        divide(
            self.sum,
            self.weight.max(settings.denominator_floor_q16 << 8).max(1),
        )
    }
}

/// `sum / denominator` to the nearest, halves away from zero.
#[inline]
fn divide(sum: i64, denominator: u32) -> i64 {
    let denominator = u64::from(denominator);
    let magnitude = ((sum.unsigned_abs() + denominator / 2) / denominator) as i64;
    if sum < 0 { -magnitude } else { magnitude }
}

/// `value · factor` for a factor in Q16, to the nearest, halves away from zero.
#[inline]
fn times_q16(value: i64, factor: i64) -> i64 {
    let product = value * factor;
    let magnitude = ((product.unsigned_abs() + (1 << 15)) >> 16) as i64;
    if product < 0 { -magnitude } else { magnitude }
}

/// Cuts to ±(2³¹ − 1) and counts when it had to.
#[inline]
fn saturate(value: i64, saturated: &mut u64) -> i32 {
    let cut = value.clamp(-i64::from(i32::MAX), i64::from(i32::MAX));
    *saturated += u64::from(cut != value);
    cut as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_symmetric() {
        assert_eq!([5, 6, -5, -6].map(|sum| divide(sum, 4)), [1, 2, -1, -2]);
        assert_eq!([7, -7].map(|sum| divide(sum, 2)), [4, -4]);
        assert_eq!(
            [1, -1, 3].map(|value| times_q16(value, 1 << 15)),
            [1, -1, 2]
        );
        let mut saturated = 0;
        assert_eq!(saturate(1 << 40, &mut saturated), i32::MAX);
        assert_eq!(saturate(-(1 << 40), &mut saturated), -i32::MAX);
        assert_eq!(saturate(-7, &mut saturated), -7);
        assert_eq!(saturated, 2);
    }
}
