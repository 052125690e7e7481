//! The bytes of a result, in memory while they are few and new, or on the disk: its head, and the files after it.

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek, SeekFrom},
    path::PathBuf,
};

use bytes::Bytes;
use protocol::{Hash, boinc::Output, units::BlobReference};

use super::{No, spoilt};
use crate::boinc::upload::on_disk;

/// A result's bytes.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Memory(Bytes),
    Disk(PathBuf),
}

/// What bytes are read from.
trait Source: Read + Seek {}
impl<T: Read + Seek> Source for T {}

impl Content {
    /// The head, and where the first file begins.
    pub(super) async fn head(&self) -> Result<(Output, u64), No> {
        let head = self.read(|source| {
            let mut head = Vec::new();
            source
                .take(Output::head_bytes_max() as u64)
                .read_to_end(&mut head)?;
            Ok(head)
        });
        let head = head.await?;
        let (output, start) =
            Output::read_head(&head).map_err(|error| spoilt(error.to_string()))?;
        Ok((output, start as u64))
    }

    /// Checks that the files after the head are there, whole, and nothing after them.
    pub(super) async fn check_files(&self, start: u64, files: &[BlobReference]) -> Result<(), No> {
        let files = files.to_vec();
        let problem = self.read(move |source| unlike_head(source, start, &files));
        match problem.await? {
            Some(problem) => Err(spoilt(problem)),
            None => Ok(()),
        }
    }

    /// Bytes from a place on; an error if there are not as many.
    pub(super) async fn part(&self, start: u64, length: usize) -> io::Result<Bytes> {
        if let Self::Memory(bytes) = self
            && let Ok(start) = usize::try_from(start)
            && let Some(end) = start.checked_add(length)
            && end <= bytes.len()
        {
            return Ok(bytes.slice(start..end));
        }
        self.read(move |source| {
            source.seek(SeekFrom::Start(start))?;
            let mut part = vec![0; length];
            source.read_exact(&mut part)?;
            Ok(part.into())
        })
        .await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn Source) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Self::Memory(bytes) => work(&mut Cursor::new(bytes)),
            Self::Disk(path) => {
                let path = path.clone();
                on_disk(move || work(&mut File::open(path)?)).await
            }
        }
    }
}

/// What is wrong with the files after the head, if anything is.
fn unlike_head(
    source: &mut dyn Source,
    start: u64,
    files: &[BlobReference],
) -> io::Result<Option<&'static str>> {
    let length = source.seek(SeekFrom::End(0))?;
    let expected = files
        .iter()
        .try_fold(start, |all, it| all.checked_add(it.bytes));
    if expected != Some(length) {
        return Ok(Some("the result has another length than its head says"));
    }
    source.seek(SeekFrom::Start(start))?;
    for blob in files {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader((&mut *source).take(blob.bytes))?;
        if Hash(*hasher.finalize().as_bytes()) != blob.hash {
            return Ok(Some(
                "a file of the result is not the one that it commits to",
            ));
        }
    }
    Ok(None)
}
