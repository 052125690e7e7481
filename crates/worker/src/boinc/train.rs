//! Training a round inside a unit: the steps of any worker, with a pause and a checkpoint where the client wants one.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use protocol::{
    boinc::{Output, TrainingTask},
    command::{Command, SignedCommand},
    units::BlobReference,
};

use super::{
    child::{Job, Outcome},
    output::{self, Recent},
    prepare::{carried_in, load_shards, task},
    reins::Told,
    unit::Given,
};
use crate::{
    carried::CarriedStore,
    folder::Folder,
    kept_model::KeptModel,
    machine::{Machine, PausedRound, Progress, Sealed, Task},
    margin::fits_another_step,
    session::{FASTER, is_full},
    shards::Shards,
};

/// Where a round that is done again for another worker leaves its states and its model: they go with the slot.
const REPEATED_STATES_NAME: &str = "states";
const REPEATED_MODEL_NAME: &str = "model";
/// File of the slot that keeps a round while it pauses.
const PAUSED_NAME: &str = "round";
/// Copies of the parameters that states of earlier updates may take on the disk.
const STATES_COPIES: u64 = 16;
/// The state is kept so seldom that it takes no more than one part in so many of the time; but after so many of the periods
/// that the user names at the latest, for that much work goes with a machine that fails.
const KEPT_SHARE: u32 = 100;
const PERIODS_MAX: u32 = 10;
/// Parts of the work after which the project is told how it goes.
const TOLD_PARTS: u32 = 4;
/// What is left of the work when the last step is done.
const SEALING_PART: f64 = 0.01;

/// A round being trained.
struct Round<'a, 'b> {
    job: &'a mut Job<'b>,
    given: &'a Given<'a>,
    limits: &'a TrainingTask,
    task: Task,
    shards: Shards,
    paused: PausedRound,
    /// Time trained by processes before this one.
    earlier: Duration,
    begun: Duration,
}

/// Trains, and writes what goes back.
///
/// # Errors
/// Files that are not the unit's, the disk.
pub(crate) fn train(
    job: &mut Job<'_>,
    given: &Given<'_>,
    folder: &Folder,
    limits: &TrainingTask,
) -> Result<Outcome> {
    let disk = Arc::clone(&job.ground.disk);
    let run = given.unit.run;
    let is_repeated = limits.repeated_steps.is_some();
    if !is_repeated && limits.worker != folder.key().public() {
        tracing::warn!(
            "the unit is for worker {}, and this computer's key is {}: its project was reset, and it joins anew",
            limits.worker.short(),
            folder.key().public().short()
        );
        return job.enrol(given, folder, 0);
    }
    let work = &limits.work;
    let assignment = work
        .assignment
        .as_ref()
        .context("the unit has no round to train")?;
    let (states, model) = match is_repeated {
        true => (
            job.slot.path(REPEATED_STATES_NAME),
            job.slot.path(REPEATED_MODEL_NAME),
        ),
        false => (folder.carried(run), folder.model(run)),
    };
    let store = CarriedStore::open(Arc::clone(&disk), states)?;
    let mut recent = Recent::read(&*disk, folder, run);
    let mut machine = job.machine(given);
    let kept = KeptModel::new(Arc::clone(&disk), model);
    given.build_model(&mut machine, work, &kept)?;
    let carried = carried_in(given, &mut machine, work, &store, recent.published)?;
    let task = task(given, limits, assignment, &machine, carried)?;
    let shards = load_shards(given, &task)?;
    let paused = PausedRound::new(Arc::clone(&disk), job.slot.path(PAUSED_NAME));
    let begun = job.active();
    let mut round = Round {
        job,
        given,
        limits,
        task,
        shards,
        paused,
        earlier: Duration::ZERO,
        begun,
    };
    let mut progress = round.begin(&mut machine)?;
    let trained = match round.steps(&mut machine, &mut progress) {
        Ok(true) => Ok(progress),
        Ok(false) => return Ok(Outcome::Paused),
        Err(error) => Err(error),
    };
    let steps_min = given.charter.round.steps_min;
    let progress = match trained {
        Ok(progress) if progress.steps >= steps_min => progress,
        // The machine did what it could: a failed task would say that something is wrong with it.
        Ok(progress) => {
            let steps = progress.steps;
            tracing::error!(
                "{steps} steps fit into the time, {steps_min} are needed at least: nothing is committed"
            );
            return round.hand_in(folder, vec![], &[]);
        }
        Err(error) => {
            tracing::error!("the round is lost: {error:#}");
            return round.hand_in(folder, vec![], &[]);
        }
    };
    if is_repeated {
        let trained = machine.end_steps(&round.task, progress);
        let sealed = machine.seal(&round.task, &trained, &store)?;
        return round.hand_in(folder, vec![], &[sealed.file]);
    }
    let took = round.trained();
    let (commands, sealed) =
        round.seal(&mut machine, progress, folder, &store, &mut recent, took)?;
    let files: Vec<Bytes> = sealed.files().into_iter().map(|(_, bytes)| bytes).collect();
    recent.write(&*disk, folder, run);
    round.hand_in(folder, commands, &files)
}

