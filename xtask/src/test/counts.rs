//! Reading how many tests passed and failed out of what test runners print.

use std::fmt;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Most lines shown of failing tests.
const FAILURE_LINES_MAX: usize = 400;

/// Tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Passed.
    pub(super) passed: u64,
    /// Failed, timed out or not started.
    pub(super) failed: u64,
}

impl Counts {
    /// One check that passed.
    pub(super) fn one() -> Self {
        Self {
            passed: 1,
            failed: 0,
        }
    }

    /// Adds others.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return Ok(());
        }
        write!(formatter, "{} passed", self.passed)?;
        if 0 < self.failed {
            write!(formatter, ", {} failed", self.failed)?;
        }
        Ok(())
    }
}

/// Counts of cargo-nextest: `Summary [ 1.2s] 10 tests run: 8 passed (1 slow), 1 failed, 1 timed out, 0 skipped`.
pub(super) fn nextest(log: &str) -> Option<Counts> {
    let line = log
        .lines()
        .rev()
        .find(|it| it.trim_start().starts_with("Summary ["))?;
    let (_, outcomes) = line
        .split_once(" run: ")
        .or_else(|| line.split_once(" run, "))?;
    let mut counts = Counts::default();
    for outcome in outcomes.split(", ") {
        let (number, rest) = outcome.trim().split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        if rest.starts_with("passed") {
            counts.passed += number;
        } else if !rest.starts_with("skipped") {
            counts.failed += number;
        }
    }
    Some(counts)
}

/// The part of nextest's log that shows failing tests.
pub(super) fn nextest_failures(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let from = lines
        .iter()
        .rposition(|it| it.trim_start().starts_with("Summary ["))
        .unwrap_or(0);
    let first = lines
        .iter()
        .position(|it| it.contains(" FAIL [") || it.contains("TIMEOUT ["))
        .unwrap_or(from);
    let to = lines.len().min(first + FAILURE_LINES_MAX);
    lines[first..to].join("\n")
}

/// Counts of vitest's JSON report.
pub(super) fn vitest(report: &str) -> Result<Counts> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Results {
        num_passed_tests: u64,
        num_failed_tests: u64,
    }
    let results: Results = serde_json::from_str(report).context("vitest's report does not read")?;
    Ok(Counts {
        passed: results.num_passed_tests,
        failed: results.num_failed_tests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nextest_summaries() {
        let counts = |text: &str| nextest(text).map(|it| (it.passed, it.failed));
        assert_eq!(
            counts("x\n     Summary [   0.010s] 5 tests run: 5 passed, 0 skipped\n"),
            Some((5, 0))
        );
        assert_eq!(
            counts(
                "Summary [1.0s] 10 tests run: 7 passed (1 slow), 2 failed, 1 timed out, 3 skipped"
            ),
            Some((7, 3))
        );
        assert_eq!(
            counts("     Summary [   0.010s] 1 test run: 1 passed, 0 skipped"),
            Some((1, 0))
        );
        assert_eq!(counts("error: could not compile"), None);
    }

    #[test]
    fn vitest_reports() {
        let report = r#"{"numTotalTests":5,"numPassedTests":3,"numFailedTests":2,"success":false}"#;
        assert_eq!(
            vitest(report).unwrap(),
            Counts {
                passed: 3,
                failed: 2
            }
        );
        assert!(vitest("{}").is_err());
    }
}
