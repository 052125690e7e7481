//! Measuring a model on held-out text, while there is no round to train.

use anyhow::{Context, Result, ensure};
use engine::evaluate::Evaluator;
use protocol::boinc::{Evaluation, EvaluationTask, Output};

use super::{
    child::{Job, Outcome},
    output,
    reins::Told,
    unit::Given,
};
use crate::{folder::Folder, kept_model::KeptModel};

/// Windows measured at once: bounds the memory.
const ROWS: usize = 8;
const MICRO: f64 = 1e6;

/// Measures as many windows as fit the time.
///
/// # Errors
/// The unit's files do not give its model or its text, or the disk.
pub(crate) fn evaluate(
    job: &mut Job<'_>,
    given: &Given<'_>,
    folder: &Folder,
    task: &EvaluationTask,
) -> Result<Outcome> {
    let charter = &given.charter;
    let mut machine = job.machine(given);
    let kept = KeptModel::new(
        std::sync::Arc::clone(&job.ground.disk),
        folder.model(given.unit.run),
    );
    given.build_model(&mut machine, &task.work, &kept)?;
    let held = machine.held().context("no model is held")?;
    ensure!(
        held.round == task.round && held.parameters == task.parameters,
        "the unit names two models"
    );
    let shard = charter.data.held_out.get(task.shard as usize);
    let shard = shard.with_context(|| format!("the run has no held-out shard {}", task.shard))?;
    let bytes = given.read("the held-out text", &shard.blob)?;
    let tokens = data::shard::decode(&bytes)
        .context("the held-out text")?
        .tokens;
    drop(bytes);

    let config = engine::charter::model_config(&charter.model);
    let sequence = charter.inner.sequence as usize;
    let mut evaluator = Evaluator::new(&config, ROWS, sequence, job.threads);
    let begun = job.active();
    let (mut windows, mut sum, mut predicted) = (0, 0.0, 0);
    while windows < task.windows {
        let rows = rows(&tokens, sequence, task.first_window + u64::from(windows))
            .take(ROWS.min((task.windows - windows) as usize));
        let rows: Vec<&[u32]> = rows.collect();
        if rows.is_empty() {
            break;
        }
        let losses = evaluator.loss_sum(machine.parameters(), &rows.concat())?;
        ensure!(losses.nats.is_finite(), "the model's loss is not a number");
        sum += losses.nats;
        predicted += losses.tokens;
        windows += rows.len() as u32;
        if job.reins.must_quit() {
            // A minute's work at most: it begins anew.
            return Ok(Outcome::Paused);
        }
        (job.tell)(Told::Fraction(f64::from(windows) / f64::from(task.windows)));
        if (job.active() - begun).as_millis() >= u128::from(task.measure_ms) {
            break;
        }
    }
    ensure!(windows > 0, "the unit's windows lie outside the text");
    let evaluation = Evaluation {
        windows,
        tokens: predicted,
        loss_micronats: (sum * MICRO).round().max(0.0) as u64,
    };
    tracing::info!(windows, loss = sum / predicted as f64, "measured");
    let output = Output {
        unit: given.unit.name.clone(),
        commands: vec![],
        binding: None,
        evaluation: Some(evaluation),
        files: vec![],
    };
    output::write(&*job.ground.disk, job.slot, folder, &output, &[])?;
    (job.tell)(Told::Fraction(1.0));
    Ok(Outcome::Done)
}

/// The windows of a text from one of them on: neighbours share a token, none is predicted twice.
fn rows(tokens: &[u32], sequence: usize, first: u64) -> impl Iterator<Item = &[u32]> {
    let last = (tokens.len().saturating_sub(1) / sequence) as u64;
    (first..last).map(move |it| &tokens[it as usize * sequence..=(it as usize + 1) * sequence])
}
