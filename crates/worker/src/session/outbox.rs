//! Committed updates on their way to the hub, in the background, and on disk until the hub has them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use network::{HubClient, UploadAuthorisation, disk::Disk};
use protocol::{Hash, SecretKey};
use tokio::task::JoinSet;

/// Uploads at a time: two rounds of at most two files; older ones are worthless when a further one begins.
const UPLOADS_MAX: usize = 4;
/// Wait before an upload is tried again after the client gave it up.
const AGAIN: Duration = Duration::from_secs(3);

/// The uploads of a run.
#[derive(Debug)]
pub(super) struct Outbox {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    client: HubClient,
    authorisation: UploadAuthorisation,
    uploads: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Of the newest upload.
    sent: AtomicU64,
    total: AtomicU64,
    refusals: Mutex<Vec<String>>,
}

impl Outbox {
    /// Opens or makes the folder and goes on with what an earlier process left there.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        client: HubClient,
        key: SecretKey,
    ) -> Result<Self> {
        disk.make_folder(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        let mut outbox = Self {
            disk,
            client,
            authorisation: UploadAuthorisation::Worker(key),
            uploads: JoinSet::new(),
            shared: Arc::default(),
            folder,
        };
        for (path, hash) in left_over(&*outbox.disk, &outbox.folder)? {
            let bytes = outbox
                .disk
                .read(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            if Hash::of_blob(&bytes) == hash {
                outbox.begin(hash, bytes.into(), true);
            } else {
                remove(&*outbox.disk, &path);
            }
        }
        Ok(outbox)
    }

    /// Keeps an update that is about to be committed to, so that a crash in between loses nothing.
    pub(super) fn keep(&self, hash: Hash, file: &[u8]) -> Result<()> {
        let path = self.folder.join(hash.to_string());
        let fresh = path.with_extension("new");
        let disk = &*self.disk;
        disk.write(&fresh, &mut |into| into.write_all(file))
            .and_then(|()| disk.sync(&fresh))
            .and_then(|()| disk.rename(&fresh, &path))
            .and_then(|()| disk.sync_folder(&self.folder))
            .with_context(|| format!("writing {} (is the disk full?)", path.display()))
    }

    /// Forgets an update whose commitment was refused.
    pub(super) fn forget(&self, hash: Hash) {
        remove(&*self.disk, &self.folder.join(hash.to_string()));
    }

    /// Sends a committed update in the background.
    pub(super) fn send(&mut self, hash: Hash, file: Bytes) {
        self.begin(hash, file, false);
    }

    fn begin(&mut self, hash: Hash, file: Bytes, is_old: bool) {
        while self.uploads.try_join_next().is_some() {}
        if self.uploads.len() >= UPLOADS_MAX {
            tracing::warn!("uploads do not keep up with rounds: the ones in progress are given up");
            self.uploads.abort_all();
        }
        let (client, shared) = (self.client.clone(), Arc::clone(&self.shared));
        let authorisation = self.authorisation.clone();
        let (disk, path) = (Arc::clone(&self.disk), self.folder.join(hash.to_string()));
        shared.sent.store(0, Ordering::Relaxed);
        shared.total.store(file.len() as u64, Ordering::Relaxed);
        self.uploads.spawn(async move {
            let refusal = upload(&client, hash, file, &authorisation, &shared).await;
            remove(&*disk, &path);
            // Nobody waits any more for what an earlier process left.
            if let Some(refusal) = refusal.filter(|_| !is_old) {
                let mut refusals = shared.refusals.lock().expect("pushing does not panic");
                refusals.push(refusal);
            }
        });
    }

    /// Bytes at the hub and in all, of the newest upload while it is not done.
    pub(super) fn progress(&self) -> Option<(u64, u64)> {
        let (sent, total) = (&self.shared.sent, &self.shared.total);
        let (sent, total) = (sent.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        (total > 0).then_some((sent, total))
    }

    /// Why uploads failed for good since this was asked last.
    pub(super) fn take_refusals(&self) -> Vec<String> {
        let mut refusals = self.shared.refusals.lock().expect("taking does not panic");
        std::mem::take(&mut *refusals)
    }

    /// Waits for all uploads, but not longer than this; what is left stays on disk for the next start.
    pub(super) async fn settle(&mut self, longest: Duration) {
        let all = async { while self.uploads.join_next().await.is_some() {} };
        if tokio::time::timeout(longest, all).await.is_err() {
            tracing::warn!("an upload is not done; it goes on at the next start");
            self.uploads.abort_all();
        }
    }
}

/// Until the hub has it or refuses it; gives the refusal.
async fn upload(
    client: &HubClient,
    hash: Hash,
    file: Bytes,
    authorisation: &UploadAuthorisation,
    shared: &Shared,
) -> Option<String> {
    let refusal = loop {
        let progress = |bytes| shared.sent.store(bytes, Ordering::Relaxed);
        match client
            .upload(hash, file.clone(), authorisation, progress)
            .await
        {
            Ok(()) => break None,
            Err(error) if error.is_temporary() => {
                tracing::debug!("{:#}", anyhow::Error::from(error));
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => break Some(format!("{:#}", anyhow::Error::from(error))),
        }
    };
    shared.total.store(0, Ordering::Relaxed);
    refusal
}

fn left_over(disk: &dyn Disk, folder: &Path) -> Result<Vec<(PathBuf, Hash)>> {
    let files = disk.list(folder);
    let mut files = files.with_context(|| format!("reading {}", folder.display()))?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let mut found = Vec::new();
    for file in files {
        let path = folder.join(&file.name);
        match file.name.parse() {
            Ok(hash) if found.len() < UPLOADS_MAX => found.push((path, hash)),
            _ => remove(disk, &path),
        }
    }
    Ok(found)
}

fn remove(disk: &dyn Disk, path: &Path) {
    if let Err(error) = disk.remove(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("removing {}: {error}", path.display());
    }
}
