//! What a role needs of the machine around it: a clock, threads for work that blocks, a little chance.
//!
//! In a process these are the system's. In the simulator (`tests/sim`) everything runs on one thread in virtual time, so
//! that the same seed gives the same run: work that would go to another thread is done at once or waited for in place,
//! chance comes from the seed, and each node's clock can be set wrong. Roles call the same functions in both.

use std::{
    cell::Cell,
    future::Future,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::task::{JoinError, JoinHandle};

/// Time until a simulated disk has what was written: a sync of a usual one.
const SIMULATED_DISK: Duration = Duration::from_millis(5);

/// What a simulated node says when it stops itself.
pub const ABORTED: &str = "the node stops itself";

thread_local! {
    /// The state of the simulated chance; `None` on every thread of a real process.
    static SIMULATED: Cell<Option<u64>> = const { Cell::new(None) };
    /// Whether a node of the simulated world stopped itself.
    static STOPPED: Cell<bool> = const { Cell::new(false) };
}

/// Makes the calling thread a simulated world: what runs on it depends on `seed` and its inputs alone.
pub fn simulate_this_thread(seed: u64) {
    SIMULATED.set(Some(seed));
}

/// Whether the calling thread is a simulated world.
#[must_use]
pub fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

/// Does work that blocks, on a thread for such work.
///
/// # Errors
/// The work panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if is_simulated() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Begins long work that blocks, on a thread for such work.
///
/// It may wait for time to pass in the simulated world alone, where it runs as a task like any other.
pub fn begin_long<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    if is_simulated() {
        return tokio::spawn(work);
    }
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work))
}

/// Waits for work whose other half is on a thread of a library (a database connection).
///
/// In the simulated world nothing else runs and no time passes until it is done.
pub async fn settled<F: Future>(work: F) -> F::Output {
    if is_simulated() {
        return wait_in_place(work);
    }
    work.await
}

/// As [`settled`], for work that ends when it is on a disk: in the simulated world that takes a disk's time, in which
/// others go on and a node may die.
pub async fn written<F: Future>(work: F) -> F::Output {
    let output = settled(work).await;
    if is_simulated() {
        tokio::time::sleep(SIMULATED_DISK).await;
    }
    output
}

/// Ends the process: going on would do harm. In the simulated world, a panic of the node that calls it, of which
/// [`take_abort`] tells.
pub fn abort() -> ! {
    if is_simulated() {
        STOPPED.set(true);
        panic!("{ABORTED}");
    }
    std::process::abort()
}

/// Whether a node of the simulated world stopped itself since this was asked last.
#[must_use]
pub fn take_abort() -> bool {
    STOPPED.take()
}

/// A number in 0..1; one half if the system has no entropy, because callers want no more than to be unlike each other.
pub fn unit_interval() -> f64 {
    let bits = match SIMULATED.get() {
        Some(state) => {
            let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            SIMULATED.set(Some(state));
            mix(state)
        }
        None => {
            let mut bytes = [0; 8];
            match getrandom::fill(&mut bytes) {
                Ok(()) => u64::from_le_bytes(bytes),
                Err(_) => 1 << 63,
            }
        }
    };
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A node's wall clock. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    simulated: Option<Arc<Simulated>>,
}

#[derive(Debug)]
struct Simulated {
    begun: tokio::time::Instant,
    begun_ms: u64,
    wrong_ms: AtomicI64,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `begun_ms` (Unix milliseconds) now and follows the runtime's time.
    #[must_use]
    pub fn simulated(begun_ms: u64) -> Self {
        Self {
            simulated: Some(Arc::new(Simulated {
                begun: tokio::time::Instant::now(),
                begun_ms,
                wrong_ms: AtomicI64::new(0),
            })),
        }
    }

    /// Sets a simulated clock wrong by so many milliseconds.
    ///
    /// # Panics
    /// For the system's clock, which is not ours to set.
    pub fn set_wrong_by_ms(&self, wrong_ms: i64) {
        let simulated = self.simulated.as_ref().expect("a simulated clock");
        simulated.wrong_ms.store(wrong_ms, Ordering::Relaxed);
    }

    /// Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        match &self.simulated {
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
            Some(it) => {
                let passed = u64::try_from(it.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                let wrong = it.wrong_ms.load(Ordering::Relaxed);
                it.begun_ms
                    .saturating_add(passed)
                    .saturating_add_signed(wrong)
            }
        }
    }
}

/// Wakes a thread that waits in place.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait_in_place<F: Future>(work: F) -> F::Output {
    static BESIDE: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    // What the work starts beside itself must go on while this thread waits, so it needs another runtime.
    let beside = BESIDE.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .expect("a runtime of one thread can be made")
    });
    let _entered = beside.enter();
    let mut work = pin!(tokio::task::unconstrained(work));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = work.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_process_uses_the_systems_world() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let here = std::thread::current().id();
        let there = runtime.block_on(blocking(|| std::thread::current().id()));
        assert_ne!(there.unwrap(), here);
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis();
        assert!(u128::from(Clock::system().now_ms()).abs_diff(now_ms) < 60_000);
    }

    #[test]
    fn a_simulated_world_repeats_itself() {
        let run = || {
            std::thread::spawn(|| {
                simulate_this_thread(7);
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let here = std::thread::current().id();
                    assert_eq!(
                        blocking(|| std::thread::current().id()).await.unwrap(),
                        here
                    );
                    // Another thread answers; this one waits for it without letting anything else run.
                    let settled = settled(async {
                        tokio::spawn(async { std::thread::current().id() }).await
                    });
                    assert_ne!(settled.await.unwrap(), here);
                });
                [unit_interval(), unit_interval()]
            })
            .join()
            .unwrap()
        };
        let (first, second) = (run(), run());
        assert_eq!(first, second);
        assert_ne!(first[0], first[1]);
    }

    #[test]
    fn a_clock_can_be_wrong() {
        let clock = Clock::simulated(1_000_000);
        clock.set_wrong_by_ms(-400_000);
        assert!((600_000..700_000).contains(&clock.now_ms()));
        clock.set_wrong_by_ms(-2_000_000_000);
        assert_eq!(clock.now_ms(), 0);
    }
}
