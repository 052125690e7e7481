//! Runs of the example: which are finished, and the others, some at a time.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::jobs::Job;

/// Where runs happen.
pub(super) struct Runs {
    /// The example.
    pub(super) program: PathBuf,
    /// The dataset.
    pub(super) dataset: PathBuf,
    /// Where results are kept.
    pub(super) folder: PathBuf,
    /// Processes at once.
    pub(super) parallel: usize,
    /// Whether nothing is trained.
    pub(super) finished_only: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Outcome {
    /// Over the whole held-out text, nats a token.
    pub(super) held_out_loss: f64,
    /// On the way, over a part of it.
    pub(super) curve: Vec<Point>,
    /// What was sent; only of runs in rounds.
    pub(super) traffic: Option<Traffic>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Point {
    /// Tokens trained on.
    pub(super) tokens: u64,
    /// Loss, nats a token.
    pub(super) loss: f64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Traffic {
    /// Merged rounds.
    pub(super) rounds: u64,
    /// Mean of an update.
    pub(super) update_bytes_per_parameter: f64,
    /// Mean of a delta.
    pub(super) delta_bytes_per_parameter: f64,
}

/// How far all runs of one call are.
struct Pace {
    began: Instant,
    tokens_left: AtomicU64,
    tokens_done: AtomicU64,
}

impl Runs {
    /// The outcomes of these jobs in their order; `None` where nothing is to be trained and nothing was.
    pub(super) fn all(&self, jobs: &[Job]) -> Result<Vec<Option<Outcome>>> {
        let mut outcomes = vec![None; jobs.len()];
        let mut open = VecDeque::new();
        for (index, job) in jobs.iter().enumerate() {
            outcomes[index] = self.run(job, None)?;
            if outcomes[index].is_none() {
                open.push_back(index);
            }
        }
        if self.finished_only {
            return Ok(outcomes);
        }
        let pace = Pace {
            began: Instant::now(),
            tokens_left: open
                .iter()
                .map(|&index| jobs[index].tokens)
                .sum::<u64>()
                .into(),
            tokens_done: 0.into(),
        };
        let open = Mutex::new(open);
        let next = || open.lock().unwrap_or_else(|it| it.into_inner()).pop_front();
        let done = thread::scope(|scope| {
            let work = || -> Result<Vec<(usize, Outcome)>> {
                let mut done = Vec::new();
                while let Some(index) = next() {
                    let outcome = self
                        .run(&jobs[index], Some(&pace))?
                        .context("a run ended without a result")?;
                    done.push((index, outcome));
                }
                Ok(done)
            };
            let threads: Vec<_> = (0..self.parallel).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .map(|it| it.join().expect("a run's thread does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        for (index, outcome) in done.into_iter().flatten() {
            outcomes[index] = Some(outcome);
        }
        Ok(outcomes)
    }

    /// One run of the example; without a pace it only looks whether the run is finished.
    fn run(&self, job: &Job, pace: Option<&Pace>) -> Result<Option<Outcome>> {
        let name = job.json["name"].as_str().unwrap_or(&job.name).to_owned();
        fs::create_dir_all(&self.folder)?;
        let told = self.folder.join(format!("{name}.job"));
        fs::write(&told, serde_json::to_vec_pretty(&job.json)?)
            .with_context(|| format!("cannot write {}", told.display()))?;
        let mut command = Command::new(&self.program);
        command.args([&self.dataset, &self.folder, &told]);
        if pace.is_none() {
            command.arg("--finished-only");
        }
        let mut child = command
            .env("RAYON_NUM_THREADS", "1")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let output = child.stdout.take().context("no output")?;
        let mut result = None;
        let mut tokens = 0;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some(path) = line.strip_prefix("result ") {
                result = Some(read(Path::new(path))?);
            } else if let (Some(pace), Some(now)) = (pace, tokens_of(&line)) {
                println!("{name}: {line}; all runs: {}", pace.left(now - tokens));
                tokens = now;
            }
        }
        ensure!(child.wait()?.success(), "the run {name} failed");
        fs::remove_file(&told)?;
        if let Some(pace) = pace {
            pace.left(job.tokens.saturating_sub(tokens));
        }
        Ok(result)
    }
}

impl Pace {
    /// Counts tokens as done and says how long the rest takes.
    fn left(&self, tokens: u64) -> String {
        let done = self.tokens_done.fetch_add(tokens, Ordering::Relaxed) + tokens;
        let all = self.tokens_left.load(Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f64() * all.saturating_sub(done) as f64
            / done.max(1) as f64;
        format!("{:.0} min left", seconds / 60.0)
    }
}

fn read(path: &Path) -> Result<Outcome> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is malformed", path.display()))
}

/// The tokens of a line `tokens N, …`.
fn tokens_of(line: &str) -> Option<u64> {
    line.strip_prefix("tokens ")?
        .split(',')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        assert_eq!(tokens_of("tokens 400000, loss 2.5"), Some(400_000));
        assert_eq!(tokens_of("result x.json"), None);
    }
}
