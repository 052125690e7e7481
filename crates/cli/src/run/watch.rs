//! `athome run watch`: one calm line that says how a run stands.

use std::time::Duration;

use clap::Args;
use protocol::api::RunSummary;
use serde::Serialize;

use super::{Context, events::Follower, show::held_out_loss};
use crate::output::{self, StatusLine, grouped};

/// Time between two looks at the run.
const LOOK_EVERY: Duration = Duration::from_secs(2);

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
            let mut follower =
                Follower::new(context.client.clone(), id, run.log_length.checked_sub(1));
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
                        "{}: the hub does not answer; trying again",
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

/// How a run stands, on one line.
fn line(run: &RunSummary) -> String {
    let loss = held_out_loss(run).map_or_else(
        || "not evaluated yet".to_owned(),
        |loss| format!("held-out loss {loss:.3}, {}", beaten(run, loss)),
    );
    format!(
        "{}: round {} {}, {} of {} workers here, {} tokens ({:.1} %), {:.0} tokens/s, {loss}, checkpoint {}",
        output::printable(&run.name),
        run.round,
        output::printable(&run.phase),
        run.workers_present,
        run.workers,
        grouped(run.tokens),
        100.0 * run.tokens as f64 / run.tokens_max as f64,
        run.tokens_per_s,
        run.checkpoint_round,
    )
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
        Some((name, baseline)) => format!("better than the {name} model's {baseline:.3}"),
        None => format!("to beat: {:.3} (unigram)", baselines.unigram),
    }
}
