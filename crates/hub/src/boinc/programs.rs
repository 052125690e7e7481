//! The files of releases as clients fetch them: copies in the hub's folder, by hash.
//!
//! To a client, a file that is not there is the end of its task. So one that began to fetch a program goes on with it though
//! the hub was started again with a newer release meanwhile.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use network::world;
use protocol::Hash;

use super::release::{Release, ReleaseFile};

/// A file of no release any more is kept for so long: the tasks that name it are over then.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

/// The copies.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    folder: PathBuf,
    /// The files of the hub's release.
    current: Vec<ReleaseFile>,
}

impl Programs {
    /// Copies what is not there yet. The release was checked.
    pub(super) async fn open(folder: PathBuf, release: &Release, from: &Path) -> Result<Self> {
        let files = release.platforms.iter().flat_map(|it| &it.files);
        let programs = Self {
            current: files.cloned().collect(),
            folder,
        };
        let (copies, from) = (programs.clone(), from.to_owned());
        world::blocking(move || copies.copy(&from)).await??;
        Ok(programs)
    }

    /// Where the file of that hash lies, and its length; of this release or one before.
    pub(super) async fn find(&self, hash: &Hash) -> Result<Option<(PathBuf, u64)>> {
        let path = self.path(hash);
        if let Some(file) = self.current.iter().find(|it| it.blake3 == *hash) {
            return Ok(Some((path, file.bytes)));
        }
        match tokio::fs::metadata(&path).await {
            Ok(found) => Ok(Some((path, found.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Removes what no release had for long.
    pub(super) async fn clean(&self) -> Result<()> {
        let programs = self.clone();
        let cleaned = world::blocking(move || programs.remove_old(SystemTime::now()));
        cleaned.await?.context("removing old programs")
    }

    fn path(&self, hash: &Hash) -> PathBuf {
        self.folder.join(hash.to_string())
    }

    fn copy(&self, from: &Path) -> Result<()> {
        let copying = || format!("copying the BOINC release to {}", self.folder.display());
        fs::create_dir_all(&self.folder).with_context(copying)?;
        for file in &self.current {
            let path = self.path(&file.blake3);
            if is_whole(&path, &file.blake3) {
                continue;
            }
            copy_file(&from.join(&file.name), &path).with_context(copying)?;
        }
        Ok(())
    }

    /// A file's age counts from when it was the release's last.
    fn remove_old(&self, now: SystemTime) -> io::Result<()> {
        let current: Vec<PathBuf> = self
            .current
            .iter()
            .map(|it| self.path(&it.blake3))
            .collect();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            let path = entry.path();
            if current.contains(&path) {
                fs::File::options()
                    .append(true)
                    .open(&path)?
                    .set_modified(now)?;
                continue;
            }
            let used = fs::metadata(&path)?.modified()?;
            if now.duration_since(used).is_ok_and(|age| KEPT < age) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// The bytes alone: who may write the copy is not who may write the original.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let fresh = to.with_extension("new");
    let copied = fs::File::open(from).and_then(|mut from| {
        let mut into = fs::File::create(&fresh)?;
        io::copy(&mut from, &mut into)?;
        into.sync_all()?;
        fs::rename(&fresh, to)
    });
    if copied.is_err() {
        // Half a copy takes room that somebody may be waiting for.
        let _ = fs::remove_file(&fresh);
    }
    copied
}

/// Whether a copy is there, and what it was: disks forget, and people change files.
fn is_whole(path: &Path, hash: &Hash) -> bool {
    let hashed = fs::File::open(path).and_then(|file| {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file)?;
        Ok(Hash(*hasher.finalize().as_bytes()))
    });
    hashed.is_ok_and(|it| it == *hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_release_has_goes_after_a_month() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |it: u8| Hash([it; 32]);
        let programs = Programs {
            folder: folder.path().to_owned(),
            current: vec![ReleaseFile {
                name: "a".into(),
                bytes: 1,
                blake3: hash(1),
                md5: String::new(),
                file_signature: String::new(),
                main_program: true,
            }],
        };
        let original = folder.path().join("original");
        fs::write(&original, "x").unwrap();
        let mut read_only = fs::metadata(&original).unwrap().permissions();
        read_only.set_readonly(true);
        fs::set_permissions(&original, read_only).unwrap();
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        for it in [1, 2] {
            copy_file(&original, &programs.path(&hash(it))).unwrap();
            let copy = fs::metadata(programs.path(&hash(it))).unwrap();
            assert!(!copy.permissions().readonly());
        }
        let is_there = |it| programs.path(&hash(it)).exists();
        let now = SystemTime::now();
        programs.remove_old(now + KEPT / 2).unwrap();
        assert!(is_there(1) && is_there(2));
        // However long the hub ran with it, the release's own file is of now.
        programs.remove_old(now + KEPT * 2).unwrap();
        assert!(is_there(1) && !is_there(2));
        let age = fs::metadata(programs.path(&hash(1)))
            .unwrap()
            .modified()
            .unwrap();
        assert!(now + KEPT < age);
    }
}
