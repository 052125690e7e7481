//! The demonstration network: which programs run with which arguments, and how the run `demo` is opened.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{Addresses, athome, children::Program, preparation::say};
use crate::{http, process, workspace};

/// The demonstration's charter, without the data that `athome run create` fills in.
const CHARTER: &str = include_str!("../../demo.toml");

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
pub(super) fn gateway(addresses: Addresses) -> Program {
    athome(
        "gateway",
        arguments(&[
            "gateway",
            &format!("http://{}", addresses.hub),
            "--listen",
            &addresses.gateway.to_string(),
        ]),
    )
}

/// Three workers: one thread each, the second and third held to a part of a core.
pub(super) fn workers(folder: &Path, addresses: Addresses) -> Vec<Program> {
    let hub = format!("http://{}", addresses.hub);
    [("swift", "1.0"), ("steady", "0.5"), ("slow", "0.25")]
        .into_iter()
        .map(|(name, quota)| {
            let place = folder.join(format!("worker-{name}"));
            let place = place.to_string_lossy();
            athome(
                &format!("worker-{name}"),
                arguments(&[
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
                    "--cpu-quota",
                    quota,
                ]),
            )
        })
        .collect()
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
    say("importing the corpus and opening the run `demo`");
    let charter = folder.join("demo.toml");
    fs::write(&charter, CHARTER).with_context(|| format!("cannot write {}", charter.display()))?;
    let mut create = Command::new(workspace::athome());
    create
        .args(["run", "create"])
        .arg(&charter)
        .arg("--hub")
        .arg(format!("http://{}", addresses.hub));
    process::required("up-run-create", &mut create)?;
    Ok(())
}

fn arguments(words: &[&str]) -> Vec<String> {
    words.iter().map(|it| (*it).to_owned()).collect()
}
