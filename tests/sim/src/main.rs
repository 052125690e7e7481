//! `sim --seed N --workers N --profile NAME`: one simulation, and what came of it.

#![expect(
    clippy::print_stdout,
    reason = "its output is for whoever typed the command"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use sim::{Profile, simulate};

/// Simulates a run: production hub and workers on a seeded network, disk, clock and machine.
#[derive(Parser)]
struct Arguments {
    /// The seed: the same gives the same log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Workers; the profile's number without it.
    #[arg(long)]
    workers: Option<u64>,
    /// Rounds to merge; the profile's number without it.
    #[arg(long)]
    rounds: Option<u64>,
    /// How many, how long, which faults.
    #[arg(long, default_value = "storm", value_parser = profile)]
    profile: Profile,
    /// So many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
}

fn main() -> Result<()> {
    // Hubs and workers complain of what is done to them here; whoever wants to read it says so.
    let wanted = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::OFF.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(wanted)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    sim::hush_planned_panics();
    let arguments = Arguments::parse();
    let mut broken = 0;
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        let mut profile = arguments.profile.clone();
        profile.workers = arguments.workers.unwrap_or(profile.workers);
        profile.rounds = arguments.rounds.unwrap_or(profile.rounds);
        let begun = Instant::now();
        let outcome = simulate(seed, profile).with_context(|| format!("seed {seed}"))?;
        show(seed, &outcome, begun.elapsed());
        broken += outcome.broken.len();
    }
    anyhow::ensure!(broken == 0, "{broken} things do not hold");
    Ok(())
}

fn profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| {
        let known = Profile::all().map(|it| it.name);
        format!("there is no such profile; there are {}", known.join(", "))
    })
}

fn show(seed: u64, outcome: &sim::Outcome, took: Duration) {
    println!(
        "seed {seed}: log {} of {} entries, {} rounds merged, {} empty, {} updates merged, {} refused, {} not revealed, \
         distance {:.5} to {:.5}, {} s simulated in {:.1} s, {} answers",
        outcome.log_hash.short(),
        outcome.entries,
        outcome.rounds_merged,
        outcome.rounds_empty,
        outcome.updates_merged,
        outcome.updates_refused,
        outcome.updates_not_revealed,
        outcome.distance.0,
        outcome.distance.1,
        outcome.simulated.as_secs(),
        took.as_secs_f64(),
        outcome.answers,
    );
    for (failure, times) in &outcome.failures {
        println!("  {times} worker processes ended: {failure}");
    }
    for problem in &outcome.broken {
        println!("  broken: {problem}");
    }
}
