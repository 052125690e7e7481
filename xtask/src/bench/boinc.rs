//! `boinc`: how many requests of BOINC clients one core of a hub answers, and how much of a host's time counts.
//!
//! Everything is the release build: the hub is held to one core, the load (`tests/examples/boinc_load`, which says what it
//! sends and what each figure means) has another. Log and accounts are in SQLite with `synchronous = FULL`: no reply comes
//! before its effects are on the disk. The load comes from one address and stands for the operator's proxy, which the hub
//! trusts: so each host counts by an address of its own, as strangers do.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{
    hub::{self, Hub},
    report::Figure,
};
use crate::{process, setup, workspace};

const ADDRESS: &str = "127.0.0.1:7831";
/// What is set higher than an operator has it: all requests come over the connections of one proxy, and hosts come in half
/// a minute that come in days.
const SETTINGS: &str = "\
trusted_proxies = [\"127.0.0.1\"]
connections_per_address_max = 20000
connections_max = 20000
requests_in_progress_max = 4096
new_workers_per_hour = 1000000
bindings_per_hour_per_account = 1000000
";

/// How `boinc` runs.
#[derive(Args)]
#[group(id = "boinc")]
pub(super) struct Flags {
    /// boinc: seconds that a unit of the stock client trains; 900 measures the stated share and takes an hour.
    #[arg(long, default_value_t = 60)]
    unit_seconds: u64,
    /// boinc: measure one part alone and record nothing.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// boinc: try the load with the tests' build, a tenth of the hosts and of the time, and record nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A part of the bench.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// The load of many hosts.
    Load,
    /// The stock client.
    Units,
}

impl Flags {
    /// Whether the figures are to be recorded.
    pub(super) fn is_recorded(&self) -> bool {
        !self.dry_run && self.only.is_none()
    }
}

/// Runs the parts that are wanted.
pub(super) fn measure(flags: &Flags) -> Result<Vec<Figure>> {
    setup::debian(&["boinc-client"])?;
    setup::corpora()?;
    let profile = if flags.dry_run { "debug" } else { "release" };
    let mut build = vec!["build", "--locked", "--workspace", "--bins"];
    build.extend(["--example", "boinc_load"]);
    build.extend((!flags.dry_run).then_some("--release"));
    process::required("bench-boinc-build", &mut process::cargo(&build))?;
    let mut figures = Vec::new();
    if flags.only != Some(Only::Units) {
        figures.extend(load(profile, flags.dry_run)?);
    }
    if flags.only != Some(Only::Load) {
        figures.extend(run(profile, &["units", &flags.unit_seconds.to_string()])?);
    }
    Ok(figures)
}

fn load(profile: &str, is_small: bool) -> Result<Vec<Figure>> {
    let folder = hub::empty_folder("bench-boinc")?;
    let athome = workspace::target().join(profile).join("athome");
    let release = folder.join("release");
    sign(profile, &athome, &folder, &release)?;
    println!("the hub's settings beside the defaults:\n{SETTINGS}");
    let settings = format!("{SETTINGS}boinc_release = {release:?}\n");
    let mut hub = Hub::start(&athome, ADDRESS, &settings, &folder)?;
    let takes_hosts = [("[round]", "[round]\nboinc_unit_ms = 60000")];
    let id = hub::open_run(&athome, ADDRESS, &folder, &takes_hosts)?;
    let process = hub.id().to_string();
    let share = if is_small { "10" } else { "1" };
    let figures = run(profile, &["rpc", ADDRESS, &id, &process, share])?;
    hub.stop()?;
    Ok(figures)
}

/// What an operator does once for a release.
fn sign(profile: &str, athome: &Path, folder: &Path, release: &Path) -> Result<()> {
    let application = workspace::target().join(profile).join("athome-boinc");
    let key = folder.join("signing.pem");
    let mut make = Command::new(athome);
    process::required("bench-boinc-key", make.args(["boinc", "key"]).arg(&key))?;
    let mut sign = Command::new(athome);
    sign.args(["boinc", "sign"]).arg(application);
    sign.arg("--key").arg(&key).args(["--version", "101"]);
    process::required("bench-boinc-sign", sign.arg("--release").arg(release))?;
    Ok(())
}

/// Runs the example on the load's core, shows what it says and keeps its figures.
fn run(profile: &str, arguments: &[&str]) -> Result<Vec<Figure>> {
    let program = workspace::target()
        .join(profile)
        .join("examples/boinc_load");
    let mut load = hub::on_core(1, &program)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the load")?;
    let output = load.stdout.take().context("it has an output")?;
    let mut figures = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.strip_prefix("figure ") {
            Some(text) => figures.push(hub::figure(text)?),
            None => println!("{line}"),
        }
    }
    ensure!(load.wait()?.success(), "the load failed");
    Ok(figures)
}
