//! `cargo xtask bench`: figures with the command, the commit and the processor they come from.
//!
//! Each figure is printed as `figure value unit` and written to docs/measurements.md.
//! Nobody edits that file by hand: the next run replaces the part of the bench that ran and keeps the others.

mod boinc;
mod demo;
mod engine;
mod hub;
mod links;
mod loss_gap;
mod merge;
mod report;
mod sim;
mod verify;

use anyhow::Result;
use clap::{Args, ValueEnum};

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// The part.
    #[arg(value_enum)]
    part: Part,
    #[command(flatten)]
    loss_gap: loss_gap::Flags,
    #[command(flatten)]
    boinc: boinc::Flags,
}

/// The benches.
#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Training speed and memory on one core against PyTorch.
    Engine,
    /// Time from `up` to the first merged round and to a model that has learnt something.
    Demo,
    /// Time to merge updates.
    Merge,
    /// Time to verify a run over that to read and merge it.
    Verify,
    /// Requests that one core of a hub answers, and the workers that it holds.
    Hub,
    /// Requests of BOINC clients that one core of a hub answers, and the share of a host's time that counts.
    Boinc,
    /// Share of a worker's time in inner steps behind a home link.
    HomeLink,
    /// Bytes on the wire per parameter and round.
    Bytes,
    /// Time from `athome join` to the first inner step that counts.
    Join,
    /// Time to simulate ten thousand workers for fifty rounds on one core.
    Sim,
    /// Held-out loss of training in rounds against one process; hours, and goes on where it stopped.
    LossGap,
}

/// Measures, prints and records.
pub(crate) fn run(options: &Options) -> Result<()> {
    let commit = report::commit();
    let (name, figures) = match options.part {
        Part::Engine => ("engine", engine::measure()?),
        Part::Demo => ("demo", demo::measure()?),
        Part::Merge => ("merge", merge::measure()?),
        Part::Verify => ("verify", verify::measure()?),
        Part::Hub => ("hub", hub::measure()?),
        Part::Boinc => ("boinc", boinc::measure(&options.boinc)?),
        Part::HomeLink => ("home-link", links::measure("home-link")?),
        Part::Bytes => ("bytes", links::measure("bytes")?),
        Part::Join => ("join", links::measure("join")?),
        Part::Sim => ("sim", sim::measure()?),
        Part::LossGap => ("loss-gap", loss_gap::measure(&options.loss_gap)?),
    };
    if matches!(options.part, Part::Boinc) && !options.boinc.is_recorded() {
        report::show(&figures);
        return Ok(());
    }
    report::record(name, &commit, &figures)
}
