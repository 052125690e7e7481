//! `athome run list` and `athome run show`.

use clap::Args;
use protocol::api::{CheckpointSummary, RunSummary, WorkerSummary, mirrors::RunHead};
use serde::Serialize;

use super::{Context, succession};
use crate::output::{grouped, printable, size, table};

/// Show all runs of the hub.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run list\n  athome run list --hub https://hub.example --json"
)]
pub(super) struct List {}

/// Show one run: how far it is, how good, who takes part.
#[derive(Args)]
#[command(after_help = "Examples:\n  athome run show speeches\n  athome run show speeches --json")]
pub(super) struct Show {
    /// Name or id
    #[arg(value_name = "RUN")]
    run: String,
}

/// What `show` prints as JSON.
#[derive(Serialize)]
struct Shown {
    run: RunSummary,
    newest_checkpoint: Option<CheckpointSummary>,
    workers: Vec<WorkerSummary>,
    head: RunHead,
}

impl List {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let runs = context.client.runs().await?;
        context.output.result(&runs, || {
            if runs.is_empty() {
                return "This hub has no run yet; `athome run create` opens one.".to_owned();
            }
            let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
            table(
                &[
                    "NAME", "PHASE", "ROUND", "TOKENS", "OF", "TOKENS/S", "LOSS", "WORKERS", "ID",
                ],
                &rows,
            )
        })
    }
}

fn row(run: &RunSummary) -> Vec<String> {
    vec![
        printable(&run.name),
        printable(&run.phase),
        run.round.to_string(),
        grouped(run.tokens),
        grouped(run.tokens_max),
        format!("{:.0}", run.tokens_per_s),
        held_out_loss(run).map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}")),
        run.workers_present.to_string(),
        run.id.chars().take(8).collect(),
    ]
}

impl Show {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let (id, run) = context.run(&self.run).await?;
        let checkpoints = context.client.checkpoints(id, 1).await?;
        let workers = context.client.workers(id).await?;
        let shown = Shown {
            run,
            newest_checkpoint: checkpoints.into_iter().next(),
            workers,
            head: context.client.head(id).await?,
        };
        context.output.result(&shown, || text(&shown))
    }
}

fn text(shown: &Shown) -> String {
    let run = &shown.run;
    let mut lines = vec![
        printable(&run.name),
        printable(&run.description),
        String::new(),
        format!("id           {}", run.id),
        format!(
            "phase        {}, round {}, {} merged",
            run.phase, run.round, run.rounds_merged
        ),
        format!(
            "tokens       {} of {} ({:.1} %), {:.0} a second now",
            grouped(run.tokens),
            grouped(run.tokens_max),
            100.0 * run.tokens as f64 / run.tokens_max as f64,
            run.tokens_per_s
        ),
        format!("parameters   {}", grouped(run.parameters)),
        format!("credits      {}", credits(run.credits_micro)),
        format!("log          {} entries", grouped(run.log_length)),
        format!(
            "to beat      unigram {:.3}, bigram {:.3}, trigram {:.3} nats a token",
            run.baselines.unigram, run.baselines.bigram, run.baselines.trigram
        ),
    ];
    lines.extend(succession::lines(&shown.head));
    if let Some(evaluation) = &run.evaluation
        && let Some(loss) = evaluation.held_out_loss
    {
        let bits = evaluation
            .bits_per_byte
            .map_or_else(String::new, |it| format!(", {it:.3} bits a byte"));
        lines.push(format!(
            "held-out     {loss:.3} nats a token{bits} after round {}",
            evaluation.round
        ));
    }
    if let Some(checkpoint) = &shown.newest_checkpoint {
        let hash: String = checkpoint.blob.chars().take(8).collect();
        lines.push(format!(
            "checkpoint   round {}, {}, {hash}",
            checkpoint.round,
            size(checkpoint.bytes)
        ));
        if let (Some(prompt), Some(sample)) = (&checkpoint.prompt, &checkpoint.sample) {
            lines.push(format!(
                "it writes    {}{}",
                printable(prompt),
                printable(sample)
            ));
        }
    }
    if !shown.workers.is_empty() {
        let rows: Vec<Vec<String>> = shown.workers.iter().map(worker_row).collect();
        lines.push(String::new());
        lines.push(table(
            &[
                "WORKER", "HERE", "TOKENS", "CREDITS", "ACCEPTED", "REFUSED", "TOKENS/S", "ID",
            ],
            &rows,
        ));
    }
    lines.join("\n")
}

fn worker_row(worker: &WorkerSummary) -> Vec<String> {
    vec![
        printable(&worker.name),
        if worker.present { "yes" } else { "no" }.to_owned(),
        grouped(worker.tokens),
        credits(worker.credits_micro),
        worker.updates_accepted.to_string(),
        worker.updates_refused.to_string(),
        worker.tokens_per_s.to_string(),
        worker.id.chars().take(8).collect(),
    ]
}

/// The newest held-out loss.
pub(super) fn held_out_loss(run: &RunSummary) -> Option<f64> {
    run.evaluation.as_ref()?.held_out_loss
}

/// Millionths of a credit for people.
/// Millionths of a credit for people.
pub(super) fn credits(micro: u64) -> String {
    format!("{}.{:06}", grouped(micro / 1_000_000), micro % 1_000_000)
}
