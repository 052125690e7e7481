//! Cross-entropy over chunks of rows: logits of a chunk are formed, reduced to losses and turned into gradients in place.
//!
//! loss = ln Σ exp(z − max) + max − z[target]; ∂z = (softmax(z) − onehot(target))·scale.
//! No (tokens × vocabulary) matrix exists: a chunk has [`chunk_rows`] rows.

use super::vector::{exp_in_place, max_lanes};
use crate::arithmetic::specialised;
use crate::threads::{Parts, Threads};

/// Most logits of a chunk: 8 MiB of f32. Fewer rows would stay nearer in the caches, but then transposing the output
/// matrix for each chunk costs more than it saves.
const CHUNK_LOGITS: usize = 1 << 21;
/// Rows of one task.
const TASK_ROWS: usize = 8;

/// Rows of logits that are formed at a time for this vocabulary.
pub(crate) fn chunk_rows(vocabulary: usize) -> usize {
    (CHUNK_LOGITS / vocabulary).clamp(16, 512)
}

/// Turns logits (`targets.len() × vocabulary`) into gradients of the summed loss times `scale`; writes each row's loss.
pub(crate) fn loss_and_gradient(
    threads: &Threads,
    vocabulary: usize,
    logits: &mut [f32],
    targets: &[u32],
    scale: f32,
    losses: &mut [f32],
) {
    let rows = targets.len();
    let (logits, losses) = (Parts::new(logits), Parts::new(losses));
    threads.run(rows.div_ceil(TASK_ROWS), |task, _| {
        let first = task * TASK_ROWS;
        let count = TASK_ROWS.min(rows - first);
        // SAFETY: each task has its own rows of both.
        let (logits, losses) = unsafe {
            (
                logits.range(first * vocabulary, count * vocabulary),
                losses.range(first, count),
            )
        };
        gradient_rows(
            vocabulary,
            logits,
            &targets[first..first + count],
            scale,
            losses,
        );
    });
}

specialised! {
    fn gradient_rows(vocabulary: usize, logits: &mut [f32], targets: &[u32], scale: f32, losses: &mut [f32]) {
        for ((row, &target), loss) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(losses) {
            let wanted = row[target as usize];
            let largest = max_lanes(row);
            let sum = exp_in_place(row, largest);
            *loss = (f64::from(sum).ln() + f64::from(largest) - f64::from(wanted)) as f32;
            let factor = scale / sum;
            for value in row.iter_mut() {
                *value *= factor;
            }
            row[target as usize] -= scale;
        }
    }
}

/// Like [`loss_and_gradient`], but leaves no gradient: logits become garbage.
pub(crate) fn loss(
    threads: &Threads,
    vocabulary: usize,
    logits: &mut [f32],
    targets: &[u32],
    losses: &mut [f32],
) {
    loss_and_gradient(threads, vocabulary, logits, targets, 1.0, losses);
}
