//! Content-addressed bytes: whole blobs in an object store, uploads in part files until they hash to their name.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use network::{disk::Disk, world};
use object_store::{ObjectStore, PutPayload, path::Path as ObjectPath};
use protocol::{Hash, units::BlobReference};

use crate::ground::Ground;

/// Most bytes of one upload request.
pub(crate) const PART_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The blobs of a hub.
#[derive(Clone)]
pub(crate) struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// The disk on which whole and unfinished blobs lie.
    disk: Arc<dyn Disk>,
    whole: PathBuf,
    parts: PathBuf,
    /// What was kept or renewed since the last listing: it is not removed by that listing.
    renewed: Arc<std::sync::Mutex<HashSet<Hash>>>,
    /// Uploads of the same blob take turns.
    uploading:
        Arc<tokio::sync::Mutex<std::collections::HashMap<Hash, Arc<tokio::sync::Mutex<()>>>>>,
}

/// A file among the blobs or the parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Its name.
    pub(crate) hash: Hash,
    /// Its size.
    pub(crate) bytes: u64,
    /// When it was written to last.
    pub(crate) changed: SystemTime,
    /// Whether it is an upload that is not whole.
    pub(crate) is_part: bool,
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    /// More is to come, from this offset on.
    Partial(u64),
    /// The blob is whole and kept.
    Complete,
    /// The part does not begin where the blob so far ends.
    WrongOffset(u64),
    /// The whole does not hash to its name; it was dropped.
    WrongHash,
    /// More bytes than were announced.
    TooLong,
}

impl Blobs {
    /// Opens or creates the blob folders.
    pub(crate) fn open(folder: &Path, ground: &Ground) -> Result<Self> {
        let whole = folder.join("blobs");
        let parts = folder.join("parts");
        for path in [&whole, &parts] {
            ground
                .disk
                .make_folder(path)
                .with_context(|| format!("can't create the folder {}", path.display()))?;
        }
        Ok(Self {
            store: ground
                .objects(&whole)
                .with_context(|| format!("can't use the folder {}", whole.display()))?,
            disk: Arc::clone(&ground.disk),
            whole,
            parts,
            renewed: Arc::default(),
            uploading: Arc::default(),
        })
    }

