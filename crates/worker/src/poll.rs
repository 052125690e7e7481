//! Asks the hub what there is to do, all the time: the sign of life of a worker, and its only source of news.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use network::{HubClient, client::WAIT_MS_MAX, retry::RetryPolicy};
use protocol::{
    api::Work,
    units::{RunId, WorkerId},
};
use tokio::{sync::watch, time::Instant};

use crate::plausible::Bounds;

/// Least time between two questions: a busy log answers each at once.
const PAUSE: Duration = Duration::from_millis(150);
/// How a hub that does not answer is asked again.
const PATIENCE: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    first_wait: Duration::from_millis(500),
    wait_max: Duration::from_secs(15),
};

/// The newest news.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// The hub's last answer and when it came.
    pub(crate) work: Option<(Work, Instant)>,
    /// The token that was shown with the question.
    pub(crate) token: Option<String>,
    /// Why there is no newer one.
    pub(crate) problem: Option<String>,
}

/// The round of the model that the worker holds, so that the hub need not list what is known.
#[derive(Debug, Default)]
pub(crate) struct HeldRound(AtomicU64);

impl HeldRound {
    /// No model yet, or none any more.
    const NONE: u64 = 0;

    pub(crate) fn set(&self, round: Option<u64>) {
        let number = round.map_or(Self::NONE, |it| it.saturating_add(1));
        self.0.store(number, Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(1)
    }
}

/// Asks until everyone who listens is gone, at once again when the token changes; whoever awaits it must drop it to end it
/// sooner.
pub(crate) async fn poll(
    client: HubClient,
    run: RunId,
    worker: WorkerId,
    bounds: Bounds,
    mut token: watch::Receiver<Option<String>>,
    held: Arc<HeldRound>,
    news: watch::Sender<News>,
) {
    let (mut after, mut failures) = (0, 0);
    while !news.is_closed() {
        let shown = token.borrow_and_update().clone();
        let question = client.work(
            run,
            worker,
            shown.as_deref(),
            after,
            held.get(),
            WAIT_MS_MAX,
        );
        let answer = tokio::select! {
            biased;
            answer = question => answer,
            Ok(()) = token.changed() => {
                after = 0;
                continue;
            }
        };
        let answer = answer.map(|mut work| bounds.check(&mut work).map(|()| work));
        match answer {
            Ok(Ok(work)) => {
                after = work.log_length;
                failures = 0;
                let now = Instant::now();
                news.send_replace(News {
                    work: Some((work, now)),
                    token: shown,
                    problem: None,
                });
                tokio::time::sleep(PAUSE).await;
            }
            Ok(Err(problem)) => {
                failures += 1;
                tracing::warn!("{problem}");
                news.send_modify(|news| news.problem = Some(problem));
                tokio::time::sleep(PATIENCE.wait_after(failures)).await;
            }
            Err(error) => {
                failures += 1;
                // A hub that was restarted from an older copy has a shorter log: ask for whatever there is.
                after = 0;
                // One lost answer is no problem worth a word.
                let problem = (failures >= 2).then(|| error.to_string());
                tracing::debug!(failures, "no answer: {:#}", anyhow::Error::from(error));
                news.send_modify(|news| news.problem = problem);
                tokio::time::sleep(PATIENCE.wait_after(failures)).await;
            }
        }
    }
}
