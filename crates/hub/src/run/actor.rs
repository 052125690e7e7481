//! The task of a run's hub: it alone owns the run's state, decides, and writes the log.
//!
//! Requests that arrive together are decided together and written in one transaction (group commit);
//! nobody is answered before the entries are on the disk. Merging, judging and evaluating happen on
//! other threads and come back as requests, so the log never waits for arithmetic.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use network::world;
use protocol::{
    Hash,
    event::{Event, RefusalReason},
    log::Entry,
    state::{
        SlotProgress, State,
        decide::{Request, decide, next_moment_ms, round_to_merge},
    },
    units::BlobReference,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Ended, Keeper, Message, RunError,
    evaluate::HeldOut,
    jobs::{Done, Job, Work},
    retry::Retry,
    room::Kept,
};
use crate::{
    model::{self, Model, Part},
    store::Projected,
};

/// Requests decided and written together.
const BATCH_MAX: usize = 512;
/// Pause after a write that failed: a full disk is not freed by asking it again at once.
const WRITE_PAUSE: Duration = Duration::from_millis(500);
/// The run looks at the clock at least this often.
const TICK: Duration = Duration::from_millis(200);
/// And at most this often, unless something was computed.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// A look goes through everyone who is present: with many, so much more time for each passes before the next.
const LOOK_PAUSE_EACH: Duration = Duration::from_micros(2);

/// The run's task while this process is its hub.
pub(super) struct Actor {
    keeper: Keeper,
    /// The state with what is being written. Everyone else reads another one, which lacks that until it is on the disk.
    state: State,
    model: Model,
    held_out: Arc<HeldOut>,
    jobs: JoinSet<Done>,
    /// Updates of the rounds in progress by hash, decoded when they were judged, as many as there is room for.
    decoded: HashMap<Hash, Kept>,
    /// Whether committed updates whose bytes are here are to be looked for.
    is_to_judge: bool,
    /// When the run looks at the clock again; `None` if it is to do so at once.
    look_after: Option<Instant>,
    is_merging: bool,
    merge_retry: Retry,
    /// Updates that are being looked at.
    judging: HashSet<Hash>,
    /// Updates that could not be looked at.
    judge_retries: HashMap<Hash, Retry>,
    /// Accepted updates whose bytes are gone: their worker may send them again, until the time to reveal is over.
    lost: HashSet<Hash>,
    is_evaluating: bool,
    evaluation_retry: Retry,
    store_retry: Retry,
    /// Whether the last entries could not be written.
    is_write_failing: bool,
}

impl Actor {
    /// A hub of the run whose newest model is `model`.
    pub(super) async fn new(keeper: Keeper, model: Model, held_out: HeldOut) -> Self {
        let state = keeper.run.state.read().await.clone();
        Self {
            keeper,
            state,
            model,
            held_out: Arc::new(held_out),
            jobs: JoinSet::new(),
            decoded: HashMap::new(),
            is_to_judge: false,
            look_after: None,
            is_merging: false,
            merge_retry: Retry::default(),
            judging: HashSet::new(),
            judge_retries: HashMap::new(),
            lost: HashSet::new(),
            is_evaluating: false,
            evaluation_retry: Retry::default(),
            store_retry: Retry::default(),
            is_write_failing: false,
        }
    }

