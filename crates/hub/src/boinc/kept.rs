//! What takes long to make and is asked for by strangers: made once, kept for a while, and made anew by one at a time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::time::Instant;

/// How long it is kept.
pub(super) const KEPT: Duration = Duration::from_secs(600);

/// A thing that is kept.
#[derive(Debug)]
pub(super) struct Kept<T> {
    made: Arc<Mutex<Option<Made<T>>>>,
    /// The turn of whoever makes it.
    making: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Made<T> {
    thing: Arc<T>,
    at: Instant,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            made: Arc::default(),
            making: Arc::default(),
        }
    }
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// The thing, made by `make` if there is none or it is old. While one makes it anew, others get the old one; while
    /// there is none they wait. Whoever asked may go: it is made all the same.
    pub(super) async fn get(
        &self,
        make: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<Arc<T>> {
        if let Some(thing) = self.found(true) {
            return Ok(thing);
        }
        let making = Arc::clone(&self.making);
        let turn = match (making.try_lock_owned(), self.found(false)) {
            (Ok(turn), _) => turn,
            (Err(_), Some(old)) => return Ok(old),
            (Err(_), None) => Arc::clone(&self.making).lock_owned().await,
        };
        // Who had the turn before may have made it.
        if let Some(thing) = self.found(true) {
            return Ok(thing);
        }
        let made = Arc::clone(&self.made);
        let making = tokio::spawn(async move {
            let _turn = turn;
            let thing = Arc::new(make.await?);
            let at = Instant::now();
            *lock(&made) = Some(Made {
                thing: Arc::clone(&thing),
                at,
            });
            Ok(thing)
        });
        making.await.context("making what is kept")?
    }

    fn found(&self, is_young: bool) -> Option<Arc<T>> {
        let made = lock(&self.made);
        let found = made.as_ref()?;
        (!is_young || found.at.elapsed() < KEPT).then(|| Arc::clone(&found.thing))
    }
}

impl<T: Clone> Kept<T> {
    /// Changes it where it is kept, if it is.
    pub(super) fn change(&self, change: impl FnOnce(&mut T)) {
        if let Some(made) = lock(&self.made).as_mut() {
            change(Arc::make_mut(&mut made.thing));
        }
    }
}

fn lock<T>(made: &Mutex<Option<Made<T>>>) -> MutexGuard<'_, Option<Made<T>>> {
    // A change that ended half-way is made anew before long.
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Makes the number of the time that it is made, when it may.
    struct Maker {
        kept: Kept<u32>,
        times: Arc<AtomicU32>,
        may: Arc<Semaphore>,
    }

    impl Maker {
        fn new() -> Self {
            Self {
                kept: Kept::default(),
                times: Arc::default(),
                may: Arc::new(Semaphore::new(0)),
            }
        }

        async fn get(&self) -> u32 {
            let (times, may) = (Arc::clone(&self.times), Arc::clone(&self.may));
            let made = self.kept.get(async move {
                let time = times.fetch_add(1, Ordering::Relaxed) + 1;
                may.acquire().await?.forget();
                Ok(time)
            });
            *made.await.unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_have_it_made_once() {
        let maker = Maker::new();
        // The first one goes before it is made.
        let hurried = tokio::time::timeout(Duration::from_secs(1), maker.get());
        assert!(hurried.await.is_err());
        let asked = futures_util::future::join_all((0..100).map(|_| maker.get()));
        maker.may.add_permits(1);
        assert!(asked.await.iter().all(|it| *it == 1));
        tokio::time::advance(KEPT - Duration::from_secs(2)).await;
        assert_eq!(maker.get().await, 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        // One makes it anew, and nobody waits for that.
        let mut first = std::pin::pin!(maker.get());
        assert!(futures_util::poll!(&mut first).is_pending());
        tokio::task::yield_now().await;
        assert_eq!(maker.get().await, 1);
        maker.may.add_permits(1);
        assert_eq!((first.await, maker.get().await), (2, 2));
        maker.kept.change(|it| *it += 10);
        assert_eq!(maker.get().await, 12);
        assert_eq!(maker.times.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn what_fails_is_tried_by_the_next() {
        let kept = Kept::default();
        let failed = kept.get(async { anyhow::bail!("no") }).await;
        assert!(failed.is_err());
        assert_eq!(*kept.get(async { Ok(7) }).await.unwrap(), 7);
    }
}
