//! AdamW (Loshchilov, Hutter 2019) in one pass over (w, m, v, g), as `torch.optim.AdamW` orders it.
//!
//! g ← clip·g; w ← w·(1 − lr·decay); m ← β1·m + (1 − β1)·g; v ← β2·v + (1 − β2)·g²;
//! w ← w − lr/(1 − β1^t) · m / (√v / √(1 − β2^t) + ε).

use crate::arithmetic::specialised;
use crate::threads::{Parts, Threads};

/// Elements of one task.
pub(crate) const TASK_ELEMENTS: usize = 1 << 16;

/// The scalars of one update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) epsilon: f32,
    /// lr / (1 − β1^t).
    pub(crate) step_size: f32,
    /// 1 / √(1 − β2^t).
    pub(crate) root_correction: f32,
    /// What gradients are multiplied by: 1, or less where the norm is clipped.
    pub(crate) clip: f32,
    /// 1 − lr·decay, or 1 for tensors that do not decay.
    pub(crate) keep: f32,
}

/// Updates one tensor in place.
pub(crate) fn update(
    threads: &Threads,
    update: Update,
    weights: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    gradient: &[f32],
) {
    let len = weights.len();
    let (weights, m, v) = (Parts::new(weights), Parts::new(m), Parts::new(v));
    threads.run(len.div_ceil(TASK_ELEMENTS), |task, _| {
        let start = task * TASK_ELEMENTS;
        let count = TASK_ELEMENTS.min(len - start);
        // SAFETY: each task has its own elements of all three.
        let (weights, m, v) = unsafe {
            (
                weights.range(start, count),
                m.range(start, count),
                v.range(start, count),
            )
        };
        update_elements(update, weights, m, v, &gradient[start..start + count]);
    });
}

specialised! {
    fn update_elements(update: Update, weights: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32]) {
        let len = weights.len();
        let (m, v, gradient) = (&mut m[..len], &mut v[..len], &gradient[..len]);
        let (beta1, beta2) = (update.beta1, update.beta2);
        for index in 0..len {
            let g = gradient[index] * update.clip;
            let mean = beta1 * m[index] + (1.0 - beta1) * g;
            let square = beta2 * v[index] + (1.0 - beta2) * (g * g);
            m[index] = mean;
            v[index] = square;
            let denominator = square.sqrt() * update.root_correction + update.epsilon;
            weights[index] = weights[index] * update.keep - update.step_size * (mean / denominator);
        }
    }
}
