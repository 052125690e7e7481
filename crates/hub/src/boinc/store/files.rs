//! Sums of files, as BOINC clients check them.

use anyhow::Result;
use protocol::{Hash, units::BlobReference};
use rusqlite::params;

use super::{DoorStore, execute, first, number};

/// A file as BOINC clients check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSum {
    pub(crate) blob: BlobReference,
    pub(crate) md5: String,
}

impl DoorStore {
    /// What is known of a file.
    pub(crate) async fn file_sum(&self, hash: &Hash) -> Result<Option<FileSum>> {
        let hash = *hash;
        self.read(move |it| {
            first(it, "SELECT * FROM file WHERE hash = ?", [hash.0], |row| {
                Ok(FileSum {
                    blob: BlobReference {
                        hash,
                        bytes: row.get("bytes")?,
                    },
                    md5: row.get("md5")?,
                })
            })
        })
        .await
    }

    /// Notes a file's MD5.
    pub(crate) async fn add_file_sum(&self, sum: FileSum) -> Result<()> {
        let change = "INSERT OR REPLACE INTO file (hash, bytes, md5) VALUES (?, ?, ?)";
        self.write(move |it| {
            execute(
                it,
                change,
                params![sum.blob.hash.0, sum.blob.bytes, sum.md5],
            )
            .map(drop)
        })
        .await
    }

    /// Notes that files are offered by these names; gives a name by which others were, and then notes
    /// nothing.
    pub(crate) async fn note_released(&self, files: Vec<(String, Hash)>) -> Result<Option<String>> {
        self.write(move |it| {
            for (name, hash) in &files {
                let other = "SELECT 1 FROM released WHERE name = ? AND hash <> ?";
                if first(it, other, params![name, hash.0], number)?.is_some() {
                    return Ok(Some(name.clone()));
                }
            }
            for (name, hash) in files {
                let change =
                    "INSERT INTO released (name, hash) VALUES (?, ?) ON CONFLICT DO NOTHING";
                execute(it, change, params![name, hash.0])?;
            }
            Ok(None)
        })
        .await
    }
}
