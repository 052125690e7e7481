//! What this worker committed to in its last rounds: on its way to the hub, and on disk until nothing can ask for it again.
//!
//! An acknowledged update can be asked for once more: its hub is replaced by a mirror that lacks the last entries or the
//! bytes that were not public yet, or starts again from an older copy. So commitment and bytes stay until the update's
//! fate is settled in any log that may count, bounded in number and bytes; the states that it names stay as long
//! (`crate::carried`). Whoever's uplink is slow sends one file after the other ([`line`]).

mod kept;
mod line;

use std::{
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
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::machine::Sealed;
use kept::Kept;
use line::{Item, Line};

/// Wait before an upload is tried again after the client gave it up.
const AGAIN: Duration = Duration::from_secs(3);
/// An update is kept for so many rounds after its own: while one can take it, and while a log may count that is so many
/// rounds behind.
const ROUNDS_KEPT: u64 = 2 * LATE_ROUNDS_MAX + 2;
/// Most bytes of updates that are kept for that; the newest is kept in any case.
const BYTES_KEPT_MAX: u64 = 256 << 20;

/// Most bytes that updates of so many bytes take.
pub(super) fn bytes_max(update_bytes: u64) -> u64 {
    // A new one is written before old ones go.
    BYTES_KEPT_MAX
        .max(update_bytes)
        .saturating_add(update_bytes)
}

/// The updates of a run.
#[derive(Debug)]
pub(super) struct Outbox {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    client: HubClient,
    authorisation: UploadAuthorisation,
    /// What works the line off, if anything waits.
    uploads: JoinSet<()>,
    /// Oldest round first, one a round.
    kept: Vec<Kept>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Of the upload under way, if the hub never had it.
    sent: AtomicU64,
    total: AtomicU64,
    refusals: Mutex<Vec<String>>,
    line: Mutex<Line>,
    /// The line changed.
    changed: watch::Sender<()>,
}

/// What became of a file under way.
enum Sent {
    /// The hub has it, or will not; perhaps with a refusal that is news.
    Settled(Option<String>),
    /// The hub did not answer.
    NotYet,
    /// It made room for others.
    Yielded,
}

impl Outbox {
    /// Opens or makes the folder with what an earlier process left there.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        client: HubClient,
        key: SecretKey,
        window: Duration,
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
            kept,
            shared: Arc::new(Shared {
                sent: AtomicU64::new(0),
                total: AtomicU64::new(0),
                refusals: Mutex::default(),
                line: Mutex::new(Line::new(window)),
                changed: watch::Sender::default(),
            }),
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

    /// Forgets what no round of a run that has come to `round` can ask for any more, and sends nothing more that no merge
    /// after that of `merged` takes: what is not sent stays here as long, for a log that is behind.
    pub(super) fn come_to(&mut self, round: u64, merged: u64) {
        let late = self.shared.line().come_to(round, merged);
        self.shared.changed.send_replace(());
        for round in late {
            self.shared.refusals().push(too_late(round));
        }
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

    /// Sends the files of a kept update that was committed to, in the background: when the line comes to them.
    pub(super) fn send(&mut self, update: Hash) {
        let kept = self
            .kept
            .iter()
            .find(|it| it.commitment.update.hash == update);
        let items = kept.map(|it| items(it, false)).unwrap_or_default();
        self.line_up(items);
    }

    /// Sends what the hub waits for and lacks of the updates after `round`, in the background: it may be another one than
    /// before, or have lost something. It is asked first, and no refusal is news.
    pub(super) fn send_again(&mut self, round: u64) {
        let kept = self.kept.iter().filter(|it| round < it.round());
        self.line_up(kept.flat_map(|it| items(it, true)).collect());
    }

    fn line_up(&mut self, items: Vec<Item>) {
        let mut is_idle = false;
        for item in items {
            is_idle |= self.shared.line().push(item);
        }
        self.shared.changed.send_replace(());
        if !is_idle {
            return;
        }
        while self.uploads.try_join_next().is_some() {}
        let way = Way {
            disk: Arc::clone(&self.disk),
            folder: self.folder.clone(),
            client: self.client.clone(),
            authorisation: self.authorisation.clone(),
            shared: Arc::clone(&self.shared),
        };
        self.uploads.spawn(async move { way.work_off().await });
    }

    /// Bytes at the hub and in all, of the upload under way.
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
        self.shared.line().forget_asked_first();
        let all = async { while self.uploads.join_next().await.is_some() {} };
        if tokio::time::timeout(longest, all).await.is_err() {
            tracing::warn!("an upload is not done; it goes on at the next start");
            self.uploads.abort_all();
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
            self.shared.line().forget(hash);
            kept::remove(&*self.disk, &self.folder.join(hash.to_string()));
        }
    }
}

impl Shared {
    fn refusals(&self) -> MutexGuard<'_, Vec<String>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file's way to the hub.
struct Way {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    client: HubClient,
    authorisation: UploadAuthorisation,
    shared: Arc<Shared>,
}

impl Way {
    /// One file after the other, until none waits.
    async fn work_off(&self) {
        while let Some(item) = self.next() {
            let (disk, folder) = (Arc::clone(&self.disk), self.folder.clone());
            let read = world::blocking(move || kept::read(&*disk, &folder, &item.hash)).await;
            let sent = match read {
                Ok(Ok(Some(bytes))) => self.send(item, bytes.into()).await,
                // It was forgotten, or went bad.
                Ok(Ok(None)) => Sent::Settled(None),
                Ok(Err(error)) => Sent::Settled(Some(format!("{error:#}"))),
                Err(error) => Sent::Settled(Some(error.to_string())),
            };
            self.shared.total.store(0, Ordering::Relaxed);
            let (waits_again, refusal) = match sent {
                Sent::Settled(refusal) => (false, refusal),
                Sent::NotYet => (true, None),
                Sent::Yielded if item.is_asked_first => (true, None),
                Sent::Yielded => (false, Some(too_late(item.round))),
            };
            if let Some(refusal) = refusal {
                match item.is_asked_first {
                    true => tracing::debug!("sending again: {refusal}"),
                    false => self.shared.refusals().push(refusal),
                }
            }
            self.shared.line().leave(waits_again);
            if waits_again {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    fn next(&self) -> Option<Item> {
        self.shared.line().next()
    }

    /// Until the hub has it, refuses it or does not answer, or others need the line.
    async fn send(&self, item: Item, file: Bytes) -> Sent {
        let shared = &self.shared;
        let begun = Instant::now();
        let (first, last) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
        let progress = |bytes| {
            first.fetch_min(bytes, Ordering::Relaxed);
            last.store(bytes, Ordering::Relaxed);
            if !item.is_asked_first {
                shared.sent.store(bytes, Ordering::Relaxed);
                shared.total.store(item.bytes, Ordering::Relaxed);
            }
        };
        let mut changed = shared.changed.subscribe();
        let uploaded = async {
            let (client, authorisation) = (&self.client, &self.authorisation);
            match item.is_asked_first {
                true => {
                    client
                        .upload_again(item.hash, file, authorisation, progress)
                        .await
                }
                false => {
                    client
                        .upload(item.hash, file, authorisation, progress)
                        .await
                }
            }
        };
        let uploaded = tokio::select! {
            biased;
            uploaded = uploaded => Some(uploaded),
            _ = changed.wait_for(|()| shared.line().must_yield()) => None,
        };
        let first = first.load(Ordering::Relaxed);
        let sent = last.load(Ordering::Relaxed).saturating_sub(first);
        shared.line().measure(sent, begun.elapsed());
        match uploaded {
            None => Sent::Yielded,
            Some(Ok(())) => Sent::Settled(None),
            Some(Err(error)) if error.is_temporary() => {
                tracing::debug!("{:#}", anyhow::Error::from(error));
                Sent::NotYet
            }
            Some(Err(error)) => Sent::Settled(Some(format!("{:#}", anyhow::Error::from(error)))),
        }
    }
}

/// A kept update's files.
fn items(kept: &Kept, is_asked_first: bool) -> Vec<Item> {
    let round = kept.round();
    let files = kept.references().into_iter();
    files
        .map(|file| Item {
            round,
            hash: file.hash,
            bytes: file.bytes,
            is_asked_first,
        })
        .collect()
}

fn too_late(round: u64) -> String {
    format!("round {round}: the upload took longer than any merge could wait for it")
}

#[cfg(test)]
mod tests;
