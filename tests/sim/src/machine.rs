//! The stand-in for a machine that trains: its steps take the time that its speed says, and walk towards a target.
//!
//! Each step moves the few parameters that its samples and its machine choose closer to those of a model that the run's
//! seed draws. So the updates depend on what was sampled and on where training started, honest work brings the model
//! closer, and everything after the step is the production's: codec, error feedback, merge, delta. The machine's own part
//! makes up for the text, which is so short that many sample the same: nobody's honest work is another's.

use std::{sync::Arc, time::Duration};

use engine::train::{InnerState, OptimizerSettings, StepReport, TrainError};
use protocol::charter::Charter;
use tokio_util::sync::CancellationToken;
use worker::{MakeTrainer, Steps};

use crate::chance::Chance;

/// Parameters that one step moves.
const MOVED: usize = 24;
/// How far the target is from the first parameters.
const FAR: f32 = 0.05;
/// Share of the way that a step goes.
const SHARE: f32 = 0.2;

/// The parameters that honest work leads to.
#[must_use]
pub fn target(first: &[f32], seed: u64) -> Vec<f32> {
    let mut chance = Chance::of(seed, "target", 0);
    first
        .iter()
        .map(|value| {
            let unit = chance.below(2_001) as f32 / 1_000.0 - 1.0;
            value + unit * FAR
        })
        .collect()
}

/// Mean distance of parameters from the target.
#[must_use]
pub fn distance(parameters: &[f32], target: &[f32]) -> f64 {
    let sum: f64 = parameters
        .iter()
        .zip(target)
        .map(|(a, b)| f64::from((a - b).abs()))
        .sum();
    sum / parameters.len() as f64
}

/// Makes simulated machine number `number`: each step takes `step`, until the process is `dead`.
#[must_use]
pub fn trainer(
    target: Arc<Vec<f32>>,
    number: u64,
    step: Duration,
    dead: CancellationToken,
) -> MakeTrainer {
    Arc::new(move |_: &Charter, _threads| {
        Box::new(Walker {
            parameters: vec![0.0; target.len()],
            target: Arc::clone(&target),
            number,
            inner: InnerState::zeroed(0),
            step,
            dead: dead.clone(),
        })
    })
}

struct Walker {
    parameters: Vec<f32>,
    target: Arc<Vec<f32>>,
    number: u64,
    /// The charter carries none, and what is hashed of it is empty.
    inner: InnerState,
    step: Duration,
    dead: CancellationToken,
}

impl Steps for Walker {
    fn step(
        &mut self,
        tokens: &[u32],
        _learning_rate: f32,
        _settings: &OptimizerSettings,
    ) -> Result<StepReport, TrainError> {
        if self.dead.is_cancelled() {
            // The process is gone; what it computed nobody sees.
            return Err(TrainError::NotFinite {
                loss: f32::NAN,
                gradient_norm: f32::NAN,
            });
        }
        let mut seed = 0xcbf2_9ce4_8422_2325_u64 ^ self.number;
        for token in tokens {
            seed = (seed ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut chance = Chance::new(seed);
        let (mut loss, mut norm) = (0.0, 0.0);
        for _ in 0..MOVED {
            let index = chance.below(self.parameters.len() as u64) as usize;
            let way = self.target[index] - self.parameters[index];
            self.parameters[index] += SHARE * way;
            loss += way.abs();
            norm += way * way;
        }
        Ok(StepReport {
            loss: loss / MOVED as f32,
            gradient_norm: norm.sqrt(),
        })
    }

    fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn inner_state(&self) -> &InnerState {
        &self.inner
    }

    fn set_inner_state(&mut self, _state: InnerState) {}

    fn step_time(&self) -> Option<Duration> {
        Some(self.step)
    }

    fn arithmetic(&self) -> String {
        "simulated".to_owned()
    }
}
