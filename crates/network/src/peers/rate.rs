//! Pacing: so many bytes a second, all transfers together.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A limit of bytes a second, or none.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_s_max: Option<u64>,
    /// When the bytes granted so far will have been sent.
    free: Mutex<Instant>,
}

impl Rate {
    pub(super) fn new(bytes_per_s_max: Option<u64>) -> Self {
        Self {
            bytes_per_s_max,
            free: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(bytes_per_s) = self.bytes_per_s_max else {
            return;
        };
        tokio::time::sleep_until(self.book(bytes, bytes_per_s.max(1))).await;
    }

    /// The moment from which these bytes may go.
    fn book(&self, bytes: usize, bytes_per_s: u64) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*free).max(Instant::now());
        *free = begin + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_transfers_share_the_rate() {
        let rate = Rate::new(Some(1_000));
        let begin = Instant::now();
        for _ in 0..5 {
            tokio::join!(rate.take(500), rate.take(500));
        }
        // The first of ten halves of a second's worth goes at once.
        assert_eq!(begin.elapsed().as_millis(), 4_500);
        let free = Rate::new(None);
        free.take(usize::MAX).await;
        assert_eq!(begin.elapsed().as_millis(), 4_500);
    }
}
