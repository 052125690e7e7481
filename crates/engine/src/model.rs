//! The layer list: forward and backward in execution order, side by side.
//!
//! x ← embedding; per layer x ← x + O·attention(QKV·norm(x)), x ← x + D·swiglu(GU·norm(x)); logits = E·norm(x).
//! The backward walks the same list in reverse, into preallocated buffers.

use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::kernels::matmul::{Operand, Shape, Write, matmul};
use crate::kernels::rotary::Rotary;
use crate::kernels::{attention, cross_entropy, embedding, norm, swiglu};
use crate::layout::{LayerOffsets, Offsets};
use crate::threads::Threads;
use crate::workspace::{Activations, Gradients, LayerKept, Sizes};

/// What does not change from call to call.
pub(crate) struct Model {
    pub(crate) sizes: Sizes,
    pub(crate) offsets: Offsets,
    rotary: Rotary,
    tied: bool,
}

impl Model {
    /// For batches of at most `batch` rows of `sequence` positions.
    pub(crate) fn new(config: &ModelConfig, batch: usize, sequence: usize) -> Self {
        Model {
            sizes: Sizes::new(config, batch, sequence),
            offsets: Offsets::new(config),
            rotary: Rotary::new(sequence, config.head_size(), config.rope_theta),
            tied: config.tie_word_embeddings,
        }
    }

    /// Runs all layers; leaves the final norm's output in `acts.normed` and what the backward needs in `acts.layers`.
    pub(crate) fn forward(
        &self,
        threads: &Threads,
        parameters: &[f32],
        batch: Batch,
        acts: &mut Activations,
    ) {
        let (hidden, positions) = (self.sizes.hidden, batch.positions());
        let stream = &mut acts.stream[..positions * hidden];
        embedding::forward(
            &parameters[..self.sizes.vocabulary * hidden],
            hidden,
            batch.inputs(),
            stream,
        );
        let kept_layers = acts.layers.len();
        for (index, offsets) in self.offsets.layers.iter().enumerate() {
            self.forward_layer(
                threads,
                parameters,
                offsets,
                positions,
                acts,
                index % kept_layers,
            );
        }
        let kept = norm::Kept {
            normalised: &mut acts.final_normalised[..positions * hidden],
            reciprocal: &mut acts.final_reciprocal[..positions],
        };
        let gains = &parameters[self.offsets.final_norm..][..hidden];
        let out = &mut acts.normed[..positions * hidden];
        norm::forward(
            threads,
            &acts.stream[..positions * hidden],
            gains,
            self.sizes.epsilon,
            kept,
            out,
        );
    }

    fn forward_layer(
        &self,
        threads: &Threads,
        parameters: &[f32],
        offsets: &LayerOffsets,
        positions: usize,
        acts: &mut Activations,
        index: usize,
    ) {
        let Sizes {
            hidden,
            intermediate,
            heads,
            epsilon,
            ..
        } = self.sizes;
        let stride = heads.stride();
        let kept = &mut acts.layers[index];
        let stream = &mut acts.stream[..positions * hidden];
        let normed = &mut acts.normed[..positions * hidden];

        let saved = norm::Kept {
            normalised: &mut kept.attention_normalised[..positions * hidden],
            reciprocal: &mut kept.attention_reciprocal[..positions],
        };
        norm::forward(
            threads,
            stream,
            &parameters[offsets.attention_norm..][..hidden],
            epsilon,
            saved,
            normed,
        );
        let qkv = &mut kept.qkv[..positions * stride];
        let weights = &parameters[offsets.query_key_value..][..stride * hidden];
        linear(
            threads,
            positions,
            weights,
            hidden,
            normed,
            qkv,
            Write::Replace,
        );
        let attended = &mut kept.attention_out[..positions * hidden];
        let statistics = &mut kept.attention_statistics[..positions * heads.heads * 2];
        attention::forward(
            threads,
            heads,
            &self.rotary,
            qkv,
            attended,
            statistics,
            &mut acts.attention_scratch,
        );
        let weights = &parameters[offsets.attention_output..][..hidden * hidden];
        linear(
            threads,
            positions,
            weights,
            hidden,
            attended,
            stream,
            Write::Accumulate,
        );

        let saved = norm::Kept {
            normalised: &mut kept.mlp_normalised[..positions * hidden],
            reciprocal: &mut kept.mlp_reciprocal[..positions],
        };
        norm::forward(
            threads,
            stream,
            &parameters[offsets.mlp_norm..][..hidden],
            epsilon,
            saved,
            normed,
        );
        let gate_up = &mut kept.gate_up[..positions * 2 * intermediate];
        let weights = &parameters[offsets.gate_up..][..2 * intermediate * hidden];
        linear(
            threads,
            positions,
            weights,
            hidden,
            normed,
            gate_up,
            Write::Replace,
        );
        let activation = &mut acts.activation[..positions * intermediate];
        swiglu::forward(threads, intermediate, gate_up, activation);
        let weights = &parameters[offsets.down..][..hidden * intermediate];
        linear(
            threads,
            positions,
            weights,
            intermediate,
            activation,
            stream,
            Write::Accumulate,
        );
    }

