//! What this worker committed to in its last rounds: on its way to the hub, and on disk until nothing can ask for it again.
//!
//! An acknowledged update can be asked for once more: its hub is replaced by a mirror that lacks the last entries or the
//! bytes that were not public yet, or starts again from an older copy. So commitment and bytes stay until the update's
//! fate is settled in any log that may count, bounded in number and bytes; the states that it names stay as long
//! (`crate::carried`).

mod kept;

use std::{
    collections::{BTreeSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use network::{HubClient, UploadAuthorisation, disk::Disk, world};
use protocol::{
    Hash, SecretKey,
    api::{Work, WorkAssignment},
    command::Commitment,
    state::round::LATE_ROUNDS_MAX,
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use crate::machine::Sealed;
use kept::Kept;

/// Uploads at a time: two rounds of at most two files; older ones are worthless when a further one begins.
const UPLOADS_MAX: usize = 4;
/// Wait before an upload is tried again after the client gave it up.
const AGAIN: Duration = Duration::from_secs(3);
/// An update is kept for so many rounds after its own: while one can take it, and while a log may count that is so many
/// rounds behind.
const ROUNDS_KEPT: u64 = 2 * LATE_ROUNDS_MAX + 2;
/// Most bytes of updates that are kept for that; the newest is kept in any case.
const BYTES_KEPT_MAX: u64 = 256 << 20;

/// The updates of a run.
#[derive(Debug)]
pub(super) struct Outbox {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    client: HubClient,
    authorisation: UploadAuthorisation,
    uploads: JoinSet<()>,
    /// What looks whether the hub still has everything.
    again: Option<AbortHandle>,
    /// Oldest round first, one a round.
    kept: Vec<Kept>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Of the newest upload.
    sent: AtomicU64,
    total: AtomicU64,
    refusals: Mutex<Vec<String>>,
    /// Files that are sent until the hub has them.
    under_way: Mutex<BTreeSet<Hash>>,
    again: Mutex<Again>,
}

/// Files that the hub has perhaps, and a task that looks after one after the other.
#[derive(Debug, Default)]
struct Again {
    /// The most urgent first.
    wanted: VecDeque<Hash>,
    is_running: bool,
}

impl Outbox {
    /// Opens or makes the folder with what an earlier process left there.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        client: HubClient,
        key: SecretKey,
    ) -> Result<Self> {
        disk.make_folder(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        let kept = kept::left_over(&*disk, &folder)?;
        Ok(Self {
            disk,
            folder,
            client,
            authorisation: UploadAuthorisation::Worker(key),
            uploads: JoinSet::new(),
            again: None,
            kept,
            shared: Arc::default(),
        })
    }

    /// Keeps an update that is about to be committed to, so that a crash in between loses nothing.
    pub(super) fn keep(&mut self, sealed: &Sealed) -> Result<()> {
        let commitment = sealed.commitment();
        let disk = &*self.disk;
        for (hash, file) in sealed.files() {
            kept::write(disk, &self.folder, &hash.to_string(), &file)?;
        }
        let kept = Kept::new(commitment);
        kept.write(disk, &self.folder)?;
        disk.sync_folder(&self.folder)
            .with_context(|| format!("writing {}", self.folder.display()))?;
        let same_round = self.kept.extract_if(.., |it| it.round() == kept.round());
        for old in same_round.collect::<Vec<_>>() {
            self.remove(&old, Some(&kept));
        }
        let place = self.kept.partition_point(|it| it.round() < kept.round());
        self.kept.insert(place, kept);
        self.prune_bytes();
        Ok(())
    }

    /// Forgets an update that no round takes.
    pub(super) fn forget(&mut self, update: Hash) {
        let gone = self
            .kept
            .extract_if(.., |it| it.commitment.update.hash == update);
        for kept in gone.collect::<Vec<_>>() {
            self.remove(&kept, None);
        }
    }

    /// Forgets what no round of a run that has come to `round` can ask for any more.
    pub(super) fn come_to(&mut self, round: u64) {
        let gone = self
            .kept
            .extract_if(.., |it| it.round() + ROUNDS_KEPT < round);
        for kept in gone.collect::<Vec<_>>() {
            self.remove(&kept, None);
        }
    }

    /// Notes that the hub was asked about an update just now: what it knew before does not count.
    pub(super) fn touch(&mut self, update: Hash) {
        for kept in &mut self.kept {
            if kept.commitment.update.hash == update {
                kept.touched = Instant::now();
            }
        }
    }

    /// The oldest update whose commitment the hub's log should have and lacks, by an answer to a question of `asked`.
    pub(super) fn missing(&self, work: &Work, asked: Instant) -> Option<&Commitment> {
        let is_missing = |it: &&Kept| it.touched < asked && it.is_wanted(work);
        self.kept.iter().find(is_missing).map(|it| &it.commitment)
    }

    /// Whether the work of an assignment is here and was or will be committed to.
    pub(super) fn holds(&self, assignment: &WorkAssignment) -> bool {
        self.kept.iter().any(|it| it.is_of(assignment))
    }

    /// The states that kept updates name, the newest first.
    pub(super) fn states(&self) -> Vec<Hash> {
        let states = |it: &Kept| {
            let header = &it.commitment.header;
            [
                header.carried_after,
                header.carried_before,
                header.carried_if_refused,
            ]
        };
        self.kept.iter().rev().flat_map(states).collect()
    }

    /// Sends the files of an update, committed to a moment ago, in the background.
    pub(super) fn send(&mut self, files: Vec<(Hash, Bytes)>) {
        for (hash, file) in files {
            self.begin(hash, file);
        }
    }

    /// The same with a kept update's.
    pub(super) fn send_kept(&mut self, update: Hash) -> Result<()> {
        let kept = self
            .kept
            .iter()
            .find(|it| it.commitment.update.hash == update);
        for hash in kept.map(Kept::files).unwrap_or_default() {
            if let Some(bytes) = kept::read(&*self.disk, &self.folder, &hash)? {
                self.begin(hash, bytes.into());
            }
        }
        Ok(())
    }

    fn begin(&mut self, hash: Hash, file: Bytes) {
        while self.uploads.try_join_next().is_some() {}
        if self.uploads.len() >= UPLOADS_MAX {
            tracing::warn!("uploads do not keep up with rounds: the ones in progress are given up");
            self.uploads.abort_all();
        }
        let way = self.way(hash);
        let under_way = UnderWay::new(&self.shared, hash);
        self.shared.sent.store(0, Ordering::Relaxed);
        let total = file.len() as u64;
        self.shared.total.store(total, Ordering::Relaxed);
        self.uploads.spawn(async move {
            let _under_way = under_way;
            let refusal = way.upload(file).await;
            if let Some(refusal) = refusal {
                way.shared.refusals().push(refusal);
            }
        });
    }

    /// Sends what the hub waits for and lacks of the updates after `round`, in the background: it may be another one than
    /// before, or have lost something. It is asked first, and no refusal is news.
    pub(super) fn send_again(&mut self, round: u64) {
        let files = self.kept.iter().filter(|it| round < it.round());
        let files: Vec<Hash> = files.flat_map(Kept::files).collect();
        let mut again = self.shared.again();
        for file in files {
            if !again.wanted.contains(&file) {
                again.wanted.push_back(file);
            }
        }
        if again.wanted.is_empty() || std::mem::replace(&mut again.is_running, true) {
            return;
        }
        drop(again);
        let (disk, folder) = (Arc::clone(&self.disk), self.folder.clone());
        let mut way = self.way(Hash::default());
        let again = tokio::spawn(async move {
            while let Some(hash) = way.shared.next_again() {
                while way.shared.under_way().contains(&hash) {
                    tokio::time::sleep(AGAIN).await;
                }
                let (disk, folder) = (Arc::clone(&disk), folder.clone());
                let read = world::blocking(move || kept::read(&*disk, &folder, &hash)).await;
                if let Ok(Ok(Some(bytes))) = read {
                    way.hash = hash;
                    way.look(bytes.into()).await;
                }
            }
        });
        self.again = Some(again.abort_handle());
    }

    fn way(&self, hash: Hash) -> Way {
        Way {
            hash,
            client: self.client.clone(),
            authorisation: self.authorisation.clone(),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Bytes at the hub and in all, of the newest upload while it is not done.
    pub(super) fn progress(&self) -> Option<(u64, u64)> {
        let (sent, total) = (&self.shared.sent, &self.shared.total);
        let (sent, total) = (sent.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
        (total > 0).then_some((sent, total))
    }

    /// Why uploads failed for good since this was asked last.
    pub(super) fn take_refusals(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.refusals())
    }

    /// Waits for all uploads, but not longer than this; what is left stays on disk for the next start.
    pub(super) async fn settle(&mut self, longest: Duration) {
        let all = async { while self.uploads.join_next().await.is_some() {} };
        if tokio::time::timeout(longest, all).await.is_err() {
            tracing::warn!("an upload is not done; it goes on at the next start");
            self.uploads.abort_all();
        }
        if let Some(again) = self.again.take() {
            again.abort();
        }
    }

    /// The oldest go first, the newest stays.
    fn prune_bytes(&mut self) {
        let mut bytes: u64 = self.kept.iter().map(Kept::bytes).sum();
        while 1 < self.kept.len() && BYTES_KEPT_MAX < bytes {
            let oldest = self.kept.remove(0);
            bytes -= oldest.bytes();
            self.remove(&oldest, None);
        }
    }

    /// Removes an update's files, but not those that `other` names too.
    fn remove(&self, kept: &Kept, other: Option<&Kept>) {
        let stay = other.map(Kept::files).unwrap_or_default();
        if other.is_none_or(|it| it.name() != kept.name()) {
            kept::remove(&*self.disk, &self.folder.join(kept.name()));
        }
        for hash in kept.files().iter().filter(|it| !stay.contains(it)) {
            kept::remove(&*self.disk, &self.folder.join(hash.to_string()));
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        if let Some(again) = self.again.take() {
            again.abort();
        }
    }
}

impl Shared {
    fn refusals(&self) -> MutexGuard<'_, Vec<String>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeSet<Hash>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) -> MutexGuard<'_, Again> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next file to look after; without one the task ends.
    fn next_again(&self) -> Option<Hash> {
        let mut again = self.again();
        let next = again.wanted.pop_front();
        again.is_running = next.is_some();
        next
    }
}

/// While it lives, a file is on its way.
struct UnderWay {
    shared: Arc<Shared>,
    hash: Hash,
}

impl UnderWay {
    fn new(shared: &Arc<Shared>, hash: Hash) -> Self {
        shared.under_way().insert(hash);
        Self {
            shared: Arc::clone(shared),
            hash,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.under_way().remove(&self.hash);
    }
}

/// A file's way to the hub.
struct Way {
    hash: Hash,
    client: HubClient,
    authorisation: UploadAuthorisation,
    shared: Arc<Shared>,
}

impl Way {
    /// Until the hub has it or refuses it; gives the refusal.
    async fn upload(&self, file: Bytes) -> Option<String> {
        let shared = &self.shared;
        let refusal = loop {
            let progress = |bytes| shared.sent.store(bytes, Ordering::Relaxed);
            match self
                .client
                .upload(self.hash, file.clone(), &self.authorisation, progress)
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

    /// Until the hub has it or does not want it.
    async fn look(&self, file: Bytes) {
        let (client, authorisation) = (&self.client, &self.authorisation);
        while let Err(error) = client
            .upload_again(self.hash, file.clone(), authorisation, |_| {})
            .await
        {
            let is_temporary = error.is_temporary();
            tracing::debug!("sending again: {:#}", anyhow::Error::from(error));
            if !is_temporary {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests;
