//! Whole runs in simulated time, each of one kind of trouble, and the profiles that mix them.
//!
//! What must hold whatever happens is `sim::check`'s to say; a test here adds what its own trouble must not do.
//! A seed that fails outside of these tests becomes one of `pinned`.

mod absences;
mod clocks;
mod crashes;
mod disks;
mod liars;
mod partitions;
mod pinned;
mod profiles;
mod repeats;

use std::time::Duration;

use anyhow::Result;
use sim::{Outcome, Profile, Simulation, in_simulated_world};

const MINUTE: Duration = Duration::from_secs(60);

/// Runs what a test does to a simulation; everything that must hold at the end does.
#[track_caller]
fn check(
    seed: u64,
    profile: Profile,
    script: impl AsyncFnOnce(&mut Simulation) -> Result<()> + Send + 'static,
) -> Outcome {
    let outcome = in_simulated_world(seed, move || async move {
        let mut simulation = Simulation::begin(seed, profile).await?;
        script(&mut simulation).await?;
        simulation.end().await
    });
    outcome.and_then(Outcome::holding).unwrap()
}

/// A few workers and no trouble but what a test makes.
fn few(workers: u64) -> Profile {
    Profile {
        workers,
        ..Profile::calm()
    }
}