    /// Losses of all positions after [`Model::forward`], without gradients, into `acts.losses`.
    pub(crate) fn losses(
        &self,
        threads: &Threads,
        parameters: &[f32],
        batch: Batch,
        acts: &mut Activations,
    ) {
        self.chunks(
            threads,
            parameters,
            batch,
            acts,
            |targets, logits, losses, _, _| {
                cross_entropy::loss(threads, self.sizes.vocabulary, logits, targets, losses);
            },
        );
    }

    /// The whole backward after [`Model::forward`]: overwrites `gradient` with that of the mean loss, and fills
    /// `acts.losses`.
    pub(crate) fn backward(
        &self,
        threads: &Threads,
        parameters: &[f32],
        batch: Batch,
        acts: &mut Activations,
        grads: &mut Gradients,
        gradient: &mut [f32],
    ) {
        let (hidden, vocabulary, positions) =
            (self.sizes.hidden, self.sizes.vocabulary, batch.positions());
        self.output_backward(threads, parameters, batch, acts, grads, gradient);
        let saved = norm::Saved {
            gains: &parameters[self.offsets.final_norm..][..hidden],
            normalised: &acts.final_normalised[..positions * hidden],
            reciprocal: &acts.final_reciprocal[..positions],
        };
        let gains_gradient = &mut gradient[self.offsets.final_norm..][..hidden];
        let into = norm::Target {
            input: &mut grads.stream[..positions * hidden],
            write: Write::Replace,
            partial: &mut grads.partial,
            gains: gains_gradient,
        };
        norm::backward(threads, &saved, &grads.inner[..positions * hidden], into);
        for (index, offsets) in self.offsets.layers.iter().enumerate().rev() {
            self.mlp_backward(
                threads, parameters, offsets, positions, acts, index, grads, gradient,
            );
            self.attention_backward(
                threads, parameters, offsets, positions, acts, index, grads, gradient,
            );
        }
        let table = &mut gradient[..vocabulary * hidden];
        if !self.tied {
            table.fill(0.0);
        }
        embedding::backward(
            table,
            hidden,
            batch.inputs(),
            &grads.stream[..positions * hidden],
        );
    }

