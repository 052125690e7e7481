//! A worker's life: find the run, say what will be used, measure, join, and then round after round until the end.
//!
//! One task asks for news ([`crate::poll`]), one thread computes ([`crate::machine`]), uploads run beside both; this loop
//! decides what comes next from the newest news alone, so nothing has to be remembered across a restart or an outage, nor
//! when the run has another hub: what that one lacks it is given again ([`mend`]).

mod begin;
mod catch_up;
mod commands;
mod mend;
mod outbox;
mod source;
mod training;

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use network::{
    BlobCache, HubClient, Source,
    world::{self, Clock},
};
use protocol::{
    Hash,
    api::{Work, WorkAssignment},
    charter::Charter,
    command::Device,
    units::{RunId, WorkerId},
};
use tokio::{sync::watch, task::AbortHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    Activity, Config, Ground, Status, Summary,
    carried::CarriedStore,
    folder::Folder,
    kept_model::KeptModel,
    machine::{Held, Machine, Measurement},
    margin::Margin,
    poll::{HeldRound, News, Token},
    quota::Quota,
    shards::Shards,
};
#[cfg(target_os = "linux")]
pub(crate) use begin::be_nice;
use outbox::Outbox;
#[cfg(target_os = "linux")]
pub(crate) use training::FASTER;

/// Time to end the work in hand when the owner stops the worker.
const GOODBYE: Duration = Duration::from_secs(10);
/// Wait before a download or a command that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// The same problem is warned of again after this time.
const WARN_AGAIN: Duration = Duration::from_secs(300);
/// The model is kept for the next start every so many rounds at most, and at the end: deltas of that many rounds are a
/// quarter of a checkpoint.
const MODEL_EVERY: u64 = 8;

/// Everything that lasts as long as a worker runs.
struct Session<'a> {
    config: &'a Config,
    client: HubClient,
    clock: Clock,
    /// How often the owner is told how things stand while nothing else happens.
    tell_every: Duration,
    folder: Folder,
    run: RunId,
    worker: WorkerId,
    charter: Arc<Charter>,
    cache: BlobCache,
    /// What fills it.
    source: Source,
    store: CarriedStore,
    outbox: Outbox,
    shutdown: CancellationToken,
    news: watch::Receiver<News>,
    /// Where the model is for the next start, and its round.
    kept_model: KeptModel,
    kept_round: Option<u64>,
    /// What the hub gave for the last join; the poller shows it. In memory alone: a new process joins again.
    token: watch::Sender<Option<Token>>,
    /// What the poller tells the hub of the held model.
    held_round: Arc<HeldRound>,
    poller: AbortHandle,
    /// Away while it computes.
    machine: Option<Box<Machine>>,
    shards: Shards,
    measured: Measurement,
    device: Device,
    margin: Margin,
    /// What was worked on last, with whatever result.
    attempted: Option<WorkAssignment>,
    /// How often a hub was found again, as far as what it may have lost was looked after; `None` before the first news.
    reunions: Option<u64>,
    /// The question whose answer made it join again in the middle of a round.
    rejoined: Option<Instant>,
    /// Sequence number of the last command.
    sequence: u64,
    /// Length of the log when the held model was the newest.
    held_at: u64,
    /// Length of the log with this process' last commitment: no round is begun by news that do not know of it.
    committed_at: u64,
    /// The m and v that this worker published in its last round, if that was one of the warm start.
    published: Option<Hash>,
    /// The task that fetches training text ahead, if one was begun.
    prefetching: Option<AbortHandle>,
    /// What was warned of last, and when.
    warned: Option<(String, Instant)>,
    status: Status,
    report: &'a mut dyn FnMut(&Status),
    /// Held to the end, if the owner asked for one.
    _quota: Option<Quota>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
enum Next {
    Finish,
    Join,
    CatchUp,
    Train(WorkAssignment),
    Wait,
}

/// Takes part in a run until it is finished or `shutdown` is cancelled; `report` is called with each change worth showing.
///
/// # Errors
/// What waiting cannot mend: a folder in use or unreadable, an address that is none, a run that does not exist or that this
/// engine cannot train, a quota that the machine does not permit, a cache too small for one blob. A hub that does not answer
/// is waited for, and so is room on a full disk.
pub async fn run(
    config: &Config,
    shutdown: CancellationToken,
    report: impl FnMut(&Status),
) -> Result<Summary> {
    run_on(Ground::machine(), config, shutdown, report).await
}

