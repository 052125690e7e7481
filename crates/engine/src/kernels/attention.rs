//! Causal attention in blocks, with rotary positions: no (sequence × sequence) matrix exists.
//!
//! Forward, online softmax over blocks of keys (Dao et al. 2022): per query row a running maximum m and sum l;
//! out = Σ exp(s − m)·v / l with s = q·k/√width. m and 1/l are kept.
//! Backward: p = exp(s − m)/l is formed again block by block; ∂v += pᵀ·∂out, ∂p = ∂out·vᵀ,
//! ∂s = p·(∂p − Σ ∂out·out), ∂q += ∂s·k/√width, ∂k += ∂sᵀ·q/√width.
//!
//! One task is one sequence's key/value head with the query heads that share it, so every gradient has one writer.

use super::matmul::{Operand, Shape, Write, block};
use super::rotary::Rotary;
use super::vector::{exp, exp_in_place, max_lanes, sum_lanes};
use crate::arithmetic::specialised;
use crate::threads::{Parts, Threads};

/// Query rows of a block.
const QUERY_BLOCK: usize = 64;
/// Keys of a block: two blocks of scores are 128 KiB, which a second-level cache holds.
const KEY_BLOCK: usize = 256;
/// Floats that one worker needs: two blocks of scores, and three numbers for each query row.
pub(crate) const SCRATCH: usize = 2 * QUERY_BLOCK * KEY_BLOCK + 3 * QUERY_BLOCK;

/// Sizes that do not change from call to call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) sequence: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) head_size: usize,
}

impl Heads {
    /// Width of a position's queries, keys and values together.
    pub(crate) fn stride(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_size
    }

    /// Width of a position's output.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_size
    }

    fn group(&self) -> usize {
        self.heads / self.key_value_heads
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_size as f32).sqrt()
    }
}

/// The block of scores at hand: query rows `query..query + rows`, keys `key..key + keys` of one sequence.
#[derive(Clone, Copy)]
struct Block {
    query: usize,
    rows: usize,
    key: usize,
    keys: usize,
}

impl Block {
    /// Keys that query row `row` of the block may see.
    fn visible(&self, row: usize) -> usize {
        (self.query + row + 1)
            .saturating_sub(self.key)
            .min(self.keys)
    }

    fn scores(&self, depth: usize) -> Shape {
        Shape {
            rows: self.rows,
            columns: self.keys,
            depth,
        }
    }
}

fn query_blocks(sequence: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..sequence)
        .step_by(QUERY_BLOCK)
        .map(move |query| (query, QUERY_BLOCK.min(sequence - query)))
}

fn key_blocks(query: usize, rows: usize) -> impl Iterator<Item = Block> {
    let end = query + rows;
    (0..end).step_by(KEY_BLOCK).map(move |key| Block {
        query,
        rows,
        key,
        keys: KEY_BLOCK.min(end - key),
    })
}

/// Rotates queries and keys in `qkv` (`rows × stride`) in place, and writes `out` (`rows × width`) and the statistics
/// (m and 1/l, `rows × heads × 2`). `scratch` holds [`SCRATCH`] floats for each worker.
pub(crate) fn forward(
    threads: &Threads,
    heads: Heads,
    rotary: &Rotary,
    qkv: &mut [f32],
    out: &mut [f32],
    statistics: &mut [f32],
    scratch: &mut [f32],
) {
    let sequences = qkv.len() / (heads.stride() * heads.sequence);
    let (qkv, out) = (Parts::new(qkv), Parts::new(out));
    let (statistics, scratch) = (Parts::new(statistics), Parts::new(scratch));
    threads.run(sequences * heads.key_value_heads, |task, worker| {
        let (sequence, key_value_head) =
            (task / heads.key_value_heads, task % heads.key_value_heads);
        // SAFETY: a worker runs one task at a time.
        let scratch = unsafe { scratch.range(worker * SCRATCH, SCRATCH) };
        let first = sequence * heads.sequence;
        let columns = Columns::new(heads, key_value_head);
        // SAFETY: the rows of this sequence at this head's columns belong to this task alone.
        unsafe { turn_heads(heads, rotary, qkv, first, &columns, true) };
        for head in columns.query_heads.clone() {
            let places = Places {
                qkv: qkv.pointer(first * heads.stride()),
                out: out.pointer(first * heads.width() + head * heads.head_size),
                query: head * heads.head_size,
                key: columns.key,
                value: columns.value,
            };
            for (query, rows) in query_blocks(heads.sequence) {
                let kept = |row: usize| ((first + query + row) * heads.heads + head) * 2;
                // SAFETY: as above; the statistics of (row, head) have this one writer.
                unsafe {
                    forward_block(heads, &places, query, rows, scratch);
                    let (maxima, sums) =
                        scratch[2 * QUERY_BLOCK * KEY_BLOCK..].split_at(QUERY_BLOCK);
                    for row in 0..rows {
                        statistics
                            .range(kept(row), 2)
                            .copy_from_slice(&[maxima[row], 1.0 / sums[row]]);
                    }
                }
            }
        }
    });
}

