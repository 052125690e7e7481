//! Asks the hub what there is to do, all the time: the sign of life of a worker, and its only source of news.
//!
//! Also where a worker notices that the run has another hub, or that its hub has an older copy of the log than before: what
//! was asked for before is then asked for anew.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use network::{ClientError, HubClient, client::WAIT_MS_MAX, retry::RetryPolicy};
use protocol::{
    api::{Work, mirrors::MIRROR_CODE},
    units::{RunId, WorkerId},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{plausible::Bounds, takeovers::Takeovers};

/// Least time between two questions: a busy log answers each at once.
const PAUSE: Duration = Duration::from_millis(150);
/// How hubs that do not answer are asked again, after all of their addresses were.
const PATIENCE: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    first_wait: Duration::from_millis(500),
    wait_max: Duration::from_secs(15),
};

/// The newest news.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// The hub's last answer and when it came.
    pub(crate) work: Option<(Arc<Work>, Instant)>,
    /// When it was asked for: what was done later it need not know of.
    pub(crate) asked: Option<Instant>,
    /// The newest token when it was asked for; shown to whoever gave it.
    pub(crate) token: Option<Token>,
    /// The round of the model that the question said is held: older deltas were left out.
    pub(crate) held: Option<u64>,
    /// Counts the times that a hub was found after one did not answer, or another one, or one with an older log.
    pub(crate) reunions: u64,
    /// Why there is no newer answer.
    pub(crate) problem: Option<String>,
}

/// What a hub gave for a join. It is shown to nobody else: who has it can seem to be this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The token.
    pub(crate) text: String,
    /// Where it was given.
    pub(crate) address: Arc<str>,
}

/// The round of the model that the worker holds, so that the hub need not list what is known.
#[derive(Debug, Default)]
pub(crate) struct HeldRound {
    number: AtomicU64,
    again: Notify,
}

impl HeldRound {
    /// No model yet, or none any more.
    const NONE: u64 = 0;

    pub(crate) fn set(&self, round: Option<u64>) {
        let number = round.map_or(Self::NONE, |it| it.saturating_add(1));
        self.number.store(number, Ordering::Relaxed);
    }

    /// Has the hub asked at once, as if nothing was held.
    pub(crate) fn ask_for_all(&self) {
        self.set(None);
        self.ask_now();
    }

    /// Has the hub asked at once, whatever is news.
    pub(crate) fn ask_now(&self) {
        self.again.notify_one();
    }

