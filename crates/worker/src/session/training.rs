//! One round: train until shortly before the deadline, commit, upload in the background.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use network::{ClientError, world};
use protocol::{
    Hash,
    api::{CommandReply, Work, WorkAssignment},
    command::Commitment,
    sampling::assigned_shards,
    state::decide::fresh,
    units::BlobReference,
};
use tokio::{task::JoinHandle, time::Instant};

use super::{
    GOODBYE, Session, begin::be_nice, is_full, is_same_work, mend::is_final, round_of_run,
    with_machine,
};
use crate::{
    Activity,
    machine::{Carried, Held, Newer, Sealed, Task, Trained},
    margin::fits_another_step,
    model,
};

/// A round that trained this much faster than the measurement says is news for the hub, which bounds claims by it.
pub(crate) const FASTER: f64 = 1.2;
/// Commitments are tried for so many windows after the deadline: late ones count for three rounds, and the hub may have
/// been down. Less than a few seconds is no time for that.
const COMMIT_WINDOWS: u32 = 4;
const COMMIT_AFTER_MIN: Duration = Duration::from_secs(10);
/// Longest time for joining again while a round trains.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// States of earlier rounds may take one part of so many of what the owner allowed for downloads.
pub(super) const STATES_SHARE: u64 = 4;
/// States that an update names.
const STATES_OF_AN_UPDATE: usize = 3;

/// Shared with the thread that trains.
#[derive(Debug)]
struct Control {
    stop: AtomicBool,
    /// The round takes no more commitments in time: a late one is due as soon as it has the fewest steps.
    is_late: AtomicBool,
    newer: Mutex<Vec<Newer>>,
    steps: AtomicU32,
    loss_bits: AtomicU32,
}

/// How a round stands towards this worker.
enum Standing {
    /// It takes its commitment in time, as far as is known.
    Open,
    /// It is closed; a commitment counts as late.
    Late,
    /// It takes nothing from it any more.
    Over,
}

/// How a round's training ended.
struct Ended {
    trained: Trained,
    took: Duration,
    /// The round went on without this worker: there is nothing to commit to.
    is_over: bool,
}

