//! One inner training step: forward, backward, clip, AdamW, over buffers that are allocated once.
//!
//! Needs no runtime: a program calls [`Trainer::step`] in a loop, so the BOINC application and a browser can use it too.
//! Data, learning rates and the number of steps are the caller's.

use crate::batch::{Batch, BatchError};
use crate::config::ModelConfig;
use crate::kernels::adamw::{self, Update};
use crate::kernels::vector::sum_of_squares;
use crate::model::Model;
use crate::threads::{Parts, Threads};
use crate::workspace::{Activations, Gradients, Sizes, activation_floats, gradient_floats};

/// Elements whose squares one task adds up.
const NORM_TASK_ELEMENTS: usize = 1 << 16;
/// Added to the norm before dividing by it, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPSILON: f64 = 1e-6;

/// Constants of AdamW and of clipping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay of matrices; norm gains do not decay.
    pub weight_decay: f32,
    /// Largest gradient norm; larger gradients are scaled down to it. Infinity switches clipping off.
    pub clip_norm: f32,
}

impl Default for OptimizerSettings {
    /// β1 0.9, β2 0.99, ε 1e-8, decay 0.1, clip 1: what short runs learned best with.
    fn default() -> Self {
        OptimizerSettings {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        }
    }
}

/// AdamW's moments, laid out like the parameters, and the number of steps they have seen.
#[derive(Debug, Clone, PartialEq)]
pub struct InnerState {
    /// First moment.
    pub m: Vec<f32>,
    /// Second moment.
    pub v: Vec<f32>,
    /// Steps taken.
    pub step: u64,
}

impl InnerState {
    /// The state before the first step.
    pub fn zeroed(parameters: usize) -> Self {
        InnerState {
            m: vec![0.0; parameters],
            v: vec![0.0; parameters],
            step: 0,
        }
    }
}

/// What a step reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss of the batch before the update, nats per token.
    pub loss: f32,
    /// Norm of the whole gradient before clipping.
    pub gradient_norm: f32,
}

/// Why a step was not taken; parameters and state are as before it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainError {
    /// The tokens do not fit the trainer.
    #[error("batch refused")]
    Batch(#[from] BatchError),
    /// Loss or gradient is not finite: the parameters have diverged or were not finite to begin with.
    #[error("loss {loss} or gradient norm {gradient_norm} is not finite")]
    NotFinite {
        /// The batch's loss.
        loss: f32,
        /// The gradient's norm.
        gradient_norm: f32,
    },
}

/// A model in training with all its buffers and threads.
pub struct Trainer {
    model: Model,
    threads: Threads,
    parameters: Vec<f32>,
    gradient: Vec<f32>,
    state: InnerState,
    activations: Activations,
    gradients: Gradients,
    /// Length of each tensor, and whether it decays.
    tensors: Vec<(usize, bool)>,
    norm_partials: Vec<f64>,
}

impl Trainer {
    /// Allocates everything that steps on up to `batch_rows` rows of `sequence` tokens need. Parameters are zero: fill them through
    /// [`Trainer::parameters_mut`]. One thread spawns nothing; results do not depend on the number of threads.
    ///
    /// # Panics
    /// If the configuration is invalid, or batch or sequence is 0.
    pub fn new(config: &ModelConfig, batch_rows: usize, sequence: usize, threads: usize) -> Self {
        assert!(
            config.validate().is_ok(),
            "the configuration was not validated"
        );
        assert!(batch_rows > 0 && sequence > 0, "an empty batch");
        let model = Model::new(config, batch_rows, sequence);
        let threads = Threads::new(threads);
        let layout = config.layout();
        let activations = Activations::new(&model.sizes, config.num_hidden_layers, threads.count());
        Trainer {
            parameters: vec![0.0; layout.len],
            gradient: vec![0.0; layout.len],
            state: InnerState::zeroed(layout.len),
            activations,
            gradients: Gradients::new(&model.sizes),
            tensors: layout
                .tensors
                .iter()
                .map(|spec| (spec.len(), spec.shape.len() > 1))
                .collect(),
            norm_partials: vec![0.0; layout.len.div_ceil(NORM_TASK_ELEMENTS)],
            model,
            threads,
        }
    }

    /// Bytes that a trainer of this shape allocates on one thread.
    pub fn memory_bytes(config: &ModelConfig, batch_rows: usize, sequence: usize) -> usize {
        let sizes = Sizes::new(config, batch_rows, sequence);
        let activations = activation_floats(&sizes, config.num_hidden_layers, 1);
        let rotary = sequence * config.head_size();
        4 * (4 * config.parameter_count() + activations + gradient_floats(&sizes) + rotary)
    }

