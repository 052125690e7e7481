//! `sim`: ten thousand workers for fifty rounds in simulated time, on one core.
//!
//! The production hub, store and workers with churn and faults: the profile `crowd` of `tests/sim`, seed 1. `sim_seconds`
//! is the simulation; what then reads the log, checks every signature and does every merge again is `sim_check_seconds`.
//! Training steps cost next to nothing here: they are the simulator's.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::report::Figure;
use crate::sim;

/// Builds and runs it; what the simulator finds broken is an error.
pub(super) fn measure() -> Result<Vec<Figure>> {
    let program = sim::build()?;
    // SQLite's connections have threads of their own: the core is theirs too.
    let output = Command::new("taskset")
        .args(["-c", "0"])
        .arg(&program)
        .args(["--profile=crowd", "--seed=1", "--figures"])
        .output()
        .context("cannot start the simulator on one core (is taskset installed?)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "the simulation does not hold:\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    figures(&text)
}

fn figures(text: &str) -> Result<Vec<Figure>> {
    let lines = text.lines().filter_map(|it| it.strip_prefix("figure "));
    let figures: Vec<Figure> = lines.map(figure).collect::<Result<_>>()?;
    ensure!(!figures.is_empty(), "the simulator printed no figure");
    Ok(figures)
}

/// `NAME VALUE UNIT`.
fn figure(line: &str) -> Result<Figure> {
    let mut words = line.splitn(3, ' ');
    let mut word = || words.next().context("a figure has three parts");
    let (name, value, unit) = (word()?, word()?.parse()?, word()?);
    let known = ["s", "rounds", "updates", "entries", "requests", "MB"];
    let unit = known.into_iter().find(|it| *it == unit);
    let unit = unit.with_context(|| format!("the simulator printed `{line}`"))?;
    Ok(Figure::new(name, value, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_figures() {
        let figures =
            figures("seed 1: fine\nfigure sim_seconds 99.5 s\nfigure sim_rounds 50 rounds\n");
        let figures = figures.unwrap();
        assert_eq!(figures.len(), 2);
        assert_eq!(
            (figures[0].name.as_str(), figures[0].unit),
            ("sim_seconds", "s")
        );
        assert!(super::figures("seed 1: fine").is_err());
        assert!(super::figures("figure sim_seconds 99.5 parsecs").is_err());
    }
}
