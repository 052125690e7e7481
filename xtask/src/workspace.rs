//! Where things lie in the repository.

use std::path::PathBuf;

/// The repository's root folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the repository")
        .to_owned()
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// What the package clients install for this repository alone.
pub(crate) fn tools() -> PathBuf {
    target().join("athome-tools")
}

/// Logs of what a task ran.
pub(crate) fn logs() -> PathBuf {
    target().join("test-logs")
}

/// The `athome` binary of the dev profile.
pub(crate) fn athome() -> PathBuf {
    target().join("debug/athome")
}
