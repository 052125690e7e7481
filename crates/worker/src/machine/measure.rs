//! A machine's speed, by a few real steps on random tokens, and the time that an update takes to write.

use std::time::{Duration, Instant};

use engine::{initial_parameters, update::codec};

use super::Machine;

/// Steps that are not counted: they touch memory for the first time.
const STEPS_BEFORE: u32 = 1;
/// Steps that are counted at most.
const STEPS_MAX: u32 = 12;
/// Time after which no further step is begun.
const TIME_MAX: Duration = Duration::from_secs(3);

/// What a machine can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measurement {
    /// Tokens a second, at least 1.
    pub(crate) tokens_per_s: u32,
    /// One step.
    pub(crate) step: Duration,
    /// From the last step to an update in memory.
    pub(crate) encode: Duration,
}

impl Machine {
    /// Measures by training a random model, which is thrown away: the machine must hold no model yet.
    ///
    /// # Errors
    /// The engine's, which on random tokens are bugs.
    pub(crate) fn measure(&mut self) -> anyhow::Result<Measurement> {
        assert!(self.held.is_none(), "measuring would overwrite the model");
        let config = engine::charter::model_config(&self.charter.model);
        let optimizer = engine::charter::optimizer(&self.charter.inner);
        let rate = engine::charter::learning_rate(self.charter.inner.learning_rate_peak_nano / 100);
        self.base = initial_parameters(&config, self.charter.seed);
        self.trainer.parameters_mut().copy_from_slice(&self.base);
        let (rows, sequence) = super::batch(&self.charter);
        let tokens: Vec<u32> = (0..rows * (sequence + 1))
            .map(|index| (index as u32).wrapping_mul(2_654_435_761) % self.charter.model.vocab_size)
            .collect();
        for _ in 0..STEPS_BEFORE {
            self.trainer.step(&tokens, rate, &optimizer)?;
        }
        let begun = Instant::now();
        let mut steps = 0;
        while steps < STEPS_MAX && (steps == 0 || begun.elapsed() < TIME_MAX) {
            self.trainer.step(&tokens, rate, &optimizer)?;
            steps += 1;
        }
        let said = self.trainer.step_time();
        let step = said.unwrap_or_else(|| begun.elapsed() / steps);

        let begun = Instant::now();
        self.accumulate();
        let payload = codec::encode(&self.lengths, &self.settings, &self.error)?;
        codec::decode(&payload, &self.lengths, &self.settings)?;
        // Two states are hashed and written: about as much again, twice.
        let encode = said.unwrap_or_else(|| begun.elapsed() * 3);

        self.error.fill(0.0);
        self.reset_moments();
        let per_s = self.charter.tokens_per_step() as f64 / step.as_secs_f64().max(1e-9);
        Ok(Measurement {
            tokens_per_s: (per_s as u32).max(1),
            step,
            encode,
        })
    }
}
