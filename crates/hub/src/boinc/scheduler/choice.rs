//! Which task a host is given: one that it lost with a reply, a round to train, or something to measure meanwhile.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use protocol::{api::Work, units::WorkerId};

use super::{Answer, BUSY_DELAY_S, Call, DAY_MS, INVALID_DELAY_S, daily_quota};
use crate::{
    boinc::{
        reply::Task,
        store::{Host, Unit, UnitState},
        tasks::{self, For},
    },
    run::Run,
};

/// Longest wait for an assignment, whatever the operator sets: below the usual timeouts of proxies.
const WAIT_S_MAX: u64 = 25;
/// Time between two looks whether the machine's last result is settled.
const SETTLING_PAUSE: Duration = Duration::from_millis(200);
/// First and longest pause of a host whose tasks fail, in milliseconds.
const FAILURE_PAUSE_MS: (u64, u64) = (60_000, 4 * 3_600_000);
/// Hosts whose quota is used up come again within this time of the next day, each so much after the one before it.
const SPREAD_MS: u64 = 3_600_000;
const SPREAD_STEP_MS: u64 = 97_001;
/// Least share of a task's time that must be left in a round.
const LEFT_MIN: u64 = 4;

/// Tasks that a host was given and has not reported.
#[derive(Default)]
pub(super) struct Unreported {
    /// Whether it has one.
    pub(super) is_busy: bool,
    /// Those that it does not know of.
    pub(super) lost: Vec<Unit>,
    /// Those that it has, and that are still wanted of it.
    pub(super) held: Vec<Unit>,
}

