//! Runs numbered tasks on a fixed set of threads.
//!
//! Tasks are cut by the shape of the work, never by the number of threads, and each writes its own part of the output:
//! so the result's bits do not depend on how many threads ran them, or in what order.

use std::marker::PhantomData;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// The threads of one trainer or evaluator.
pub(crate) struct Threads {
    pool: Option<rayon::ThreadPool>,
}

impl Threads {
    /// `count` of 0 and 1 both mean the calling thread alone: nothing is spawned. So does a pool that the system refuses.
    pub(crate) fn new(count: usize) -> Self {
        let pool = (count > 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(count)
                .build()
                .ok()
        });
        Threads {
            pool: pool.flatten(),
        }
    }

    /// Number of workers that [`Threads::run`] numbers.
    pub(crate) fn count(&self) -> usize {
        self.pool
            .as_ref()
            .map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Calls `work(task, worker)` once for each task; `worker < count()` never runs two tasks at a time.
    pub(crate) fn run(&self, tasks: usize, work: impl Fn(usize, usize) + Sync) {
        match &self.pool {
            Some(pool) if tasks > 1 => pool.install(|| {
                (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
                    work(task, rayon::current_thread_index().unwrap_or(0));
                });
            }),
            _ => (0..tasks).for_each(|task| work(task, 0)),
        }
    }
}

/// A mutable slice that tasks write in disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a, T> {
    pointer: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `range`, whose caller promises that no two live ranges overlap.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Parts {
            pointer: slice.as_mut_ptr(),
            len: slice.len(),
            lifetime: PhantomData,
        }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No two ranges that are alive at the same time may overlap.
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start.checked_add(len).is_some_and(|end| end <= self.len),
            "part lies outside its slice"
        );
        // SAFETY: inside the slice by the line above, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }

    /// The pointer to element `start`, for matrix products that write with a stride.
    pub(crate) fn pointer(&self, start: usize) -> *mut T {
        assert!(start <= self.len, "part lies outside its slice");
        // SAFETY: inside the slice, or one past its end, by the line above.
        unsafe { self.pointer.add(start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for count in [0, 1, 2, 3] {
            let threads = Threads::new(count);
            assert_eq!(threads.count(), count.max(1));
            let mut seen = vec![0u32; 37];
            let parts = Parts::new(&mut seen);
            threads.run(37, |task, worker| {
                assert!(worker < threads.count());
                // SAFETY: each task has its own element.
                let own = unsafe { parts.range(task, 1) };
                own[0] += 1;
            });
            assert!(seen.iter().all(|&runs| runs == 1));
        }
    }
}
