//! What a worker stands on: its machine's clock, disk, network and engine, or the simulator's.

use std::{fmt, sync::Arc, time::Duration};

use engine::{
    arithmetic,
    train::{InnerState, OptimizerSettings, StepReport, TrainError, Trainer},
};
use network::{
    ClientError, HubClient,
    client::Transport,
    disk::{Disk, RealDisk},
    world::Clock,
};
use protocol::charter::Charter;

/// What somebody who watches takes for at once.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// The ground under a worker. Clones are the same ground.
#[derive(Clone)]
pub struct Ground {
    /// The wall clock.
    pub clock: Clock,
    /// Where the worker's folder lies.
    pub disk: Arc<dyn Disk>,
    /// What carries calls to hubs; `None` for the machine's network.
    pub transport: Option<Arc<dyn Transport>>,
    /// What takes the inner steps: for a charter, with so many threads.
    pub trainer: MakeTrainer,
    /// How often the owner is told how things stand while nothing else happens.
    pub tell_every: Duration,
}

/// Makes what takes the inner steps.
pub type MakeTrainer = Arc<dyn Fn(&Charter, usize) -> Box<dyn Steps> + Send + Sync>;

/// What takes inner steps: the engine, or the simulator's stand-in for a machine of some speed.
pub trait Steps: Send {
    /// One step on a batch, row after row.
    ///
    /// # Errors
    /// Loss or gradient became infinite.
    fn step(
        &mut self,
        tokens: &[u32],
        learning_rate: f32,
        settings: &OptimizerSettings,
    ) -> Result<StepReport, TrainError>;

    /// The parameters in training.
    fn parameters(&self) -> &[f32];

    /// The same, to be set.
    fn parameters_mut(&mut self) -> &mut [f32];

    /// The optimiser's state.
    fn inner_state(&self) -> &InnerState;

    /// Replaces the optimiser's state.
    fn set_inner_state(&mut self, state: InnerState);

    /// The time that a step is said to take; `None` where it takes the time that it takes.
    fn step_time(&self) -> Option<Duration> {
        None
    }

    /// The class of machines that compute the same bits.
    fn arithmetic(&self) -> String {
        arithmetic::class()
    }
}

impl Steps for Trainer {
    fn step(
        &mut self,
        tokens: &[u32],
        learning_rate: f32,
        settings: &OptimizerSettings,
    ) -> Result<StepReport, TrainError> {
        Self::step(self, tokens, learning_rate, settings)
    }

    fn parameters(&self) -> &[f32] {
        Self::parameters(self)
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        Self::parameters_mut(self)
    }

    fn inner_state(&self) -> &InnerState {
        Self::inner_state(self)
    }

    fn set_inner_state(&mut self, state: InnerState) {
        Self::set_inner_state(self, state);
    }
}

impl Ground {
    /// The machine itself.
    #[must_use]
    pub fn machine() -> Self {
        Self {
            clock: Clock::system(),
            disk: Arc::new(RealDisk),
            transport: None,
            trainer: Arc::new(engine_trainer),
            tell_every: TELL_EVERY,
        }
    }

    /// A client of the hub at an address.
    pub(crate) fn client(&self, address: &str) -> Result<HubClient, ClientError> {
        match &self.transport {
            None => HubClient::new(address),
            Some(transport) => Ok(HubClient::over(Arc::clone(transport), address)),
        }
    }
}

impl fmt::Debug for Ground {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Ground")
            .field("clock", &self.clock)
            .field("disk", &self.disk)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

/// The engine's trainer for a charter.
pub(crate) fn engine_trainer(charter: &Charter, threads: usize) -> Box<dyn Steps> {
    let config = engine::charter::model_config(&charter.model);
    let rows = charter.inner.batch_rows as usize;
    let sequence = charter.inner.sequence as usize;
    Box::new(Trainer::new(&config, rows, sequence, threads))
}
