//! What accounts and workers earned, folded from the logs: whole, and as BOINC's recent average.
//!
//! The average is a sum over merges: each credit counts ln 2 / 7 days when it is granted, and half of that 7 days later. For
//! whoever earns the same every day it is what is earned in a day.

use std::{collections::HashMap, time::Duration};

use anyhow::Result;
use protocol::{
    PublicKey,
    api::accounts::{COBBLESTONES_PER_CREDIT, Earned},
    event::Event,
    log::Entry,
    units::{AccountId, RunId, WorkerId},
};
use tokio::{sync::Mutex, time::Instant};

use crate::Hub;

/// Time after which an average has halved, in milliseconds.
const HALF_LIFE_MS: f64 = 7.0 * DAY_MS;
const DAY_MS: f64 = 86_400_000.0;
/// Bindings alone are read no more often: nothing is earned by one, and each new machine brings one.
const BINDINGS_EVERY: Duration = Duration::from_millis(250);
/// Log entries read at once.
const PAGE: u64 = 500;
/// The entries that matter.
const KINDS: [&str; 2] = ["round_merged", "identity_bound"];

/// The fold.
#[derive(Default)]
pub(super) struct Credit {
    folded: Mutex<Folded>,
}

#[derive(Default)]
struct Folded {
    read: HashMap<RunId, Read>,
    accounts_by_key: HashMap<(RunId, PublicKey), AccountId>,
    workers: HashMap<(RunId, WorkerId), Sum>,
    accounts: HashMap<AccountId, Sum>,
}

/// How far a run's log was read, and what was found.
#[derive(Clone, Copy)]
struct Read {
    up_to: u64,
    merges: u64,
    bindings: u64,
    at: Instant,
}

/// Credit with its average.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    micro: u64,
    /// Millionths of a credit a day, at `at_ms`.
    average: f64,
    at_ms: u64,
}

/// What somebody earned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Earning {
    /// Millionths of a credit.
    pub(crate) micro: u64,
    /// The recent average in millionths of a credit a day.
    pub(crate) average: f64,
}

impl Earning {
    /// The whole in BOINC's figure.
    pub(crate) fn cobblestones(&self) -> f64 {
        cobblestones(self.micro as f64)
    }

    /// The average in BOINC's figure.
    pub(crate) fn recent(&self) -> f64 {
        cobblestones(self.average)
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            micro: self.micro.saturating_add(other.micro),
            average: self.average + other.average,
        }
    }

    /// As the API shows it.
    pub(crate) fn shown(&self) -> Earned {
        Earned {
            credits_micro: self.micro,
            cobblestones: self.cobblestones(),
            recent_cobblestones: self.recent(),
        }
    }
}

/// Millionths of a credit in BOINC's figure.
pub(crate) fn cobblestones(micro: f64) -> f64 {
    micro / 1e6 * COBBLESTONES_PER_CREDIT
}

impl Credit {
    /// Reads the logs on; what asks after it sees everything merged before.
    async fn read_on<'a>(&'a self, hub: &Hub) -> Result<tokio::sync::MutexGuard<'a, Folded>> {
        // The state first: of what it has, the length tells too.
        let mut known = Vec::new();
        for run in hub.all().await {
            let state = run.state.read().await;
            let (merges, bindings) = (state.rounds_merged, state.bindings.len() as u64);
            drop(state);
            known.push((run, merges, bindings));
        }
        let mut folded = self.folded.lock().await;
        for (run, merges, bindings) in known {
            let length = *run.length.borrow();
            if let Some(read) = folded.read.get(&run.id).copied() {
                if length < read.up_to {
                    // The log was cut back: what was folded may count no more.
                    *folded = Folded::default();
                } else if read.is_enough(merges, bindings) {
                    continue;
                }
            }
            folded.read_run(hub, run.id, length).await?;
        }
        Ok(folded)
    }

    /// What accounts earned, in the order asked.
    pub(super) async fn of_accounts(&self, hub: &Hub, ids: &[AccountId]) -> Result<Vec<Earning>> {
        let now_ms = hub.clock.now_ms();
        let folded = self.read_on(hub).await?;
        let sum = |it: &AccountId| folded.accounts.get(it).copied().unwrap_or_default();
        Ok(ids.iter().map(|it| sum(it).at(now_ms)).collect())
    }

    /// What workers earned together.
    pub(super) async fn of_workers(
        &self,
        hub: &Hub,
        workers: &[(RunId, WorkerId)],
    ) -> Result<Earning> {
        let now_ms = hub.clock.now_ms();
        let folded = self.read_on(hub).await?;
        let sums = workers.iter().filter_map(|it| folded.workers.get(it));
        Ok(sums.fold(Earning::default(), |all, it| all.plus(it.at(now_ms))))
    }

    /// An account's place by credit among these, if it has any, and how many have some.
    pub(super) async fn rank(
        &self,
        hub: &Hub,
        account: AccountId,
        among: &[AccountId],
    ) -> Result<(Option<u64>, u64)> {
        let folded = self.read_on(hub).await?;
        let micro = |it: &AccountId| folded.accounts.get(it).map_or(0, |it| it.micro);
        let own = micro(&account);
        let (mut better, mut ranked) = (0, 0);
        for other in among.iter().map(micro) {
            better += u64::from(other > own);
            ranked += u64::from(other > 0);
        }
        Ok(((own > 0).then_some(better + 1), ranked))
    }
}

