//! The file of a result, as it lies on the disk: its head, and the files after it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use protocol::{Hash, boinc::Output, units::BlobReference};

use super::{No, spoilt};
use crate::boinc::upload::on_disk;

/// The head, and where the first file begins.
pub(super) async fn read_head(path: &Path) -> Result<(Output, u64), No> {
    let path = path.to_owned();
    let head = on_disk(move || {
        let mut head = Vec::new();
        let file = File::open(path)?;
        file.take(Output::head_bytes_max() as u64)
            .read_to_end(&mut head)?;
        Ok(head)
    });
    let head = head.await?;
    let (output, start) = Output::read_head(&head).map_err(|error| spoilt(error.to_string()))?;
    Ok((output, start as u64))
}

/// Checks that the files after the head are there, whole, and nothing after them.
pub(super) async fn check_files(
    path: &Path,
    start: u64,
    files: &[BlobReference],
) -> Result<(), No> {
    let (path, files) = (path.to_owned(), files.to_vec());
    match on_disk(move || unlike_head(&path, start, &files)).await? {
        Some(problem) => Err(spoilt(problem)),
        None => Ok(()),
    }
}

/// What is wrong with the files after the head, if anything is.
fn unlike_head(
    path: &Path,
    start: u64,
    files: &[BlobReference],
) -> io::Result<Option<&'static str>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let expected = files
        .iter()
        .try_fold(start, |all, it| all.checked_add(it.bytes));
    if expected != Some(length) {
        return Ok(Some("the result has another length than its head says"));
    }
    file.seek(SeekFrom::Start(start))?;
    for blob in files {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader((&mut file).take(blob.bytes))?;
        if Hash(*hasher.finalize().as_bytes()) != blob.hash {
            return Ok(Some(
                "a file of the result is not the one that it commits to",
            ));
        }
    }
    Ok(None)
}