impl Session<'_> {
    /// Works on an assignment. What it loses by an error is this round at most.
    pub(super) async fn train(
        &mut self,
        work: &Work,
        assignment: &WorkAssignment,
        received: Instant,
    ) -> Result<()> {
        let left = Duration::from_millis(assignment.deadline_ms.saturating_sub(work.now_ms));
        let deadline = received + left;
        let seed = match model::hash(&assignment.seed) {
            Ok(seed) => seed,
            Err(error) => {
                self.try_again("reading the assignment", &error).await;
                return Ok(());
            }
        };
        let assigned = assigned_shards(&self.charter, &seed, &self.worker);
        if !self.load_shards(&assigned).await? {
            return Ok(());
        }
        let Some(task) = self.task(work, assignment, seed).await? else {
            return Ok(());
        };
        self.attempted = Some(assignment.clone());
        if self.is_too_late_for(deadline) {
            tracing::debug!(
                round = task.round,
                "too little of the window is left: waiting for the next"
            );
            return Ok(());
        }
        self.prefetch(work);
        let begun_from = self.begun_from(assignment, &task);
        let ended = match self.train_until(&task, deadline, begun_from).await? {
            Ok(ended) => ended,
            Err(error) => {
                self.lose_round(&task, &format!("{error:#}"));
                return Ok(());
            }
        };
        let steps_min = self.charter.round.steps_min;
        if ended.is_over {
            self.lose_round(&task, "the round ended without this machine");
        } else if ended.trained.steps < steps_min {
            if !self.shutdown.is_cancelled() {
                let steps = ended.trained.steps;
                let reason =
                    format!("{steps} steps fit into the window, {steps_min} are needed at least");
                self.lose_round(&task, &reason);
            }
        } else if self.shutdown.is_cancelled() {
            let deliver = self.deliver(&task, ended, deadline);
            if let Ok(result) = tokio::time::timeout(GOODBYE, deliver).await {
                result?;
            }
        } else {
            self.deliver(&task, ended, deadline).await?;
        }
        Ok(())
    }

    /// Whether this machine came to the round when the fewest steps do not fit any more. At the full window a slow machine
    /// tries all the same: it may have become faster than it was measured.
    fn is_too_late_for(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let window = Duration::from_millis(self.charter.round.window_ms);
        let needed = self.measured.step * self.charter.round.steps_min + self.margin.get();
        left < window / 2 && left < needed
    }

    /// What to train on and to go on from; `None` if it could not be fetched (then the problem was shown).
    async fn task(
        &mut self,
        work: &Work,
        assignment: &WorkAssignment,
        seed: Hash,
    ) -> Result<Option<Task>> {
        let carried = match self.carried_in(work).await? {
            Ok(Some(carried)) => carried,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.try_again("reading the assignment", &error).await;
                return Ok(None);
            }
        };
        Ok(self.held().map(|base| Task {
            run: self.run,
            worker: self.worker,
            round: assignment.round,
            slot: assignment.slot,
            slots: assignment.slots,
            seed,
            tokens_before: assignment.tokens_before,
            base,
            carried,
            publish_inner_state: assignment.publish_inner_state,
        }))
    }

    /// Brings the machine to what the log says that this worker carries, or to a fresh start; `None` as with
    /// [`Self::fetch`].
    async fn carried_in(&mut self, work: &Work) -> Result<Result<Option<Carried>>> {
        let wanted = match work.worker.carried.as_deref().map(model::hash).transpose() {
            Ok(wanted) => wanted.unwrap_or_else(fresh),
            Err(error) => return Ok(Err(error)),
        };
        let start = match &work.inner_start {
            Some(start) if self.charter.inner.carry_inner_state => match model::hash(&start.blob) {
                Ok(hash) => Some(BlobReference {
                    hash,
                    bytes: start.bytes,
                }),
                Err(error) => return Ok(Err(error)),
            },
            Some(_) | None => None,
        };
        // Whoever took part in the warm start early goes on from its end like everyone, not from its own old moments.
        let is_outdated =
            matches!((self.published, start), (Some(own), Some(start)) if own != start.hash);
        let store = self.store.clone();
        let is_here = with_machine(&mut self.machine, move |machine| {
            Ok(!is_outdated && machine.continue_from(wanted, &store)?)
        });
        let is_here: Result<bool> = is_here.await?;
        if is_here? {
            return Ok(Ok(Some(Carried::State(wanted))));
        }
        if wanted != fresh() && !is_outdated {
            tracing::warn!(carried = %wanted, "the carried state is not in this folder: starting afresh");
        }
        if let Some(blob) = start
            && !self.fetch("the optimiser's state", blob).await?
        {
            return Ok(Ok(None));
        }
        let cache = self.cache.clone();
        let begun = with_machine(&mut self.machine, move |machine| {
            let start = match start {
                None => None,
                Some(blob) => {
                    let bytes = cache.get(&blob.hash)?;
                    Some((blob.hash, bytes.context("it left the cache too early")?))
                }
            };
            machine.begin_fresh(start)
        });
        Ok(begun
            .await?
            .map(|()| Some(Carried::Fresh(start.map(|it| it.hash)))))
    }

    /// The model from which a newer one may be taken up on the way: the round's own base. Whoever begins from a newer one
    /// stays with it, so that the log tells everyone what an update began from.
    fn begun_from(&self, assignment: &WorkAssignment, task: &Task) -> Option<Held> {
        (task.base.round == assignment.base_round).then_some(task.base)
    }

    /// Trains on a thread of its own until the window is filled, the owner stops it, or the round ends without it.
    async fn train_until(
        &mut self,
        task: &Task,
        deadline: Instant,
        mut begun_from: Option<Held>,
    ) -> Result<Result<Ended>> {
        let control = Arc::new(Control {
            stop: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
            newer: Mutex::default(),
            steps: AtomicU32::new(0),
            loss_bits: AtomicU32::new(f32::NAN.to_bits()),
        });
        let limits = (self.charter.round.steps_min, self.charter.round.steps_max);
        let (margin, first_step, nice) = (self.margin.get(), self.measured.step, self.config.nice);
        let (shards, task_copy, shared) = (self.shards.clone(), *task, Arc::clone(&control));
        let mut machine = self
            .machine
            .take()
            .expect("the machine is here between rounds");
        let mut thread = world::begin_long(async move {
            be_nice(nice);
            let begun = Instant::now();
            let (mut step, mut last) = (first_step, begun);
            let newer = |_| {
                let mut newer = shared.newer.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *newer)
            };
            let training = machine.train(&task_copy, &shards, newer, |steps, loss| {
                shared.steps.store(steps, Ordering::Relaxed);
                let bits = loss.unwrap_or(f32::NAN).to_bits();
                shared.loss_bits.store(bits, Ordering::Relaxed);
                let now = Instant::now();
                if let Some(mean) = (now - begun).checked_div(steps) {
                    // On a busy machine steps differ: the longer of mean and last is what to reckon with.
                    step = mean.max(now - last);
                }
                last = now;
                let left = match shared.is_late.load(Ordering::Relaxed) {
                    true => Duration::ZERO,
                    false => deadline.saturating_duration_since(now),
                };
                !shared.stop.load(Ordering::Relaxed)
                    && fits_another_step(steps, limits, left, margin, step)
            });
            let result = training.await;
            (machine, result, begun.elapsed())
        });
        let mut is_over = false;
        let mut following: Option<JoinHandle<Vec<Newer>>> = None;
        let (machine, result, took) = loop {
            self.show_training(task, &control, deadline);
            if let (Some(base), None) = (begun_from, &following)
                && let Some((work, _)) = self.latest()
                && work.model.round < task.round
            {
                following = self.follow_model(&work, base);
            }
            tokio::select! {
                biased;
                joined = &mut thread => {
                    break joined.map_err(|error| anyhow::anyhow!("training panicked: {error}"))?;
                }
                () = self.shutdown.cancelled(), if !control.stop.load(Ordering::Relaxed) => {
                    control.stop.store(true, Ordering::Relaxed);
                }
                newer = async { following.as_mut().expect("checked before").await }, if following.is_some() => {
                    following = None;
                    let newer = newer.unwrap_or_default();
                    if !newer.is_empty() {
                        // Once a round: then its steps are those before and those after.
                        begun_from = None;
                        *control.newer.lock().unwrap_or_else(PoisonError::into_inner) = newer;
                    }
                }
                Ok(()) = self.news.changed() => {}
                () = tokio::time::sleep(self.tell_every) => {}
            }
            self.look_after_the_hub().await;
            match self.standing_of(task) {
                Standing::Open => {}
                Standing::Late => control.is_late.store(true, Ordering::Relaxed),
                Standing::Over if !is_over => {
                    is_over = true;
                    control.stop.store(true, Ordering::Relaxed);
                }
                Standing::Over => {}
            }
            self.take_outbox_news();
        };
        self.machine = Some(machine);
        Ok(result.map(|trained| Ended {
            trained,
            took,
            is_over,
        }))
    }

    fn show_training(&mut self, task: &Task, control: &Control, deadline: Instant) {
        let loss = f32::from_bits(control.loss_bits.load(Ordering::Relaxed));
        self.show(Activity::Training {
            round: task.round,
            step: control.steps.load(Ordering::Relaxed),
            steps_max: self.charter.round.steps_max,
            loss: loss.is_finite().then_some(loss),
            left: deadline.saturating_duration_since(Instant::now()),
        });
    }

    /// What the newest news say of this round.
    fn standing_of(&mut self, task: &Task) -> Standing {
        let Some((work, _)) = self.latest() else {
            return Standing::Open;
        };
        self.note(&work);
        let open = work.assignment.as_ref();
        match open.filter(|it| it.round == task.round) {
            Some(open) => match &self.attempted {
                Some(begun) if is_same_work(begun, open) => Standing::Open,
                // Another hub opened the round anew, in another way.
                Some(_) | None => Standing::Over,
            },
            None if work.late_rounds.contains(&task.round) => Standing::Late,
            // The hub stands at an older place of the log, and will come to this round.
            None if round_of_run(&work).is_some_and(|it| it < task.round) => Standing::Open,
            None => Standing::Over,
        }
    }

    /// Gives a hub that was replaced, or lost something, what it lacks, while a round trains.
    async fn look_after_the_hub(&mut self) {
        let Some((work, _)) = self.latest() else {
            return;
        };
        let (asked, is_newest) = {
            let news = self.news.borrow();
            (news.asked, news.token == *self.token.borrow())
        };
        if !work.worker.joined && !work.finished && is_newest && self.rejoined != asked {
            self.rejoined = asked;
            match tokio::time::timeout(JOIN_MAX, self.send_join()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!("joining again: {error}"),
                Err(_) => tracing::debug!("joining again: the hub does not answer"),
            }
        }
        if let Err(error) = self.mend(&work).await {
            tracing::warn!("giving the hub what it lacks: {error:#}");
        }
    }

    /// What this worker carries, if the hub refused its last update while this round trained: the error feedback then still
    /// holds that update's work, which goes into this one.
    async fn settle_carried(&mut self, task: &mut Task) -> Result<()> {
        let Some((work, _)) = self.latest() else {
            return Ok(());
        };
        let Some(Ok(wanted)) = work.worker.carried.as_deref().map(model::hash) else {
            return Ok(());
        };
        if task.carried == Carried::State(wanted) || task.carried.hash() == fresh() {
            return Ok(());
        }
        // A log that goes on from an older update's state knows other moments than those that were trained from.
        if !self.store.share_moments(&wanted, &task.carried.hash())? {
            return Ok(());
        }
        let store = self.store.clone();
        let is_here = with_machine(&mut self.machine, move |machine| {
            machine.take_error_of(wanted, &store)
        });
        if is_here.await?? {
            task.carried = Carried::State(wanted);
        }
        Ok(())
    }

    /// Writes the update, commits, and begins the upload.
    async fn deliver(&mut self, task: &Task, ended: Ended, deadline: Instant) -> Result<()> {
        let begun = Instant::now();
        let Ended { trained, took, .. } = ended;
        self.show(Activity::Committing {
            round: task.round,
            steps: trained.steps,
        });
        let mut task = *task;
        self.look_after_the_hub().await;
        if let Err(error) = self.settle_carried(&mut task).await {
            tracing::warn!("what is carried of a refused update is not in this one: {error:#}");
        }
        let task = &task;
        self.remove_old_states(task.carried.hash(), usize::MAX);
        let mut waited = Duration::ZERO;
        let Some(sealed) = self.keep_round(task, trained, &mut waited).await? else {
            return Ok(());
        };
        self.tell_speed(sealed.header.tokens, took).await;
        let patience = Duration::from_millis(self.charter.round.window_ms) * COMMIT_WINDOWS;
        let until = deadline + patience.max(COMMIT_AFTER_MIN);
        let committed = self.commit_kept(&sealed.commitment(), until).await;
        self.margin.observe(begun.elapsed().saturating_sub(waited));
        match committed {
            Ok(reply) => {
                self.status.problem = None;
                self.published = sealed.header.inner_state.map(|it| it.hash);
                self.outbox.send(sealed.reference.hash);
                self.show(self.status.activity.clone());
                // Only answers to later questions know of it.
                self.outbox.touch(sealed.reference.hash);
                self.committed_at = reply.log_length;
            }
            Err(error) if self.may_be_taken_later(task.round, &error) => {
                self.published = sealed.header.inner_state.map(|it| it.hash);
                self.outbox.touch(sealed.reference.hash);
                self.try_again("committing", &error.into()).await;
            }
            Err(error) => {
                self.outbox.forget(sealed.reference.hash);
                self.lose_round(task, &format!("{:#}", anyhow::Error::from(error)));
            }
        }
        Ok(())
    }

    /// Brings a trained round's states and update onto the disk, which may be full for as long as a round takes them: they
    /// are in memory until then. `None` if the round is lost (then the owner was told); time that room was waited for goes
    /// into `waited`.
    async fn keep_round(
        &mut self,
        task: &Task,
        trained: Trained,
        waited: &mut Duration,
    ) -> Result<Option<Sealed>> {
        let ended = with_machine(&mut self.machine, move |machine| {
            let ending = machine.end_round(&trained)?;
            anyhow::Ok((ending, trained))
        });
        let (mut ending, trained) = match ended.await? {
            Ok(ended) => ended,
            Err(error) => {
                self.lose_round(task, &format!("{error:#}"));
                return Ok(None);
            }
        };
        loop {
            let store = self.store.clone();
            let written = world::blocking(move || {
                let written = ending.write(&store);
                (ending, written)
            });
            let written = written.await.context("writing what is carried panicked")?;
            ending = written.0;
            let Err(error) = written.1 else { break };
            if !self.has_room_again(task, error, waited).await? {
                return Ok(None);
            }
        }
        let (store, task_copy) = (self.store.clone(), *task);
        let sealed = with_machine(&mut self.machine, move |machine| {
            machine.seal_ended(&task_copy, &trained, ending, &store)
        });
        let sealed = sealed.await??;
        self.sync_in_background(&sealed);
        while let Err(error) = self.outbox.keep(&sealed) {
            if !self.has_room_again(task, error, waited).await? {
                return Ok(None);
            }
        }
        Ok(Some(sealed))
    }

    /// Waits a little for room on the disk; false if the round takes nothing from this worker any more.
    ///
    /// # Errors
    /// `error`, if it is another than that of a full disk.
    async fn has_room_again(
        &mut self,
        task: &Task,
        error: anyhow::Error,
        waited: &mut Duration,
    ) -> Result<bool> {
        if !is_full(&error) {
            return Err(error);
        }
        // A log that goes back is not what room is kept for while there is none for going on.
        self.remove_old_states(task.carried.hash(), STATES_OF_AN_UPDATE);
        let begun = Instant::now();
        let what = format!(
            "the disk is full, and the work of round {} waits in memory for room",
            task.round
        );
        self.try_again(&what, &error).await;
        self.look_after_the_hub().await;
        *waited += begun.elapsed();
        let is_over = matches!(self.standing_of(task), Standing::Over);
        if is_over || self.shutdown.is_cancelled() {
            self.lose_round(task, "the disk was full until the end");
            return Ok(false);
        }
        Ok(true)
    }

    /// Removes the states that are neither carried nor among the newest so many of kept updates. What stays by mistake is
    /// removed another time.
    fn remove_old_states(&self, carried: Hash, newest: usize) {
        let bytes_max = self.config.cache_bytes_max / STATES_SHARE;
        let mut states = self.outbox.states();
        states.truncate(newest);
        if let Err(error) = self.store.keep_within(carried, &states, bytes_max) {
            tracing::warn!("removing old states: {error:#}");
        }
    }

    /// Commits; if the log lacks the update before this one, after that.
    async fn commit_kept(
        &mut self,
        commitment: &Commitment,
        until: Instant,
    ) -> Result<CommandReply, ClientError> {
        let answer = self.commit(commitment, until).await;
        if !matches!(&answer, Err(error) if error.refusal_code() == Some("wrong_base")) {
            return answer;
        }
        let now = Instant::now();
        let is_newer = |asked: Option<Instant>| asked.is_some_and(|it| now < it);
        self.wait_for_news(|it| it.problem.is_some() || is_newer(it.asked))
            .await;
        self.outbox.touch(commitment.update.hash);
        let Some((work, _)) = self.latest() else {
            return answer;
        };
        match self.mend(&work).await {
            Ok(Some(_)) => self.commit(commitment, until).await,
            Ok(None) => answer,
            Err(error) => {
                tracing::warn!("giving the hub what it lacks: {error:#}");
                answer
            }
        }
    }

    /// Whether a commitment that was not taken may be so later: nobody answered, or the hub's log is not at its round yet.
    fn may_be_taken_later(&mut self, round: u64, error: &ClientError) -> bool {
        let is_ahead =
            |(work, _): &(Arc<Work>, Instant)| round_of_run(work).is_some_and(|it| it < round);
        !is_final(error)
            || error.refusal_code() == Some("late") && self.latest().as_ref().is_some_and(is_ahead)
    }

    /// A disk may take seconds to have all of a state: neither the commitment nor the next round waits for it.
    fn sync_in_background(&self, sealed: &Sealed) {
        let store = self.store.clone();
        let header = &sealed.header;
        let hashes = [header.carried_if_refused, header.carried_after];
        tokio::spawn(async move {
            match world::blocking(move || store.sync(&hashes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("what is carried may not survive: {error:#}"),
                Err(error) => tracing::warn!("what is carried may not survive: {error}"),
            }
        });
    }

    /// The hub bounds claims by the speed that a worker joined with: a machine that became faster says so first.
    async fn tell_speed(&mut self, tokens: u64, took: Duration) {
        let per_s = tokens as f64 / took.as_secs_f64().max(1e-3);
        self.status.tokens_per_s = per_s as u32;
        if per_s <= f64::from(self.device.tokens_per_s) * FASTER {
            return;
        }
        self.device.tokens_per_s = per_s as u32;
        if let Err(error) = self.send_join().await {
            tracing::debug!("telling the new speed: {error}");
        }
    }

    /// What the round trained is given up; the state from before it is on disk.
    fn lose_round(&mut self, task: &Task, reason: &str) {
        tracing::warn!(round = task.round, "round lost: {reason}");
        self.status.last_refusal = Some(format!("round {}: {reason}", task.round));
        self.show(Activity::Waiting);
    }
}