    fn renewed(&self) -> std::sync::MutexGuard<'_, HashSet<Hash>> {
        // A set of names is right after any panic.
        self.renewed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The length of a whole blob, if it is here.
    pub(crate) async fn length(&self, hash: &Hash) -> Result<Option<u64>> {
        match self.store.head(&object_path(hash)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A whole blob, checked against its hash; `None` if it is not here.
    pub(crate) async fn read(&self, blob: &BlobReference) -> Result<Option<Bytes>> {
        let Some(bytes) = self.unchecked(&blob.hash).await? else {
            return Ok(None);
        };
        anyhow::ensure!(
            BlobReference::of(&bytes) == *blob,
            "the stored blob {} is damaged",
            blob.hash
        );
        Ok(Some(bytes))
    }

    /// The same for a blob that is missed by nobody: damaged bytes are as good as none.
    pub(crate) async fn read_if_whole(&self, blob: &BlobReference) -> Result<Option<Bytes>> {
        let bytes = self.unchecked(&blob.hash).await?;
        Ok(bytes.filter(|it| BlobReference::of(it) == *blob))
    }

    /// A whole blob that somebody can send again: damaged bytes are removed, so that the hub asks for the blob as if
    /// it had never come.
    pub(crate) async fn read_or_drop(&self, blob: &BlobReference) -> Result<Option<Bytes>> {
        let Some(bytes) = self.unchecked(&blob.hash).await? else {
            return Ok(None);
        };
        let found = BlobReference::of(&bytes);
        if found.hash == blob.hash {
            // Whoever names a blob with another length than it has names none that is here.
            return Ok((found == *blob).then_some(bytes));
        }
        tracing::error!(blob = %blob.hash, "the stored blob is damaged: it is removed");
        let path = self.whole.join(blob.hash.to_string());
        self.on_disk(move |disk| disk.remove(&path)).await?;
        Ok(None)
    }

    async fn unchecked(&self, hash: &Hash) -> Result<Option<Bytes>> {
        match self.store.get(&object_path(hash)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The first bytes of a whole blob, as many as an update's header may have; `None` if it is not here. They are not checked.
    pub(crate) async fn head(&self, hash: &Hash) -> Result<Option<Bytes>> {
        let length = self.length(hash).await?.unwrap_or(0);
        let range = 0..length.min(protocol::update::HEAD_BYTES_MAX as u64);
        if range.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.store.get_range(&object_path(hash), range).await?))
    }

    /// A part of a blob as a stream, for downloads. The range must lie within the blob.
    pub(crate) async fn stream(
        &self,
        hash: &Hash,
        range: std::ops::Range<u64>,
    ) -> Result<impl futures_util::Stream<Item = object_store::Result<Bytes>> + use<>> {
        let options = object_store::GetOptions {
            range: (!range.is_empty()).then(|| range.into()),
            ..Default::default()
        };
        let found = self.store.get_opts(&object_path(hash), options).await?;
        Ok(found.into_stream())
    }

    /// Keeps bytes of the hub's own making; durable when this returns.
    pub(crate) async fn put(&self, bytes: Vec<u8>) -> Result<BlobReference> {
        let blob = BlobReference::of(&bytes);
        self.renewed().insert(blob.hash);
        if self.length(&blob.hash).await? == Some(blob.bytes) {
            self.renew(&blob.hash).await?;
            return Ok(blob);
        }
        self.store
            .put(&object_path(&blob.hash), PutPayload::from(bytes))
            .await?;
        self.make_durable(&blob.hash).await?;
        Ok(blob)
    }

    /// How much of a blob is here: its length and whether it is whole.
    pub(crate) async fn progress(&self, hash: &Hash) -> Result<(u64, bool)> {
        let (whole, part) = (self.whole.join(hash.to_string()), self.part(hash));
        let progress = self.on_disk(move |disk| {
            Ok(match length(disk, &whole)? {
                Some(bytes) => (bytes, true),
                None => (length(disk, &part)?.unwrap_or(0), false),
            })
        });
        Ok(progress.await?)
    }

    /// Adds a part at an offset; the blob is kept when all of it is here and hashes to its name.
    pub(crate) async fn append(
        &self,
        blob: &BlobReference,
        offset: u64,
        bytes: Bytes,
    ) -> Result<Upload> {
        let turn = {
            let mut uploading = self.uploading.lock().await;
            uploading.retain(|_, it| Arc::strong_count(it) > 1);
            Arc::clone(uploading.entry(blob.hash).or_default())
        };
        let turn = turn.lock_owned().await;
        self.renewed().insert(blob.hash);
        let (blob, part) = (*blob, self.part(&blob.hash));
        let (whole, folder) = (self.whole.join(blob.hash.to_string()), self.whole.clone());
        // One way to the disk and back for all of it.
        let added = self.on_disk(move |disk| {
            // Until it is done, even if nobody waits for it any more.
            let _turn = turn;
            if length(disk, &whole)?.is_some() {
                return Ok(Upload::Complete);
            }
            let take_up = || {
                disk.sync(&part)?;
                // Both folders are on one file system, so the rename is atomic and copies nothing.
                disk.rename(&part, &whole)?;
                disk.sync_folder(&folder)?;
                Ok(Upload::Complete)
            };
            let mut held = length(disk, &part)?.unwrap_or(0);
            if offset < held && held == blob.bytes {
                // All of it came once, and the hub was stopped, or the disk failed, before it was taken up.
                if disk.hash(&part)? == blob.hash {
                    return take_up();
                }
                disk.remove(&part)?;
                held = 0;
            }
            if offset != held {
                return Ok(Upload::WrongOffset(held));
            }
            let held = held + bytes.len() as u64;
            if held > blob.bytes {
                return Ok(Upload::TooLong);
            }
            disk.append(&part, &bytes)?;
            if held < blob.bytes {
                return Ok(Upload::Partial(held));
            }
            let hash = match offset {
                0 => Hash::of_blob(&bytes),
                _ => disk.hash(&part)?,
            };
            if hash != blob.hash {
                disk.remove(&part)?;
                return Ok(Upload::WrongHash);
            }
            take_up()
        });
        Ok(added.await?)
    }

    /// Everything that is here, whole or not.
    pub(crate) async fn stored(&self) -> Result<Vec<Stored>> {
        self.renewed().clear();
        let folders = [(self.whole.clone(), false), (self.parts.clone(), true)];
        let listed = self.on_disk(move |disk| {
            let mut found = Vec::new();
            for (folder, is_part) in folders {
                for file in disk.list(&folder)? {
                    // Files of other names are none of ours.
                    if let Ok(hash) = file.name.parse() {
                        found.push(Stored {
                            hash,
                            bytes: file.bytes,
                            changed: file.used,
                            is_part,
                        });
                    }
                }
            }
            io::Result::Ok(found)
        });
        Ok(listed.await?)
    }

    /// Removes a file that nobody uses, unless that changed since it was listed.
    pub(crate) async fn remove(&self, file: &Stored) -> Result<()> {
        if self.renewed().contains(&file.hash) {
            return Ok(());
        }
        let folder = if file.is_part {
            &self.parts
        } else {
            &self.whole
        };
        let path = folder.join(file.hash.to_string());
        match self.on_disk(move |disk| disk.remove(&path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Makes a blob as good as new, so that it is not removed before a log names it.
    pub(crate) async fn renew(&self, hash: &Hash) -> Result<()> {
        self.renewed().insert(*hash);
        let path = self.whole.join(hash.to_string());
        let renewed = self.on_disk(move |disk| disk.touch(&path, SystemTime::now()));
        Ok(renewed.await?)
    }

    /// Puts the file's bytes and its name on the disk.
    async fn make_durable(&self, hash: &Hash) -> Result<()> {
        let file = self.whole.join(hash.to_string());
        let folder = self.whole.clone();
        let durable = self.on_disk(move |disk| {
            disk.sync(&file)?;
            disk.sync_folder(&folder)
        });
        Ok(durable.await?)
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Disk) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let disk = Arc::clone(&self.disk);
        world::blocking(move || work(&*disk))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn part(&self, hash: &Hash) -> PathBuf {
        self.parts.join(hash.to_string())
    }
}

/// A file's length, if there is one.
fn length(disk: &dyn Disk, path: &Path) -> io::Result<Option<u64>> {
    match disk.length(path) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn object_path(hash: &Hash) -> ObjectPath {
    ObjectPath::from(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_upload_in_parts_resumes_and_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), &Ground::machine()).unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|it| (it % 251) as u8).collect();
        let blob = BlobReference::of(&bytes);
        assert_eq!(
            blobs
                .append(&blob, 0, Bytes::copy_from_slice(&bytes[..4_000]))
                .await
                .unwrap(),
            Upload::Partial(4_000)
        );
        assert_eq!(
            blobs
                .append(&blob, 3_000, Bytes::copy_from_slice(&bytes[3_000..]))
                .await
                .unwrap(),
            Upload::WrongOffset(4_000)
        );
        // A new process finds the part.
        let blobs = Blobs::open(folder.path(), &Ground::machine()).unwrap();
        assert_eq!(blobs.progress(&blob.hash).await.unwrap(), (4_000, false));
        assert_eq!(blobs.read(&blob).await.unwrap(), None);
        assert_eq!(
            blobs
                .append(&blob, 4_000, Bytes::copy_from_slice(&bytes[4_000..]))
                .await
                .unwrap(),
            Upload::Complete
        );
        assert_eq!(blobs.read(&blob).await.unwrap().unwrap(), bytes);
        assert_eq!(blobs.progress(&blob.hash).await.unwrap(), (10_000, true));
    }

    #[tokio::test]
    async fn other_bytes_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), &Ground::machine()).unwrap();
        let blob = BlobReference::of(b"the right bytes");
        assert_eq!(
            blobs
                .append(&blob, 0, Bytes::from_static(b"the wrong bytes"))
                .await
                .unwrap(),
            Upload::WrongHash
        );
        assert_eq!(blobs.progress(&blob.hash).await.unwrap(), (0, false));
        assert_eq!(
            blobs
                .append(&blob, 0, Bytes::from_static(&[0; 16]))
                .await
                .unwrap(),
            Upload::TooLong
        );
        assert_eq!(
            blobs
                .append(&blob, 0, Bytes::from_static(b"the right bytes"))
                .await
                .unwrap(),
            Upload::Complete
        );
    }