    fn get(&self) -> Option<u64> {
        self.number.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// Who asks, and what for.
pub(crate) struct Poller {
    pub(crate) client: HubClient,
    pub(crate) run: RunId,
    pub(crate) worker: WorkerId,
    pub(crate) bounds: Bounds,
    pub(crate) takeovers: Takeovers,
    pub(crate) token: watch::Receiver<Option<Token>>,
    pub(crate) held: Arc<HeldRound>,
    pub(crate) news: watch::Sender<News>,
}

/// What became of the questions so far.
#[derive(Debug, Default)]
struct Progress {
    /// Entries of the log that are known of.
    after: u64,
    /// Times in a row that no address was of use.
    failures: u32,
    /// Addresses that were of no use since that was counted.
    useless: Vec<Arc<str>>,
    /// What a mirror said while no hub answered.
    mirror: Option<String>,
    is_reunion: bool,
}

impl Poller {
    /// Asks until everyone who listens is gone, at once again when the token changes; whoever awaits it must drop it to end
    /// it sooner.
    pub(crate) async fn poll(mut self) {
        let mut progress = Progress::default();
        while !self.news.is_closed() {
            let address = self.client.current_address();
            let token = self.token.borrow_and_update().clone();
            let shown = token.as_ref().filter(|it| it.address == address);
            let (held, asked) = (self.held.get(), Instant::now());
            let question = self.client.work(
                self.run,
                self.worker,
                shown.map(|it| it.text.as_str()),
                progress.after,
                held,
                WAIT_MS_MAX,
            );
            let answer = tokio::select! {
                biased;
                answer = question => answer,
                Ok(()) = self.token.changed() => {
                    progress.after = 0;
                    continue;
                }
                () = self.held.again.notified() => {
                    progress.after = 0;
                    continue;
                }
            };
            let work = match answer {
                Ok(work) => self.examined(&address, work, &mut progress).await,
                Err(error) => Err(self.unanswered(&address, error, &mut progress).await),
            };
            match work {
                Ok(work) => {
                    progress.after = work.log_length;
                    progress.failures = 0;
                    progress.useless.clear();
                    progress.mirror = None;
                    let is_reunion = std::mem::take(&mut progress.is_reunion);
                    let work = Some((Arc::new(work), Instant::now()));
                    self.news.send_modify(|news| {
                        *news = News {
                            work,
                            asked: Some(asked),
                            token,
                            held,
                            reunions: news.reunions + u64::from(is_reunion),
                            problem: None,
                        };
                    });
                    tokio::time::sleep(PAUSE).await;
                }
                Err(problem) => self.pause(address, problem, &mut progress).await,
            }
        }
    }

    /// The answer, if it can be true and is the run's hub's.
    async fn examined(
        &mut self,
        address: &Arc<str>,
        mut work: Work,
        progress: &mut Progress,
    ) -> Result<Work, Option<String>> {
        self.bounds.check(&mut work).map_err(|problem| {
            tracing::warn!("{problem}");
            Some(problem)
        })?;
        match self.takeovers.examine(address, work.generation).await {
            Ok(is_news) => progress.is_reunion |= is_news || work.log_length < progress.after,
            Err(problem) => {
                tracing::warn!("{problem}");
                self.client.leave_address(address);
                return Err(Some(problem));
            }
        }
        Ok(work)
    }

    /// What the owner is told when there was no answer, or a mirror's.
    async fn unanswered(
        &mut self,
        address: &Arc<str>,
        error: ClientError,
        progress: &mut Progress,
    ) -> Option<String> {
        if error.refusal_code() == Some(MIRROR_CODE) {
            progress.mirror = Some(match self.takeovers.ask_mirror(address).await {
                Ok(head) => format!(
                    "no hub of the run answers, and its copy at {address}, of {} entries, waits for one to take over",
                    head.length
                ),
                Err(problem) => problem,
            });
        }
        // Whoever does not know the run, or is no hub, is of no use; who does not answer was left already.
        let is_stranger = match &error {
            ClientError::Refused { status, .. } => *status == 404,
            ClientError::Malformed { .. } | ClientError::TooLong { .. } => true,
            ClientError::Address { .. } | ClientError::Unreachable { .. } => false,
        };
        if is_stranger {
            self.client.leave_address(address);
        }
        let text = error.to_string();
        tracing::debug!("no answer: {:#}", anyhow::Error::from(error));
        // One lost answer is no problem worth a word.
        let is_worth_it = 0 < progress.failures || 1 < progress.useless.len();
        is_worth_it.then(|| progress.mirror.clone().unwrap_or(text))
    }

    /// Goes on at once at an address that was not asked yet, else after a while.
    async fn pause(&self, address: Arc<str>, problem: Option<String>, progress: &mut Progress) {
        // A hub that was restarted from an older copy has a shorter log: ask for whatever there is.
        progress.after = 0;
        progress.is_reunion = true;
        if problem.is_some() || progress.failures == 0 {
            self.news.send_modify(|news| news.problem = problem);
        }
        if !progress.useless.contains(&address) {
            progress.useless.push(address);
        }
        let wait = if progress.useless.contains(&self.client.current_address()) {
            progress.failures += 1;
            progress.useless.clear();
            PATIENCE.wait_after(progress.failures)
        } else {
            PATIENCE.wait_after(1)
        };
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests;