    /// The parameters, laid out as [`ModelConfig::layout`] says.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// The parameters, to be set.
    pub fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    /// AdamW's state after the last step.
    pub fn inner_state(&self) -> &InnerState {
        &self.state
    }

    /// Continues from a state that was saved or received.
    ///
    /// # Panics
    /// If its vectors are not as long as the parameters.
    pub fn set_inner_state(&mut self, state: InnerState) {
        let len = self.parameters.len();
        assert!(
            state.m.len() == len && state.v.len() == len,
            "inner state of another model"
        );
        self.state = state;
    }

    /// One step on `tokens`: up to `batch_rows` rows of `sequence + 1` tokens, row after row.
    ///
    /// # Errors
    /// The batch does not fit, or loss or gradient is not finite; then nothing has changed.
    pub fn step(
        &mut self,
        tokens: &[u32],
        learning_rate: f32,
        settings: &OptimizerSettings,
    ) -> Result<StepReport, TrainError> {
        let (loss, _) = self.loss_and_gradient(tokens)?;
        let norm = self.gradient_norm();
        let report = StepReport {
            loss,
            gradient_norm: norm as f32,
        };
        if !report.loss.is_finite() || !report.gradient_norm.is_finite() {
            return Err(TrainError::NotFinite {
                loss,
                gradient_norm: report.gradient_norm,
            });
        }
        let clip = (f64::from(settings.clip_norm) / (norm + CLIP_EPSILON)).min(1.0) as f32;
        self.update(clip, learning_rate, settings);
        Ok(report)
    }

    /// Mean loss (nats per token) of `tokens` and its gradient, laid out like the parameters; changes no parameter.
    ///
    /// # Errors
    /// The batch does not fit.
    pub fn loss_and_gradient(&mut self, tokens: &[u32]) -> Result<(f32, &[f32]), TrainError> {
        let batch = Batch::new(tokens, &self.model.sizes)?;
        let (threads, acts) = (&self.threads, &mut self.activations);
        self.model.forward(threads, &self.parameters, batch, acts);
        self.model.backward(
            threads,
            &self.parameters,
            batch,
            acts,
            &mut self.gradients,
            &mut self.gradient,
        );
        let losses = &self.activations.losses[..batch.positions()];
        let sum: f64 = losses.iter().copied().map(f64::from).sum();
        Ok(((sum / batch.positions() as f64) as f32, &self.gradient))
    }

    fn gradient_norm(&mut self) -> f64 {
        let gradient = &self.gradient;
        let partials = Parts::new(&mut self.norm_partials);
        self.threads
            .run(gradient.len().div_ceil(NORM_TASK_ELEMENTS), |task, _| {
                let start = task * NORM_TASK_ELEMENTS;
                let end = (start + NORM_TASK_ELEMENTS).min(gradient.len());
                // SAFETY: each task has its own element.
                let partial = unsafe { partials.range(task, 1) };
                partial[0] = sum_of_squares(&gradient[start..end]);
            });
        self.norm_partials.iter().sum::<f64>().sqrt()
    }

    fn update(&mut self, clip: f32, learning_rate: f32, settings: &OptimizerSettings) {
        self.state.step += 1;
        let correction1 = 1.0 - power(settings.beta1, self.state.step);
        let correction2 = 1.0 - power(settings.beta2, self.state.step);
        let mut start = 0;
        for &(len, decays) in &self.tensors {
            let decay = if decays {
                learning_rate * settings.weight_decay
            } else {
                0.0
            };
            let update = Update {
                beta1: settings.beta1,
                beta2: settings.beta2,
                epsilon: settings.epsilon,
                step_size: (f64::from(learning_rate) / correction1) as f32,
                root_correction: (1.0 / correction2.sqrt()) as f32,
                clip,
                keep: 1.0 - decay,
            };
            let span = start..start + len;
            let weights = &mut self.parameters[span.clone()];
            let (m, v) = (
                &mut self.state.m[span.clone()],
                &mut self.state.v[span.clone()],
            );
            adamw::update(&self.threads, update, weights, m, v, &self.gradient[span]);
            start += len;
        }
    }
}

/// `base^exponent` by squaring: the same bits everywhere, unlike the platform's `pow`.
fn power(base: f32, exponent: u64) -> f64 {
    let (mut result, mut square, mut left) = (1.0f64, f64::from(base), exponent);
    while left > 0 {
        if left & 1 == 1 {
            result *= square;
        }
        square *= square;
        left >>= 1;
    }
    result
}
