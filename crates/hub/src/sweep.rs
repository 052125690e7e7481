//! Blobs that nobody will ask for are removed after a while; what a log names as part of its model, never.
//!
//! Kept for ever: a charter's data, checkpoints, deltas, merged updates and the inner states beside them. Kept while their
//! rounds are in progress: what workers committed to. Everything else (updates that were refused or came to nothing, files
//! uploaded for a run that was never opened, uploads given up half-way) goes when it is old enough, or at once, oldest first,
//! when there is more of it than the hub allows.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Result;
use protocol::{
    Hash,
    command::Command,
    event::Event,
    units::{BlobReference, RunId},
};

use crate::{Hub, blobs::Stored, run::Run, store::Store};

/// Time between two sweeps.
const EVERY: Duration = Duration::from_secs(600);
/// However much there is: a file as new as this may be about to be named by a log.
const NEW: Duration = Duration::from_secs(600);
/// Log entries read at once.
const PAGE: u64 = 500;
/// Inner states of commitments that may still be merged; older ones were lost with their rounds.
const PENDING_MAX: usize = 65_536;

/// What the logs name, as far as they were read.
#[derive(Default)]
pub(crate) struct Named {
    /// Sizes by hash.
    blobs: HashMap<Hash, u64>,
    /// Inner states by the updates that they came with: an update that is merged keeps its own.
    inner_states: HashMap<Hash, BlobReference>,
    read_up_to: HashMap<RunId, u64>,
}

/// Bytes that are here and that no log names (yet).
#[derive(Debug, Default)]
pub(crate) struct Unused {
    bytes: AtomicU64,
    crowded: tokio::sync::Notify,
}