impl Round<'_, '_> {
    /// Begins the round, or takes it up where an earlier process left it.
    fn begin(&mut self, machine: &mut Machine) -> Result<Progress> {
        let begun = machine.begin_round(&self.task);
        let Some((progress, trained_ms)) = self.paused.read(machine, &self.task)? else {
            return Ok(begun);
        };
        tracing::info!(steps = progress.steps, "the round goes on");
        self.earlier = Duration::from_millis(trained_ms);
        Ok(progress)
    }

    /// Time trained, by this process and those before it.
    fn trained(&self) -> Duration {
        self.earlier + (self.job.active() - self.begun)
    }

    /// Takes the steps that fit, and keeps the state as often as the client wants it; false if the client wants this ended
    /// (then the state is kept).
    fn steps(&mut self, machine: &mut Machine, progress: &mut Progress) -> Result<bool> {
        let (mut kept_at, mut took) = (Instant::now(), Duration::ZERO);
        let mut told = told_parts(self.part(progress.steps));
        loop {
            let is_due = |period: Duration| kept_at.elapsed() >= kept_every(period, took);
            let mut is_end = false;
            self.take_steps(machine, progress, &mut told, is_due, &mut is_end)?;
            if self.job.reins.must_quit() {
                self.keep(machine, progress);
                return Ok(false);
            }
            if is_end {
                return Ok(true);
            }
            let begun = Instant::now();
            self.keep(machine, progress);
            kept_at = Instant::now();
            took = kept_at - begun;
        }
    }

    /// Takes steps until the time is over, the state is due to be kept, or the client says quit.
    fn take_steps(
        &mut self,
        machine: &mut Machine,
        progress: &mut Progress,
        told: &mut u32,
        is_due: impl Fn(Duration) -> bool,
        is_end: &mut bool,
    ) -> Result<()> {
        let (task, shards) = (self.task, self.shards.clone());
        let first = progress.steps;
        let (begun, mut last) = (self.trained(), self.trained());
        let another = |steps: u32, loss: Option<f32>| {
            let trained = self.trained();
            let mean = (trained - begun).checked_div(steps - first);
            // On a busy machine steps differ: the longer of mean and last is what to reckon with.
            let step = mean.map_or(Duration::ZERO, |it| it.max(trained - last));
            last = trained;
            self.show(steps, loss, told);
            *is_end = !self.fits_another(steps, trained, step);
            let is_pause =
                self.job.reins.must_quit() || (steps > first && is_due(self.job.reins.period()));
            !*is_end && !is_pause
        };
        let steps = machine.go_on(&task, &shards, progress, |_| vec![], another);
        tokio::runtime::Builder::new_current_thread()
            .build()
            .context("making a runtime")?
            .block_on(steps)
    }

    /// Whether another step fits the time to train and the last moment. The fewest steps may take longer, because a late
    /// update counts and one of too few steps does not; after another window of the run it would not be taken either.
    fn fits_another(&self, steps: u32, trained: Duration, step: Duration) -> bool {
        if let Some(all) = self.limits.repeated_steps {
            return steps < all;
        }
        let rules = &self.given.charter.round;
        let now_ms = self.job.ground.clock.now_ms();
        if self.limits.until_ms.saturating_add(rules.window_ms) <= now_ms {
            return false;
        }
        let of_time = Duration::from_millis(self.limits.train_ms).saturating_sub(trained);
        let of_clock = Duration::from_millis(self.limits.until_ms.saturating_sub(now_ms));
        let limits = (rules.steps_min, rules.steps_max);
        let left = of_time.min(of_clock);
        fits_another_step(steps, limits, left, Duration::ZERO, step)
    }

    /// The part of the work that is done, in 0..1.
    fn part(&self, steps: u32) -> f64 {
        if let Some(all) = self.limits.repeated_steps {
            return f64::from(steps) / f64::from(all.max(1));
        }
        let (trained, whole) = (self.trained(), Duration::from_millis(self.limits.train_ms));
        let of_steps = f64::from(steps) / f64::from(self.given.charter.round.steps_max.max(1));
        let of_time = trained.as_secs_f64() / whole.as_secs_f64().max(1e-3);
        let left_ms = self
            .limits
            .until_ms
            .saturating_sub(self.job.ground.clock.now_ms());
        let left = Duration::from_millis(left_ms).as_secs_f64();
        let of_clock = trained.as_secs_f64() / (trained.as_secs_f64() + left).max(1e-3);
        of_steps.max(of_time).max(of_clock).clamp(0.0, 1.0)
    }

