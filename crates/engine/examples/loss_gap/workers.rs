//! Workers that take turns in this process, round by round, with production's arithmetic.

use std::error::Error;

use engine::{
    train::{InnerState, Trainer},
    update::{
        codec,
        decoded::DecodedUpdate,
        delta::{self, Delta},
        feedback,
        outer::OuterState,
        round::merge_round,
        settings::{MergeSettings, UpdateSettings},
    },
};
use protocol::schedule::{learning_rate_nano, outer_rate_q16};
use serde_json::{Value, json};

use crate::{
    job::{Job, Workers},
    one_process::Warm,
    progress::Progress,
    text::{Sampler, Text},
};

/// What a worker carries from round to round.
struct Worker {
    steps: u32,
    state: InnerState,
    error: Vec<f32>,
    sampler: Sampler,
}

/// A run in rounds.
struct Run<'a> {
    job: &'a Job,
    plan: &'a Workers,
    text: &'a Text,
    lengths: Vec<usize>,
    update: UpdateSettings,
    merge: MergeSettings,
    theta: Vec<f32>,
    /// The model before the newest delta, and that delta.
    before: Option<(Vec<f32>, Delta)>,
    outer: OuterState,
    tokens: u64,
    traffic: Traffic,
}

#[derive(Default)]
struct Traffic {
    rounds: u64,
    updates: u64,
    update_bytes: u64,
    delta_bytes: u64,
    clipped: u64,
}

/// Trains from the warm start to the end; gives the published parameters and what was sent.
pub(crate) fn train(
    trainer: &mut Trainer,
    job: &Job,
    plan: &Workers,
    warm: Warm,
    text: &Text,
    progress: &mut Progress,
) -> Result<(Vec<f32>, Value), Box<dyn Error>> {
    let parameters = warm.theta.len();
    let mut workers: Vec<Worker> = (0..)
        .zip(&plan.millisteps)
        .map(|(number, millisteps)| Worker {
            steps: (millisteps / 1000).clamp(plan.steps_min, plan.steps_max),
            state: warm.state.clone(),
            error: vec![0.0; parameters],
            sampler: Sampler::new(job.seed, number),
        })
        .collect();
    let mut run = Run {
        job,
        plan,
        text,
        lengths: engine::charter::model_config(&job.model).layout().lengths(),
        update: engine::charter::update_settings(&plan.outer),
        merge: engine::charter::merge_settings(&plan.outer),
        outer: OuterState::new(parameters, plan.outer.momentum_q16 > 0),
        theta: warm.theta,
        before: None,
        tokens: warm.tokens,
        traffic: Traffic::default(),
    };
    let mut presence = Sampler::new(job.seed, u64::MAX - 1);
    while run.tokens < job.inner.tokens_max {
        let mut present = || presence.below(1_000_000) >= u64::from(plan.absent_ppm);
        let there: Vec<&mut Worker> = workers.iter_mut().filter(|_| present()).collect();
        run.round(trainer, there)?;
        progress.after(run.tokens, &run.theta)?;
    }
    let traffic = run.traffic.report(parameters);
    println!("{traffic}");
    Ok((run.theta, traffic))
}

impl Run<'_> {
    /// One round of the workers that are there; nothing if nobody is.
    fn round(
        &mut self,
        trainer: &mut Trainer,
        workers: Vec<&mut Worker>,
    ) -> Result<(), Box<dyn Error>> {
        if workers.is_empty() {
            return Ok(());
        }
        let step_tokens = u64::from(self.job.inner.batch_rows) * u64::from(self.job.inner.sequence);
        let slots = workers.len() as u64;
        let mut updates = Vec::new();
        let mut trained = 0;
        for worker in workers {
            let update = self.work(trainer, worker, step_tokens * slots)?;
            let tokens = u64::from(worker.steps) * step_tokens;
            trained += tokens;
            updates.push((update, tokens));
        }
        let before = self.theta.clone();
        let merge = MergeSettings {
            outer_rate_q16: outer_rate_q16(
                self.merge.outer_rate_q16,
                updates.len() as u32,
                self.plan.quorum,
            ),
            ..self.merge
        };
        let merged = merge_round(&mut self.theta, &mut self.outer, &updates, &merge)?;
        self.tokens += trained;
        self.traffic.rounds += 1;
        self.traffic.delta_bytes += merged.delta_bytes.len() as u64;
        let clipped = merged.updates.iter().map(|it| it.tensors_clipped as u64);
        self.traffic.clipped += clipped.sum::<u64>();
        self.before = Some((before, merged.delta));
        Ok(())
    }

    /// A worker's steps in a round and its update; `position_tokens` is how far a step moves the learning rate.
    fn work(
        &mut self,
        trainer: &mut Trainer,
        worker: &mut Worker,
        position_tokens: u64,
    ) -> Result<DecodedUpdate, Box<dyn Error>> {
        let inner = &self.job.inner;
        let optimizer = engine::charter::optimizer(inner);
        let head_start = match &self.before {
            Some(_) => u64::from(worker.steps) * u64::from(self.plan.head_start_ppm) / 1_000_000,
            None => 0,
        };
        trainer.set_inner_state(worker.state.clone());
        match &self.before {
            Some((before, _)) if head_start > 0 => trainer.parameters_mut().copy_from_slice(before),
            _ => trainer.parameters_mut().copy_from_slice(&self.theta),
        }
        let mut decay = engine::charter::error_decay(&self.plan.outer);
        if self.plan.error_applied {
            let start = trainer.parameters_mut().iter_mut();
            for (parameter, error) in start.zip(&worker.error) {
                let kept = decay * *error;
                *parameter -= kept;
            }
            // What is carried is in the parameters now, and so in their difference from the model.
            decay = 0.0;
        }
        for step in 0..u64::from(worker.steps) {
            if let Some((_, newest)) = &self.before
                && head_start > 0
                && step == head_start
            {
                delta::apply_delta(trainer.parameters_mut(), newest);
            }
            let nano = learning_rate_nano(inner, self.tokens + step * position_tokens);
            let batch = worker.sampler.batch(self.text, inner.batch_rows);
            trainer.step(&batch, engine::charter::learning_rate(nano), &optimizer)?;
        }
        worker.state = trainer.inner_state().clone();
        let payload = feedback::compress(
            &self.lengths,
            &self.update,
            &mut worker.error,
            &self.theta,
            trainer.parameters(),
            decay,
        )?;
        self.traffic.updates += 1;
        self.traffic.update_bytes += payload.len() as u64;
        Ok(codec::decode(&payload, &self.lengths, &self.update)?)
    }
}

impl Traffic {
    fn report(&self, parameters: usize) -> Value {
        let mean = |bytes: u64, count: u64| bytes as f64 / count.max(1) as f64 / parameters as f64;
        json!({
            "rounds": self.rounds,
            "updates": self.updates,
            "update_bytes_per_parameter": mean(self.update_bytes, self.updates),
            "delta_bytes_per_parameter": mean(self.delta_bytes, self.rounds),
            "clipped_tensors_per_update": self.clipped as f64 / self.updates.max(1) as f64,
        })
    }
}
