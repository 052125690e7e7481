//! What a worker tells its owner: one line that always answers "does it work, is it accepted, what did it earn?".

use std::{fmt, time::Duration};

use network::source::Traffic;

/// Columns of the narrowest usual terminal, less the two of the command line's spinner.
const COLUMNS: usize = 78;
/// Columns kept free for the first words of what is being done: `downloading`.
const ACTIVITY_COLUMNS: usize = 11;
/// Columns that a run's name has in any case.
const RUN_COLUMNS_MIN: usize = 4;
/// Between the parts of the line.
const SEPARATOR: &str = " | ";

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
    /// Bytes of models, deltas and text, from whom and to whom.
    pub traffic: Traffic,
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
    /// Disk that everything may take, bytes.
    pub disk_bytes_max: u64,
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
    /// Bytes of models, deltas and text, from whom and to whom.
    pub traffic: Traffic,
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
            traffic: Traffic::default(),
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
            traffic: self.traffic,
        }
    }

    /// Accepted work and last round, in few columns however large the numbers.
    fn accepted(&self) -> String {
        let last = match self.last_round {
            Some(round) => format!("last round {round}"),
            None => "no round yet".to_owned(),
        };
        format!(
            "{} {}, {} tokens, {} cr, {last}",
            Short(self.updates_accepted),
            counted(self.updates_accepted, "update", "updates"),
            Short(self.tokens),
            ShortMicro(self.credits_micro),
        )
    }
}

/// A text in at most so many characters.
fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

fn counted(count: u64, one: &'static str, many: &'static str) -> &'static str {
    if count == 1 { one } else { many }
}

impl fmt::Display for Status {
    /// The run, what was accepted, what is being done. The first two stay within [`COLUMNS`]: a terminal cuts the rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accepted = self.accepted();
        if !self.run.is_empty() {
            let taken = accepted.chars().count() + 2 * SEPARATOR.len() + ACTIVITY_COLUMNS;
            let columns = COLUMNS.saturating_sub(taken).max(RUN_COLUMNS_MIN);
            write!(f, "{}{SEPARATOR}", shortened(&self.run, columns))?;
        }
        write!(f, "{accepted}{SEPARATOR}")?;
        if let Some(problem) = &self.problem {
            write!(f, "{problem}; trying again{SEPARATOR}")?;
        }
        write!(f, "{}", self.activity)?;
        if let Some((bytes, total)) = self.uploading {
            write!(f, ", uploading {} of {}", Size(bytes), Size(total))?;
        }
        if let (None, Some(refusal)) = (&self.problem, &self.last_refusal) {
            write!(f, "{SEPARATOR}last refusal: {refusal}")?;
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
                    write!(f, ", loss {loss:.2}")?;
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
            "will train a model of {} parameters: {} of memory, {} {}, {} to download, at most {} to upload each round of {} s, at most {} of disk",
            Short(self.parameters),
            Size(self.memory_bytes),
            self.threads,
            counted(self.threads as u64, "thread", "threads"),
            Size(self.download_bytes),
            Size(self.upload_bytes_max),
            self.window.as_secs_f64(),
            Size(self.disk_bytes_max),
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.run.is_empty() {
            return f
                .write_str("Stopped before this machine took part in a run. Nothing was trained.");
        }
        let end = if self.finished {
            "is finished"
        } else {
            "goes on without this machine"
        };
        write!(
            f,
            "Run {} {end}. This machine taught it {} accepted tokens in {} {} and earned {} credits. Thank you!",
            self.run,
            self.tokens,
            self.updates_accepted,
            counted(self.updates_accepted, "update", "updates"),
            Micro(self.credits_micro)
        )?;
        let Traffic {
            from_peers,
            from_hub,
            to_peers,
        } = self.traffic;
        if from_peers + to_peers > 0 {
            write!(
                f,
                " It fetched {} from other workers and {} from the hub, and gave {} to other workers.",
                Size(from_peers),
                Size(from_hub),
                Size(to_peers)
            )?;
        }
        Ok(())
    }
}

