//! `athome run`: what operators, researchers and the curious do with runs.

mod charter;
mod create;
mod events;
mod export;
mod log;
mod show;
mod succession;
mod verify;
mod watch;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use network::HubClient;
use protocol::{api::RunSummary, units::RunId};
use tokio_util::sync::CancellationToken;

use crate::{output::Output, places::Places};

/// Where a hub listens when nobody says otherwise.
pub(crate) const HUB_DEFAULT: &str = "http://127.0.0.1:7700";

const EXAMPLES: &str = "\
Examples:
  athome run charter-template --data speeches > charter.toml
  athome run create charter.toml --data speeches
  athome run list
  athome run watch speeches
  athome run export speeches --out model

A run is named by its name or its id. With --json every command prints one JSON document
(watch and log: one JSON line an event).";

/// Open, watch, read and export runs.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    #[command(subcommand)]
    command: Command,
    /// The hub's address
    #[arg(long, global = true, env = "ATHOME_HUB", hide_env_values = true, default_value = HUB_DEFAULT, value_name = "URL")]
    hub: String,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Open a run
    Create(create::Create),
    /// Show all runs of the hub
    List(show::List),
    /// Show one run
    Show(show::Show),
    /// Follow a run as it happens
    Watch(watch::Watch),
    /// Write a checkpoint as a Hugging Face folder
    Export(export::Export),
    /// Read a run's log
    Log(log::Log),
    /// Compute a run again from its log and updates, and name what does not hold
    Verify(verify::Verify),
    /// Make a key that may name a run's next hub
    SuccessionKey(succession::SuccessionKey),
    /// Have a mirror become a run's hub
    TakeOver(succession::TakeOver),
    /// Print a commented charter to start from
    CharterTemplate(charter::CharterTemplate),
}

/// What every subcommand needs.
struct Context<'a> {
    client: HubClient,
    output: Output,
    places: &'a Places,
    shutdown: CancellationToken,
}

impl Run {
    pub(crate) async fn execute(
        self,
        places: &Places,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let context = Context {
            client: HubClient::new(&self.hub)?,
            output: Output { json: self.json },
            places,
            shutdown: shutdown.clone(),
        };
        match self.command {
            // These two end by themselves when asked to stop: that is their ordinary end.
            Command::Watch(command) => command.execute(&context).await,
            Command::Log(command) => command.execute(&context).await,
            Command::Create(command) => stoppable(&shutdown, command.execute(&context)).await,
            Command::List(command) => stoppable(&shutdown, command.execute(&context)).await,
            Command::Show(command) => stoppable(&shutdown, command.execute(&context)).await,
            Command::Export(command) => stoppable(&shutdown, command.execute(&context)).await,
            Command::Verify(command) => stoppable(&shutdown, command.execute(&context)).await,
            Command::TakeOver(command) => stoppable(&shutdown, command.execute(&context)).await,
            Command::SuccessionKey(command) => command.execute(&context),
            Command::CharterTemplate(command) => command.execute(&context),
        }
    }
}

/// The work, or an error as soon as it is asked to stop.
async fn stoppable(
    shutdown: &CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        outcome = work => outcome,
        () = shutdown.cancelled() => anyhow::bail!("stopped before it was done"),
    }
}

impl Context<'_> {
    /// A run by name or id. From then on its hub is looked for at all addresses that its charter names.
    async fn run(&self, name: &str) -> anyhow::Result<(RunId, RunSummary)> {
        let summary = self.client.run(name).await?;
        let id = summary.id.parse()?;
        let charter = self.client.charter(id).await?;
        let addresses = charter.addresses.iter().map(String::as_str);
        self.client.add_addresses(addresses);
        Ok((id, summary))
    }
}

/// Where a dataset lies: as it is given, or by its name in the home folder.
fn dataset_folder(given: PathBuf, places: &Places) -> PathBuf {
    let named = places.data().join(&given);
    if !given.exists() && given.components().count() == 1 && named.exists() {
        named
    } else {
        given
    }
}