/// Columns of one key/value head and its query heads within a row of qkv.
struct Columns {
    query_heads: std::ops::Range<usize>,
    key: usize,
    value: usize,
}

impl Columns {
    fn new(heads: Heads, key_value_head: usize) -> Self {
        let group = heads.group();
        Columns {
            query_heads: key_value_head * group..(key_value_head + 1) * group,
            key: (heads.heads + key_value_head) * heads.head_size,
            value: (heads.heads + heads.key_value_heads + key_value_head) * heads.head_size,
        }
    }
}

/// Where one query head's data begin: pointers to the sequence's first row.
struct Places {
    qkv: *mut f32,
    out: *mut f32,
    query: usize,
    key: usize,
    value: usize,
}

/// Rotates the key head and its query heads over all positions of a sequence, forwards or back.
///
/// # Safety
/// Nothing else may touch these columns of these rows.
unsafe fn turn_heads(
    heads: Heads,
    rotary: &Rotary,
    qkv: Parts<f32>,
    first: usize,
    columns: &Columns,
    forwards: bool,
) {
    let starts = columns
        .query_heads
        .clone()
        .map(|head| head * heads.head_size)
        .chain([columns.key]);
    for start in starts {
        for position in 0..heads.sequence {
            // SAFETY: one head of one row, by the caller's promise ours alone.
            let head =
                unsafe { qkv.range((first + position) * heads.stride() + start, heads.head_size) };
            turn_head(rotary, head, position, forwards);
        }
    }
}

specialised! {
    fn turn_head(rotary: &Rotary, head: &mut [f32], position: usize, forwards: bool) {
        if forwards { rotary.turn(head, position) } else { rotary.turn_back(head, position) }
    }
}

/// A read-only view of `rows` rows of one head, `stride` apart.
///
/// # Safety
/// The rows must exist and must not be written while the view is alive.
unsafe fn view<'a>(
    base: *const f32,
    row: usize,
    rows: usize,
    stride: usize,
    column: usize,
    width: usize,
) -> &'a [f32] {
    // SAFETY: by the caller's promise; the last row ends after `width` elements.
    unsafe {
        std::slice::from_raw_parts(base.add(row * stride + column), (rows - 1) * stride + width)
    }
}

/// One block of queries against all keys that it sees; leaves maxima and sums in the scratch.
///
/// # Safety
/// The head's rows of qkv and out must belong to the caller.
unsafe fn forward_block(
    heads: Heads,
    places: &Places,
    query: usize,
    rows: usize,
    scratch: &mut [f32],
) {
    let (stride, width, size) = (heads.stride(), heads.width(), heads.head_size);
    let (scores, rest) = scratch.split_at_mut(2 * QUERY_BLOCK * KEY_BLOCK);
    let (maxima, sums) = rest.split_at_mut(QUERY_BLOCK);
    maxima.fill(f32::NEG_INFINITY);
    sums.fill(0.0);
    // SAFETY: row `query` of the head's output exists.
    let out = unsafe { places.out.add(query * width) };
    for part in key_blocks(query, rows) {
        // SAFETY: queries, keys and values of this head are only read here; out is written by this call alone.
        unsafe {
            let queries = Operand::rows(
                view(places.qkv, query, rows, stride, places.query, size),
                stride,
            );
            let keys = Operand::transposed(
                view(places.qkv, part.key, part.keys, stride, places.key, size),
                stride,
            );
            let values = Operand::rows(
                view(places.qkv, part.key, part.keys, stride, places.value, size),
                stride,
            );
            let shape = part.scores(size);
            block(
                shape,
                scores.as_mut_ptr(),
                part.keys,
                Write::Replace,
                queries,
                keys,
                heads.scale(),
            );
            for row in 0..rows {
                let line = &mut scores[row * part.keys..(row + 1) * part.keys];
                let shrink = soften(line, part.visible(row), &mut maxima[row], &mut sums[row]);
                if part.key > 0 {
                    scale(
                        std::slice::from_raw_parts_mut(out.add(row * width), size),
                        shrink,
                    );
                }
            }
            let shape = Shape {
                rows,
                columns: size,
                depth: part.keys,
            };
            let write = if part.key == 0 {
                Write::Replace
            } else {
                Write::Accumulate
            };
            let weights = Operand::rows(scores, part.keys);
            block(shape, out, width, write, weights, values, 1.0);
        }
    }
    for (row, &sum) in sums.iter().enumerate().take(rows) {
        // SAFETY: this head's part of the row is written by this call alone.
        scale(
            unsafe { std::slice::from_raw_parts_mut(out.add(row * width), size) },
            1.0 / sum,
        );
    }
}

