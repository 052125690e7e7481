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

use engine::update::decoded::DecodedUpdate;
use network::world;
use protocol::{
    Hash,
    event::Event,
    log::Entry,
    state::{
        Shown, SlotProgress, State,
        decide::{Request, decide, next_moment_ms, round_to_merge},
    },
    succession::Succession,
    units::BlobReference,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Keeper, Message, RunError,
    evaluate::HeldOut,
    jobs::{self, Done, Job},
};
use crate::model::Model;

/// Requests decided and written together.
const BATCH_MAX: usize = 512;
/// Wait before something that failed is tried again.
const AGAIN_MS: u64 = 2_000;
/// The run looks at the clock at least this often.
const TICK: Duration = Duration::from_millis(200);
/// And at most this often, unless something was computed: a look goes through everyone's slot.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// With many workers looks take long: this many times as long passes before the next.
const LOOK_SHARE: u32 = 20;

/// The run's task while this process is its hub.
pub(super) struct Actor {
    keeper: Keeper,
    model: Model,
    held_out: Arc<HeldOut>,
    jobs: JoinSet<Done>,
    /// Updates of the rounds in progress by hash, decoded when they were judged.
    decoded: HashMap<Hash, Arc<DecodedUpdate>>,
    /// Whether committed updates whose bytes are here are to be looked for.
    is_to_judge: bool,
    /// When the run looks at the clock again; `None` if it is to do so at once.
    look_after: Option<Instant>,
    is_merging: bool,
    /// A merge that failed is tried again then, not at once.
    merge_after_ms: u64,
    /// Updates that are being looked at.
    judging: HashSet<Hash>,
    is_evaluating: bool,
}

impl Actor {
    /// A hub of the run whose newest model is `model`.
    pub(super) fn new(keeper: Keeper, model: Model, held_out: HeldOut) -> Self {
        Self {
            keeper,
            model,
            held_out: Arc::new(held_out),
            jobs: JoinSet::new(),
            decoded: HashMap::new(),
            is_to_judge: false,
            look_after: None,
            is_merging: false,
            merge_after_ms: 0,
            judging: HashSet::new(),
            is_evaluating: false,
        }
    }

