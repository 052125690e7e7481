//! The file of a result, as it lies on the disk: its head, and the files after it.

use std::path::Path;

use protocol::{Hash, boinc::Output, units::BlobReference};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt, SeekFrom},
};

use super::{No, never};

/// The head, and where the first file begins.
pub(super) async fn read_head(path: &Path) -> Result<(Output, u64), No> {
    let mut head = Vec::new();
    let file = File::open(path).await?;
    file.take(Output::head_bytes_max() as u64)
        .read_to_end(&mut head)
        .await?;
    let (output, start) = Output::read_head(&head).map_err(|error| never(error.to_string()))?;
    Ok((output, start as u64))
}

/// Checks that the files after the head are there, whole, and nothing after them.
pub(super) async fn check_files(
    path: &Path,
    start: u64,
    files: &[BlobReference],
) -> Result<(), No> {
    let mut file = File::open(path).await?;
    let length = file.metadata().await?.len();
    let expected = files
        .iter()
        .try_fold(start, |all, it| all.checked_add(it.bytes));
    if expected != Some(length) {
        return Err(never("the result has another length than its head says"));
    }
    file.seek(SeekFrom::Start(start)).await?;
    let mut part = vec![0; 1 << 18];
    for blob in files {
        let mut hasher = blake3::Hasher::new();
        let mut left = blob.bytes;
        while left > 0 {
            let length = (part.len() as u64).min(left) as usize;
            file.read_exact(&mut part[..length]).await?;
            hasher.update(&part[..length]);
            left -= length as u64;
        }
        if Hash(*hasher.finalize().as_bytes()) != blob.hash {
            return Err(never(
                "a file of the result is not the one that it commits to",
            ));
        }
    }
    Ok(())
}
