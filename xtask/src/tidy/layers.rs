//! Which crate may use which: lower layers only, never a sibling.

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// Every crate of the workspace and its layer.
///
/// `xtask` may use `protocol` alone. `tests` may use what a stranger would use to recompute a run, and no role; `sim` runs
/// the roles themselves.
const LAYERS: [(&str, u8); 13] = [
    ("protocol", 0),
    ("engine", 1),
    ("data", 1),
    ("network", 1),
    ("ledger", 1),
    ("eval", 2),
    ("hub", 3),
    ("worker", 3),
    ("gateway", 3),
    ("cli", 4),
    ("tests", 2),
    ("sim", 4),
    ("xtask", 1),
];

/// What `cargo metadata` says, as far as it is looked at here.
#[derive(Deserialize)]
pub(super) struct Metadata {
    /// All packages, ours and others'.
    pub(super) packages: Vec<Package>,
}

/// One package.
#[derive(Deserialize)]
pub(super) struct Package {
    /// Its name.
    pub(super) name: String,
    /// Its version.
    pub(super) version: String,
    /// SPDX expression.
    pub(super) license: Option<String>,
    /// Where it comes from; `None` for ours.
    pub(super) source: Option<String>,
    /// What it names as dependencies.
    pub(super) dependencies: Vec<Dependency>,
}

/// One named dependency.
#[derive(Deserialize)]
pub(super) struct Dependency {
    /// The package.
    pub(super) name: String,
    /// The versions wanted.
    pub(super) req: String,
    /// A folder, for our own.
    pub(super) path: Option<String>,
}

/// Asks cargo.
pub(super) fn metadata() -> Result<Metadata> {
    let output = process::cargo(&["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("cannot start cargo")?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("cargo metadata printed something unexpected")
}

/// What breaks the layering.
pub(super) fn check(metadata: &Metadata) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in metadata.packages.iter().filter(|it| it.source.is_none()) {
        let Some(layer) = layer_of(&package.name) else {
            complaints.push(format!(
                "crate `{}` has no layer; see LAYERS in xtask/src/tidy/layers.rs",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|it| it.path.is_some()) {
            if layer_of(&dependency.name).is_none_or(|it| layer <= it) {
                complaints.push(format!(
                    "crate `{}` may not use `{}`: a crate uses lower layers only",
                    package.name, dependency.name
                ));
            }
        }
    }
    complaints
}

fn layer_of(name: &str) -> Option<u8> {
    LAYERS
        .iter()
        .find(|(it, _)| *it == name)
        .map(|(_, layer)| *layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_edge(from: &str, to: &str, allowed: bool) {
        let metadata = Metadata {
            packages: vec![Package {
                name: from.to_owned(),
                version: String::new(),
                license: None,
                source: None,
                dependencies: vec![Dependency {
                    name: to.to_owned(),
                    req: String::new(),
                    path: Some(String::new()),
                }],
            }],
        };
        assert_eq!(check(&metadata).is_empty(), allowed, "{from} -> {to}");
    }

    #[test]
    fn only_downwards() {
        check_edge("hub", "engine", true);
        check_edge("cli", "worker", true);
        check_edge("tests", "protocol", true);
        check_edge("tests", "engine", true);
        check_edge("engine", "data", false);
        check_edge("protocol", "engine", false);
        check_edge("hub", "worker", false);
        check_edge("tests", "hub", false);
        check_edge("xtask", "engine", false);
        check_edge("newcomer", "protocol", false);
    }
}