impl Read {
    /// Whether nothing that matters came since, or it can wait.
    fn is_enough(&self, merges: u64, bindings: u64) -> bool {
        let is_recent = self.at.elapsed() < BINDINGS_EVERY;
        merges <= self.merges && (bindings <= self.bindings || is_recent)
    }
}

impl Folded {
    fn read(&mut self, run: RunId) -> &mut Read {
        self.read.entry(run).or_insert_with(|| Read {
            up_to: 0,
            merges: 0,
            bindings: 0,
            at: Instant::now(),
        })
    }

    async fn read_run(&mut self, hub: &Hub, run: RunId, length: u64) -> Result<()> {
        loop {
            let from = self.read(run).up_to;
            if from >= length {
                self.read(run).at = Instant::now();
                return Ok(());
            }
            let entries = hub.store.entries_of_kinds(run, from, KINDS, PAGE).await?;
            // The database may have some already that nobody is shown yet.
            for entry in entries.iter().take_while(|it| it.index < length) {
                self.fold(entry);
            }
            let is_page = entries.len() as u64 == PAGE;
            let last = entries.last().filter(|_| is_page);
            self.read(run).up_to = last.map_or(length, |it| length.min(it.index + 1));
        }
    }

    fn fold(&mut self, entry: &Entry) {
        match &entry.event {
            Event::IdentityBound { binding } => {
                self.read(entry.run).bindings += 1;
                let key = (entry.run, binding.key);
                let before = self.accounts_by_key.insert(key, binding.account);
                // What the worker earned before it was bound comes with it.
                let earned = self.workers.get(&(entry.run, WorkerId(binding.key)));
                if let (None, Some(earned)) = (before, earned.copied()) {
                    self.accounts
                        .entry(binding.account)
                        .or_default()
                        .add(earned);
                }
            }
            Event::RoundMerged { updates, .. } => {
                self.read(entry.run).merges += 1;
                for merged in updates {
                    let earned = Sum::granted(merged.credits.0, entry.time_ms);
                    let worker = (entry.run, merged.worker);
                    self.workers.entry(worker).or_default().add(earned);
                    let account = self.accounts_by_key.get(&(entry.run, merged.worker.0));
                    if let Some(account) = account {
                        self.accounts.entry(*account).or_default().add(earned);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Sum {
    fn granted(micro: u64, at_ms: u64) -> Self {
        Self {
            micro,
            average: micro as f64 * std::f64::consts::LN_2 * DAY_MS / HALF_LIFE_MS,
            at_ms,
        }
    }

    fn at(self, now_ms: u64) -> Earning {
        let passed = now_ms.saturating_sub(self.at_ms) as f64;
        Earning {
            micro: self.micro,
            average: self.average * (-passed / HALF_LIFE_MS).exp2(),
        }
    }

    fn add(&mut self, other: Self) {
        let at_ms = self.at_ms.max(other.at_ms);
        let sum = self.at(at_ms).plus(other.at(at_ms));
        *self = Self {
            micro: sum.micro,
            average: sum.average,
            at_ms,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_of_even_work_is_a_days_work() {
        let mut sum = Sum::default();
        for hour in 0..24 * 7 * 10 {
            sum.add(Sum::granted(1_000_000, hour * 3_600_000));
        }
        let earned = sum.at(sum.at_ms);
        assert_eq!(earned.micro, 1_680_000_000);
        assert!((earned.average / 24e6 - 1.0).abs() < 0.01, "{earned:?}");
        let later = sum.at(sum.at_ms + 7 * 86_400_000);
        assert!((later.average / earned.average - 0.5).abs() < 1e-9);
        assert_eq!(later.micro, earned.micro);
        let credit = Earning {
            micro: 1_000_000,
            average: 0.0,
        };
        assert_eq!(credit.cobblestones(), 2_315.0);
    }

    #[test]
    fn the_order_of_grants_does_not_matter() {
        let grants = [(5, 1_000), (7, 900_000_000), (11, 50)];
        let sum = |order: [usize; 3]| {
            let mut sum = Sum::default();
            for (micro, at_ms) in order.map(|it| grants[it]) {
                sum.add(Sum::granted(micro, at_ms));
            }
            sum.at(1_000_000_000)
        };
        let (first, second) = (sum([0, 1, 2]), sum([1, 2, 0]));
        assert_eq!(first.micro, second.micro);
        assert!((first.average - second.average).abs() < 1e-9);
    }
}
