//! Training on one core: the engine against PyTorch's eager f32, in alternating runs.
//!
//! Both programs train the same shapes on random tokens; each pair of runs gives one ratio and the median counts,
//! because a shared machine's speed changes more between minutes than between neighbours.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::report::Figure;
use crate::{process, setup, workspace};

/// Pairs of runs.
const PAIRS: usize = 5;
/// The core that both are pinned to: the last one, as interrupts like the first.
const CORE: &str = "1";

/// A model of the bench: its letter, timed steps.
const MODELS: [(&str, u32); 2] = [("a", 6), ("b", 60)];

/// One run's figures.
struct Run {
    tokens_per_s: f64,
    /// By the program's own processor time: what other programs on the machine take away does not count.
    tokens_per_processor_s: f64,
    peak_bytes: f64,
}

/// Speed and memory of both, and the ratios.
pub(super) fn measure() -> Result<Vec<Figure>> {
    let ours = build()?;
    // The registry's PyTorch is a build for GPUs that works on a CPU with all that it depends on: a large download.
    println!("installing PyTorch, 3 GB the first time");
    let python = setup::virtual_environment("python-torch", &["torch", "numpy"], false)?;
    let script = workspace::root().join("crates/engine/benches/peer/torch_speed.py");
    let mut figures = Vec::new();
    for (model, steps) in MODELS {
        let mut speed_ratios = Vec::new();
        let mut processor_ratios = Vec::new();
        let mut memory_ratios = Vec::new();
        let mut speeds = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let steps = steps.to_string();
            let own = run(&ours, &[model, &steps])?;
            let peer = run(&python, &[&script.to_string_lossy(), model, &steps])?;
            println!(
                "{model} pair {}: {:.0} and {:.0} tokens/s",
                pair + 1,
                own.tokens_per_s,
                peer.tokens_per_s
            );
            speed_ratios.push(own.tokens_per_s / peer.tokens_per_s);
            processor_ratios.push(own.tokens_per_processor_s / peer.tokens_per_processor_s);
            memory_ratios.push(own.peak_bytes / peer.peak_bytes);
            speeds.0.push(own.tokens_per_s);
            speeds.1.push(peer.tokens_per_s);
        }
        figures.extend([
            Figure::new(format!("engine_f32_{model}"), median(speed_ratios), "ratio"),
            Figure::new(
                format!("engine_f32_{model}_by_processor_time"),
                median(processor_ratios),
                "ratio",
            ),
            Figure::new(
                format!("engine_memory_{model}"),
                median(memory_ratios),
                "ratio",
            ),
            Figure::new(
                format!("engine_tokens_{model}"),
                median(speeds.0),
                "tokens/s",
            ),
            Figure::new(
                format!("pytorch_tokens_{model}"),
                median(speeds.1),
                "tokens/s",
            ),
        ]);
    }
    Ok(figures)
}

fn build() -> Result<PathBuf> {
    process::required(
        "bench-engine-build",
        &mut process::cargo(&[
            "build",
            "--locked",
            "-p",
            "engine",
            "--example",
            "train_speed",
        ]),
    )?;
    Ok(workspace::target().join("debug/examples/train_speed"))
}

fn run(program: &Path, arguments: &[&str]) -> Result<Run> {
    let output = Command::new("taskset")
        .args(["-c", CORE])
        .arg(program)
        .args(arguments)
        .env("OMP_NUM_THREADS", "1")
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .context("`taskset` was not found: install Debian's util-linux")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            program.display(),
            process::tail(&String::from_utf8_lossy(&output.stderr))
        );
    }
    Ok(Run {
        tokens_per_s: value(&text, "tokens_per_second")?,
        tokens_per_processor_s: value(&text, "tokens_per_processor_second")?,
        peak_bytes: value(&text, "peak_bytes")?,
    })
}

/// The value of the line `NAME VALUE`.
pub(super) fn value(text: &str, name: &str) -> Result<f64> {
    text.lines()
        .find_map(|it| {
            it.strip_prefix(name)?
                .trim()
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("the program did not print `{name}`: {text}"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let text = "tokens_per_second 1857.5\npeak_bytes 412000000\n";
        assert_eq!(value(text, "peak_bytes").unwrap(), 412_000_000.0);
        assert!(value(text, "loss").is_err());
    }

    #[test]
    fn the_median_does_not_mind_outliers() {
        assert_eq!(median(vec![1.2, 90.0, 1.1, 1.3, 0.01]), 1.2);
    }
}
