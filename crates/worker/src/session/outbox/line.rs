//! The order in which files take this worker's uplink: one at a time.
//!
//! An update counts in its own round's merge or, for less, in one of the three after it. Where an uplink takes longer for
//! an update than a round does, uploads side by side would all come too late. So one has the whole line: the oldest from
//! which on everything comes in time, for then nothing is lost; and where that is nothing, the newest, which has most time
//! left and counts most. What can't come in time any more leaves.

use std::time::Duration;

use protocol::{Hash, state::round::LATE_ROUNDS_MAX};

/// A piece of less time says little of the line's speed.
const MEASURED_MIN: Duration = Duration::from_millis(100);

/// A file for the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Of the update that names it.
    pub(super) round: u64,
    pub(super) hash: Hash,
    pub(super) bytes: u64,
    /// Whether the hub has it perhaps: it is asked first, and what it says against it is no news.
    pub(super) is_asked_first: bool,
}

/// What waits for the uplink, and what is on it.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Oldest round first; of a round in the order in which they came.
    waiting: Vec<Item>,
    under_way: Option<Item>,
    /// The round that the run opened last, and the one that it merged last.
    opened: u64,
    merged: u64,
    window: Duration,
    /// Of the last upload.
    bytes_per_s: Option<u64>,
    /// Whether somebody takes from it.
    is_worked_off: bool,
}

impl Line {
    /// Of a run whose rounds take so long.
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            ..Self::default()
        }
    }

    /// Takes a file up; false if somebody works the line off already.
    pub(super) fn push(&mut self, item: Item) -> bool {
        let is_new =
            !self.waiting.contains(&item) && (self.under_way != Some(item) || item.is_asked_first);
        if is_new {
            let place = self.waiting.partition_point(|it| it.round <= item.round);
            self.waiting.insert(place, item);
        }
        !std::mem::replace(&mut self.is_worked_off, true)
    }

    /// Notes how far the run is; gives the rounds of what has to leave.
    pub(super) fn come_to(&mut self, opened: u64, merged: u64) -> Vec<u64> {
        (self.opened, self.merged) = (opened, merged);
        let (opened, merged) = (self.opened, self.merged);
        let leaves = |it: &Item| !it.is_asked_first && rounds_left(it.round, opened, merged) == 0;
        let mut rounds: Vec<u64> = self
            .waiting
            .extract_if(.., |it| leaves(it))
            .map(|it| it.round)
            .collect();
        rounds.dedup();
        rounds
    }

    /// Forgets a file that is not under way.
    pub(super) fn forget(&mut self, hash: &Hash) {
        self.waiting.retain(|it| it.hash != *hash);
    }

    /// Forgets what the hub has perhaps.
    pub(super) fn forget_asked_first(&mut self) {
        self.waiting.retain(|it| !it.is_asked_first);
    }

    /// What takes the line now; nothing ends who works it off.
    pub(super) fn next(&mut self) -> Option<Item> {
        let next = self.first().map(|at| self.waiting.remove(at));
        self.under_way = next;
        self.is_worked_off = next.is_some();
        next
    }

    /// The file that was under way is there, or is given up; or it waits again.
    pub(super) fn leave(&mut self, waits_again: bool) {
        let Some(item) = self.under_way.take() else {
            return;
        };
        if waits_again && (self.counts(&item) || item.is_asked_first) {
            self.push(item);
        }
    }

    /// Whether what is under way can't count any more and so has to go: for good, or because another waits that can.
    pub(super) fn must_yield(&self) -> bool {
        self.under_way.is_some_and(|it| {
            !self.counts(&it)
                && (!it.is_asked_first || self.waiting.iter().any(|other| self.counts(other)))
        })
    }

    /// Notes how fast the line was.
    pub(super) fn measure(&mut self, bytes: u64, took: Duration) {
        if 0 < bytes && MEASURED_MIN <= took {
            let per_s = u128::from(bytes) * 1_000 / took.as_millis().max(1);
            self.bytes_per_s = Some(u64::try_from(per_s).unwrap_or(u64::MAX).max(1));
        }
    }

    fn first(&self) -> Option<usize> {
        let is_first_of_round =
            |at: &usize| *at == 0 || self.waiting[at - 1].round < self.waiting[*at].round;
        let mut places = (0..self.waiting.len()).filter(is_first_of_round);
        places
            .clone()
            .find(|&at| self.all_in_time(&self.waiting[at..]))
            .or_else(|| places.next_back())
    }

    /// Whether files that are sent one after the other all come while they count, as far as the last upload tells.
    fn all_in_time(&self, items: &[Item]) -> bool {
        let mut bytes = 0_u64;
        items.iter().all(|it| {
            bytes = bytes.saturating_add(it.bytes);
            let rounds = rounds_left(it.round, self.opened, self.merged);
            let left = self.window.as_millis().saturating_mul(rounds.into());
            let takes = self
                .bytes_per_s
                .map_or(0, |rate| u128::from(bytes) * 1_000 / u128::from(rate));
            0 < rounds && takes <= left
        })
    }

    fn counts(&self, item: &Item) -> bool {
        0 < rounds_left(item.round, self.opened, self.merged)
    }
}

