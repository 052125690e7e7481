//! One calm line about a run: round, held-out loss against what counting gives, speed, workers.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use serde::Deserialize;

use crate::http;

/// The part of the hub's run summary that is shown.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Run {
    /// `idle`, `training`, `revealing` or `finished`.
    pub(crate) phase: String,
    /// Last round opened.
    pub(crate) round: u64,
    /// Rounds merged.
    pub(crate) rounds_merged: u64,
    /// Accepted tokens.
    pub(crate) tokens: u64,
    /// Tokens after which it is finished.
    pub(crate) tokens_max: u64,
    /// Accepted tokens a second lately.
    pub(crate) tokens_per_s: f64,
    /// Workers heard of lately.
    pub(crate) workers_present: u64,
    /// Newest evaluation.
    pub(crate) evaluation: Option<Evaluation>,
    /// Losses of counting models, nats a token.
    pub(crate) baselines: Baselines,
}

/// A point of the loss curve.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Evaluation {
    /// Held-out loss, nats a token.
    pub(crate) held_out_loss: Option<f64>,
    /// Held-out bits per byte.
    pub(crate) bits_per_byte: Option<f64>,
}

/// Losses of counting models, nats a token.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Baselines {
    /// Interpolated bigram model.
    pub(crate) bigram: f64,
    /// Interpolated trigram model.
    pub(crate) trigram: f64,
}

/// Asks the hub about the run `demo`.
pub(crate) fn ask(hub: SocketAddr) -> anyhow::Result<Run> {
    http::get_json(hub, "/api/v1/runs/demo")
}

/// The line, or why there is none.
pub(super) fn line(hub: SocketAddr) -> String {
    match ask(hub) {
        Ok(run) => describe(&run),
        Err(error) => format!("the hub does not answer: {error:#}"),
    }
}

/// Replaces the terminal's current line.
pub(super) fn rewrite(line: &str) -> io::Result<()> {
    let mut output = io::stdout();
    write!(output, "\r\x1b[2K{line}")?;
    output.flush()
}

fn describe(run: &Run) -> String {
    let held_out = match &run.evaluation {
        Some(Evaluation {
            held_out_loss: Some(loss),
            bits_per_byte: Some(bits),
        }) if 0.0 < *loss => {
            // Loss and bits per byte differ by a factor that belongs to tokenizer and text.
            let bits_per_nat = bits / loss;
            format!(
                "held-out {bits:.3} bits/byte (bigram {:.3}, trigram {:.3})",
                run.baselines.bigram * bits_per_nat,
                run.baselines.trigram * bits_per_nat
            )
        }
        _ => "not evaluated yet".to_owned(),
    };
    let end = if run.phase == "finished" {
        ", finished"
    } else {
        ""
    };
    format!(
        "round {} · {held_out} · {:.0} tokens/s · {} workers · {:.2} of {:.2} M tokens{end}",
        run.round,
        run.tokens_per_s,
        run.workers_present,
        run.tokens as f64 / 1e6,
        run.tokens_max as f64 / 1e6,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            phase: "training".to_owned(),
            round: 42,
            rounds_merged: 41,
            tokens: 1_230_000,
            tokens_max: 8_000_000,
            tokens_per_s: 15_321.4,
            workers_present: 3,
            evaluation: None,
            baselines: Baselines {
                bigram: 3.464,
                trigram: 2.475,
            },
        }
    }

    #[test]
    fn the_line_reads_well() {
        let mut run = run();
        assert_eq!(
            describe(&run),
            "round 42 · not evaluated yet · 15321 tokens/s · 3 workers · 1.23 of 8.00 M tokens"
        );
        run.evaluation = Some(Evaluation {
            held_out_loss: Some(3.0),
            bits_per_byte: Some(1.89),
        });
        run.phase = "finished".to_owned();
        assert_eq!(
            describe(&run),
            "round 42 · held-out 1.890 bits/byte (bigram 2.182, trigram 1.559) · 15321 tokens/s · 3 workers · 1.23 of 8.00 M tokens, finished"
        );
    }
}