/// A count for people, in at most five characters up to 10^18.
struct Short(u64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 1;
        for prefix in ["", " k", " M", " G", " T", " P"] {
            let whole = self.0 / unit;
            if whole < 1_000 || prefix == " P" {
                return if whole < 10 && unit > 1 {
                    write!(f, "{whole}.{}{prefix}", self.0 % unit * 10 / unit)
                } else {
                    write!(f, "{whole}{prefix}")
                };
            }
            unit *= 1_000;
        }
        Ok(())
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

/// Millionths for people, in at most eight characters up to 10^18 whole ones.
struct ShortMicro(u64);

impl fmt::Display for ShortMicro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, micro) = (self.0 / 1_000_000, self.0 % 1_000_000);
        match self.0 {
            0 => f.write_str("0"),
            1..1_000 => write!(f, "{}", Micro(self.0)),
            1_000..1_000_000 => write!(f, "0.{:04}", micro / 100),
            1_000_000..1_000_000_000 => write!(f, "{whole}.{:02}", micro / 10_000),
            _ => write!(f, "{}", Short(whole)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(round: u64) -> Activity {
        Activity::Training {
            round,
            step: 7,
            steps_max: 100,
            loss: Some(2.912),
            left: Duration::from_millis(8_400),
        }
    }

    #[test]
    fn one_line_tells_state_accepted_work_and_last_round() {
        let mut status = Status::new();
        assert_eq!(
            status.to_string(),
            "0 updates, 0 tokens, 0 cr, no round yet | looking for the hub"
        );
        status.run = "demo".into();
        status.activity = training(32);
        status.uploading = Some((1_500, 2_000_000));
        status.tokens = 185_344;
        status.credits_micro = 1_112;
        status.updates_accepted = 11;
        status.last_round = Some(31);
        status.last_refusal = Some("too late".into());
        assert_eq!(
            status.to_string(),
            "demo | 11 updates, 185 k tokens, 0.0011 cr, last round 31 | training round 32, step 7, loss 2.91, 8 s left, \
             uploading 1.5 kB of 2.0 MB | last refusal: too late"
        );
        status.problem = Some("the hub does not answer".into());
        assert!(
            status
                .to_string()
                .contains("last round 31 | the hub does not answer; trying again | training")
        );
    }

    #[test]
    fn what_was_accepted_and_what_is_done_fit_a_narrow_terminal() {
        for (updates, tokens, credits_micro, round) in [
            (1, 512, 3, 1),
            (1_234, 1_234_567, 999_999, 54_321),
            (999_999, 999_999_999_999, 999_999_999, 999_999),
            (9_999, 9_999_999_999_999, 1_234_567_890_123, 999_999),
        ] {
            let status = Status {
                run: "a run with a name of sixty-four letters, the most that there are".into(),
                activity: training(round + 1),
                tokens,
                credits_micro,
                updates_accepted: updates,
                last_round: Some(round),
                ..Status::new()
            };
            let line = status.to_string();
            let cut: String = line.chars().take(COLUMNS).collect();
            assert!(
                cut.contains(&format!(", last round {round} | training")),
                "{cut}"
            );
        }
    }

    #[test]
    fn counts_are_short_and_never_more_than_there_is() {
        for (count, expected) in [
            (0, "0"),
            (999, "999"),
            (1_999, "1.9 k"),
            (37_024, "37 k"),
            (999_999, "999 k"),
            (12_345_678, "12 M"),
            (u64::MAX, "18446 P"),
        ] {
            assert_eq!(Short(count).to_string(), expected);
        }
        for (micro, expected) in [
            (0, "0"),
            (7, "0.000007"),
            (12_045, "0.0120"),
            (12_345_678, "12.34"),
            (1_234_567_890, "1.2 k"),
        ] {
            assert_eq!(ShortMicro(micro).to_string(), expected);
        }
    }

    #[test]
    fn what_will_be_used_is_said_in_words_that_fit() {
        let plan = Plan {
            parameters: 37_024,
            memory_bytes: 1_000_000,
            threads: 1,
            download_bytes: 1_000,
            disk_bytes_max: 4_000_000_000,
            upload_bytes_max: 2_000,
            window: Duration::from_secs(5),
        };
        let text = plan.to_string();
        assert!(
            text.starts_with("will train a model of 37 k parameters: 1.0 MB of memory, 1 thread, "),
            "{text}"
        );
    }

    #[test]
    fn a_farewell_before_a_run_names_none() {
        let farewell = Status::new().summary().to_string();
        assert!(farewell.starts_with("Stopped before"), "{farewell}");
        let status = Status {
            run: "demo".into(),
            updates_accepted: 1,
            ..Status::new()
        };
        let farewell = status.summary().to_string();
        assert!(farewell.starts_with("Run demo goes on"), "{farewell}");
        assert!(farewell.contains(" in 1 update and"), "{farewell}");
    }
}