/// Windows in which an update of `round` still comes in time at least: it goes on from merge to merge as long as it is not
/// too late for one, and a round's bytes are due a little after the next one has opened.
fn rounds_left(round: u64, opened: u64, merged: u64) -> u64 {
    let last = round.saturating_add(LATE_ROUNDS_MAX);
    if last <= merged {
        return 0;
    }
    // Of the last merge's time to reveal nothing is known here but that it is over when the round after next opens.
    match last.saturating_add(1).checked_sub(opened) {
        Some(rounds) => rounds.max(1),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn item(round: u64) -> Item {
        Item {
            round,
            hash: Hash([round as u8; 32]),
            bytes: 1_000,
            is_asked_first: false,
        }
    }

    fn asked_first(round: u64) -> Item {
        Item {
            is_asked_first: true,
            ..item(round)
        }
    }

    /// Updates of these rounds wait while the run is at round 10; each takes so many windows.
    fn check(waiting: &[Item], windows: f64, expected: &[u64]) {
        let mut line = Line::new(WINDOW);
        line.come_to(10, 8);
        line.measure(1_000, WINDOW.mul_f64(windows));
        for (at, it) in waiting.iter().enumerate() {
            assert_eq!(line.push(*it), at == 0);
        }
        let order = std::iter::from_fn(|| line.next().map(|it| it.round));
        assert_eq!(order.collect::<Vec<_>>(), expected);
        assert!(line.push(item(9)), "nobody works it off any more");
    }

    #[test]
    fn the_oldest_goes_first_if_all_come_in_time() {
        check(&[item(9), item(7), item(8)], 0.3, &[7, 8, 9]);
        check(&[item(9)], 2.5, &[9]);
    }

    #[test]
    fn what_would_cost_others_their_time_stands_back() {
        check(&[item(8), item(9)], 2.5, &[9, 8]);
        // One can come, and then the other has no time left: what is left goes all the same, the newest first.
        check(&[item(7), item(8), item(9)], 1.4, &[8, 9, 7]);
        check(&[item(7), item(8), item(9)], 9.0, &[9, 8, 7]);
    }

    #[test]
    fn what_the_hub_has_perhaps_holds_up_nothing_that_counts() {
        check(&[asked_first(3), asked_first(4), item(9)], 0.3, &[9, 4, 3]);
        let mut line = Line::new(WINDOW);
        line.come_to(10, 9);
        line.push(asked_first(3));
        assert_eq!(line.next(), Some(asked_first(3)));
        assert!(!line.must_yield());
        line.push(item(10));
        assert!(line.must_yield());
        line.leave(true);
        assert_eq!(line.next(), Some(item(10)));
        line.leave(false);
        assert_eq!(line.next(), Some(asked_first(3)));
    }

    #[test]
    fn what_no_merge_takes_leaves() {
        let mut line = Line::new(WINDOW);
        line.come_to(10, 8);
        for it in [item(8), item(8), item(9), asked_first(8)] {
            line.push(it);
        }
        assert_eq!(line.next(), Some(item(8)));
        assert_eq!(line.come_to(12, 10), [0; 0]);
        assert!(!line.must_yield());
        line.leave(true);
        assert_eq!(line.come_to(12, 11), [8]);
        assert_eq!(line.next(), Some(item(9)));
        assert_eq!(line.come_to(14, 11), [0; 0]);
        assert!(line.must_yield());
        line.leave(true);
        assert_eq!(line.next(), Some(asked_first(8)));
    }
}
