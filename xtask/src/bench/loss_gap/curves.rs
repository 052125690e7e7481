//! The curves, committed beside the figures: `docs/loss-gap.csv`.

use std::{fmt::Write, fs};

use anyhow::{Context, Result};

use super::{
    jobs::{Baseline, Settings},
    runs::Outcome,
};
use crate::workspace;

/// Writes every finished run's curve; its last line has the loss over the whole held-out text.
pub(super) fn write(
    settings: &Settings,
    baseline: Baseline,
    outcomes: &[Option<Outcome>],
) -> Result<()> {
    let names: Vec<&str> = std::iter::once("baseline")
        .chain(settings.scenarios.keys().map(String::as_str))
        .collect();
    let mut text = format!(
        "# Held-out loss, nats a token. Baseline: batch {}, learning rate {}e-9, beta2 {} ppm.\n# held_out: part (on the way) or whole (at the end).\nrun,seed,tokens,held_out,loss\n",
        baseline.batch_rows, baseline.learning_rate_peak_nano, baseline.beta2_ppm
    );
    for (seed, of_seed) in (1..).zip(outcomes.chunks(names.len())) {
        for (name, outcome) in names.iter().zip(of_seed) {
            if let Some(outcome) = outcome {
                lines(&mut text, name, seed, settings.tokens, outcome);
            }
        }
    }
    let path = workspace::root().join("docs/loss-gap.csv");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn lines(text: &mut String, name: &str, seed: u64, tokens: u64, outcome: &Outcome) {
    for point in &outcome.curve {
        let _ = writeln!(
            text,
            "{name},{seed},{},part,{:.5}",
            point.tokens, point.loss
        );
    }
    let _ = writeln!(
        text,
        "{name},{seed},{tokens},whole,{:.5}",
        outcome.held_out_loss
    );
}
