//! Sums of files, as BOINC clients check them.

use anyhow::Result;
use protocol::{Hash, units::BlobReference};
use rusqlite::params;

use super::{DoorStore, execute, first};

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
}
