//! Sums of files, as BOINC clients check them.

use anyhow::Result;
use protocol::{Hash, units::BlobReference};
use sqlx::Row;

use super::{DoorStore, count};

/// A file as BOINC clients check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileSum {
    pub(crate) blob: BlobReference,
    pub(crate) md5: String,
}

impl DoorStore {
    /// What is known of a file.
    pub(crate) async fn file_sum(&self, hash: &Hash) -> Result<Option<FileSum>> {
        let row = sqlx::query("SELECT * FROM file WHERE hash = ?")
            .bind(hash.0.to_vec())
            .fetch_optional(&mut *self.reader().await)
            .await?;
        let Some(row) = row else {
            return Ok(None);
        };
        Ok(Some(FileSum {
            blob: BlobReference {
                hash: *hash,
                bytes: count(&row, "bytes")?,
            },
            md5: row.try_get("md5")?,
        }))
    }

    /// Notes a file's MD5.
    pub(crate) async fn add_file_sum(&self, sum: FileSum) -> Result<()> {
        self.write_one(move |connection| {
            Box::pin(async move {
                sqlx::query("INSERT OR REPLACE INTO file (hash, bytes, md5) VALUES (?, ?, ?)")
                    .bind(sum.blob.hash.0.to_vec())
                    .bind(sum.blob.bytes as i64)
                    .bind(sum.md5)
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .await
    }
}
