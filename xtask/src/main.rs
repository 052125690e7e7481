//! The repository's tasks: `up`, `test`, `bench`, `fuzz`, `sim`, `setup`, `tidy`.
//!
//! Everything that a shell script or a Makefile would do elsewhere is done here, in the project's one language.
//! It depends on few crates, so that the first `cargo xtask` of a fresh clone starts soon,
//! and it reaches the other parts only as a stranger would: through their command lines and HTTP.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "these tasks talk to the person who typed them"
)]

mod workspace;

mod documents;
mod http;
mod process;
mod setup;

mod bench;
mod fuzz;
mod sim;
mod test;
mod tidy;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The tasks of the AI@home repository.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start hub, three workers and gateway on this machine and open the run `demo`.
    Up(up::Options),
    /// Build and test everything; closes with `N passed, N failed`.
    Test(test::Options),
    /// Measure, print `figure value unit` lines and write docs/measurements.md.
    Bench(bench::Options),
    /// Install what building, running and testing need, through the package clients.
    Setup,
    /// Fuzz the decoders of strangers' bytes (nightly compiler and cargo-fuzz).
    Fuzz(fuzz::Options),
    /// Simulate a run from a seed: production hub and workers, seeded network, disks, clocks and faults.
    Sim(sim::Options),
    /// Check layering, names, licences, purity and documents.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Up(options) => up::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Sim(options) => match sim::run(&options) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Task::Setup => setup::everything(),
        Task::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
