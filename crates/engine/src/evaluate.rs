//! Loss of given text under given parameters: forward only, one layer's buffers, reusable.

use crate::batch::{Batch, BatchError};
use crate::config::ModelConfig;
use crate::model::Model;
use crate::threads::Threads;
use crate::workspace::Activations;

/// A summed loss and what it was summed over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSum {
    /// Sum of −ln p(token | tokens before it), nats.
    pub nats: f64,
    /// Number of predicted tokens.
    pub tokens: u64,
}

impl LossSum {
    /// Mean nats per token.
    pub fn mean(&self) -> f64 {
        self.nats / self.tokens as f64
    }
}

/// Buffers for evaluating one shape of model.
pub struct Evaluator {
    model: Model,
    threads: Threads,
    activations: Activations,
    parameter_count: usize,
}

impl Evaluator {
    /// Evaluates up to `batch_rows` rows of `sequence` predicted tokens at a time. One thread spawns nothing; results do
    /// not depend on the number of threads.
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
        let activations = Activations::new(&model.sizes, 1, threads.count());
        Evaluator {
            model,
            threads,
            activations,
            parameter_count: config.parameter_count(),
        }
    }

    /// Summed loss of any number of rows of `sequence + 1` tokens.
    ///
    /// # Errors
    /// Not a whole number of rows, none, or a token outside the vocabulary.
    ///
    /// # Panics
    /// If `parameters` is not as long as the configuration says.
    pub fn loss_sum(&mut self, parameters: &[f32], tokens: &[u32]) -> Result<LossSum, BatchError> {
        let losses = self.token_losses(parameters, tokens)?;
        let nats = losses.iter().copied().map(f64::from).sum();
        Ok(LossSum {
            nats,
            tokens: losses.len() as u64,
        })
    }

    /// −ln p of every predicted token, row after row: `rows × sequence` numbers.
    ///
    /// # Errors
    /// As [`Evaluator::loss_sum`].
    ///
    /// # Panics
    /// If `parameters` is not as long as the configuration says.
    pub fn token_losses(
        &mut self,
        parameters: &[f32],
        tokens: &[u32],
    ) -> Result<Vec<f32>, BatchError> {
        assert_eq!(
            parameters.len(),
            self.parameter_count,
            "parameters of another model"
        );
        let sizes = self.model.sizes;
        let row_tokens = sizes.heads.sequence + 1;
        if tokens.is_empty() || !tokens.len().is_multiple_of(row_tokens) {
            return Err(BatchError::Size {
                tokens: tokens.len(),
                rows_max: usize::MAX / row_tokens,
                row_tokens,
            });
        }
        let mut losses = Vec::with_capacity(tokens.len());
        for rows in tokens.chunks(sizes.batch * row_tokens) {
            let batch = Batch::new(rows, &sizes)?;
            self.model
                .forward(&self.threads, parameters, batch, &mut self.activations);
            self.model
                .losses(&self.threads, parameters, batch, &mut self.activations);
            losses.extend_from_slice(&self.activations.losses[..batch.positions()]);
        }
        Ok(losses)
    }
}
