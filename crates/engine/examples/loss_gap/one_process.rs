//! One process with AdamW: the baseline, and the first phase of a run in rounds.

use std::{error::Error, fs, ops::Range, path::Path};

use engine::{
    initial_parameters,
    train::{InnerState, Trainer},
    update::inner_start,
};
use protocol::{charter::Inner, schedule::learning_rate_nano};

use crate::{
    job::{self, Job, WarmStart},
    progress::Progress,
    replace,
    text::{Sampler, Text},
};

/// Tokens of a run's first phase, a part of all its tokens, after which a run in one process leaves its state behind:
/// runs in rounds with the same settings start from it.
const FIRST_PHASE: u64 = 5;

/// Parameters and AdamW's moments after the first phase.
pub(crate) struct Warm {
    /// The parameters.
    pub(crate) theta: Vec<f32>,
    /// The moments.
    pub(crate) state: InnerState,
    /// Tokens behind them.
    pub(crate) tokens: u64,
}

/// The baseline: one process from beginning to end; the trainer then holds the model.
pub(crate) fn whole(
    trainer: &mut Trainer,
    job: &Job,
    text: &Text,
    results: &Path,
    progress: &mut Progress,
) -> Result<(), Box<dyn Error>> {
    let first = WarmStart {
        tokens: job.inner.tokens_max / FIRST_PHASE,
        batch_rows: job.inner.batch_rows,
        learning_rate_peak_nano: job.inner.learning_rate_peak_nano,
    };
    let warm = warm_start(trainer, job, &first, text, results, progress)?;
    let mut sampler = Sampler::new(job.seed, u64::MAX);
    sampler.skip(warm.state.step * u64::from(job.inner.batch_rows));
    trainer.parameters_mut().copy_from_slice(&warm.theta);
    trainer.set_inner_state(warm.state);
    let tokens = warm.tokens..job.inner.tokens_max;
    train(trainer, &job.inner, sampler, text, tokens, progress)?;
    Ok(())
}

/// Trains from `tokens.start` until `tokens.end` is reached; gives where it ended.
fn train(
    trainer: &mut Trainer,
    inner: &Inner,
    mut sampler: Sampler,
    text: &Text,
    tokens: Range<u64>,
    progress: &mut Progress,
) -> Result<u64, Box<dyn Error>> {
    let optimizer = engine::charter::optimizer(inner);
    let step_tokens = u64::from(inner.batch_rows) * u64::from(inner.sequence);
    let mut at = tokens.start;
    while at < tokens.end {
        let batch = sampler.batch(text, inner.batch_rows);
        let rate = engine::charter::learning_rate(learning_rate_nano(inner, at));
        trainer.step(&batch, rate, &optimizer)?;
        at += step_tokens;
        progress.after(at, trainer.parameters())?;
    }
    Ok(at)
}

/// The first phase: from a file if it was trained before with the same settings, else trained and written there.
pub(crate) fn warm_start(
    trainer: &mut Trainer,
    job: &Job,
    plan: &WarmStart,
    text: &Text,
    results: &Path,
    progress: &mut Progress,
) -> Result<Warm, Box<dyn Error>> {
    let config = engine::charter::model_config(&job.model);
    let inner = plan.inner(&job.inner);
    let settings = serde_json::json!([job.model, inner, job.seed, text.hash, plan.tokens]);
    let path = results.join(format!("warm-start-{}.bin", job::key(&settings)));
    if let Ok(bytes) = fs::read(&path) {
        let warm = Warm::read(&bytes, config.parameter_count(), &inner)?;
        progress.continue_at(warm.tokens);
        return Ok(warm);
    }
    let parameters = initial_parameters(&config, job.seed);
    trainer.set_inner_state(InnerState::zeroed(parameters.len()));
    trainer.parameters_mut().copy_from_slice(&parameters);
    let sampler = Sampler::new(job.seed, u64::MAX);
    let tokens = train(trainer, &inner, sampler, text, 0..plan.tokens, progress)?;
    let warm = Warm {
        theta: trainer.parameters().to_vec(),
        state: trainer.inner_state().clone(),
        tokens,
    };
    replace(&path, &warm.to_bytes())?;
    Ok(warm)
}

impl Warm {
    /// The parameters, then the moments as a run publishes them.
    fn to_bytes(&self) -> Vec<u8> {
        let theta = self.theta.iter().flat_map(|value| value.to_le_bytes());
        let mut bytes: Vec<u8> = theta.collect();
        let state = &self.state;
        bytes.extend(inner_start::to_bytes(state.step, &state.m, &state.v));
        bytes
    }

    fn read(bytes: &[u8], parameters: usize, inner: &Inner) -> Result<Self, Box<dyn Error>> {
        let (theta, moments) = bytes
            .split_at_checked(4 * parameters)
            .ok_or("a warm start that is cut short")?;
        let theta = theta.as_chunks().0.iter().copied().map(f32::from_le_bytes);
        let (step, moments) = inner_start::from_bytes(moments, parameters)?;
        let state = InnerState {
            m: moments.first,
            v: moments.second,
            step,
        };
        Ok(Self {
            theta: theta.collect(),
            state,
            tokens: step * u64::from(inner.batch_rows) * u64::from(inner.sequence),
        })
    }
}