    /// Loss and gradient of the output matrix and of the final norm's output (into `grads.inner`).
    fn output_backward(
        &self,
        threads: &Threads,
        parameters: &[f32],
        batch: Batch,
        acts: &mut Activations,
        grads: &mut Gradients,
        gradient: &mut [f32],
    ) {
        let (hidden, vocabulary) = (self.sizes.hidden, self.sizes.vocabulary);
        let weights = &parameters[self.offsets.output..][..vocabulary * hidden];
        let weights_gradient = &mut gradient[self.offsets.output..][..vocabulary * hidden];
        let scale = 1.0 / batch.positions() as f32;
        let inner = &mut grads.inner;
        self.chunks(
            threads,
            parameters,
            batch,
            acts,
            |targets, logits, losses, normed, first| {
                cross_entropy::loss_and_gradient(
                    threads, vocabulary, logits, targets, scale, losses,
                );
                let rows = targets.len();
                let shape = Shape {
                    rows,
                    columns: hidden,
                    depth: vocabulary,
                };
                let into = &mut inner[first * hidden..(first + rows) * hidden];
                matmul(
                    threads,
                    shape,
                    into,
                    Write::Replace,
                    Operand::rows(logits, vocabulary),
                    Operand::rows(weights, hidden),
                );
                let shape = Shape {
                    rows: vocabulary,
                    columns: hidden,
                    depth: rows,
                };
                let write = if first == 0 {
                    Write::Replace
                } else {
                    Write::Accumulate
                };
                let (a, b) = (
                    Operand::transposed(logits, vocabulary),
                    Operand::rows(normed, hidden),
                );
                matmul(threads, shape, weights_gradient, write, a, b);
            },
        );
    }

    /// Forms the logits of one chunk of positions at a time and hands them to
    /// `each(targets, logits, losses, normed, first position)`.
    fn chunks(
        &self,
        threads: &Threads,
        parameters: &[f32],
        batch: Batch,
        acts: &mut Activations,
        mut each: impl FnMut(&[u32], &mut [f32], &mut [f32], &[f32], usize),
    ) {
        let (hidden, vocabulary, positions) =
            (self.sizes.hidden, self.sizes.vocabulary, batch.positions());
        let weights = &parameters[self.offsets.output..][..vocabulary * hidden];
        let chunk = acts.logits.len() / vocabulary;
        let targets: Vec<u32> = batch.targets().collect();
        for first in (0..positions).step_by(chunk) {
            let rows = chunk.min(positions - first);
            let normed = &acts.normed[first * hidden..(first + rows) * hidden];
            let logits = &mut acts.logits[..rows * vocabulary];
            linear(
                threads,
                rows,
                weights,
                hidden,
                normed,
                logits,
                Write::Replace,
            );
            let losses = &mut acts.losses[first..first + rows];
            each(&targets[first..first + rows], logits, losses, normed, first);
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "mirrors forward_layer; every buffer has its own owner"
    )]
    fn mlp_backward(
        &self,
        threads: &Threads,
        parameters: &[f32],
        offsets: &LayerOffsets,
        positions: usize,
        acts: &mut Activations,
        index: usize,
        grads: &mut Gradients,
        gradient: &mut [f32],
    ) {
        let Sizes {
            hidden,
            intermediate,
            ..
        } = self.sizes;
        let kept: &mut LayerKept = &mut acts.layers[index];
        let normed = &mut acts.normed[..positions * hidden];
        let activation = &mut acts.activation[..positions * intermediate];
        let gate_up = &mut kept.gate_up[..positions * 2 * intermediate];
        let stream = &mut grads.stream[..positions * hidden];
        let inner = &mut grads.inner[..positions * hidden];

        let weights = &parameters[offsets.down..][..hidden * intermediate];
        linear_input(
            threads,
            positions,
            weights,
            intermediate,
            stream,
            activation,
        );
        swiglu::backward(threads, intermediate, gate_up, activation);
        let weights = &mut gradient[offsets.down..][..hidden * intermediate];
        linear_weights(
            threads,
            positions,
            stream,
            activation,
            intermediate,
            weights,
        );

        let gains = &parameters[offsets.mlp_norm..][..hidden];
        let normalised = &kept.mlp_normalised[..positions * hidden];
        norm::recompute(threads, normalised, gains, normed);
        let weights = &mut gradient[offsets.gate_up..][..2 * intermediate * hidden];
        linear_weights(threads, positions, gate_up, normed, hidden, weights);
        let weights = &parameters[offsets.gate_up..][..2 * intermediate * hidden];
        linear_input(threads, positions, weights, hidden, gate_up, inner);
        let saved = norm::Saved {
            gains,
            normalised,
            reciprocal: &kept.mlp_reciprocal[..positions],
        };
        let gains = &mut gradient[offsets.mlp_norm..][..hidden];
        let into = norm::Target {
            input: stream,
            write: Write::Accumulate,
            partial: &mut grads.partial,
            gains,
        };
        norm::backward(threads, &saved, inner, into);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "mirrors forward_layer; every buffer has its own owner"
    )]
    fn attention_backward(
        &self,
        threads: &Threads,
        parameters: &[f32],
        offsets: &LayerOffsets,
        positions: usize,
        acts: &mut Activations,
        index: usize,
        grads: &mut Gradients,
        gradient: &mut [f32],
    ) {
        let Sizes { hidden, heads, .. } = self.sizes;
        let stride = heads.stride();
        let kept: &LayerKept = &acts.layers[index];
        let normed = &mut acts.normed[..positions * hidden];
        let stream = &mut grads.stream[..positions * hidden];
        let inner = &mut grads.inner[..positions * hidden];
        let qkv_gradient = &mut grads.qkv[..positions * stride];
        let attended = &kept.attention_out[..positions * hidden];

        let weights = &mut gradient[offsets.attention_output..][..hidden * hidden];
        linear_weights(threads, positions, stream, attended, hidden, weights);
        let weights = &parameters[offsets.attention_output..][..hidden * hidden];
        linear_input(threads, positions, weights, hidden, stream, inner);
        let saved = attention::Saved {
            qkv: &kept.qkv[..positions * stride],
            out: attended,
            statistics: &kept.attention_statistics[..positions * heads.heads * 2],
        };
        let scratch = &mut acts.attention_scratch;
        attention::backward(
            threads,
            heads,
            &self.rotary,
            &saved,
            inner,
            qkv_gradient,
            scratch,
        );

        let gains = &parameters[offsets.attention_norm..][..hidden];
        let normalised = &kept.attention_normalised[..positions * hidden];
        norm::recompute(threads, normalised, gains, normed);
        let weights = &mut gradient[offsets.query_key_value..][..stride * hidden];
        linear_weights(threads, positions, qkv_gradient, normed, hidden, weights);
        let weights = &parameters[offsets.query_key_value..][..stride * hidden];
        linear_input(threads, positions, weights, hidden, qkv_gradient, inner);
        let saved = norm::Saved {
            gains,
            normalised,
            reciprocal: &kept.attention_reciprocal[..positions],
        };
        let gains = &mut gradient[offsets.attention_norm..][..hidden];
        let into = norm::Target {
            input: stream,
            write: Write::Accumulate,
            partial: &mut grads.partial,
            gains,
        };
        norm::backward(threads, &saved, inner, into);
    }
}

