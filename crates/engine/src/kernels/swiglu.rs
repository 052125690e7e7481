//! SwiGLU's elementwise half: a = silu(g)·u, with silu(g) = g·σ(g).
//!
//! Backward: ∂u = ∂a·silu(g), ∂g = ∂a·u·σ(g)·(1 + g·(1 − σ(g))).
//! Gate and up are the two halves of one row, as one matrix product made them.

use super::vector::exp;
use crate::arithmetic::specialised;
use crate::threads::{Parts, Threads};

/// Rows of one task.
const TASK_ROWS: usize = 16;

/// `gate_up` is `rows × 2·width`, `out` becomes `rows × width`.
pub(crate) fn forward(threads: &Threads, width: usize, gate_up: &[f32], out: &mut [f32]) {
    let rows = out.len() / width;
    let out = Parts::new(out);
    threads.run(rows.div_ceil(TASK_ROWS), |task, _| {
        let first = task * TASK_ROWS;
        let count = TASK_ROWS.min(rows - first);
        // SAFETY: each task has its own rows.
        let out = unsafe { out.range(first * width, count * width) };
        forward_rows(
            width,
            &gate_up[2 * first * width..2 * (first + count) * width],
            out,
        );
    });
}

specialised! {
    fn forward_rows(width: usize, gate_up: &[f32], out: &mut [f32]) {
        for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for index in 0..width {
                out[index] = gate[index] / (1.0 + exp(-gate[index])) * up[index];
            }
        }
    }
}

/// Turns ∂a in `activation` into a, recomputed, and gate and up in `gate_up` into their gradients.
pub(crate) fn backward(
    threads: &Threads,
    width: usize,
    gate_up: &mut [f32],
    activation: &mut [f32],
) {
    let rows = activation.len() / width;
    let (gate_up, activation) = (Parts::new(gate_up), Parts::new(activation));
    threads.run(rows.div_ceil(TASK_ROWS), |task, _| {
        let first = task * TASK_ROWS;
        let count = TASK_ROWS.min(rows - first);
        // SAFETY: each task has its own rows of both.
        let (gate_up, activation) = unsafe {
            (
                gate_up.range(2 * first * width, 2 * count * width),
                activation.range(first * width, count * width),
            )
        };
        backward_rows(width, gate_up, activation);
    });
}

specialised! {
    fn backward_rows(width: usize, gate_up: &mut [f32], activation: &mut [f32]) {
        for (row, activation) in gate_up.chunks_exact_mut(2 * width).zip(activation.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at_mut(width);
            let up = &mut up[..width];
            for index in 0..width {
                let (g, u, upstream) = (gate[index], up[index], activation[index]);
                let sigmoid = 1.0 / (1.0 + exp(-g));
                let silu = g * sigmoid;
                activation[index] = silu * u;
                gate[index] = upstream * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
                up[index] = upstream * silu;
            }
        }
    }
}
