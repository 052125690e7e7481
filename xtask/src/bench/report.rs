//! docs/measurements.md: one section a bench, written by the bench.

use std::{fs, path::PathBuf, time::SystemTime};

use anyhow::{Context, Result};

use crate::{process, workspace};

const HEAD: &str = "# Measurements

Written by `cargo xtask bench`; not edited by hand. Compare figures of one section only: machines differ.
";

/// One measured value.
pub(super) struct Figure {
    /// What, in one word with underscores.
    pub(super) name: String,
    /// How much.
    pub(super) value: f64,
    /// Of what.
    pub(super) unit: &'static str,
}

impl Figure {
    /// A figure.
    pub(super) fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            value,
            unit,
        }
    }

    fn line(&self) -> String {
        let digits = match self.value.abs() {
            // Bytes per parameter have goals of three digits.
            0.0..0.1 => 4,
            0.1..10.0 => 3,
            _ => 1,
        };
        format!("{} {:.*} {}", self.name, digits, self.value, self.unit)
    }
}

/// Prints the figures.
pub(super) fn show(figures: &[Figure]) {
    for figure in figures {
        println!("{}", figure.line());
    }
}

/// Prints the figures and replaces the bench's section of the document. `commit` is what was measured: the tree may have
/// changed since.
pub(super) fn record(bench: &str, commit: &str, figures: &[Figure]) -> Result<()> {
    show(figures);
    let lines: Vec<String> = figures.iter().map(Figure::line).collect();
    let path = path();
    let old = fs::read_to_string(&path).unwrap_or_default();
    let section = format!(
        "## {bench}\n\nCommit {commit}, {}, day {}. Command: `cargo xtask {}`\n\n```\n{}\n```\n",
        processor(),
        day(),
        std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        lines.join("\n")
    );
    fs::write(&path, replaced(&old, bench, &section))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn path() -> PathBuf {
    workspace::root().join("docs/measurements.md")
}

fn replaced(old: &str, bench: &str, section: &str) -> String {
    let mut sections: Vec<String> = old
        .split("\n## ")
        .skip(1)
        .map(|it| format!("## {}\n", it.trim_end()))
        .filter(|it| !it.starts_with(&format!("## {bench}\n")))
        .collect();
    sections.push(section.to_owned());
    sections.sort();
    format!("{HEAD}\n{}", sections.join("\n"))
}

/// The commit that is checked out, and whether what benches measure was changed since.
pub(super) fn commit() -> String {
    let root = workspace::root();
    let root = root.to_string_lossy();
    let hash = process::answer("git", &["-C", &root, "rev-parse", "--short=12", "HEAD"])
        .unwrap_or_else(|| "unknown".to_owned());
    let changed = process::answer(
        "git",
        &[
            "-C",
            &root,
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "crates",
            "xtask/demo.toml",
        ],
    )
    .is_some_and(|it| !it.is_empty());
    if changed {
        format!("{hash} with changes")
    } else {
        hash
    }
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|it| it.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name)
        .trim();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{name}, {cores} cores")
}

/// Days since 1970 as a date.
fn day() -> String {
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |it| it.as_secs());
    date(seconds / 86_400)
}

/// Proleptic Gregorian date of a day number, by Howard Hinnant's `civil_from_days`.
fn date(days: u64) -> String {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(20_515), "2026-03-03");
    }

    #[test]
    fn a_section_is_replaced_and_the_others_stay() {
        let first = replaced("", "engine", "## engine\n\nold\n");
        let second = replaced(&first, "demo", "## demo\n\nnew\n");
        let third = replaced(&second, "engine", "## engine\n\nnewer\n");
        assert_eq!(third.matches("## ").count(), 2, "{third}");
        assert!(third.contains("newer") && !third.contains("old"), "{third}");
        assert_eq!(third, replaced(&third, "engine", "## engine\n\nnewer\n"));
    }

    #[test]
    fn lines_have_three_parts() {
        assert_eq!(Figure::new("a_b", 1.25, "ratio").line(), "a_b 1.250 ratio");
        assert_eq!(
            Figure::new("c", 1234.56, "tokens/s").line(),
            "c 1234.6 tokens/s"
        );
    }
}
