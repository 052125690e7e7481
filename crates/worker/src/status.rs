//! What a worker tells its owner: one line that always answers "does it work, is it accepted, what did it earn?".

use std::{fmt, time::Duration};

/// A worker's state for its owner. [`fmt::Display`] is the line.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The run's name; empty before it is known.
    pub run: String,
    /// First digits of the worker's id.
    pub worker: String,
    /// What is being done.
    pub activity: Activity,
    /// Update on its way to the hub in the background: (bytes there, bytes in all).
    pub uploading: Option<(u64, u64)>,
    /// What stands in the way just now and is being tried again, a sentence.
    pub problem: Option<String>,
    /// Training speed, tokens a second; 0 before it is measured.
    pub tokens_per_s: u32,
    /// Tokens of accepted updates.
    pub tokens: u64,
    /// Credit, in millionths.
    pub credits_micro: u64,
    /// Accepted updates.
    pub updates_accepted: u64,
    /// Refused updates.
    pub updates_refused: u64,
    /// Last round with an accepted update.
    pub last_round: Option<u64>,
    /// Why the last update or commitment was refused, until a later one is accepted.
    pub last_refusal: Option<String>,
}

/// What a worker is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum Activity {
    /// Looking for the hub and the run.
    Connecting,
    /// Says what it is about to use, before it uses it.
    Announcing(Plan),
    /// Takes a few training steps to know its speed.
    Measuring,
    /// Asks to take part.
    Joining,
    /// The model is there; no round is open for it.
    Waiting,
    /// Fetches the model or text.
    Downloading {
        /// `the model`, `a delta`, `training text` or `the optimiser's state`.
        what: &'static str,
        /// Bytes present.
        bytes: u64,
        /// Bytes in all.
        bytes_total: u64,
    },
    /// Trains.
    Training {
        /// The round.
        round: u64,
        /// Steps done.
        step: u32,
        /// Most steps of a round.
        steps_max: u32,
        /// Loss of the last step, nats a token.
        loss: Option<f32>,
        /// Time to the deadline.
        left: Duration,
    },
    /// Writes the update and commits to it.
    Committing {
        /// The round.
        round: u64,
        /// Steps in the update.
        steps: u32,
    },
    /// Ends the work in hand and says goodbye.
    Leaving,
    /// All tokens of the run are spent.
    Finished,
}

/// What taking part will use.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Values of the model.
    pub parameters: u64,
    /// Memory that training takes, bytes.
    pub memory_bytes: u64,
    /// Threads that train.
    pub threads: usize,
    /// Bytes to download before the first step.
    pub download_bytes: u64,
    /// Disk that cached blobs may take, bytes.
    pub cache_bytes_max: u64,
    /// Upper bound of one round's upload, bytes.
    pub upload_bytes_max: u64,
    /// Length of a round's training window.
    pub window: Duration,
}

/// How a worker's part ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The run's name.
    pub run: String,
    /// Whether the run is finished; else the worker was asked to stop.
    pub finished: bool,
    /// Tokens of accepted updates.
    pub tokens: u64,
    /// Credit, in millionths.
    pub credits_micro: u64,
    /// Accepted updates.
    pub updates_accepted: u64,
    /// Refused updates.
    pub updates_refused: u64,
}