/// As [`run`], on another ground than the machine's.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    ground: Ground,
    config: &Config,
    shutdown: CancellationToken,
    mut report: impl FnMut(&Status),
) -> Result<Summary> {
    let Some(mut session) = begin::begin(config, ground, shutdown, &mut report).await? else {
        return Ok(Status::new().summary());
    };
    let result = session.live().await;
    session.poller.abort();
    if session.status.activity == Activity::Finished {
        session.kept_model.remove();
    } else {
        session.keep_model(1).await;
    }
    session.status.traffic = session.source.traffic();
    session.source.shutdown().await;
    result?;
    Ok(session.status.summary())
}

impl Session<'_> {
    async fn live(&mut self) -> Result<()> {
        loop {
            if self.shutdown.is_cancelled() {
                return self.leave().await;
            }
            let Some((work, received)) = self.latest() else {
                self.wait().await;
                continue;
            };
            self.note(&work);
            self.held_round.set(self.held().map(|it| it.round));
            match self.go_on(&work, received).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if is_full(&error) => self.try_again("the disk is full", &error).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what comes next; false if that was the end.
    async fn go_on(&mut self, work: &Work, received: Instant) -> Result<bool> {
        if let Some(length) = self.mend(work).await? {
            self.wait_for_log(length).await;
            return Ok(true);
        }
        match self.next(work) {
            Next::Finish => {
                self.finish().await?;
                return Ok(false);
            }
            Next::Join => self.join().await?,
            Next::CatchUp => self.catch_up(work).await?,
            Next::Train(_) if work.log_length < self.committed_at => {
                // Once: whoever is told of a problem meanwhile goes on with what it knows.
                let length = std::mem::take(&mut self.committed_at);
                self.wait_for_log(length).await;
            }
            Next::Train(assignment) => self.train(work, &assignment, received).await?,
            Next::Wait => {
                self.show(Activity::Waiting);
                self.wait().await;
            }
        }
        self.keep_model(MODEL_EVERY).await;
        Ok(true)
    }

    /// Until there is news, a tick passes or the owner says stop.
    async fn wait(&mut self) {
        let uploading = self.outbox.progress();
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {}
            changed = self.news.changed() => {
                if changed.is_err() {
                    // The poller ended, which only a bug makes it do; do not spin.
                    tokio::time::sleep(AGAIN).await;
                }
            }
            () = tokio::time::sleep(self.tell_every) => {}
        }
        self.take_outbox_news();
        if uploading != self.outbox.progress() {
            self.show(self.status.activity.clone());
        }
    }

    fn latest(&mut self) -> Option<(Arc<Work>, Instant)> {
        let news = self.news.borrow_and_update();
        self.status.problem.clone_from(&news.problem);
        news.work.clone()
    }

    fn next(&self, work: &Work) -> Next {
        let is_done = |it: &WorkAssignment| {
            let attempted = self.attempted.as_ref();
            attempted.is_some_and(|last| is_same_work(last, it)) || self.outbox.holds(it)
        };
        next(work, self.held(), is_done)
    }

    fn held(&self) -> Option<Held> {
        self.machine.as_ref().and_then(|it| it.held())
    }

    /// Takes the hub's record of this worker over into the status.
    fn note(&mut self, work: &Work) {
        let record = &work.worker;
        let status = &mut self.status;
        status.tokens = record.tokens;
        status.credits_micro = record.credits_micro;
        if record.updates_refused > status.updates_refused {
            status.last_refusal.clone_from(&record.last_refusal);
        } else if record.updates_accepted > status.updates_accepted {
            // What came after is accepted: the refusal is history, and the log keeps it.
            status.last_refusal = None;
        }
        status.updates_accepted = record.updates_accepted;
        status.updates_refused = record.updates_refused;
        status.last_round = record.last_round;
        self.sequence = self.sequence.max(record.sequence);
    }

    /// Tells the owner.
    fn show(&mut self, activity: Activity) {
        self.status.activity = activity;
        self.status.uploading = self.outbox.progress();
        self.status.traffic = self.source.traffic();
        (self.report)(&self.status);
    }

    /// Notes that something failed that will be tried again, and waits a little.
    async fn try_again(&mut self, what: &str, error: &anyhow::Error) {
        let problem = format!("{what}: {error:#}");
        // What stays as it is for hours is not worth a line every two seconds.
        let (now, warned) = (Instant::now(), &mut self.warned);
        let is_known =
            |(before, at): &(String, Instant)| *before == problem && now < *at + WARN_AGAIN;
        if warned.as_ref().is_some_and(is_known) {
            tracing::debug!("{problem}");
        } else {
            tracing::warn!("{problem}");
            *warned = Some((problem.clone(), now));
        }
        self.status.problem = Some(problem);
        self.show(self.status.activity.clone());
        self.shutdown
            .run_until_cancelled(tokio::time::sleep(AGAIN))
            .await;
    }

    fn take_outbox_news(&mut self) {
        for refusal in self.outbox.take_refusals() {
            tracing::warn!("an upload was refused: {refusal}");
            self.status.last_refusal = Some(refusal);
        }
    }

    async fn finish(&mut self) -> Result<()> {
        self.outbox.settle(GOODBYE).await;
        self.show(Activity::Finished);
        Ok(())
    }

    async fn leave(&mut self) -> Result<()> {
        self.show(Activity::Leaving);
        self.outbox.settle(GOODBYE).await;
        let joined = self.latest().is_some_and(|(work, _)| work.worker.joined);
        if joined {
            self.say_goodbye().await;
        }
        Ok(())
    }
}

