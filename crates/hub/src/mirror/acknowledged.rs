//! What mirrors that may take over have on their disks: the hub waits for it before it acknowledges, so that a takeover loses
//! nothing that was acknowledged. A mirror that stops answering is waited for once, and counts again when it has caught up.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use protocol::log::Head;
use tokio::sync::watch;

/// Longest wait for a mirror.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// How far the furthest mirror is.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    length: watch::Sender<u64>,
    /// Whether there is one that keeps up.
    is_close: AtomicBool,
}

impl Default for Acknowledged {
    fn default() -> Self {
        Self {
            length: watch::Sender::new(0),
            is_close: AtomicBool::new(false),
        }
    }
}

impl Acknowledged {
    /// A mirror shows that it has the first `length` entries, of a log that stands at `head`.
    pub(crate) fn note(&self, length: u64, head: &Head) {
        if length == head.length {
            self.is_close.store(true, Ordering::Relaxed);
        }
        self.length.send_if_modified(|known| {
            let is_more = *known < length;
            *known = length.max(*known);
            is_more
        });
    }

    /// What was acknowledged is of a log that counts no more.
    pub(crate) fn forget(&self) {
        self.is_close.store(false, Ordering::Relaxed);
        self.length.send_replace(0);
    }

    /// Waits until a mirror has the first `length` entries, if one follows closely; not for long.
    pub(crate) async fn wait_for(&self, length: u64) {
        if !self.is_close.load(Ordering::Relaxed) {
            return;
        }
        let mut known = self.length.subscribe();
        let has_it = known.wait_for(|known| length <= *known);
        if tokio::time::timeout(WAIT_MAX, has_it).await.is_err()
            && self.is_close.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(
                "no mirror confirms new entries: going on without, until one has caught up"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::Hash;
    use tokio::time::Instant;

    use super::*;

    fn head(length: u64) -> Head {
        Head {
            length,
            hash: Hash::default(),
            time_ms: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_is_waited_for_once() {
        let acknowledged = Acknowledged::default();
        let begun = Instant::now();
        acknowledged.wait_for(5).await;
        // Far behind: not waited for.
        acknowledged.note(3, &head(9));
        acknowledged.wait_for(9).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        acknowledged.note(9, &head(9));
        acknowledged.wait_for(9).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        acknowledged.wait_for(10).await;
        assert_eq!(begun.elapsed(), WAIT_MAX);
        acknowledged.wait_for(10).await;
        assert_eq!(begun.elapsed(), WAIT_MAX);
        acknowledged.note(10, &head(10));
        let (waited, ()) = tokio::join!(
            async {
                acknowledged.wait_for(11).await;
                begun.elapsed()
            },
            async {
                tokio::time::sleep(Duration::from_millis(3)).await;
                acknowledged.note(11, &head(11));
            }
        );
        assert_eq!(waited, WAIT_MAX + Duration::from_millis(3));
    }
}
