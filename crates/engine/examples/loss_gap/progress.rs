//! The loss on the way, on a part of the held-out text, and how long it will take.

use std::{error::Error, time::Instant};

use engine::{ModelConfig, evaluate::Evaluator};
use serde::Serialize;

use crate::{EVALUATION_ROWS, job::Job, text::Text};

/// Tokens between two points of a curve.
const POINT_TOKENS: u64 = 400_000;
/// Of so many held-out windows one is measured on the way.
const HELD_OUT_EVERY: usize = 8;

/// A point of the curve.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Point {
    /// Tokens trained on.
    pub(crate) tokens: u64,
    /// Loss on a part of the held-out text, nats a token.
    pub(crate) loss: f64,
}

/// The curve so far.
pub(crate) struct Progress {
    /// Its points.
    pub(crate) points: Vec<Point>,
    part: Vec<u32>,
    sequence: usize,
    evaluator: Evaluator,
    tokens_max: u64,
    first: Option<u64>,
    began: Instant,
}

impl Progress {
    /// An empty curve.
    pub(crate) fn new(job: &Job, text: &Text, config: &ModelConfig) -> Self {
        let sequence = job.inner.sequence as usize;
        Self {
            points: Vec::new(),
            part: text.held_out_part(HELD_OUT_EVERY),
            sequence,
            evaluator: Evaluator::new(config, EVALUATION_ROWS, sequence, 1),
            tokens_max: job.inner.tokens_max,
            first: None,
            began: Instant::now(),
        }
    }

    /// Measures when the next point is due.
    pub(crate) fn after(&mut self, tokens: u64, parameters: &[f32]) -> Result<(), Box<dyn Error>> {
        let first = *self.first.get_or_insert(tokens);
        let last = self.points.last().map_or(0, |point| point.tokens);
        if tokens / POINT_TOKENS == last / POINT_TOKENS {
            return Ok(());
        }
        let loss = self.evaluator.loss_sum(parameters, &self.part)?.mean();
        self.points.push(Point { tokens, loss });
        let speed = (tokens - first) as f64 / self.seconds();
        println!(
            "tokens {tokens}, loss {loss:.4}, {speed:.0} tokens/s, {:.0} s left",
            self.tokens_max.saturating_sub(tokens) as f64 / speed.max(1.0),
        );
        Ok(())
    }

    /// Takes over the curve of a first phase that was trained before.
    pub(crate) fn continue_at(&mut self, tokens: u64) {
        self.first = Some(tokens);
    }

    /// Held-out tokens behind each point.
    pub(crate) fn evaluated_tokens(&self) -> usize {
        self.part.len() / (self.sequence + 1) * self.sequence
    }

    /// Since the beginning.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