specialised! {
    /// Turns visible scores into exp(s − m) and the others into 0; returns what older results shrink by.
    fn soften(line: &mut [f32], visible: usize, maximum: &mut f32, sum: &mut f32) -> f32 {
        let (seen, hidden) = line.split_at_mut(visible);
        hidden.fill(0.0);
        let largest = max_lanes(seen);
        let new = if largest > *maximum { largest } else { *maximum };
        let shrink = if *sum == 0.0 { 0.0 } else { exp(*maximum - new) };
        *sum = *sum * shrink + exp_in_place(seen, new);
        *maximum = new;
        shrink
    }
}

specialised! {
    fn scale(values: &mut [f32], factor: f32) {
        for value in values {
            *value *= factor;
        }
    }
}

/// What the backward reads: rotated q, k and v, the output, and the statistics.
pub(crate) struct Saved<'a> {
    pub(crate) qkv: &'a [f32],
    pub(crate) out: &'a [f32],
    pub(crate) statistics: &'a [f32],
}

/// Writes the gradient of q, k and v (before rotation) into `qkv_gradient`, from the gradient of the output.
pub(crate) fn backward(
    threads: &Threads,
    heads: Heads,
    rotary: &Rotary,
    saved: &Saved,
    out_gradient: &[f32],
    qkv_gradient: &mut [f32],
    scratch: &mut [f32],
) {
    let sequences = saved.qkv.len() / (heads.stride() * heads.sequence);
    qkv_gradient.fill(0.0);
    let (gradient, scratch) = (Parts::new(qkv_gradient), Parts::new(scratch));
    threads.run(sequences * heads.key_value_heads, |task, worker| {
        let (sequence, key_value_head) =
            (task / heads.key_value_heads, task % heads.key_value_heads);
        // SAFETY: a worker runs one task at a time.
        let scratch = unsafe { scratch.range(worker * SCRATCH, SCRATCH) };
        let first = sequence * heads.sequence;
        let columns = Columns::new(heads, key_value_head);
        for head in columns.query_heads.clone() {
            for (query, rows) in query_blocks(heads.sequence) {
                let step = Step {
                    heads,
                    saved,
                    out_gradient,
                    gradient,
                    columns: &columns,
                    head,
                    first,
                };
                // SAFETY: this sequence's rows at this head's columns belong to this task alone.
                unsafe { step.backward_block(query, rows, scratch) };
            }
        }
        // SAFETY: as above.
        unsafe { turn_heads(heads, rotary, gradient, first, &columns, false) };
    });
}

/// One query head of one sequence in the backward.
struct Step<'a> {
    heads: Heads,
    saved: &'a Saved<'a>,
    out_gradient: &'a [f32],
    gradient: Parts<'a, f32>,
    columns: &'a Columns,
    head: usize,
    first: usize,
}

