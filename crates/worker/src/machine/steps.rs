//! The inner steps of a round: from the base to trained parameters, in one go or with pauses.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use engine::{
    train::StepReport,
    update::{
        delta,
        hash::{moment_hash, parameters_hash, samples_hash},
        steps::StepLeaf,
    },
};
use protocol::{Hash, charter::Charter, sampling, schedule::learning_rate_nano};
use tokio::time::Instant;

use super::{Machine, Task, Trained};
use crate::shards::Shards;

/// A round in the middle of its steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) steps: u32,
    /// Loss of the last one.
    pub(crate) loss: Option<f32>,
    pub(super) head_start_steps: u32,
    pub(super) loss_sum: f64,
    pub(super) leaves: Vec<StepLeaf>,
    /// Time in inner steps alone, from fetching the tokens to AdamW: what utilisation counts.
    pub(super) stepping: Duration,
    /// Samples and outcome of the last step, if no leaf covers it.
    pub(super) open_leaf: Option<(Vec<u64>, StepReport)>,
}

/// The merge of the round before, come while this one trains.
#[derive(Clone, Debug)]
pub(crate) struct Newer {
    /// Its round.
    pub(crate) round: u64,
    /// Hash of the parameters after it.
    pub(crate) after: Hash,
    /// The published delta.
    pub(crate) delta: Bytes,
}

impl Machine {
    /// Takes inner steps for as long as `another(steps done, last loss)` says so. Blocks, and waits for nothing but what a
    /// simulated step is said to take.
    ///
    /// Before each step `newer(steps done)` may give merges, in order: their deltas are taken from the base and from the
    /// parameters in training alike, so that the update is made against the newest model without losing a step.
    ///
    /// # Errors
    /// A delta that gives another model than it should; loss or gradient became infinite, or no assigned shard is longer than a sequence. What is carried is then to be
    /// restored by [`Machine::continue_from`] or [`Machine::begin_fresh`], as after any round that is not sealed.
    pub(crate) async fn train(
        &mut self,
        task: &Task,
        shards: &Shards,
        newer: impl FnMut(u32) -> Vec<Newer>,
        another: impl FnMut(u32, Option<f32>) -> bool,
    ) -> Result<Trained> {
        let mut progress = self.begin_round(task);
        self.go_on(task, shards, &mut progress, newer, another)
            .await?;
        Ok(self.end_steps(task, progress))
    }

    /// The beginning of [`Self::train`]: the base is in training, and no step is done.
    pub(crate) fn begin_round(&mut self, task: &Task) -> Progress {
        assert_eq!(self.held, Some(task.base), "the machine holds the base");
        assert_eq!(self.carried, Some(task.carried), "and what is carried in");
        self.carried = None;
        if !self.charter.inner.carry_inner_state {
            self.reset_moments();
        }
        self.trainer.parameters_mut().copy_from_slice(&self.base);
        tracing::info!(round = task.round, slot = task.slot, "training begins");
        Progress::default()
    }

    /// The steps of [`Self::train`]; called again, it goes on where it ended.
    ///
    /// # Errors
    /// As [`Self::train`].
    pub(crate) async fn go_on(
        &mut self,
        task: &Task,
        shards: &Shards,
        progress: &mut Progress,
        mut newer: impl FnMut(u32) -> Vec<Newer>,
        mut another: impl FnMut(u32, Option<f32>) -> bool,
    ) -> Result<()> {
        let optimizer = engine::charter::optimizer(&self.charter.inner);
        let assigned = sampling::assigned_shards(&self.charter, &task.seed, &task.worker);
        let leaf_steps = self.charter.round.leaf_steps;
        while another(progress.steps, progress.loss) {
            for merge in newer(progress.steps) {
                self.go_over_to(&merge)?;
                progress.head_start_steps = progress.steps;
            }
            let steps = progress.steps;
            let begun = Instant::now();
            let (tokens, samples) = batch(&self.charter, task, &assigned, shards, steps)?;
            let nano = learning_rate_nano(&self.charter.inner, self.tokens_at(task, steps));
            let report = self
                .trainer
                .step(&tokens, engine::charter::learning_rate(nano), &optimizer)
                .with_context(|| format!("step {} of round {}", steps + 1, task.round))?;
            if let Some(time) = self.trainer.step_time() {
                tokio::time::sleep(time).await;
            }
            progress.stepping += begun.elapsed();
            progress.steps += 1;
            if progress.steps == 1 {
                tracing::info!(round = task.round, slot = task.slot, "first step done");
            }
            progress.loss = Some(report.loss);
            progress.loss_sum += f64::from(report.loss);
            progress.open_leaf = Some((samples, report));
            if progress.steps.is_multiple_of(leaf_steps) {
                self.close_leaf(progress);
            }
        }
        Ok(())
    }

    /// The end of [`Self::train`].
    pub(crate) fn end_steps(&self, task: &Task, mut progress: Progress) -> Trained {
        tracing::info!(
            round = task.round,
            slot = task.slot,
            steps = progress.steps,
            stepping_ms = progress.stepping.as_millis() as u64,
            "training ends"
        );
        // The last step always has a leaf: an end that no leaf covers could not be audited.
        self.close_leaf(&mut progress);
        Trained {
            steps: progress.steps,
            head_start_steps: progress.head_start_steps,
            loss_sum: progress.loss_sum,
            leaves: progress.leaves,
        }
    }

    fn close_leaf(&self, progress: &mut Progress) {
        if let Some((samples, report)) = progress.open_leaf.take() {
            let leaf = self.leaf(progress.steps, &samples, report);
            progress.leaves.push(leaf);
        }
    }

    /// Takes a merge up in the middle of a round.
    fn go_over_to(&mut self, newer: &Newer) -> Result<()> {
        let delta = self.apply_delta(newer.round, &newer.delta, newer.after)?;
        delta::apply_delta(self.trainer.parameters_mut(), &delta);
        Ok(())
    }

    fn tokens_at(&self, task: &Task, step: u32) -> u64 {
        task.tokens_before
            + u64::from(step) * self.charter.tokens_per_step() * u64::from(task.slots)
    }

    fn leaf(&self, step: u32, samples: &[u64], report: StepReport) -> StepLeaf {
        let inner = self.trainer.inner_state();
        StepLeaf {
            step: u64::from(step),
            parameters: parameters_hash(self.trainer.parameters()),
            first_moment: moment_hash(&inner.m),
            second_moment: moment_hash(&inner.v),
            samples: samples_hash(samples),
            loss_bits: report.loss.to_bits(),
            gradient_norm_bits: report.gradient_norm.to_bits(),
        }
    }
}

/// One step's tokens, row after row, and the numbers of its samples: positions in all training shards laid end to end.
fn batch(
    charter: &Charter,
    task: &Task,
    assigned: &[u32],
    shards: &Shards,
    step: u32,
) -> Result<(Vec<u32>, Vec<u64>)> {
    let row_tokens = charter.inner.sequence as usize + 1;
    let rows = charter.inner.batch_rows;
    let mut tokens = Vec::with_capacity(rows as usize * row_tokens);
    let mut samples = Vec::with_capacity(rows as usize);
    for row in 0..rows {
        let sample = sampling::sample(charter, &task.seed, &task.worker, assigned, step, row)
            .context("no assigned shard is longer than a training sequence")?;
        let start = sample.start as usize;
        tokens.extend_from_slice(&shards.tokens(sample.shard)[start..start + row_tokens]);
        let before: u64 = charter.data.training[..sample.shard as usize]
            .iter()
            .map(|it| it.tokens)
            .sum();
        samples.push(before + sample.start);
    }
    Ok((tokens, samples))
}
