//! `cargo xtask test`: everything that must hold before a change lands, on a fresh clone with empty caches.
//!
//! Stages run in order, each with its time; what a stage prints lies in `target/test-logs`,
//! and only what failed is shown. The last line is `N passed, N failed`, in which every test counts
//! and every stage that is no test runner counts as one.

mod counts;

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{process, setup, workspace};
use counts::Counts;

/// The time that a cold run may take on two cores.
const BUDGET: Duration = Duration::from_secs(55 * 60);

/// What to test.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these stages (set-up and build run anyway); all without one.
    #[arg(value_enum)]
    stages: Vec<Stage>,
}

/// A part of the run with a time of its own.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// rustfmt.
    Format,
    /// Clippy over our own crates, warnings are errors.
    Clippy,
    /// Types and tests of the web app.
    Web,
    /// Tests of every crate.
    Crates,
    /// Real processes, a real browser, real clients.
    EndToEnd,
}

/// What was counted and what went wrong, so far.
#[derive(Default)]
struct Report {
    counts: Counts,
    failures: Vec<String>,
}

/// Runs it all.
pub(crate) fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let wants = |stage: Stage| options.stages.is_empty() || options.stages.contains(&stage);
    let mut report = Report::default();

    // Network and disk of the package clients beside the compiler: neither waits for the other.
    let test_tools = thread::spawn(|| timed(setup::test_tools));
    let web = thread::spawn(|| {
        timed(|| {
            setup::corpora()?;
            setup::web()
        })
    });
    let nextest = setup::nextest()?;
    if wants(Stage::Format) {
        report.stage("format", format);
    }
    let (web, web_time) = web
        .join()
        .map_err(|_| anyhow::anyhow!("the web set-up died"))?;
    report.finish(
        "npm packages, web build",
        web_time,
        web.map(|()| Counts::default()),
    );
    let built = report.stage("build", build);
    if built && wants(Stage::Clippy) {
        report.stage("clippy", clippy);
    }
    if wants(Stage::Web) {
        report.stage("web", web_tests);
    }
    let (test_tools, tools_time) = test_tools
        .join()
        .map_err(|_| anyhow::anyhow!("the set-up of the test tools died"))?;
    report.finish(
        "apt, pip (beside the build)",
        tools_time,
        test_tools.map(|()| Counts::default()),
    );
    if built && wants(Stage::Crates) {
        report.stage("crates", || {
            nextest_run("crates", "not package(tests)", nextest.as_ref())
        });
    }
    if built && wants(Stage::EndToEnd) {
        report.stage("end to end", || {
            nextest_run("end-to-end", "package(tests)", nextest.as_ref())
        });
    }
    report.close(begin.elapsed())
}

impl Report {
    /// Runs a stage; tells whether it went through.
    fn stage(&mut self, name: &str, work: impl FnOnce() -> Result<Counts>) -> bool {
        let (outcome, time) = timed(work);
        self.finish(name, time, outcome)
    }

    fn finish(&mut self, name: &str, time: Duration, outcome: Result<Counts>) -> bool {
        let seconds = time.as_secs_f64();
        match outcome {
            Ok(counts) => {
                self.counts.add(counts);
                println!("{name:<28} {seconds:>8.1} s   {counts}");
                counts.failed == 0
            }
            Err(error) => {
                self.counts.failed += 1;
                println!("{name:<28} {seconds:>8.1} s   failed\n\n{error:#}\n");
                self.failures.push(name.to_owned());
                false
            }
        }
    }

    fn close(self, time: Duration) -> Result<()> {
        println!("{:<28} {:>8.1} s", "all", time.as_secs_f64());
        if BUDGET < time {
            println!(
                "That is more than the {} minutes that a cold run may take.",
                BUDGET.as_secs() / 60
            );
        }
        if !self.failures.is_empty() {
            println!("failed: {}", self.failures.join(", "));
        }
        println!(
            "{} passed, {} failed",
            self.counts.passed, self.counts.failed
        );
        if 0 < self.counts.failed {
            std::process::exit(1);
        }
        Ok(())
    }
}

fn format() -> Result<Counts> {
    process::required(
        "format",
        &mut process::cargo(&["fmt", "--all", "--", "--check", "-l"]),
    )?;
    Ok(Counts::one())
}

/// Binaries and tests in one call, so that all crates are built once with one feature set.
fn build() -> Result<Counts> {
    process::required(
        "build",
        &mut process::cargo(&["build", "--workspace", "--bins", "--tests", "--locked"]),
    )?;
    Ok(Counts::default())
}

fn clippy() -> Result<Counts> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    process::required("clippy", &mut process::cargo(&arguments))?;
    Ok(Counts::one())
}

fn web_tests() -> Result<Counts> {
    let folder = workspace::root().join("web");
    process::required(
        "web-check",
        &mut process::command_in(&folder, "npm", &["run", "check"]),
    )?;
    let mut counts = Counts::one();
    let results = workspace::logs().join("vitest.json");
    let reporter = format!("--outputFile={}", results.display());
    let log = process::logged(
        "web-vitest",
        &mut process::command_in(
            &folder,
            "npx",
            &[
                "--no-install",
                "vitest",
                "run",
                "--reporter=default",
                "--reporter=json",
                &reporter,
            ],
        ),
    )?;
    let text = std::fs::read_to_string(&results).with_context(|| {
        format!(
            "vitest wrote no {}\n{}",
            results.display(),
            process::tail(&log.text)
        )
    })?;
    let tests = counts::vitest(&text)?;
    if !log.success {
        println!("{}", process::tail(&log.text));
        if tests.failed == 0 {
            bail!(
                "vitest failed outside of a test; see {}",
                log.path.display()
            );
        }
    }
    counts.add(tests);
    Ok(counts)
}

fn nextest_run(name: &str, filter: &str, extra_path: Option<&PathBuf>) -> Result<Counts> {
    let mut command = process::cargo(&["nextest", "run", "--workspace", "--locked", "-E", filter]);
    if let Some(folder) = extra_path {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", folder.display()));
    }
    let log = process::logged(name, &mut command)?;
    let Some(counts) = counts::nextest(&log.text) else {
        bail!(
            "nextest did not come to an end; see {}\n{}",
            log.path.display(),
            process::tail(&log.text)
        );
    };
    if !log.success {
        println!("{}", counts::nextest_failures(&log.text));
        if counts.failed == 0 {
            bail!(
                "nextest failed without a failing test; see {}",
                log.path.display()
            );
        }
    }
    if counts.passed + counts.failed == 0 {
        bail!("nextest ran no test; see {}", log.path.display());
    }
    Ok(counts)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let outcome = work();
    (outcome, begin.elapsed())
}