impl Unused {
    /// Counts bytes of an upload, if there is room for them among all that may never be used.
    pub(crate) fn take(&self, bytes: u64, bytes_max: u64) -> bool {
        if self.bytes.load(Ordering::Relaxed).saturating_add(bytes) > bytes_max {
            self.crowded.notify_one();
            return false;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }
}

/// Sweeps again and again until the hub stops.
pub(crate) async fn keep_clean(hub: Arc<Hub>) {
    let mut named = Named::default();
    loop {
        match sweep(&hub, &mut named).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed files that nobody uses"),
            Err(error) => tracing::error!("can't look for files that nobody uses: {error:#}"),
        }
        let shutdown = hub.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
            () = hub.unused.crowded.notified() => {
                // Whoever fills the hub makes it sweep every few seconds, not all the time.
                let pause = tokio::time::sleep(EVERY / 100);
                if shutdown.run_until_cancelled(pause).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// One sweep; gives the number of files removed.
async fn sweep(hub: &Hub, named: &mut Named) -> Result<usize> {
    // No run is opened meanwhile on data that is about to go.
    let _turn = hub.creating.lock().await;
    // Listed first: what comes later is looked at the next time. What is waited for may be merged while this goes on, and is
    // then named by a log: the logs are read last.
    let mut stored = hub.blobs.stored().await?;
    let waited_for = waited_for(&hub.all().await).await;
    for run in hub.all().await {
        named.read_on(&hub.store, run.id).await?;
    }
    stored.retain(|it| !named.blobs.contains_key(&it.hash) && !waited_for.contains(&it.hash));
    stored.sort_by_key(|it| it.changed);
    let keep_for = Duration::from_secs(hub.config.unused_blob_minutes.saturating_mul(60));
    let (removed, left) = choose(
        &stored,
        SystemTime::now(),
        keep_for,
        hub.config.unused_bytes_max,
    );
    for file in removed {
        hub.blobs.remove(file).await?;
    }
    hub.unused.bytes.store(left, Ordering::Relaxed);
    Ok(removed.len())
}

/// Which of the unused files go, of a list with the oldest first: those beyond their time, and more while they are too many
/// bytes; new ones in no case. Also gives the bytes that stay.
fn choose(
    stored: &[Stored],
    now: SystemTime,
    keep_for: Duration,
    bytes_max: u64,
) -> (&[Stored], u64) {
    let mut bytes: u64 = stored.iter().map(|it| it.bytes).sum();
    let mut count = 0;
    for file in stored {
        // A file from the future (a clock was wrong) is as good as new.
        let age = now.duration_since(file.changed).unwrap_or_default();
        if age <= NEW || age <= keep_for && bytes <= bytes_max {
            break;
        }
        bytes -= file.bytes;
        count += 1;
    }
    (&stored[..count], bytes)
}

impl Named {
    /// Notes what the entries of a log name that were not read yet. (What entries named that were set aside meanwhile stays
    /// named until the next start.)
    pub(crate) async fn read_on(&mut self, store: &Store, run: RunId) -> Result<()> {
        let length = store.length(run).await?;
        let read = self.read_up_to.entry(run).or_insert(0);
        // A log that was cut back is read again from where it may differ: from the start.
        if length < *read {
            *read = 0;
        }
        loop {
            let from = self.read_up_to.get(&run).copied().unwrap_or(0);
            let entries = store.entries(run, from, PAGE).await?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in &entries {
                self.note(&entry.event);
            }
            self.read_up_to.insert(run, from + entries.len() as u64);
        }
    }

    /// Everything named, by hash and size.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (Hash, u64)> {
        self.blobs.iter().map(|(hash, bytes)| (*hash, *bytes))
    }

    fn note(&mut self, event: &Event) {
        let mut name = |blob: &BlobReference| {
            self.blobs.insert(blob.hash, blob.bytes);
        };
        match event {
            Event::RunCreated {
                charter,
                checkpoint,
                ..
            } => {
                let shards = charter.data.training.iter().chain(&charter.data.held_out);
                shards.for_each(|it| name(&it.blob));
                name(&charter.data.tokenizer);
                name(&checkpoint.parameters);
                name(&checkpoint.outer);
            }
            Event::CheckpointPublished { checkpoint, .. } => {
                name(&checkpoint.parameters);
                name(&checkpoint.outer);
            }
            Event::RoundMerged { updates, delta, .. } => {
                name(delta);
                for merged in updates {
                    name(&merged.update);
                }
                for merged in updates {
                    if let Some(inner) = self.inner_states.remove(&merged.update.hash) {
                        self.blobs.insert(inner.hash, inner.bytes);
                    }
                }
            }
            Event::UpdateCommitted { command } => {
                if let Command::Commit(commitment) = &command.command
                    && let Some(inner) = commitment.header.inner_state
                {
                    if self.inner_states.len() >= PENDING_MAX {
                        self.inner_states.clear();
                    }
                    self.inner_states.insert(commitment.update.hash, inner);
                }
            }
            _ => {}
        }
    }
}

/// What commitments of rounds in progress name, and the inner state that newcomers start from.
async fn waited_for(runs: &[Run]) -> HashSet<Hash> {
    let mut found = HashSet::new();
    for run in runs {
        let state = run.state.read().await;
        found.extend(state.inner_start.map(|it| it.hash));
        for commitment in crate::commitments(&state) {
            found.insert(commitment.update.hash);
            found.extend(commitment.header.inner_state.map(|it| it.hash));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use protocol::{
        SecretKey,
        command::{Commitment, SignedCommand},
        event::{Checkpoint, MergedUpdate, ModelState},
        units::{MicroCredits, WorkerId},
        update::UpdateHeader,
    };

    use super::*;

    fn blob(seed: u8) -> BlobReference {
        BlobReference {
            hash: Hash([seed; 32]),
            bytes: 1,
        }
    }

    #[test]
    fn what_makes_the_model_is_kept_and_what_was_refused_is_not() {
        let key = SecretKey::from_entropy([1; 32]);
        let worker = WorkerId(key.public());
        let committed = |update, inner| {
            let header = UpdateHeader {
                run: RunId::default(),
                worker,
                round: 1,
                slot: 0,
                base_round: 0,
                base: Hash::default(),
                steps: 1,
                head_start_steps: 0,
                tokens: 1,
                loss_micronats: 1,
                carried_before: Hash::default(),
                carried_after: Hash::default(),
                carried_if_refused: Hash::default(),
                steps_root: Hash::default(),
                payload: Hash::default(),
                inner_state: Some(blob(inner)),
            };
            let update = blob(update);
            let commit = Command::Commit(Box::new(Commitment { update, header }));
            let command = SignedCommand::sign(&key, RunId::default(), 1, commit);
            Event::UpdateCommitted { command }
        };
        let merged = MergedUpdate {
            slot: 0,
            of_round: 1,
            worker,
            update: blob(10),
            tokens: 1,
            weight: 1,
            credits: MicroCredits(1),
        };
        let model = ModelState {
            round: 1,
            parameters: Hash::default(),
            outer: Hash::default(),
        };
        let checkpoint = Checkpoint {
            parameters: blob(30),
            outer: blob(31),
        };
        let mut named = Named::default();
        for event in [
            committed(10, 11),
            committed(20, 21),
            Event::RoundMerged {
                round: 1,
                rate_q16: 65_536,
                updates: vec![merged],
                delta: blob(12),
                model,
            },
            Event::CheckpointPublished {
                round: 1,
                checkpoint,
            },
        ] {
            named.note(&event);
        }
        let kept: HashSet<Hash> = [10, 11, 12, 30, 31].map(|it| blob(it).hash).into();
        let named: HashSet<Hash> = named.sizes().map(|it| it.0).collect();
        assert_eq!(named, kept);
    }

    #[test]
    fn the_oldest_go_first_and_only_as_many_as_must() {
        let start = SystemTime::UNIX_EPOCH;
        let file = |minutes: u64, bytes| Stored {
            hash: Hash([minutes as u8; 32]),
            bytes,
            changed: start + Duration::from_secs(60 * minutes),
            is_part: false,
        };
        let files = [file(0, 100), file(10, 200), file(20, 300), file(99, 400)];
        let now = start + Duration::from_secs(60 * 30);
        let check = |keep_minutes: u64, bytes_max, count, left| {
            let keep_for = Duration::from_secs(60 * keep_minutes);
            let (removed, bytes) = choose(&files, now, keep_for, bytes_max);
            assert_eq!(
                (removed.len(), bytes),
                (count, left),
                "{keep_minutes} {bytes_max}"
            );
        };
        check(60, 10_000, 0, 1_000);
        check(15, 10_000, 2, 700);
        check(60, 899, 2, 700);
        // What may be about to be named stays, and so does the file from the future: uploads wait meanwhile.
        check(60, 0, 2, 700);
        check(1, 10_000, 2, 700);
    }
}