    /// Keeps the run until `shutdown`, or until it may not any more.
    pub(super) async fn work(mut self, shutdown: &CancellationToken) -> (Keeper, Ended) {
        let mut stopped = self.keeper.run.stopped.subscribe();
        self.resume().await;
        let mut messages = Vec::new();
        let ended = loop {
            let tick = tokio::time::sleep(self.until_next_deadline());
            let done = tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ended::Stopped,
                // Its sender lives as long as the run.
                _ = stopped.wait_for(Option::is_some) => break Ended::Proven,
                // Few, and others wait for them: they never starve the inbox.
                Some(done) = self.jobs.join_next() => Some(done),
                count = self.keeper.inbox.recv_many(&mut messages, BATCH_MAX) => {
                    if count == 0 {
                        break Ended::Stopped;
                    }
                    None
                }
                () = tick => None,
            };
            match done {
                Some(Ok(done)) => self.finish_jobs(done).await,
                Some(Err(error)) => self.job_is_lost(&error),
                None => {
                    let ended = self.answer(std::mem::take(&mut messages)).await;
                    if let Some(ended) = ended {
                        break ended;
                    }
                }
            }
            let is_due = self.judge_retries.values().any(Retry::is_due_again);
            if std::mem::take(&mut self.is_to_judge) || is_due {
                self.judge_what_is_here(false).await;
            }
            if self.evaluation_retry.is_due_again() {
                self.evaluation_retry.begin();
                self.start_evaluation();
            }
            if self.store_retry.is_due_again() {
                self.store_retry.begin();
                self.store_if_due();
            }
            if self.look_after.is_none_or(|it| it <= Instant::now()) {
                self.look_at_clock().await;
            }
            self.start_merge().await;
        };
        self.jobs.shutdown().await;
        (self.keeper, ended)
    }

    /// Takes up what a stop or crash left: committed updates whose bytes are here, the evaluation of the newest model.
    async fn resume(&mut self) {
        self.expect_slots();
        self.judge_what_is_here(true).await;
        let evaluated = self.state.evaluation.map(|(round, _)| round);
        if evaluated != Some(self.model.state.round) {
            self.start_evaluation();
        }
        if self.state.sampled_round.is_none() {
            self.start_sample(self.model.clone());
        }
        self.store_if_due();
    }

    /// Nobody has called yet; who has a slot is waited for all the same, as long as a worker may be silent.
    fn expect_slots(&self) {
        let state = &self.state;
        let slots = state.training.iter().flat_map(|it| it.slots());
        let training = slots
            .filter(|it| it.progress == SlotProgress::Assigned)
            .map(|it| it.worker)
            .filter(|it| state.workers.get(it).is_some_and(|it| it.joined));
        let now = self.keeper.parts.clock.now_ms();
        self.keeper.run.presence.expect(training, now);
    }

    /// Looks at every committed update whose bytes are here and that nobody looks at: after a start, and again after a
    /// verdict could not be written, or found. After a start at the accepted ones too: what the disk has lost of them is
    /// known in time for their workers to send it again.
    async fn judge_what_is_here(&mut self, is_start: bool) {
        let rounds = self.state.rounds_in_progress();
        let wanted = rounds
            .flat_map(|it| it.slots())
            .filter(|it| match it.progress {
                SlotProgress::Committed(_) => true,
                SlotProgress::Accepted { .. } => is_start,
                _ => false,
            });
        let updates = wanted.filter_map(|it| Some(it.commitment()?.update.hash));
        let waiting: Vec<Hash> = updates.filter(|it| !self.judging.contains(it)).collect();
        self.judge_retries.retain(|it, _| waiting.contains(it));
        for hash in waiting {
            if let Some(retry) = self.judge_retries.get_mut(&hash) {
                if !retry.is_due() {
                    continue;
                }
                retry.begin();
            }
            self.start_judging(hash).await;
        }
    }

    fn until_next_deadline(&self) -> Duration {
        let next = next_moment_ms(&self.state);
        let until = next
            .map(|it| Duration::from_millis(it.saturating_sub(self.keeper.parts.clock.now_ms())));
        // A moment that is over and decided nothing is not waited for in a busy loop.
        until.unwrap_or(TICK).clamp(LOOK_PAUSE, TICK)
    }

    /// Answers what came; why this process may be the run's hub no more, if one of the messages says so. The requests beside
    /// it are then not answered: whoever asked asks again, or goes to the other hub.
    async fn answer(&mut self, messages: Vec<Message>) -> Option<Ended> {
        let mut requests = Vec::new();
        let mut replies = Vec::new();
        for message in messages {
            match message {
                Message::Command(command, reply) => {
                    requests.push(Request::Worker(command));
                    replies.push(reply);
                }
                Message::Bind(binding, reply) => {
                    requests.push(Request::Bind(*binding));
                    replies.push(reply);
                }
                Message::Uploaded(hash) => self.uploaded(hash).await,
                Message::Look => {}
                Message::TakeOver { reply, .. } => {
                    let is_hub = "this process is the run's hub already".to_owned();
                    let _ = reply.send(Err(RunError::CannotTakeOver(is_hub)));
                }
                Message::Replaced(statement) => return Some(Ended::Replaced(statement)),
                Message::IsBehind => return Some(Ended::IsBehind),
            }
        }
        let answers = self.decide_and_write(requests).await;
        for (reply, answer) in replies.into_iter().zip(answers) {
            // Whoever asked may have gone; the entry stands all the same.
            let _ = reply.send(answer);
        }
        None
    }

    /// Decides on requests in order and writes what follows in one transaction.
    ///
    /// Readers see what was before until it is on the disk, and wait for nothing. If it can't be written, nothing of these
    /// requests happened.
    async fn decide_and_write(&mut self, requests: Vec<Request>) -> Vec<Result<u64, RunError>> {
        if requests.is_empty() {
            return Vec::new();
        }
        // From the moment on at which that is known.
        if self.keeper.run.refuses().is_err() {
            let refused = requests.iter().map(|_| {
                self.keeper.run.refuses()?;
                Err(RunError::Unavailable)
            });
            return refused.collect();
        }
        let mut entries = Vec::new();
        let mut answers = Vec::new();
        for request in requests {
            // One moment for the decision and its entries: the fold asks the same questions again.
            let now = self.keeper.parts.clock.now_ms();
            let now = now.max(self.state.head.time_ms);
            let decided = decide(&self.state, &request, now);
            answers.push(match decided {
                Ok(events) => {
                    for event in events {
                        entries.push(self.keeper.seal(&mut self.state, now, event));
                    }
                    Ok(self.state.head.length)
                }
                Err(refusal) => {
                    self.keeper.parts.metrics.refused(refusal.code);
                    Err(RunError::Refused(refusal))
                }
            });
        }
        if entries.is_empty() {
            return answers;
        }
        if let Err(error) = self.keeper.parts.store.append(&entries).await {
            self.cannot_write(&error).await;
            return answers.iter().map(|_| Err(RunError::Unavailable)).collect();
        }
        if std::mem::take(&mut self.is_write_failing) {
            tracing::info!(run.id = %self.keeper.run.id.short(), "the log can be written again");
        }
        // Bytes that came while their round gave them up may have been looked at for that round.
        let is_deferred =
            |(entry, _): &(Entry, _)| matches!(entry.event, Event::UpdateDeferred { .. });
        self.is_to_judge |= entries.iter().any(is_deferred);
        self.show(&entries).await;
        answers
    }

    /// Lets everyone see what is on the disk now. They get the state at hand, and the one that they had is brought after it.
    async fn show(&mut self, entries: &[(Entry, Projected)]) {
        let shown = self.state.head;
        {
            let mut everyones = self.keeper.run.state.write().await;
            std::mem::swap(&mut *everyones, &mut self.state);
            // Whoever reads the new state finds that it is news.
            self.keeper.tell(entries, shown.length);
        }
        for (entry, _) in entries {
            let folded = self.state.apply_decided(entry);
            folded.expect("what one state takes, its like takes too");
        }
        debug_assert_eq!(self.state.head, shown);
    }

    /// The state is again what everyone sees, or what is on the disk.
    async fn cannot_write(&mut self, error: &anyhow::Error) {
        // A disk that stays full is worth one line, and another when there is room.
        match std::mem::replace(&mut self.is_write_failing, true) {
            false => tracing::error!(
                run.id = %self.keeper.run.id.short(),
                "can't write the log, trying again: {error:#}"
            ),
            true => tracing::debug!("still can't write the log: {error:#}"),
        }
        self.state = self.keeper.run.state.read().await.clone();
        // What is said to have failed may be on the disk all the same.
        let on_disk = self.keeper.parts.store.length(self.keeper.run.id).await;
        if on_disk.ok() != Some(self.state.head.length) {
            self.read_back().await;
        }
        tokio::time::sleep(WRITE_PAUSE).await;
    }

    async fn read_back(&mut self) {
        match self.keeper.parts.store.replay(self.keeper.run.id).await {
            Ok(stored) => {
                self.state = stored.clone();
                let mut everyones = self.keeper.run.state.write().await;
                *everyones = stored;
                self.keeper.tell_all(everyones.head.length);
            }
            // Better no hub than one that goes on from what is not on its disk.
            Err(error) => {
                tracing::error!("the log can't be read back: {error:#}; stopping");
                world::abort();
            }
        }
    }

    /// Lets time pass until it changes nothing more.
    async fn look_at_clock(&mut self) {
        let mut pause;
        loop {
            let present = self
                .keeper
                .run
                .presence
                .present(self.keeper.parts.clock.now_ms());
            let count = u32::try_from(present.len()).unwrap_or(u32::MAX);
            pause = (LOOK_PAUSE_EACH * count).clamp(LOOK_PAUSE, TICK);
            let before = *self.keeper.length.borrow();
            self.decide_and_write(vec![Request::Clock { present }])
                .await;
            if *self.keeper.length.borrow() == before {
                break;
            }
        }
        self.look_after = Some(Instant::now() + pause);
    }

    /// An upload is whole: of an update that nobody has seen, or of an accepted one whose bytes were lost.
    async fn uploaded(&mut self, hash: Hash) {
        self.judge_retries.remove(&hash);
        let found = self.state.commitment_of_blob(&hash);
        let accepted = found
            .filter(|(round, slot, _)| is_accepted(&round.slots()[*slot as usize].progress))
            .map(|(_, _, commitment)| commitment.update.hash);
        match accepted {
            Some(update) => {
                self.lost.remove(&update);
            }
            None => self.start_judging(hash).await,
        }
    }

    async fn start_judging(&mut self, hash: Hash) {
        let commitment = self.state.commitment_of_blob(&hash);
        if let Some((_, _, commitment)) = commitment {
            // An update of a warm start is looked at when the inner state beside it is here too.
            for blob in [Some(commitment.update), commitment.header.inner_state]
                .into_iter()
                .flatten()
            {
                // What is there with another length is damaged: the job finds out, and removes it.
                if !matches!(
                    self.keeper.parts.blobs.length(&blob.hash).await,
                    Ok(Some(_))
                ) {
                    return;
                }
            }
            if !self.judging.insert(commitment.update.hash) {
                return;
            }
            let job = Job::Judge(Box::new(commitment.clone()));
            self.jobs.spawn(job.run(
                Arc::clone(&self.keeper.run.arithmetic),
                self.keeper.parts.blobs.clone(),
                self.keeper.parts.room.clone(),
            ));
        }
    }

    async fn start_merge(&mut self) {
        if self.is_merging || !self.merge_retry.is_due() {
            return;
        }
        if !self.lost.is_empty() && !self.went_on_without_the_lost().await {
            return;
        }
        let state = &self.state;
        let Some(round) = round_to_merge(state) else {
            return;
        };
        if state.model != self.model.state {
            tracing::error!("the model in memory is not the run's newest; stopping");
            world::abort();
        }
        let decoded = |update: &Hash| {
            let kept = self.decoded.get(update);
            kept.map(|it| Arc::clone(&it.update))
        };
        let late = state.late_updates(round);
        let parts = round.merged_updates(&state.charter).into_iter();
        let parts = parts.map(|it| Part {
            decoded: decoded(&it.update.hash),
            standing: state.workers.get(&it.worker).map_or(0, |it| it.tokens),
            merged: it,
        });
        let job = Job::Merge {
            round: model::Round {
                number: round.round,
                rate_q16: round.rate_q16(&state.charter),
                is_logged: false,
            },
            model: self.model.clone(),
            parts: parts.collect(),
            late,
        };
        self.is_merging = true;
        self.jobs.spawn(job.run(
            Arc::clone(&self.keeper.run.arithmetic),
            self.keeper.parts.blobs.clone(),
            self.keeper.parts.room.clone(),
        ));
    }

    /// Refuses accepted updates whose bytes are gone when the time to reveal is over; false if the round still waits.
    async fn went_on_without_the_lost(&mut self) -> bool {
        let Some(round) = round_to_merge(&self.state) else {
            return true;
        };
        let updates = round.slots().iter().filter(|it| is_accepted(&it.progress));
        let updates = updates.filter_map(|it| Some(it.commitment()?.update.hash));
        let lost: Vec<Hash> = updates.filter(|it| self.lost.contains(it)).collect();
        let now = self.keeper.parts.clock.now_ms();
        let is_over = round.reveal.is_none_or(|it| it.deadline_ms <= now);
        if lost.is_empty() {
            return true;
        }
        if !is_over {
            return false;
        }
        let refusals = lost.iter().map(|update| Request::Judged {
            update: *update,
            verdict: Err(RefusalReason::Lost),
        });
        let answers = self.decide_and_write(refusals.collect()).await;
        let is_written = answers.iter().all(Result::is_ok);
        if is_written {
            self.lost.retain(|it| !lost.contains(it));
            self.look_after = None;
        }
        is_written
    }

    fn start_evaluation(&mut self) {
        if self.is_evaluating {
            return;
        }
        self.is_evaluating = true;
        let job = Job::Evaluate {
            model: self.model.clone(),
            held_out: Arc::clone(&self.held_out),
            threads: self.keeper.parts.config.compute_threads,
        };
        self.jobs.spawn(job.run(
            Arc::clone(&self.keeper.run.arithmetic),
            self.keeper.parts.blobs.clone(),
            self.keeper.parts.room.clone(),
        ));
    }

    fn start_sample(&mut self, model: Model) {
        let job = Job::Sample {
            model,
            held_out: Arc::clone(&self.held_out),
            prompt: self.keeper.parts.config.sample_prompt.clone(),
            tokens: self.keeper.parts.config.sample_tokens,
        };
        self.jobs.spawn(job.run(
            Arc::clone(&self.keeper.run.arithmetic),
            self.keeper.parts.blobs.clone(),
            self.keeper.parts.room.clone(),
        ));
    }

    /// Takes up a finished job, with the verdicts of all others that are finished too: they share a transaction.
    async fn finish_jobs(&mut self, first: Done) {
        let mut verdicts = Vec::new();
        let mut next = Some(first);
        while let Some(done) = next.take() {
            match done {
                Done::Judged { update, verdict } => {
                    self.judging.remove(&update);
                    let verdict = verdict.map(|kept| {
                        self.decoded.extend(kept.map(|it| (update, it)));
                    });
                    verdicts.push(Request::Judged { update, verdict });
                }
                done => {
                    self.look_after = None;
                    self.finish_job(done).await;
                }
            }
            if verdicts.len() < BATCH_MAX {
                next = match self.jobs.try_join_next() {
                    Some(Ok(done)) => Some(done),
                    Some(Err(error)) => {
                        self.job_is_lost(&error);
                        None
                    }
                    None => None,
                };
            }
        }
        if verdicts.is_empty() {
            return;
        }
        let answers = self.decide_and_write(verdicts).await;
        self.is_to_judge |= answers
            .iter()
            .any(|it| matches!(it, Err(RunError::Unavailable)));
        let revealing = self.state.revealing.as_ref();
        if revealing.is_some_and(|it| it.waiting() == 0) {
            self.look_after = None;
        }
    }

    /// Jobs catch their own panics, and nobody aborts them before the end.
    fn job_is_lost(&self, error: &tokio::task::JoinError) {
        tracing::error!(run.id = %self.keeper.run.id.short(), "a job is lost: {error}");
    }

    async fn finish_job(&mut self, done: Done) {
        match done {
            // Those are taken up together.
            Done::Judged { .. } => {}
            Done::Outliers { refused } => {
                self.is_merging = false;
                let requests = refused
                    .into_iter()
                    .map(|(update, reason)| Request::Judged {
                        update,
                        verdict: Err(reason),
                    })
                    .collect();
                self.decide_and_write(requests).await;
            }
            Done::Merged { model, delta } => self.finish_merge(model, delta).await,
            Done::Stored { model, checkpoint } => {
                let round = model.state.round;
                let stored = Request::Stored { round, checkpoint };
                let answers = self.decide_and_write(vec![stored]).await;
                match answers.first() {
                    Some(Err(RunError::Unavailable)) => self.store_retry.failed(),
                    _ => self.store_retry = Retry::default(),
                }
                if self.state.checkpoint.0 == round {
                    self.start_sample(model);
                }
            }
            Done::Evaluated { round, evaluation } => {
                self.is_evaluating = false;
                self.evaluation_retry = Retry::default();
                self.decide_and_write(vec![Request::Evaluated { round, evaluation }])
                    .await;
                if round != self.model.state.round {
                    self.start_evaluation();
                }
            }
            Done::Sampled {
                round,
                prompt,
                text,
            } => {
                self.decide_and_write(vec![Request::Sampled {
                    round,
                    prompt,
                    text,
                }])
                .await;
            }
            Done::Lost { work, updates } => self.note_lost(work, updates),
            Done::Failed { work, error } => {
                tracing::error!(run.id = %self.keeper.run.id.short(), "{work} failed: {error:#}");
                match work {
                    Work::Judging(update) => {
                        self.judging.remove(&update);
                        self.judge_retries.entry(update).or_default().failed();
                    }
                    Work::Merge => {
                        self.is_merging = false;
                        self.merge_retry.failed();
                    }
                    Work::Evaluation => {
                        self.is_evaluating = false;
                        self.evaluation_retry.failed();
                    }
                    Work::Checkpoint => self.store_retry.failed(),
                    Work::Sample => {}
                }
            }
        }
    }

    /// The bytes of these updates are gone. What was not judged yet is as if it had not come: the clock sees to it. What was
    /// accepted is waited for until the time to reveal is over.
    fn note_lost(&mut self, work: Work, updates: Vec<Hash>) {
        match work {
            Work::Judging(update) => {
                self.judging.remove(&update);
            }
            _ => self.is_merging = false,
        }
        for update in updates {
            tracing::error!(
                run.id = %self.keeper.run.id.short(),
                "the bytes of the update {} are gone; its worker can send them again",
                update.short()
            );
            let found = self.state.commitment_of_blob(&update);
            if found
                .is_some_and(|(round, slot, _)| is_accepted(&round.slots()[slot as usize].progress))
            {
                self.lost.insert(update);
            }
        }
    }

    async fn finish_merge(&mut self, model: Model, delta: BlobReference) {
        self.is_merging = false;
        let round = model.state.round;
        let answers = self
            .decide_and_write(vec![Request::Merged {
                round,
                delta,
                model: model.state,
            }])
            .await;
        if let Some(Err(error)) = answers.first() {
            tracing::error!(run.id = %self.keeper.run.id.short(), round, "the merge was not recorded: {error}");
            self.merge_retry.failed();
            return;
        }
        self.model = model;
        self.merge_retry = Retry::default();
        let is_committed = |it: &Hash| self.state.commitment_of_blob(it).is_some();
        self.decoded.retain(|it, _| is_committed(it));
        self.lost.retain(is_committed);
        self.store_if_due();
        self.start_evaluation();
    }

    /// Keeps the newest model whole if the charter asks for it, or if it is the last, and that was not done yet.
    fn store_if_due(&mut self) {
        let (model, state) = (self.model.clone(), &self.state);
        let every = u64::from(state.charter.round.checkpoint_every);
        let is_last = state.tokens >= state.charter.inner.tokens_max;
        let is_due = state.checkpoint.0 != model.state.round
            && (model.state.round.is_multiple_of(every) || is_last);
        if is_due {
            let job = Job::Store {
                run: self.keeper.run.id,
                model,
            };
            self.jobs.spawn(job.run(
                Arc::clone(&self.keeper.run.arithmetic),
                self.keeper.parts.blobs.clone(),
                self.keeper.parts.room.clone(),
            ));
        }
    }
}

fn is_accepted(progress: &SlotProgress) -> bool {
    matches!(progress, SlotProgress::Accepted { .. })
}
