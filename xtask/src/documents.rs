//! Files that git tracks, as text.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{process, workspace};

/// One tracked file.
pub(crate) struct Document {
    /// Path from the repository's root, with `/`.
    pub(crate) path: String,
    /// Its text; `None` for what is no UTF-8.
    pub(crate) text: Option<String>,
}

/// Every file that git tracks or would track, with its text.
pub(crate) fn all() -> Result<Vec<Document>> {
    let listed = process::answer(
        "git",
        &[
            "-C",
            &workspace::root().to_string_lossy(),
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
    )
    .context("`git ls-files` failed: is this a git checkout?")?;
    let mut paths: Vec<&str> = listed.lines().collect();
    paths.sort_unstable();
    paths.dedup();
    Ok(paths
        .into_iter()
        .filter(|it| absolute(it).is_file())
        .map(|path| Document {
            path: path.to_owned(),
            text: fs::read(absolute(path))
                .ok()
                .and_then(|it| String::from_utf8(it).ok()),
        })
        .collect())
}

/// The place of a path from the repository's root.
pub(crate) fn absolute(path: &str) -> PathBuf {
    workspace::root().join(path)
}
