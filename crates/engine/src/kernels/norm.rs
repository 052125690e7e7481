//! RMSNorm: y = x·r·g with r = 1/√(mean(x²) + ε), row by row.
//!
//! Backward, with x̂ = x·r: ∂x = r·(g·∂y − x̂·mean(g·∂y·x̂)), ∂g = Σ over rows of ∂y·x̂.
//! The forward keeps x̂ and r, so the residual stream itself can be overwritten by the next layer.

use super::matmul::Write;
use super::vector::{add, sum_lanes};
use crate::arithmetic::specialised;
use crate::threads::{Parts, Threads};

/// Rows of one task; also the rows of one partial sum of ∂g.
pub(crate) const TASK_ROWS: usize = 64;

/// What the forward leaves for the backward.
pub(crate) struct Kept<'a> {
    /// x̂, `rows × width`.
    pub(crate) normalised: &'a mut [f32],
    /// r, one per row.
    pub(crate) reciprocal: &'a mut [f32],
}

/// Writes x̂ and r, and y = x̂·g into `out`; all `rows × width`, width = `gains.len()`.
pub(crate) fn forward(
    threads: &Threads,
    x: &[f32],
    gains: &[f32],
    epsilon: f32,
    kept: Kept,
    out: &mut [f32],
) {
    let width = gains.len();
    let rows = x.len() / width;
    let (out, normalised) = (Parts::new(out), Parts::new(kept.normalised));
    let reciprocal = Parts::new(kept.reciprocal);
    threads.run(rows.div_ceil(TASK_ROWS), |task, _| {
        let first = task * TASK_ROWS;
        let count = TASK_ROWS.min(rows - first);
        let (start, len) = (first * width, count * width);
        // SAFETY: each task has its own rows of every output.
        let (normalised, reciprocal, out) = unsafe {
            (
                normalised.range(start, len),
                reciprocal.range(first, count),
                out.range(start, len),
            )
        };
        forward_rows(
            &x[start..start + len],
            gains,
            epsilon,
            normalised,
            reciprocal,
            out,
        );
    });
}

specialised! {
    fn forward_rows(
        x: &[f32],
        gains: &[f32],
        epsilon: f32,
        normalised: &mut [f32],
        reciprocal: &mut [f32],
        out: &mut [f32],
    ) {
        let width = gains.len();
        let rows = x.chunks_exact(width).zip(normalised.chunks_exact_mut(width)).zip(out.chunks_exact_mut(width));
        for (((x, normalised), out), reciprocal) in rows.zip(reciprocal) {
            let mean = sum_lanes(width, |index| x[index] * x[index]) / width as f32;
            let r = 1.0 / (mean + epsilon).sqrt();
            *reciprocal = r;
            for index in 0..width {
                let value = x[index] * r;
                normalised[index] = value;
                out[index] = value * gains[index];
            }
        }
    }
}

/// Recomputes y = x̂·g for the backward's weight gradients.
pub(crate) fn recompute(threads: &Threads, normalised: &[f32], gains: &[f32], out: &mut [f32]) {
    let width = gains.len();
    let rows = normalised.len() / width;
    let out = Parts::new(out);
    threads.run(rows.div_ceil(TASK_ROWS), |task, _| {
        let start = task * TASK_ROWS * width;
        let len = (TASK_ROWS * width).min(normalised.len() - start);
        // SAFETY: each task has its own rows.
        scale_rows(&normalised[start..start + len], gains, unsafe {
            out.range(start, len)
        });
    });
}

specialised! {
    fn scale_rows(normalised: &[f32], gains: &[f32], out: &mut [f32]) {
        let width = gains.len();
        for (out, normalised) in out.chunks_exact_mut(width).zip(normalised.chunks_exact(width)) {
            for index in 0..width {
                out[index] = normalised[index] * gains[index];
            }
        }
    }
}

/// What the backward reads.
pub(crate) struct Saved<'a> {
    pub(crate) gains: &'a [f32],
    /// x̂, `rows × width`.
    pub(crate) normalised: &'a [f32],
    /// r, one per row.
    pub(crate) reciprocal: &'a [f32],
}

/// Where the backward writes.
pub(crate) struct Target<'a> {
    /// Becomes ∂x, or gains it: the residual stream's gradient passes beside the norm. `rows × width`.
    pub(crate) input: &'a mut [f32],
    pub(crate) write: Write,
    /// One row of width for each [`TASK_ROWS`] rows; they are added in order.
    pub(crate) partial: &'a mut [f32],
    /// Becomes ∂g.
    pub(crate) gains: &'a mut [f32],
}

/// Forms ∂x and ∂g from the gradient of the output.
pub(crate) fn backward(threads: &Threads, saved: &Saved, output_gradient: &[f32], into: Target) {
    let width = saved.gains.len();
    let rows = saved.reciprocal.len();
    let tasks = rows.div_ceil(TASK_ROWS);
    let accumulate = into.write == Write::Accumulate;
    let (input, partials) = (
        Parts::new(into.input),
        Parts::new(&mut into.partial[..tasks * width]),
    );
    threads.run(tasks, |task, _| {
        let first = task * TASK_ROWS;
        let count = TASK_ROWS.min(rows - first);
        let (start, len) = (first * width, count * width);
        let saved = Saved {
            gains: saved.gains,
            normalised: &saved.normalised[start..start + len],
            reciprocal: &saved.reciprocal[first..first + count],
        };
        // SAFETY: each task has its own rows and its own partial sum.
        let (input, partial) =
            unsafe { (input.range(start, len), partials.range(task * width, width)) };
        backward_rows(
            &saved,
            &output_gradient[start..start + len],
            input,
            accumulate,
            partial,
        );
    });
    into.gains.fill(0.0);
    for row in into.partial[..tasks * width].chunks_exact(width) {
        add(into.gains, row);
    }
}

specialised! {
    fn backward_rows(
        saved: &Saved,
        output_gradient: &[f32],
        input_gradient: &mut [f32],
        accumulate: bool,
        partial: &mut [f32],
    ) {
        let gains = saved.gains;
        let width = gains.len();
        let partial = &mut partial[..width];
        partial.fill(0.0);
        let rows = output_gradient.chunks_exact(width).zip(saved.normalised.chunks_exact(width));
        for (((upstream, normalised), gradient), &r) in
            rows.zip(input_gradient.chunks_exact_mut(width)).zip(saved.reciprocal)
        {
            let dot = sum_lanes(width, |index| gains[index] * upstream[index] * normalised[index]);
            let mean = dot / width as f32;
            for index in 0..width {
                let own = r * (gains[index] * upstream[index] - normalised[index] * mean);
                gradient[index] = if accumulate { gradient[index] + own } else { own };
                partial[index] += upstream[index] * normalised[index];
            }
        }
    }
}
