//! The embedding look-up, and its gradient: rows of the table gathered, and gradients scattered back in token order.

use super::vector::add;

/// Copies the row of each token into `out`, `tokens.len() × width`.
pub(crate) fn forward(
    table: &[f32],
    width: usize,
    tokens: impl Iterator<Item = u32>,
    out: &mut [f32],
) {
    for (out, token) in out.chunks_exact_mut(width).zip(tokens) {
        let start = token as usize * width;
        out.copy_from_slice(&table[start..start + width]);
    }
}

/// Adds each token's gradient row to its row of the table's gradient, in order.
pub(crate) fn backward(
    table: &mut [f32],
    width: usize,
    tokens: impl Iterator<Item = u32>,
    gradient: &[f32],
) {
    for (gradient, token) in gradient.chunks_exact(width).zip(tokens) {
        let start = token as usize * width;
        add(&mut table[start..start + width], gradient);
    }
}