    fn show(&mut self, steps: u32, loss: Option<f32>, told: &mut u32) {
        let part = self.part(steps);
        (self.job.tell)(Told::Fraction(part * (1.0 - SEALING_PART)));
        let parts = told_parts(part);
        if let Some(loss) = loss
            && *told < parts
            && parts < TOLD_PARTS
        {
            *told = parts;
            let unit = &self.given.unit.name;
            (self.job.tell)(Told::Trickle(format!(
                "<unit>{unit}</unit><steps>{steps}</steps><loss>{loss:.4}</loss>"
            )));
        }
    }

    /// Keeps the round's state for another start. What can't be kept costs work if the process is ended, and nothing else.
    fn keep(&mut self, machine: &Machine, progress: &Progress) {
        let trained_ms = self.trained().as_millis() as u64;
        match self.paused.write(machine, &self.task, progress, trained_ms) {
            Ok(()) => {
                tracing::info!(steps = progress.steps, "checkpoint");
                (self.job.tell)(Told::Checkpoint);
            }
            Err(error) => tracing::warn!("no checkpoint was written: {error:#}"),
        }
    }

    /// The update, and the commands that go with it.
    fn seal(
        &mut self,
        machine: &mut Machine,
        progress: Progress,
        folder: &Folder,
        store: &CarriedStore,
        recent: &mut Recent,
        took: Duration,
    ) -> Result<(Vec<SignedCommand>, Sealed)> {
        let trained = machine.end_steps(&self.task, progress);
        let parameters = self.given.charter.model.parameter_count();
        let room = STATES_COPIES * 4 * parameters;
        if let Err(error) = store.keep_within(self.task.carried.hash(), &recent.states, room) {
            tracing::warn!("removing old states: {error:#}");
        }
        let mut ending = machine.end_round(&trained)?;
        self.despite_full_disk(|_| ending.write(store))?;
        let sealed = machine.seal_ended(&self.task, &trained, ending, store)?;
        let states = [
            sealed.header.carried_after,
            sealed.header.carried_if_refused,
        ];
        store.sync(&states)?;
        recent.add_states(states);
        recent.published = sealed.header.inner_state.map(|it| it.hash);

        let mut sequence = self.limits.work.worker.sequence;
        let mut commands = Vec::new();
        let per_s = (sealed.header.tokens as f64 / took.as_secs_f64().max(1e-3)) as u32;
        // The hub bounds claims by the speed that a worker joined with.
        if f64::from(per_s) > f64::from(recent.tokens_per_s) * FASTER {
            sequence += 1;
            commands.push(self.job.join(self.given, folder, machine, sequence, per_s));
            recent.tokens_per_s = per_s;
        }
        let commit = Command::Commit(Box::new(sealed.commitment()));
        let run = self.given.unit.run;
        commands.push(SignedCommand::sign(folder.key(), run, sequence + 1, commit));
        Ok((commands, sealed))
    }

    /// Writes what goes back; without a command it commits to nothing.
    fn hand_in(
        &mut self,
        folder: &Folder,
        commands: Vec<SignedCommand>,
        files: &[Bytes],
    ) -> Result<Outcome> {
        let output = Output {
            unit: self.given.unit.name.clone(),
            commands,
            binding: None,
            evaluation: None,
            files: files.iter().map(|it| BlobReference::of(it)).collect(),
        };
        let disk = Arc::clone(&self.job.ground.disk);
        self.despite_full_disk(|round| {
            output::write(&*disk, round.job.slot, folder, &output, files)
        })?;
        (self.job.tell)(Told::Fraction(1.0));
        Ok(Outcome::Done)
    }

    /// Waits for room on a full disk while the work still counts: what was trained is in memory until it is written.
    ///
    /// # Errors
    /// `write`'s, if it is another, or the work counts no more.
    fn despite_full_disk(&mut self, mut write: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let until_ms = self
            .limits
            .until_ms
            .saturating_add(self.given.charter.round.window_ms);
        loop {
            let Err(error) = write(self) else {
                return Ok(());
            };
            let is_over = until_ms <= self.job.ground.clock.now_ms();
            if !is_full(&error) || is_over || self.job.reins.must_quit() {
                return Err(error);
            }
            tracing::warn!("the disk is full, and what was trained waits for room: {error:#}");
            thread::sleep(self.job.full_again);
        }
    }
}

/// How often the state is kept that took so long to be kept the last time.
fn kept_every(period: Duration, took: Duration) -> Duration {
    period.max((took * KEPT_SHARE).min(period * PERIODS_MAX))
}

fn told_parts(part: f64) -> u32 {
    (part * f64::from(TOLD_PARTS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_kept_as_often_as_it_is_cheap() {
        let minute = Duration::from_secs(60);
        let every = |took: u64| kept_every(minute, Duration::from_millis(took));
        assert_eq!(every(0), minute);
        assert_eq!(every(600), minute);
        assert_eq!(every(2_000), Duration::from_secs(200));
        // A write that stood still for hours with its process is no reason to risk a whole task.
        assert_eq!(every(3_600_000), 10 * minute);
        assert_eq!(kept_every(Duration::ZERO, minute), Duration::ZERO);
    }
}
