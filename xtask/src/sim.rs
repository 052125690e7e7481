//! `cargo xtask sim`: a whole run in simulated time, from a seed; the same seed gives the same log.
//!
//! Builds `tests/sim` with optimisation, runs it, and ends as it ended.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{process, workspace};

/// What to simulate.
#[derive(Args)]
pub(crate) struct Options {
    /// The seed: the same gives the same log.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many seeds, one after the other, from --seed on.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Workers; the profile's number without it.
    #[arg(long)]
    workers: Option<u64>,
    /// Rounds to merge; the profile's number without it.
    #[arg(long)]
    rounds: Option<u64>,
    /// calm: nothing goes wrong; churn: links lose, machines come and go, the hub dies; storm: that, full disks, wrong
    /// clocks, partitions and liars; crowd: ten thousand workers. More in tests/sim/src/profile.rs.
    #[arg(long, default_value = "storm")]
    profile: String,
}

/// Simulates; the exit code is the simulator's: 0 if everything holds.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let program = build()?;
    let mut command = std::process::Command::new(&program);
    command
        .arg(format!("--seed={}", options.seed))
        .arg(format!("--seeds={}", options.seeds))
        .arg(format!("--profile={}", options.profile));
    for (name, number) in [("workers", options.workers), ("rounds", options.rounds)] {
        if let Some(number) = number {
            command.arg(format!("--{name}={number}"));
        }
    }
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    // Without a code it was ended by a signal.
    let code = status.code().and_then(|it| u8::try_from(it).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// The optimised simulator; a first build takes minutes, so cargo's own lines are shown.
pub(crate) fn build() -> Result<PathBuf> {
    let arguments = [
        "build",
        "--locked",
        "--release",
        "--workspace",
        "--bin",
        "sim",
    ];
    let status = process::cargo(&arguments)
        .status()
        .context("cannot start cargo")?;
    ensure!(
        status.success(),
        "the simulator does not build: what cargo said stands above"
    );
    Ok(workspace::target().join("release/sim"))
}
