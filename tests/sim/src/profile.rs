//! What a simulation is like: how many, how long, what weather, which faults how often.

use std::time::Duration;

use crate::network::Weather;

/// Everything about a simulation but its seed.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// Workers.
    pub workers: u64,
    /// Merged rounds after which it ends.
    pub rounds: u64,
    /// Simulated time after which it ends whatever was merged.
    pub longest: Duration,
    /// The charter's window.
    pub window_ms: u64,
    /// The charter's time to reveal.
    pub reveal_ms: u64,
    /// The charter's most steps.
    pub steps_max: u32,
    /// The charter's quorum.
    pub quorum: u32,
    /// The charter's slots.
    pub slots_max: u32,
    /// Every worker's link.
    pub weather: Weather,
    /// Duration of a step of the fastest and of the slowest machine, milliseconds.
    pub step_ms: (u64, u64),
    /// Workers start within this time.
    pub start_within: Duration,
    /// Mean time between two deaths of one worker's process; `None` for never.
    pub worker_dies_every: Option<Duration>,
    /// Longest time that a dead worker stays away.
    pub worker_away_max: Duration,
    /// Mean time between two deaths of the hub; `None` for never.
    pub hub_dies_every: Option<Duration>,
    /// Of the hub's deaths, those in the middle of a write to its disk (millionths); the others are of the process alone,
    /// at any moment.
    pub hub_power_cuts: u32,
    /// Mean time between two times that the hub's disk is full; `None` for never.
    pub hub_full_every: Option<Duration>,
    /// Mean time between two times that a worker's disk is full; `None` for never.
    pub worker_full_every: Option<Duration>,
    /// Mean time between two jumps of a clock, the hub's or a worker's; `None` for never.
    pub clock_jumps_every: Option<Duration>,
    /// Longest jump, milliseconds.
    pub clock_jump_ms_max: i64,
    /// Mean time between two partitions; `None` for never.
    pub partition_every: Option<Duration>,
    /// Longest partition.
    pub partition_max: Duration,
    /// Of a thousand workers, those that lie.
    pub liars_per_mille: u64,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

impl Profile {
    /// Nothing goes wrong.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            name: "calm",
            workers: 10,
            rounds: 20,
            longest: 24 * HOUR,
            window_ms: 30_000,
            reveal_ms: 10_000,
            steps_max: 8,
            quorum: 1,
            slots_max: 1_000,
            weather: Weather {
                latency_ms: (5, 40),
                up_bytes_per_s: 1_250_000,
                down_bytes_per_s: 6_250_000,
                ..Weather::calm()
            },
            step_ms: (1_000, 4_000),
            start_within: Duration::from_secs(20),
            worker_dies_every: None,
            worker_away_max: 5 * MINUTE,
            hub_dies_every: None,
            hub_power_cuts: 700_000,
            hub_full_every: None,
            worker_full_every: None,
            clock_jumps_every: None,
            clock_jump_ms_max: 0,
            partition_every: None,
            partition_max: 2 * MINUTE,
            liars_per_mille: 0,
        }
    }

    /// Links that lose and cut, machines that come and go, a hub that dies.
    #[must_use]
    pub fn churn() -> Self {
        Self {
            name: "churn",
            weather: Weather {
                latency_ms: (10, 1_500),
                up_bytes_per_s: 125_000,
                down_bytes_per_s: 625_000,
                lost: 20_000,
                answer_lost: 20_000,
                body_cut: 20_000,
                twice: 20_000,
            },
            step_ms: (500, 12_000),
            worker_dies_every: Some(10 * MINUTE),
            hub_dies_every: Some(5 * MINUTE),
            ..Self::calm()
        }
    }

    /// Everything at once.
    #[must_use]
    pub fn storm() -> Self {
        Self {
            name: "storm",
            hub_full_every: Some(7 * MINUTE),
            worker_full_every: Some(5 * MINUTE),
            clock_jumps_every: Some(4 * MINUTE),
            clock_jump_ms_max: 6 * 3_600_000,
            partition_every: Some(6 * MINUTE),
            liars_per_mille: 200,
            ..Self::churn()
        }
    }

    /// Ten thousand workers at once, of which a tenth is away at any time, with a hub that dies, partitions and liars.
    #[must_use]
    pub fn crowd() -> Self {
        Self {
            name: "crowd",
            workers: 10_000,
            rounds: 50,
            window_ms: 15_000,
            slots_max: 16_384,
            quorum: 10,
            weather: Weather {
                latency_ms: (10, 400),
                up_bytes_per_s: 125_000,
                down_bytes_per_s: 625_000,
                lost: 10_000,
                answer_lost: 10_000,
                body_cut: 10_000,
                twice: 10_000,
            },
            step_ms: (1_000, 8_000),
            start_within: MINUTE,
            worker_dies_every: Some(10 * MINUTE),
            worker_away_max: 2 * MINUTE,
            hub_dies_every: Some(4 * MINUTE),
            partition_every: Some(5 * MINUTE),
            partition_max: MINUTE,
            liars_per_mille: 10,
            ..Self::calm()
        }
    }

    /// Every profile.
    #[must_use]
    pub fn all() -> [Self; 4] {
        [Self::calm(), Self::churn(), Self::storm(), Self::crowd()]
    }

    /// The profile of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|it| it.name == name)
    }
}
