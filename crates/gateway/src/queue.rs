//! Places for answers: so many are computed at a time, so many wait, the next is refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest wait for a place.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Hands out places.
#[derive(Clone)]
pub(crate) struct Queue {
    places: Arc<Semaphore>,
    places_max: usize,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
}

/// The right to compute one answer; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Too many answers are being computed and waited for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Counts one waiting request for as long as it lives, also when its client goes away.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    pub(crate) fn new(places_max: usize, waiting_max: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
            waiting: Arc::default(),
            waiting_max,
        }
    }

    /// A place, at once or after a wait in order of arrival.
    pub(crate) async fn take(&self) -> Result<Place, Full> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place(permit));
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.waiting_max {
            return Err(Full);
        }
        match tokio::time::timeout(WAIT_MAX, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place(permit)),
            Ok(Err(_)) | Err(_) => Err(Full),
        }
    }

    /// Answers being computed.
    pub(crate) fn running(&self) -> usize {
        self.places_max - self.places.available_permits()
    }

    /// Requests that wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_and_a_dropped_place_is_free() {
        let queue = Queue::new(1, 1);
        let first = queue.take().await.expect("the first place");
        assert_eq!((queue.running(), queue.waiting()), (1, 0));
        let other = queue.clone();
        let second = tokio::spawn(async move { other.take().await });
        while queue.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue.take().await.expect_err("a third"), Full);
        drop(first);
        let second = second
            .await
            .expect("no panic")
            .expect("the place that became free");
        assert_eq!((queue.running(), queue.waiting()), (1, 0));
        drop(second);
        assert_eq!(queue.running(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_after_a_minute() {
        let queue = Queue::new(1, 1);
        let _place = queue.take().await.expect("the place");
        assert_eq!(queue.take().await.expect_err("no place"), Full);
        assert_eq!(queue.waiting(), 0);
    }
}
