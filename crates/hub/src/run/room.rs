//! What all runs of a process share of its processors and its memory: judging and merging, whose number strangers decide.

use std::sync::Arc;

use engine::update::decoded::DecodedUpdate;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;

/// Room for judging and merging. Clones are the same room.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    jobs: Arc<Semaphore>,
    /// In KiB.
    kept: Arc<Semaphore>,
    update_bytes: usize,
}

/// An update that stays decoded until its merge.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) update: Arc<DecodedUpdate>,
    _room: OwnedSemaphorePermit,
}

impl Room {
    /// The room that the settings give.
    pub(crate) fn new(config: &Config) -> Self {
        let kib = config.update_memory_mib.saturating_mul(1024);
        Self {
            jobs: Arc::new(Semaphore::new(config.compute_threads.max(1))),
            kept: Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS))),
            update_bytes: kib.saturating_mul(1024),
        }
    }

    /// Waits for a job's turn, which ends when this is dropped.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        Arc::clone(&self.jobs).acquire_owned().await.ok()
    }

    /// Keeps an update decoded if there is room for it: if not, the merge reads it again.
    pub(super) fn keep(&self, update: Arc<DecodedUpdate>) -> Option<Kept> {
        let kib = u32::try_from(update.memory_bytes().div_ceil(1024)).ok()?;
        let room = Arc::clone(&self.kept).try_acquire_many_owned(kib.max(1));
        let _room = room.ok()?;
        Some(Kept { update, _room })
    }

    /// Bytes of values that a merge reads at once.
    pub(crate) fn merge_bytes_max(&self) -> usize {
        self.update_bytes / 2
    }
}

#[cfg(test)]
mod tests {
    use engine::update::{
        codec,
        settings::{DenseSettings, DenseWidth, UpdateSettings},
    };

    use super::*;

    #[tokio::test]
    async fn as_many_updates_are_kept_as_there_is_room_for() {
        let settings = UpdateSettings::Dense(DenseSettings {
            chunk: 1_024,
            width: DenseWidth::Sixteen,
        });
        let lengths = [200_000];
        let payload = codec::encode(&lengths, &settings, &vec![0.01; lengths[0]]).unwrap();
        let update = Arc::new(codec::decode(&payload, &lengths, &settings).unwrap());
        assert!(update.memory_bytes() > 400_000);
        let room = Room::new(&Config {
            update_memory_mib: 1,
            compute_threads: 2,
            ..Config::default()
        });
        let first = room.keep(Arc::clone(&update));
        let second = room.keep(Arc::clone(&update));
        assert!(first.is_some() && second.is_some());
        assert!(room.keep(Arc::clone(&update)).is_none());
        drop(first);
        assert!(room.keep(update).is_some());
        let turns = [room.turn().await, room.turn().await];
        assert!(room.jobs.try_acquire().is_err());
        drop(turns);
        assert!(room.jobs.try_acquire().is_ok());
    }
}
