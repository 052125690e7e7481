//! One run of the bench `loss-gap`: trains a small model either in one process or by simulated workers that take turns
//! here, and writes what it came to.
//!
//! Arguments: the dataset's folder, the folder of results, the job (JSON, [`job::Job`]), and `--finished-only` to look
//! and not train. The result's name ends with the hash of everything that decides it, so a run that was finished before
//! is not repeated. The workers' arithmetic is production's own: trainer, codec, error feedback, merge and delta; what is
//! simulated is who is there when.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod job;
mod one_process;
mod progress;
mod text;
mod workers;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use engine::{evaluate::Evaluator, train::Trainer};
use serde_json::json;

use job::{Job, Plan};
use progress::Progress;
use text::Text;

/// Rows evaluated at once.
const EVALUATION_ROWS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (dataset, results, job, finished_only) = match arguments.as_slice() {
        [dataset, results, job] => (dataset, results, job, false),
        [dataset, results, job, flag] if flag == "--finished-only" => (dataset, results, job, true),
        _ => return Err("usage: loss_gap DATASET RESULTS JOB [--finished-only]".into()),
    };
    let job: Job = serde_json::from_slice(&fs::read(job)?)?;
    let text = Text::read(Path::new(dataset), job.inner.sequence as usize)?;
    let results = Path::new(results);
    fs::create_dir_all(results)?;
    let key = job.key(&text.hash);
    if let Some(path) = finished(results, &key)? {
        println!("result {}", path.display());
        return Ok(());
    }
    if finished_only {
        return Ok(());
    }
    let result = run(&job, &text, results)?;
    let path = results.join(format!("{}-{key}.json", job.name));
    replace(&path, &serde_json::to_vec_pretty(&result)?)?;
    println!("result {}", path.display());
    Ok(())
}

fn run(job: &Job, text: &Text, results: &Path) -> Result<serde_json::Value, Box<dyn Error>> {
    let config = engine::charter::model_config(&job.model);
    let sequence = job.inner.sequence as usize;
    let mut trainer = Trainer::new(&config, job.batch_rows_max(), sequence, 1);
    let mut progress = Progress::new(job, text, &config);
    let (theta, bytes) = match &job.plan {
        Plan::OneProcess => {
            one_process::whole(&mut trainer, job, text, results, &mut progress)?;
            (trainer.parameters().to_vec(), json!(null))
        }
        Plan::Workers(plan) => {
            let warm = one_process::warm_start(
                &mut trainer,
                job,
                &plan.warm_start,
                text,
                results,
                &mut progress,
            )?;
            workers::train(&mut trainer, job, plan, warm, text, &mut progress)?
        }
    };
    let sum =
        Evaluator::new(&config, EVALUATION_ROWS, sequence, 1).loss_sum(&theta, &text.held_out)?;
    println!("held_out_loss {:.5} {}", sum.mean(), job.name);
    Ok(json!({
        "job": job,
        "class": engine::arithmetic::class(),
        "dataset": text.hash,
        "held_out_loss": sum.mean(),
        "held_out_tokens": sum.tokens,
        "curve": progress.points,
        "curve_tokens": progress.evaluated_tokens(),
        "seconds": progress.seconds(),
        "traffic": bytes,
    }))
}

/// The result of a run with this key, whatever it was called.
fn finished(results: &Path, key: &str) -> std::io::Result<Option<PathBuf>> {
    let end = format!("-{key}.json");
    for entry in fs::read_dir(results)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(&end) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Writes a file whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes)?;
    fs::rename(partial, path)
}