/// y = x·Wᵀ, or y += x·Wᵀ; W is `out × depth`, x `rows × depth`.
pub(crate) fn linear(
    threads: &Threads,
    rows: usize,
    weights: &[f32],
    depth: usize,
    x: &[f32],
    y: &mut [f32],
    write: Write,
) {
    let shape = Shape {
        rows,
        columns: weights.len() / depth,
        depth,
    };
    matmul(
        threads,
        shape,
        y,
        write,
        Operand::rows(x, depth),
        Operand::transposed(weights, depth),
    );
}

/// ∂x = ∂y·W; W is `out × width`, ∂x `rows × width`.
fn linear_input(
    threads: &Threads,
    rows: usize,
    weights: &[f32],
    width: usize,
    upstream: &[f32],
    into: &mut [f32],
) {
    let depth = weights.len() / width;
    let shape = Shape {
        rows,
        columns: width,
        depth,
    };
    matmul(
        threads,
        shape,
        into,
        Write::Replace,
        Operand::rows(upstream, depth),
        Operand::rows(weights, width),
    );
}

/// ∂W = ∂yᵀ·x; x is `rows × width`, ∂W `out × width`.
fn linear_weights(
    threads: &Threads,
    rows: usize,
    upstream: &[f32],
    x: &[f32],
    width: usize,
    into: &mut [f32],
) {
    let out = into.len() / width;
    let shape = Shape {
        rows: out,
        columns: width,
        depth: rows,
    };
    matmul(
        threads,
        shape,
        into,
        Write::Replace,
        Operand::transposed(upstream, out),
        Operand::rows(x, width),
    );
}
