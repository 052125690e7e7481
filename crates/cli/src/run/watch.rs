//! `athome run watch`: one calm line that says how a run stands.

use std::time::Duration;

use clap::Args;
use protocol::api::RunSummary;
use serde::Serialize;

use super::{Context, events::Follower, show::held_out_loss};
use crate::output::{self, StatusLine, grouped};

/// Time between two looks at the run.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Columns of the run's name, so that the loss and the round are within 80.
const NAME_COLUMNS: usize = 12;

/// Follow a run as it happens, until it is finished or Ctrl-C.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run watch speeches\n  athome run watch speeches --json\n\nWith --json: one line a log entry, as it happens. Without a terminal: a line every few seconds, if anything changed."
)]
pub(super) struct Watch {
    /// Name or id
    #[arg(value_name = "RUN")]
    run: String,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct Finished<'a> {
    finished: &'a RunSummary,
}

impl Watch {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        tokio::select! {
            outcome = self.follow(context) => outcome,
            () = context.shutdown.cancelled() => Ok(()),
        }
    }

    async fn follow(self, context: &Context<'_>) -> anyhow::Result<()> {
        let (id, mut run) = context.run(&self.run).await?;
        let last = if context.output.json {
            let charter = context.client.charter(id).await?;
            let after = run.log_length.checked_sub(1);
            let mut follower = Follower::new(context.client.clone(), &charter, after);
            while run.phase != "finished" {
                let entry = follower.next().await?;
                context.output.event(&entry, String::new)?;
                if entry.kind == "run_finished" {
                    run = context.client.run(&run.id).await?;
                }
            }
            run
        } else {
            self.show(context, run).await?
        };
        context.output.event(&Finished { finished: &last }, || {
            format!("The run is finished: {}", line(&last))
        })
    }

    /// Redraws the line until the run is finished.
    async fn show(&self, context: &Context<'_>, mut run: RunSummary) -> anyhow::Result<RunSummary> {
        let mut status = StatusLine::new();
        while run.phase != "finished" {
            status.set(&line(&run));
            tokio::time::sleep(LOOK_EVERY).await;
            match context.client.run(&run.id).await {
                Ok(newer) => run = newer,
                Err(error) if error.is_temporary() => {
                    status.set(&format!(
                        "{} | the hub does not answer; trying again",
                        run.name
                    ));
                }
                Err(error) => {
                    status.end();
                    return Err(error.into());
                }
            }
        }
        status.end();
        Ok(run)
    }
}

/// How a run stands, on one line; what matters most comes first, as a terminal cuts the rest.
fn line(run: &RunSummary) -> String {
    let loss = held_out_loss(run).map_or_else(
        || "not evaluated yet".to_owned(),
        |loss| format!("held-out loss {loss:.3}, {}", beaten(run, loss)),
    );
    format!(
        "{} | {loss} | round {} {} | {:.1} % of {} tokens, {:.0} tokens/s | {} of {} workers here | checkpoint {}",
        shortened(&output::printable(&run.name), NAME_COLUMNS),
        run.round,
        output::printable(&run.phase),
        100.0 * run.tokens as f64 / run.tokens_max as f64,
        grouped(run.tokens_max),
        run.tokens_per_s,
        run.workers_present,
        run.workers,
        run.checkpoint_round,
    )
}

/// A text in at most so many characters.
fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// The strongest counting model that the loss beats.
fn beaten(run: &RunSummary, loss: f64) -> String {
    let baselines = &run.baselines;
    let named = [
        ("trigram", baselines.trigram),
        ("bigram", baselines.bigram),
        ("unigram", baselines.unigram),
    ];
    match named.into_iter().find(|(_, baseline)| loss < *baseline) {
        Some((name, baseline)) => format!("beats {name} {baseline:.3}"),
        None => format!("to beat: {:.3}", baselines.unigram),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn run(name: &str, round: u64, loss: Option<f64>) -> RunSummary {
        let evaluation = loss.map(|loss| {
            json!({"round": round, "tokens": 1, "time_ms": 0, "training_loss": null, "held_out_loss": loss,
                "bits_per_byte": null, "event": 0})
        });
        let run = json!({
            "id": "", "name": name, "description": "", "phase": "revealing", "created_ms": 0, "log_length": 1,
            "round": round, "deadline_ms": null, "rounds_merged": round, "tokens": 500_000_000_000_u64,
            "tokens_max": 1_000_000_000_000_u64, "tokens_per_s": 1_234_567.0, "parameters": 1, "workers_present": 9_999,
            "workers": 99_999, "evaluation": evaluation, "checkpoint_round": round, "credits_micro": 0,
            "baselines": {"unigram": 15.123, "bigram": 14.456, "trigram": 13.789},
        });
        serde_json::from_value(run).expect("a summary")
    }

    #[test]
    fn loss_and_round_fit_a_narrow_terminal() {
        for (loss, said) in [
            (Some(12.5), "held-out loss 12.500, beats trigram 13.789"),
            (Some(16.5), "held-out loss 16.500, to beat: 15.123"),
            (None, "not evaluated yet"),
        ] {
            let line = line(&run(&"n".repeat(64), 999_999, loss));
            // Two columns are the spinner's.
            let cut: String = line.chars().take(78).collect();
            assert!(
                cut.contains(&format!("… | {said} | round 999999 r")),
                "{cut}"
            );
        }
        assert_eq!(
            line(&run("demo", 32, Some(14.0))),
            "demo | held-out loss 14.000, beats bigram 14.456 | round 32 revealing | 50.0 % of 1,000,000,000,000 tokens, \
             1234567 tokens/s | 9999 of 99999 workers here | checkpoint 32"
        );
    }
}
