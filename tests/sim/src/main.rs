//! `sim --seed N --workers N --profile NAME`: one simulation, and what came of it.

#![expect(
    clippy::print_stdout,
    reason = "its output is for whoever typed the command"
)]

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use sim::{Profile, simulate_and_tell};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Print `figure NAME VALUE UNIT` lines too, for the bench.
    #[arg(long)]
    figures: bool,
}

/// What a simulation took of the machine.
#[derive(Clone, Copy)]
struct Took {
    time: Duration,
    /// Of all threads, in their own code and in the kernel's.
    processor: Duration,
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
        let (sender, receiver) = std::sync::mpsc::channel();
        let begun = Took::now();
        let outcome = simulate_and_tell(seed, profile, move || {
            // Nobody listens any more if the simulation is given up.
            let _ = sender.send(Took::now());
        });
        let ended = Took::now();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                println!("seed {seed}: broken: {error:#}");
                broken += 1;
                continue;
            }
        };
        show(seed, &outcome, ended.time - begun.time);
        if arguments.figures {
            let lived = receiver.recv().context("it lived")?;
            show_figures(&outcome, lived - begun, ended - lived);
        }
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

impl Took {
    /// Since the process began.
    fn now() -> Self {
        static BEGUN: OnceLock<Instant> = OnceLock::new();
        // User and system time are the 14th and 15th word, in hundredths of a second; the second word may have spaces.
        let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let words = text.rsplit(')').next().unwrap_or_default().split(' ');
        let ticks: u64 = words
            .skip(12)
            .take(2)
            .filter_map(|it| it.parse::<u64>().ok())
            .sum();
        Self {
            time: BEGUN.get_or_init(Instant::now).elapsed(),
            processor: Duration::from_millis(ticks * 10),
        }
    }
}

impl std::ops::Sub for Took {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            time: self.time - before.time,
            processor: self.processor - before.processor,
        }
    }
}

fn show_figures(outcome: &sim::Outcome, lived: Took, checked: Took) {
    let figure = |name: &str, value: f64, unit: &str| println!("figure sim_{name} {value} {unit}");
    figure("seconds", lived.time.as_secs_f64(), "s");
    figure("processor_seconds", lived.processor.as_secs_f64(), "s");
    figure("check_seconds", checked.time.as_secs_f64(), "s");
    figure(
        "check_processor_seconds",
        checked.processor.as_secs_f64(),
        "s",
    );
    figure("simulated_seconds", outcome.simulated.as_secs_f64(), "s");
    figure("rounds", outcome.rounds_merged as f64, "rounds");
    figure("updates", outcome.updates_merged as f64, "updates");
    figure("entries", outcome.entries as f64, "entries");
    figure("requests", outcome.answers as f64, "requests");
    figure("rss_mb", rss_mb(), "MB");
}

/// Most memory that the process ever held.
fn rss_mb() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0 / 1e6
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