/// Decides from the newest news; `is_done` says whether an assignment's work was done or tried already.
///
/// A round is begun from what is held if that was the newest model when it opened: the merge that came since is taken up on
/// the way, and nobody waits for a download.
fn next(work: &Work, held: Option<Held>, is_done: impl Fn(&WorkAssignment) -> bool) -> Next {
    if work.finished {
        return Next::Finish;
    }
    if !work.worker.joined {
        return Next::Join;
    }
    let holds = |round: u64, parameters: &str| {
        held.is_some_and(|it| it.round == round && it.parameters.to_string() == parameters)
    };
    let is_current = holds(work.model.round, &work.model.parameters_hash);
    match &work.assignment {
        Some(open)
            if !open.committed
                && !is_done(open)
                && (is_current || holds(open.base_round, &open.base_hash)) =>
        {
            Next::Train(open.clone())
        }
        Some(_) | None if is_current => Next::Wait,
        Some(_) | None => Next::CatchUp,
    }
}

/// Whether two assignments are the same work. A hub that stands at an older place of the log may open a round anew, with
/// another slot or from another model.
fn is_same_work(one: &WorkAssignment, other: &WorkAssignment) -> bool {
    let key = |it: &WorkAssignment| (it.round, it.slot, it.base_round);
    key(one) == key(other) && one.seed == other.seed && one.base_hash == other.base_hash
}

/// The last round that the run's log opened, by what it says of those ahead.
fn round_of_run(work: &Work) -> Option<u64> {
    work.ahead.first().and_then(|it| it.round.checked_sub(1))
}

/// Whether it is for want of room on the disk, which somebody may make.
pub(crate) fn is_full(error: &anyhow::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
    error
        .chain()
        .filter_map(|it| it.downcast_ref::<io::Error>())
        .any(|it| kinds.contains(&it.kind()))
}

/// Runs `work` on a thread for blocking calls, with the machine, and gives the machine back.
async fn with_machine<T: Send + 'static>(
    slot: &mut Option<Box<Machine>>,
    work: impl FnOnce(&mut Machine) -> T + Send + 'static,
) -> Result<T> {
    let mut machine = slot
        .take()
        .context("the machine is lost to an earlier panic")?;
    let (machine, result) = world::blocking(move || {
        let result = work(&mut machine);
        (machine, result)
    })
    .await
    .context("computing panicked: please report this")?;
    *slot = Some(machine);
    Ok(result)
}

#[cfg(test)]
mod tests;