    /// Keeps the run until `shutdown`, or until it is shown that another hub does, which is the second thing given back.
    pub(super) async fn work(
        mut self,
        shutdown: &CancellationToken,
    ) -> (Keeper, Option<Box<Succession>>) {
        self.resume().await;
        let mut replaced = None;
        let mut messages = Vec::new();
        loop {
            let tick = tokio::time::sleep(self.until_next_deadline().await);
            let done = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // Few, and others wait for them: they never starve the inbox.
                Some(done) = self.jobs.join_next() => Some(done),
                count = self.keeper.inbox.recv_many(&mut messages, BATCH_MAX) => {
                    if count == 0 {
                        break;
                    }
                    None
                }
                () = tick => None,
            };
            match done {
                Some(Ok(done)) => {
                    self.look_after = None;
                    self.finish_job(done).await;
                }
                Some(Err(error)) => {
                    // A panic in arithmetic is our bug; what it was about is tried again.
                    tracing::error!(run.id = %self.keeper.run.id.short(), "a job failed: {error}");
                    self.judging.clear();
                    self.is_to_judge = true;
                    self.merge_after_ms = self.keeper.parts.clock.now_ms() + AGAIN_MS;
                    self.is_merging = false;
                    self.is_evaluating = false;
                }
                None => {
                    replaced = self.answer(std::mem::take(&mut messages)).await;
                    if replaced.is_some() {
                        break;
                    }
                }
            }
            if std::mem::take(&mut self.is_to_judge) {
                self.judge_what_is_here().await;
            }
            if self.look_after.is_none_or(|it| it <= Instant::now()) {
                self.look_at_clock().await;
            }
            self.start_merge().await;
        }
        self.jobs.shutdown().await;
        (self.keeper, replaced)
    }

    /// Takes up what a stop or crash left: committed updates whose bytes are here, the evaluation of the newest model.
    async fn resume(&mut self) {
        self.judge_what_is_here().await;
        let (evaluated, sampled) = {
            let state = self.keeper.run.state.read().await;
            (
                state.evaluation.map(|(round, _)| round),
                state.sampled_round,
            )
        };
        if evaluated != Some(self.model.state.round) {
            self.start_evaluation();
        }
        if sampled.is_none() {
            self.start_sample(self.model.clone());
        }
        self.store_if_due().await;
    }

    /// Looks at every committed update whose bytes are here and that nobody looks at: after a start, and again
    /// after a verdict could not be written.
    async fn judge_what_is_here(&mut self) {
        let waiting: Vec<Hash> = {
            let state = self.keeper.run.state.read().await;
            state
                .rounds_in_progress()
                .flat_map(|it| it.slots())
                .filter(|it| matches!(it.progress, SlotProgress::Committed(_)))
                .filter_map(|it| Some(it.commitment()?.update.hash))
                .filter(|it| !self.judging.contains(it))
                .collect()
        };
        for hash in waiting {
            self.start_judging(hash).await;
        }
    }

    async fn until_next_deadline(&self) -> Duration {
        let next = next_moment_ms(&*self.keeper.run.state.read().await);
        let until = next
            .map(|it| Duration::from_millis(it.saturating_sub(self.keeper.parts.clock.now_ms())));
        // A moment that is over and decided nothing is not waited for in a busy loop.
        until.unwrap_or(TICK).clamp(LOOK_PAUSE, TICK)
    }

    /// Answers what came; the statement by which another hub keeps the run, if one of the messages shows it. The requests
    /// beside it are then not answered: whoever asked goes to the other hub.
    async fn answer(&mut self, messages: Vec<Message>) -> Option<Box<Succession>> {
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
                Message::Uploaded(hash) => self.start_judging(hash).await,
                Message::Look => {}
                Message::TakeOver { reply, .. } => {
                    let is_hub = "this process is the run's hub already".to_owned();
                    let _ = reply.send(Err(RunError::CannotTakeOver(is_hub)));
                }
                Message::Replaced(statement) => return Some(statement),
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
    /// Readers see the state again when it is on the disk. If it can't be written, the state is
    /// read back from the disk: nothing of these requests happened.
    async fn decide_and_write(&mut self, requests: Vec<Request>) -> Vec<Result<u64, RunError>> {
        if requests.is_empty() {
            return Vec::new();
        }
        let shared = Arc::clone(&self.keeper.run.state);
        let mut state = shared.write().await;
        let mut entries = Vec::new();
        let mut answers = Vec::new();
        for request in requests {
            // One moment for the decision and its entries: the fold asks the same questions again.
            let now = self.keeper.parts.clock.now_ms().max(state.head.time_ms);
            let decided = decide(&state, &request, now);
            answers.push(match decided {
                Ok(events) => {
                    for event in events {
                        entries.push(self.keeper.seal(&mut state, now, event));
                    }
                    Ok(state.head.length)
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
            tracing::error!(run.id = %self.keeper.run.id.short(), "can't write the log: {error:#}");
            self.read_back(&mut state).await;
            drop(state);
            // A full disk is not freed by asking it again at once.
            tokio::time::sleep(Duration::from_millis(AGAIN_MS / 4)).await;
            return answers.iter().map(|_| Err(RunError::Unavailable)).collect();
        }
        // Bytes that came while their round gave them up may have been looked at for that round.
        let is_deferred =
            |(entry, _): &(Entry, _)| matches!(entry.event, Event::UpdateDeferred { .. });
        self.is_to_judge |= entries.iter().any(is_deferred);
        self.keeper.tell(&entries, state.head.length);
        answers
    }

    async fn read_back(&self, state: &mut State) {
        match self.keeper.parts.store.replay(self.keeper.run.id).await {
            Ok(stored) => *state = stored,
            // Better no hub than one that goes on from what is not on its disk.
            Err(error) => {
                tracing::error!("the log can't be read back: {error:#}; stopping");
                world::abort();
            }
        }
    }

    /// Lets time pass until it changes nothing more.
    async fn look_at_clock(&mut self) {
        let begun = Instant::now();
        loop {
            let present = self
                .keeper
                .run
                .presence
                .present(self.keeper.parts.clock.now_ms());
            let before = *self.keeper.length.borrow();
            self.decide_and_write(vec![Request::Clock { present }])
                .await;
            if *self.keeper.length.borrow() == before {
                break;
            }
        }
        let pause = (begun.elapsed() * LOOK_SHARE).clamp(LOOK_PAUSE, TICK);
        self.look_after = Some(Instant::now() + pause);
    }

    async fn start_judging(&mut self, hash: Hash) {
        let state = self.keeper.run.state.read().await;
        let commitment = state
            .commitment_of_blob(&hash)
            .filter(|(round, slot, _)| {
                let part = &round.slots()[*slot as usize];
                matches!(part.progress, SlotProgress::Committed(_))
            })
            .map(|(_, _, commitment)| commitment);
        if let Some(commitment) = commitment {
            // An update of a warm start is looked at when the inner state beside it is here too.
            for blob in [Some(commitment.update), commitment.header.inner_state]
                .into_iter()
                .flatten()
            {
                let length = self.keeper.parts.blobs.length(&blob.hash).await;
                if !matches!(length, Ok(Some(length)) if length == blob.bytes) {
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
            ));
        }
    }

    async fn start_merge(&mut self) {
        if self.is_merging || self.keeper.parts.clock.now_ms() < self.merge_after_ms {
            return;
        }
        let state = self.keeper.run.state.read().await;
        let Some(round) = round_to_merge(&state) else {
            return;
        };
        if state.model != self.model.state {
            tracing::error!("the model in memory is not the run's newest; stopping");
            world::abort();
        }
        let mut late: HashMap<u32, Vec<Shown>> =
            state.late_with_earlier(round).into_iter().collect();
        let parts = round
            .merged_updates(&state.charter)
            .into_iter()
            .map(|it| jobs::MergePart {
                decoded: self.decoded.get(&it.update.hash).cloned(),
                standing: state.workers.get(&it.worker).map_or(0, |it| it.tokens),
                earlier: late.remove(&it.slot).unwrap_or_default(),
                merged: it,
            })
            .collect();
        let job = Job::Merge {
            round: round.round,
            rate_q16: round.rate_q16(&state.charter),
            model: self.model.clone(),
            parts,
        };
        self.is_merging = true;
        self.jobs.spawn(job.run(
            Arc::clone(&self.keeper.run.arithmetic),
            self.keeper.parts.blobs.clone(),
        ));
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
        ));
    }

    async fn finish_job(&mut self, done: Done) {
        match done {
            Done::Judged { update, verdict } => {
                self.judging.remove(&update);
                let verdict = verdict.map(|decoded| {
                    self.decoded.insert(update, decoded);
                });
                let answers = self
                    .decide_and_write(vec![Request::Judged { update, verdict }])
                    .await;
                self.is_to_judge |= matches!(answers.first(), Some(Err(RunError::Unavailable)));
            }
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
                self.decide_and_write(vec![Request::Stored { round, checkpoint }])
                    .await;
                if self.keeper.run.state.read().await.checkpoint.0 == round {
                    self.start_sample(model);
                }
            }
            Done::Evaluated { round, evaluation } => {
                self.is_evaluating = false;
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
            Done::Failed { what, error } => {
                tracing::error!(run.id = %self.keeper.run.id.short(), "{what} failed: {error:#}");
                self.judging.clear();
                self.is_to_judge = true;
                self.merge_after_ms = self.keeper.parts.clock.now_ms() + AGAIN_MS;
                self.is_merging &= what != "the merge";
                self.is_evaluating &= what != "the evaluation";
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
            self.merge_after_ms = self.keeper.parts.clock.now_ms() + AGAIN_MS;
            return;
        }
        self.model = model;
        {
            let state = self.keeper.run.state.read().await;
            self.decoded
                .retain(|it, _| state.commitment_of_blob(it).is_some());
        }
        self.store_if_due().await;
        self.start_evaluation();
    }

    /// Keeps the newest model whole if the charter asks for it, or if it is the last, and that was not done yet.
    async fn store_if_due(&mut self) {
        let model = self.model.clone();
        let is_due = {
            let state = self.keeper.run.state.read().await;
            let every = u64::from(state.charter.round.checkpoint_every);
            let is_last = state.tokens >= state.charter.inner.tokens_max;
            state.checkpoint.0 != model.state.round
                && (model.state.round.is_multiple_of(every) || is_last)
        };
        if is_due {
            let job = Job::Store {
                run: self.keeper.run.id,
                model,
            };
            self.jobs.spawn(job.run(
                Arc::clone(&self.keeper.run.arithmetic),
                self.keeper.parts.blobs.clone(),
            ));
        }
    }
}
