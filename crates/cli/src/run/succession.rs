//! `athome run succession-key` and `athome run take-over`: who keeps a run after its hub.

use std::path::PathBuf;

use clap::Args;
use protocol::api::mirrors::{RunHead, TakeOver as Request};
use serde::Serialize;

use super::Context;
use crate::{keys, output::printable};

/// Make a key that may name a run's next hub.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run succession-key mirror.key\n\nIts public part belongs into the charter's `succession` before the run is opened; the file belongs to whoever runs\nthe mirror: `athome hub --follow URL --succession-key mirror.key`."
)]
pub(super) struct SuccessionKey {
    /// Where the secret part is written; an existing key is kept and shown
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Have a mirror become a run's hub.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run take-over speeches --hub http://127.0.0.1:7710\n  ATHOME_OPERATOR_TOKEN=… athome run take-over speeches --hub https://mirror.example --force\n\n--hub names the mirror. It must hold a succession key that the charter names. Workers and gateways find it by the\ncharter's addresses; a hub that comes back becomes a mirror of it, and sets aside what it sealed alone meanwhile."
)]
pub(super) struct TakeOver {
    /// Name or id
    #[arg(value_name = "RUN")]
    run: String,
    /// Even though its hub answers: what that one acknowledged and this mirror does not have is lost
    #[arg(long)]
    force: bool,
    /// The mirror's operator's token; not needed on the mirror's own machine
    #[arg(
        long,
        env = "ATHOME_OPERATOR_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    operator_token: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Made {
    file: PathBuf,
    public_key: String,
}

impl SuccessionKey {
    pub(super) fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let key = match keys::read(&self.file)? {
            Some(key) => key,
            None => {
                let key = keys::draw()?;
                keys::write(&self.file, &key)?;
                key
            }
        };
        let made = Made {
            public_key: key.public().to_string(),
            file: self.file,
        };
        context.output.result(&made, || {
            format!(
                "{}\nIn the charter:\n  succession = [\"{}\"]",
                made.file.display(),
                made.public_key
            )
        })
    }
}

impl TakeOver {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let (run, summary) = context.run(&self.run).await?;
        let request = Request { force: self.force };
        let token = self.operator_token.as_deref();
        let head = context.client.take_over(run, &request, token).await?;
        context.output.result(&head, || {
            format!(
                "The hub at {} keeps the run {} now.\n  generation  {}\n  log         {} entries",
                head.hub_address
                    .as_deref()
                    .unwrap_or(context.client.address()),
                printable(&summary.name),
                head.generation,
                head.length
            )
        })
    }
}

/// Lines about who keeps a run: nothing for a run with its first hub and nothing to tell.
pub(super) fn lines(head: &RunHead) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(why) = &head.stopped {
        lines.push(format!("stopped      {}", printable(why)));
    } else if head.role == "mirror" {
        let hub = head.hub_address.as_deref().unwrap_or("unknown");
        lines.push(format!(
            "mirror       the run's hub is {}; {} blobs are missing here",
            printable(hub),
            head.blobs_missing
        ));
    }
    if head.generation > 0 {
        lines.push(format!(
            "hubs         changed {} times; {} entries of this copy are set aside",
            head.generation, head.entries_set_aside
        ));
    }
    for found in &head.equivocations {
        lines.push(format!("said twice   {}", printable(&found.sentence)));
    }
    lines
}
