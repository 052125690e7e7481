//! Every buffer of a forward and a backward, sized once from configuration, rows and sequence.
//!
//! The plan is a number before anything runs: see [`activation_floats`] and [`gradient_floats`].

use crate::config::ModelConfig;
use crate::kernels::attention::{self, Heads};
use crate::kernels::cross_entropy;
use crate::kernels::norm::TASK_ROWS;

/// Sizes that every kernel call derives its own from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Sequences that fit.
    pub(crate) batch: usize,
    pub(crate) heads: Heads,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) vocabulary: usize,
    pub(crate) epsilon: f32,
}

impl Sizes {
    pub(crate) fn new(config: &ModelConfig, batch: usize, sequence: usize) -> Self {
        Sizes {
            batch,
            heads: Heads {
                sequence,
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads,
                head_size: config.head_size(),
            },
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            vocabulary: config.vocab_size,
            epsilon: config.rms_norm_eps,
        }
    }

    /// Positions of all sequences that fit.
    pub(crate) fn positions(&self) -> usize {
        self.batch * self.heads.sequence
    }

    fn chunk_rows(&self) -> usize {
        cross_entropy::chunk_rows(self.vocabulary).min(self.positions())
    }
}

/// What one layer's forward keeps for its backward.
pub(crate) struct LayerKept {
    pub(crate) attention_normalised: Vec<f32>,
    pub(crate) attention_reciprocal: Vec<f32>,
    /// Queries and keys rotated.
    pub(crate) qkv: Vec<f32>,
    pub(crate) attention_out: Vec<f32>,
    pub(crate) attention_statistics: Vec<f32>,
    pub(crate) mlp_normalised: Vec<f32>,
    pub(crate) mlp_reciprocal: Vec<f32>,
    pub(crate) gate_up: Vec<f32>,
}

impl LayerKept {
    fn new(sizes: &Sizes) -> Self {
        let positions = sizes.positions();
        LayerKept {
            attention_normalised: vec![0.0; positions * sizes.hidden],
            attention_reciprocal: vec![0.0; positions],
            qkv: vec![0.0; positions * sizes.heads.stride()],
            attention_out: vec![0.0; positions * sizes.hidden],
            attention_statistics: vec![0.0; positions * sizes.heads.heads * 2],
            mlp_normalised: vec![0.0; positions * sizes.hidden],
            mlp_reciprocal: vec![0.0; positions],
            gate_up: vec![0.0; positions * 2 * sizes.intermediate],
        }
    }

    fn floats(sizes: &Sizes) -> usize {
        let position = 3 * sizes.hidden
            + 2
            + sizes.heads.stride()
            + 2 * sizes.heads.heads
            + 2 * sizes.intermediate;
        sizes.positions() * position
    }
}

/// Buffers of the forward.
pub(crate) struct Activations {
    /// One entry per layer where a backward follows, else one entry that every layer overwrites.
    pub(crate) layers: Vec<LayerKept>,
    /// The residual stream.
    pub(crate) stream: Vec<f32>,
    /// What a norm gave: the input of the next matrix product.
    pub(crate) normed: Vec<f32>,
    pub(crate) activation: Vec<f32>,
    pub(crate) final_normalised: Vec<f32>,
    pub(crate) final_reciprocal: Vec<f32>,
    /// One chunk of logits.
    pub(crate) logits: Vec<f32>,
    /// One loss per position, nats.
    pub(crate) losses: Vec<f32>,
    pub(crate) attention_scratch: Vec<f32>,
}

impl Activations {
    /// `kept_layers` is the number of layers, or 1 where no backward follows.
    pub(crate) fn new(sizes: &Sizes, kept_layers: usize, workers: usize) -> Self {
        let positions = sizes.positions();
        Activations {
            layers: (0..kept_layers).map(|_| LayerKept::new(sizes)).collect(),
            stream: vec![0.0; positions * sizes.hidden],
            normed: vec![0.0; positions * sizes.hidden],
            activation: vec![0.0; positions * sizes.intermediate],
            final_normalised: vec![0.0; positions * sizes.hidden],
            final_reciprocal: vec![0.0; positions],
            logits: vec![0.0; sizes.chunk_rows() * sizes.vocabulary],
            losses: vec![0.0; positions],
            attention_scratch: vec![0.0; workers * attention::SCRATCH],
        }
    }
}

/// Floats that [`Activations`] allocates.
pub(crate) fn activation_floats(sizes: &Sizes, kept_layers: usize, workers: usize) -> usize {
    kept_layers * LayerKept::floats(sizes)
        + sizes.positions() * (3 * sizes.hidden + sizes.intermediate + 2)
        + sizes.chunk_rows() * sizes.vocabulary
        + workers * attention::SCRATCH
}

/// Buffers of the backward; the gradient of the parameters is not among them.
pub(crate) struct Gradients {
    /// Gradient of the residual stream.
    pub(crate) stream: Vec<f32>,
    /// Gradient of what a norm gave, or of the attention's output.
    pub(crate) inner: Vec<f32>,
    pub(crate) qkv: Vec<f32>,
    /// Partial sums of a norm's gains.
    pub(crate) partial: Vec<f32>,
}

impl Gradients {
    pub(crate) fn new(sizes: &Sizes) -> Self {
        let positions = sizes.positions();
        Gradients {
            stream: vec![0.0; positions * sizes.hidden],
            inner: vec![0.0; positions * sizes.hidden],
            qkv: vec![0.0; positions * sizes.heads.stride()],
            partial: vec![0.0; positions.div_ceil(TASK_ROWS) * sizes.hidden],
        }
    }
}

/// Floats that [`Gradients`] allocates.
pub(crate) fn gradient_floats(sizes: &Sizes) -> usize {
    sizes.positions() * (2 * sizes.hidden + sizes.heads.stride())
        + sizes.positions().div_ceil(TASK_ROWS) * sizes.hidden
}