impl Step<'_> {
    /// # Safety
    /// The head's columns of the sequence's rows of the gradient must belong to the caller.
    unsafe fn backward_block(&self, query: usize, rows: usize, scratch: &mut [f32]) {
        let (heads, size) = (self.heads, self.heads.head_size);
        let (stride, width) = (heads.stride(), heads.width());
        let (scores, rest) = scratch.split_at_mut(QUERY_BLOCK * KEY_BLOCK);
        let (gradients, rest) = rest.split_at_mut(QUERY_BLOCK * KEY_BLOCK);
        let deltas = &mut rest[..QUERY_BLOCK];
        let column = self.head * size;
        for (row, delta) in deltas.iter_mut().enumerate().take(rows) {
            let start = (self.first + query + row) * width + column;
            *delta = dot(
                &self.out_gradient[start..start + size],
                &self.saved.out[start..start + size],
            );
        }
        let upstream = &self.out_gradient[(self.first + query) * width + column..];
        let queries = &self.saved.qkv[(self.first + query) * stride + column..];
        for part in key_blocks(query, rows) {
            let keys = &self.saved.qkv[(self.first + part.key) * stride + self.columns.key..];
            let values = &self.saved.qkv[(self.first + part.key) * stride + self.columns.value..];
            let target = |position: usize, column: usize| {
                self.gradient
                    .pointer((self.first + position) * stride + column)
            };
            let shape = part.scores(size);
            // SAFETY: scores and gradients are ours; the targets by this function's contract.
            unsafe {
                let (queries_, keys_) = (
                    Operand::rows(queries, stride),
                    Operand::transposed(keys, stride),
                );
                block(
                    shape,
                    scores.as_mut_ptr(),
                    part.keys,
                    Write::Replace,
                    queries_,
                    keys_,
                    heads.scale(),
                );
                let (upstream_, values_) = (
                    Operand::rows(upstream, width),
                    Operand::transposed(values, stride),
                );
                block(
                    shape,
                    gradients.as_mut_ptr(),
                    part.keys,
                    Write::Replace,
                    upstream_,
                    values_,
                    1.0,
                );
            }
            for (row, &delta) in deltas.iter().enumerate().take(rows) {
                let kept = ((self.first + query + row) * heads.heads + self.head) * 2;
                let span = row * part.keys..(row + 1) * part.keys;
                let [maximum, reciprocal] =
                    [self.saved.statistics[kept], self.saved.statistics[kept + 1]];
                let line = Line {
                    maximum,
                    reciprocal,
                    delta,
                    visible: part.visible(row),
                };
                softmax_gradient(line, &mut scores[span.clone()], &mut gradients[span]);
            }
            let down = Shape {
                rows: part.keys,
                columns: size,
                depth: rows,
            };
            let along = Shape {
                rows,
                columns: size,
                depth: part.keys,
            };
            let weights = Operand::transposed(scores, part.keys);
            let (by_key, by_query) = (
                Operand::transposed(gradients, part.keys),
                Operand::rows(gradients, part.keys),
            );
            // SAFETY: by this function's contract.
            unsafe {
                let value_target = target(part.key, self.columns.value);
                block(
                    down,
                    value_target,
                    stride,
                    Write::Accumulate,
                    weights,
                    Operand::rows(upstream, width),
                    1.0,
                );
                let key_target = target(part.key, self.columns.key);
                block(
                    down,
                    key_target,
                    stride,
                    Write::Accumulate,
                    by_key,
                    Operand::rows(queries, stride),
                    heads.scale(),
                );
                let query_target = target(query, column);
                block(
                    along,
                    query_target,
                    stride,
                    Write::Accumulate,
                    by_query,
                    Operand::rows(keys, stride),
                    heads.scale(),
                );
            }
        }
    }
}

specialised! {
    fn dot(left: &[f32], right: &[f32]) -> f32 {
        let right = &right[..left.len()];
        sum_lanes(left.len(), |index| left[index] * right[index])
    }
}

/// One query row's numbers in the backward.
#[derive(Clone, Copy)]
struct Line {
    maximum: f32,
    reciprocal: f32,
    delta: f32,
    visible: usize,
}

specialised! {
    /// Turns scores into p and ∂p into ∂s; both are 0 where a key is not visible.
    fn softmax_gradient(line: Line, scores: &mut [f32], gradients: &mut [f32]) {
        scores[line.visible..].fill(0.0);
        gradients[line.visible..].fill(0.0);
        let (scores, gradients) = (&mut scores[..line.visible], &mut gradients[..line.visible]);
        for (score, gradient) in scores.iter_mut().zip(gradients) {
            let p = exp(*score - line.maximum) * line.reciprocal;
            *score = p;
            *gradient = p * (*gradient - line.delta);
        }
    }
}

/// Keys and values of one head at all positions so far, `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Past<'a> {
    pub(crate) keys: &'a [f32],
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

specialised! {
    /// One rotated query against a cache of `scores.len()` positions; writes the head's output.
    pub(crate) fn attend_one(past: Past, query: &[f32], scores: &mut [f32], out: &mut [f32]) {
        let size = query.len();
        let factor = 1.0 / (size as f32).sqrt();
        for (score, key) in scores.iter_mut().zip(past.keys.chunks(past.stride)) {
            let key = &key[..size];
            *score = sum_lanes(size, |index| query[index] * key[index]) * factor;
        }
        let largest = max_lanes(scores);
        let reciprocal = 1.0 / exp_in_place(scores, largest);
        out.fill(0.0);
        for (&weight, value) in scores.iter().zip(past.values.chunks(past.stride)) {
            let weight = weight * reciprocal;
            for (sum, &element) in out.iter_mut().zip(&value[..size]) {
                *sum += weight * element;
            }
        }
    }
}