impl Call<'_> {
    /// The next task, if the client wants one and has none.
    pub(super) async fn choose_task(
        &self,
        run: &Run,
        unreported: Unreported,
        answer: &mut Answer,
    ) -> Result<()> {
        let whom = self.whom(run);
        let mut lost = unreported.lost.into_iter();
        let mut given_up: Vec<String> = Vec::new();
        if !unreported.is_busy && self.request.wants_work {
            for unit in lost.by_ref() {
                if unit.run == run.id
                    && self.is_timely(run, &unit).await
                    && let Some(task) = self.door.resend(&whom, &unit).await?
                {
                    answer.task = Some(task);
                    break;
                }
                given_up.push(unit.name);
            }
        }
        if unreported.is_busy || answer.task.is_some() {
            given_up.extend(lost.map(|it| it.name));
        }
        if !given_up.is_empty() {
            let why = "the client forgot the task";
            let state = UnitState::Lost;
            let account = self.account.id;
            self.door.give_up(account, given_up, state, why).await?;
        }
        if unreported.is_busy || !self.request.wants_work || answer.task.is_some() {
            return Ok(());
        }
        let Some(host) = self.host_now().await? else {
            return Ok(());
        };
        if let Some((quota, pause_ms)) = self.pause_after_quota(run, &host) {
            answer.delay_s = Some(pause_ms as f64 / 1_000.0);
            answer.say(
                true,
                format!("This computer has finished a daily quota of {quota} tasks"),
            );
            return Ok(());
        }
        if let Some(pause_ms) = self.pause_ms(&host) {
            answer.delay_s = Some(pause_ms as f64 / 1_000.0);
            answer.say(
                false,
                "This machine's last tasks failed: it gets the next one after a pause",
            );
            return Ok(());
        }
        // Before a place in a round is taken, which would wait for it.
        if let Some(text) = self.lacks_memory(run) {
            answer.say(true, text);
            answer.delay_s = Some(INVALID_DELAY_S);
            return Ok(());
        }
        let Some(task) = self.new_task(&whom, answer).await? else {
            return Ok(());
        };
        if let Some((text, why)) = self.lacks_disk(&task) {
            answer.say(true, text);
            answer.delay_s = Some(INVALID_DELAY_S);
            let (account, names) = (self.account.id, vec![task.name]);
            return self
                .door
                .give_up(account, names, UnitState::Lost, why)
                .await;
        }
        answer.deleted = tasks::to_delete(&whom, &task);
        answer.task = Some(task);
        Ok(())
    }

    /// What the user is told who lets no task of the run have enough memory.
    fn lacks_memory(&self, run: &Run) -> Option<String> {
        let allowed = self.request.machine.memory_share_bytes;
        let needed = tasks::memory_bytes(&run.charter);
        let mib = |bytes: u64| bytes >> 20;
        (allowed > 0 && needed > allowed).then(|| {
            format!(
                "A task needs {} MiB of memory, and your preferences allow {} MiB; allow more",
                mib(needed),
                mib(allowed)
            )
        })
    }

    /// The same of the disk, which depends on the task: for the user, and for the page.
    fn lacks_disk(&self, task: &Task) -> Option<(String, &'static str)> {
        let held = self.request.files.iter().map(|it| it.bytes).sum::<u64>();
        let allowed = self.request.machine.disk_share_bytes;
        (allowed > 0 && task.disk_bytes > allowed.saturating_add(held)).then(|| {
            let needed = task.disk_bytes >> 20;
            let text = format!("A task needs {needed} MiB of disk; allow this project more");
            (text, "the machine has too little disk for it")
        })
    }

    /// A host counts as there while the update of a task that it has can still come in time: its client asks seldom, and this
    /// is what is heard of it.
    pub(super) async fn note_presence(&self, run: &Run, held: &[Unit]) {
        let state = run.state.read().await;
        let is_in_time = |it: &&Unit| {
            it.kind == "train"
                && it.run == run.id
                && it.round == state.training.as_ref().map(|it| it.round)
        };
        let workers = held.iter().filter(is_in_time).filter_map(|it| it.worker);
        let workers = workers.filter(|it| state.workers.get(it).is_some_and(|it| it.joined));
        run.presence.expect(workers, self.now_ms);
    }

    /// Whether a task whose reply was lost still makes sense.
    async fn is_timely(&self, run: &Run, unit: &Unit) -> bool {
        let window_ms = run.charter.round.window_ms;
        let state = run.state.read().await;
        match (unit.kind.as_str(), unit.round) {
            ("train", Some(round)) => state.training.as_ref().is_some_and(|it| {
                let until_ms = it.deadline_ms.saturating_sub(tasks::margin_ms(window_ms));
                it.round == round && self.now_ms + unit.expected_ms / LEFT_MIN < until_ms
            }),
            _ => self.now_ms < unit.deadline_ms,
        }
    }

    /// The host as its reports of just now have left it: what they changed is in the database alone.
    async fn host_now(&self) -> Result<Option<Host>> {
        match self.request.reports.is_empty() {
            true => Ok(Some(self.host().clone())),
            false => self.door.store.host(self.host().id).await,
        }
    }

    /// How long a host waits whose tasks failed.
    fn pause_ms(&self, host: &Host) -> Option<u64> {
        let doubled = FAILURE_PAUSE_MS.0 << host.failures.checked_sub(1)?.min(16);
        let until_ms = host.failed_ms + doubled.min(FAILURE_PAUSE_MS.1);
        until_ms.checked_sub(self.now_ms).filter(|it| *it > 0)
    }

    /// The quota of a host that was given all of it, and how long it waits: until the next day, and not all at once.
    fn pause_after_quota(&self, run: &Run, host: &Host) -> Option<(u64, u64)> {
        let whole = daily_quota(run);
        let (quota, left) = host.quota.on(self.now_ms / DAY_MS, whole);
        let spread_ms = host.id.wrapping_mul(SPREAD_STEP_MS) % SPREAD_MS;
        (left == 0).then(|| (quota, DAY_MS - self.now_ms % DAY_MS + spread_ms))
    }

    async fn new_task(&self, whom: &For<'_>, answer: &mut Answer) -> Result<Option<Task>> {
        let (run, door) = (whom.run, self.door);
        let enrolment = self.enrolment(run);
        let Some(worker) = enrolment.worker else {
            return self.enrol(whom, (0, enrolment.is_copy), answer).await;
        };
        let (is_joined, sequence, is_bound) = {
            let state = run.state.read().await;
            let record = state.workers.get(&worker);
            let is_bound = state.bindings.get(&worker.0) == Some(&self.account.key);
            let sequence = record.map_or(0, |it| it.sequence);
            (record.is_some_and(|it| it.joined), sequence, is_bound)
        };
        if !is_joined || !is_bound {
            return self.enrol(whom, (sequence, false), answer).await;
        }
        let (work, is_given) = self.wait_for_assignment(run, worker).await?;
        // Time passed: what is told of the host's clock is from when it asked.
        if is_given {
            return door.train(whom, worker, work).await.map(Some);
        }
        match door.train_again(whom, worker).await? {
            Some(task) => Ok(Some(task)),
            None => door.evaluate(whom, worker, work).await.map(Some),
        }
    }

    /// The task by which the host becomes a worker, unless it did it already: then it waits for what comes of that.
    async fn enrol(
        &self,
        whom: &For<'_>,
        (sequence, with_new_key): (u64, bool),
        answer: &mut Answer,
    ) -> Result<Option<Task>> {
        let (door, host) = (self.door, self.host().id);
        let Some(waiting) = door.store.waiting(host, whom.run.id, "enrol").await? else {
            let task = door.enrol(whom, sequence, with_new_key).await?;
            return Ok(Some(task));
        };
        let why = door.waiting.why(&waiting);
        let why = why.map_or_else(String::new, |it| format!(" ({it})"));
        answer.say(
            true,
            format!("This machine's first task is done and waits to be taken{why}. The next one comes by itself"),
        );
        answer.delay_s = Some(BUSY_DELAY_S);
        Ok(None)
    }

    /// Waits for an assignment as a worker that polls does: it counts as there meanwhile. Says too whether there is one
    /// that leaves time to train, and begins from what the machine's last result left.
    async fn wait_for_assignment(&self, run: &Run, worker: WorkerId) -> Result<(Work, bool)> {
        let presence = Arc::clone(&run.presence);
        let waiting = presence.wait(worker, self.hub.clock.now_ms());
        if waiting.was_away {
            run.look();
        }
        let (window_ms, train_ms) = {
            let round = &run.charter.round;
            (round.window_ms, round.boinc_unit_ms)
        };
        let wait = Duration::from_secs(self.hub.config.boinc_wait_s.min(WAIT_S_MAX));
        let until = tokio::time::Instant::now() + wait.min(Duration::from_millis(window_ms / 4));
        loop {
            // Asked first: what is settled then is in the answer.
            let unsettled = self.door.store.waiting(self.host().id, run.id, "train");
            let is_to_settle = unsettled.await?.is_some();
            let work = tasks::poll(self.hub, run, worker).await?;
            let is_given = work.assignment.as_ref().is_some_and(|it| {
                let until_ms = it.deadline_ms.saturating_sub(tasks::margin_ms(window_ms));
                !it.committed && work.now_ms + train_ms / LEFT_MIN <= until_ms
            });
            if is_given && !is_to_settle {
                return Ok((work, true));
            }
            if work.finished || tokio::time::Instant::now() >= until {
                return Ok((work, false));
            }
            // That a result was settled is no news of the log's.
            let again = match is_given {
                true => until.min(tokio::time::Instant::now() + SETTLING_PAUSE),
                false => until,
            };
            tokio::select! {
                () = self.hub.shutdown.cancelled() => return Ok((work, false)),
                _ = tokio::time::timeout_at(again, run.news_for(worker, work.log_length)) => {}
            }
        }
    }
}
