//! Encoding, decoding and merging updates on one core.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::report::Figure;
use crate::{process, workspace};

/// Runs the engine's own bench and passes its lines on.
pub(super) fn measure() -> Result<Vec<Figure>> {
    measure_example("merge_speed")
}

/// Runs an example of the engine that prints `name value` lines, on one core.
pub(super) fn measure_example(example: &str) -> Result<Vec<Figure>> {
    process::required(
        &format!("bench-{example}-build"),
        &mut process::cargo(&["build", "--locked", "-p", "engine", "--example", example]),
    )?;
    let output = Command::new(workspace::target().join("debug/examples").join(example))
        .env("RAYON_NUM_THREADS", "1")
        .output()
        .with_context(|| format!("cannot start {example}"))?;
    ensure!(output.status.success(), "{example} failed");
    figures(&String::from_utf8_lossy(&output.stdout))
}

/// `kept 64` heads lines of `name value`, whose unit is the name's end.
fn figures(text: &str) -> Result<Vec<Figure>> {
    let mut kept = String::new();
    let mut figures = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        if name == "kept" {
            kept = format!("_kept_{value}");
            continue;
        }
        let value = value
            .parse()
            .with_context(|| format!("the bench printed `{line}`"))?;
        figures.push(Figure::new(format!("{name}{kept}"), value, unit(name)));
    }
    ensure!(!figures.is_empty(), "the bench printed no figure");
    Ok(figures)
}

fn unit(name: &str) -> &'static str {
    match name {
        _ if name.ends_with("mcoord_per_s") => "10^6 values/s",
        _ if name.ends_with("mparameters_per_s") => "10^6 parameters/s",
        _ if name.ends_with("mb_per_s") => "MB/s",
        _ if name.ends_with("bytes_per_parameter") => "bytes/parameter",
        _ if name.ends_with("_ratio") => "ratio",
        _ if name.ends_with("_rounds") => "rounds",
        _ if name.ends_with("_updates") => "updates",
        _ if name.ends_with("_ms") => "ms",
        _ if name.ends_with("_s") => "s",
        _ if name.ends_with("bytes") => "bytes",
        _ => "value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_figures() {
        let figures = figures("kept 64\nmerge_mcoord_per_s 120.5\nkept 32\nencode_ms 3\n").unwrap();
        assert_eq!(figures[0].name, "merge_mcoord_per_s_kept_64");
        assert_eq!(figures[1].unit, "ms");
        assert!(super::figures("").is_err());
    }
}