impl Status {
    pub(crate) fn new() -> Self {
        Self {
            run: String::new(),
            worker: String::new(),
            activity: Activity::Connecting,
            uploading: None,
            problem: None,
            tokens_per_s: 0,
            tokens: 0,
            credits_micro: 0,
            updates_accepted: 0,
            updates_refused: 0,
            last_round: None,
            last_refusal: None,
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            run: self.run.clone(),
            finished: self.activity == Activity::Finished,
            tokens: self.tokens,
            credits_micro: self.credits_micro,
            updates_accepted: self.updates_accepted,
            updates_refused: self.updates_refused,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.run.is_empty() {
            write!(f, "{}: ", self.run)?;
        }
        write!(f, "{}", self.activity)?;
        if let Some((bytes, total)) = self.uploading {
            write!(f, ", uploading {} of {}", Size(bytes), Size(total))?;
        }
        write!(
            f,
            " | accepted {} updates, {} tokens, {} credits",
            self.updates_accepted,
            self.tokens,
            Micro(self.credits_micro)
        )?;
        if let Some(round) = self.last_round {
            write!(f, ", last in round {round}")?;
        }
        if let Some(problem) = &self.problem {
            write!(f, " | {problem}; trying again")?;
        } else if let Some(refusal) = &self.last_refusal {
            write!(f, " | last refusal: {refusal}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("looking for the hub"),
            Self::Announcing(plan) => write!(f, "{plan}"),
            Self::Measuring => f.write_str("measuring this machine"),
            Self::Joining => f.write_str("joining"),
            Self::Waiting => f.write_str("waiting for a round"),
            Self::Downloading {
                what,
                bytes,
                bytes_total,
            } => write!(
                f,
                "downloading {what}, {} of {}",
                Size(*bytes),
                Size(*bytes_total)
            ),
            Self::Training {
                round,
                step,
                loss,
                left,
                ..
            } => {
                write!(f, "training round {round}, step {step}")?;
                if let Some(loss) = loss {
                    write!(f, ", loss {loss:.3}")?;
                }
                write!(f, ", {} s left", left.as_secs())
            }
            Self::Committing { round, steps } => {
                write!(f, "committing {steps} steps to round {round}")
            }
            Self::Leaving => f.write_str("leaving"),
            Self::Finished => f.write_str("the run is finished"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "will train a model of {:.1} M parameters: {} of memory, {} threads, {} to download, at most {} to upload each round of {} s, at most {} of disk",
            self.parameters as f64 / 1e6,
            Size(self.memory_bytes),
            self.threads,
            Size(self.download_bytes),
            Size(self.upload_bytes_max),
            self.window.as_secs_f64(),
            Size(self.cache_bytes_max),
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.finished {
            "is finished"
        } else {
            "goes on without this machine"
        };
        write!(
            f,
            "Run {} {end}. This machine taught it {} accepted tokens in {} updates and earned {} credits. Thank you!",
            self.run,
            self.tokens,
            self.updates_accepted,
            Micro(self.credits_micro)
        )
    }
}

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..1_000 => write!(f, "{bytes} B"),
            bytes @ 1_000..1_000_000 => write!(f, "{:.1} kB", bytes as f64 / 1e3),
            bytes @ 1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes as f64 / 1e6),
            bytes => write!(f, "{:.1} GB", bytes as f64 / 1e9),
        }
    }
}

/// Millionths for people.
struct Micro(u64);

impl fmt::Display for Micro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_tells_state_accepted_work_and_last_round() {
        let mut status = Status::new();
        assert_eq!(
            status.to_string(),
            "looking for the hub | accepted 0 updates, 0 tokens, 0.000000 credits"
        );
        status.run = "demo".into();
        status.activity = Activity::Training {
            round: 7,
            step: 12,
            steps_max: 100,
            loss: Some(3.25),
            left: Duration::from_millis(8_400),
        };
        status.uploading = Some((1_500, 2_000_000));
        status.tokens = 5_120;
        status.credits_micro = 12_045;
        status.updates_accepted = 6;
        status.last_round = Some(6);
        status.last_refusal = Some("too late".into());
        assert_eq!(
            status.to_string(),
            "demo: training round 7, step 12, loss 3.250, 8 s left, uploading 1.5 kB of 2.0 MB | accepted 6 updates, \
             5120 tokens, 0.012045 credits, last in round 6 | last refusal: too late"
        );
        status.problem = Some("the hub does not answer".into());
        assert!(
            status
                .to_string()
                .ends_with("| the hub does not answer; trying again")
        );
    }
}
