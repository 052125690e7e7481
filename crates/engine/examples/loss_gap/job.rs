//! What a run is told: the shape of a charter, and who is there when.

use protocol::charter::{Inner, Model, Outer};
use serde::{Deserialize, Serialize};

/// Raised when the simulation itself changes, so that older results no longer count.
const SIMULATION_VERSION: u32 = 1;

/// One run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    /// For people, and the beginning of the result's file name.
    pub(crate) name: String,
    /// Seed of the first parameters and of every draw.
    pub(crate) seed: u64,
    /// The model.
    pub(crate) model: Model,
    /// AdamW and its schedule, as one process or one worker has them.
    pub(crate) inner: Inner,
    /// Who trains.
    pub(crate) plan: Plan,
}

/// Who trains.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Plan {
    /// Plain AdamW.
    OneProcess,
    /// Workers in rounds.
    Workers(Workers),
}

/// Workers in rounds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workers {
    /// Codec and merge.
    pub(crate) outer: Outer,
    /// Inner steps of each worker in a window, in thousandths; only whole steps are done.
    pub(crate) millisteps: Vec<u32>,
    /// Fewest steps of a round.
    pub(crate) steps_min: u32,
    /// Most steps of a round.
    pub(crate) steps_max: u32,
    /// Updates below which a merge takes a smaller step.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) quorum: u32,
    /// How likely a worker is absent from a round, in millionths; each round draws anew.
    pub(crate) absent_ppm: u32,
    /// The share of its steps, in millionths, that a worker does before the newest delta reaches it.
    pub(crate) head_start_ppm: u32,
    /// Whether a worker trains from the model less its own error feedback, so that what it has not sent yet counts in its
    /// own gradients.
    #[serde(default)]
    pub(crate) error_applied: bool,
    /// The first phase.
    pub(crate) warm_start: WarmStart,
}

/// The first phase: one worker alone, whose parameters and moments everyone then starts from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WarmStart {
    /// Tokens until the others join.
    pub(crate) tokens: u64,
    /// Sequences in one step.
    pub(crate) batch_rows: u32,
    /// Peak of the learning rate in 10^-9.
    pub(crate) learning_rate_peak_nano: u64,
}

impl Job {
    /// The hash of everything that decides the result. A quorum decides nothing where all of it is always there.
    pub(crate) fn key(&self, dataset: &str) -> String {
        let mut job = Job {
            name: String::new(),
            ..self.clone()
        };
        if let Plan::Workers(workers) = &mut job.plan
            && workers.absent_ppm == 0
            && workers.quorum as usize <= workers.millisteps.len()
        {
            workers.quorum = one();
        }
        key(&serde_json::json!([job, dataset]))
    }

    /// Most sequences of a step.
    pub(crate) fn batch_rows_max(&self) -> usize {
        let warm = match &self.plan {
            Plan::OneProcess => 0,
            Plan::Workers(workers) => workers.warm_start.batch_rows,
        };
        self.inner.batch_rows.max(warm) as usize
    }
}

impl WarmStart {
    /// The inner settings of the first phase.
    pub(crate) fn inner(&self, inner: &Inner) -> Inner {
        Inner {
            batch_rows: self.batch_rows,
            learning_rate_peak_nano: self.learning_rate_peak_nano,
            ..inner.clone()
        }
    }
}

fn one() -> u32 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
fn is_one(number: &u32) -> bool {
    *number == 1
}

/// Twelve digits that stand for these settings, this simulation and this machine's arithmetic.
pub(crate) fn key(settings: &serde_json::Value) -> String {
    let class = engine::arithmetic::class();
    let text = serde_json::json!([SIMULATION_VERSION, class, settings]).to_string();
    blake3::hash(text.as_bytes()).to_hex()[..12].to_owned()
}