    #[tokio::test]
    async fn what_came_whole_before_a_stop_is_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), &Ground::machine()).unwrap();
        let bytes = Bytes::from_static(b"all of the bytes");
        let blob = BlobReference::of(&bytes);
        let part = folder.path().join("parts").join(blob.hash.to_string());
        let whole = folder.path().join("blobs").join(blob.hash.to_string());
        for left in [&b"all of the bytes"[..], b"all of the bytez"] {
            std::fs::write(&part, left).unwrap();
            let sent = blobs.append(&blob, 0, bytes.clone()).await;
            assert_eq!(sent.unwrap(), Upload::Complete);
            assert_eq!(blobs.read(&blob).await.unwrap().unwrap(), bytes);
            std::fs::remove_file(&whole).unwrap();
        }
        // Whoever knows how much is here says that this was all.
        std::fs::write(&part, &bytes).unwrap();
        let sent = blobs.append(&blob, blob.bytes, Bytes::new()).await;
        assert_eq!(sent.unwrap(), Upload::Complete);
        assert!(whole.exists() && !part.exists());
    }

    #[tokio::test]
    async fn damage_on_the_disk_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path(), &Ground::machine()).unwrap();
        let blob = blobs.put(b"some bytes".to_vec()).await.unwrap();
        std::fs::write(
            folder.path().join("blobs").join(blob.hash.to_string()),
            b"some bytez",
        )
        .unwrap();
        let message = blobs.read(&blob).await.unwrap_err().to_string();
        assert!(message.contains("damaged"), "{message}");
        // What can be sent again goes, and is taken when it comes.
        assert_eq!(blobs.read_or_drop(&blob).await.unwrap(), None);
        assert_eq!(blobs.progress(&blob.hash).await.unwrap(), (0, false));
        let sent = blobs.append(&blob, 0, Bytes::from_static(b"some bytes"));
        assert_eq!(sent.await.unwrap(), Upload::Complete);
        let longer = BlobReference { bytes: 11, ..blob };
        assert_eq!(blobs.read_or_drop(&longer).await.unwrap(), None);
        let read = blobs.read_or_drop(&blob).await.unwrap();
        assert_eq!(read.unwrap(), "some bytes");
    }
}
