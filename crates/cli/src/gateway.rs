//! `athome gateway`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::{places::Places, run::HUB_DEFAULT};

const EXAMPLES: &str = "\
Examples:
  athome gateway
  athome gateway http://127.0.0.1:7700 --listen 127.0.0.1:7701
  athome gateway --config gateway.toml
  curl http://127.0.0.1:7701/v1/models

Models are research previews until they have passed the gate: they are served on this machine alone,
unless the configuration file says allow_remote_preview = true. Options win over that file.";

/// Answer OpenAI clients with a hub's models.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Gateway {
    /// The hub whose models are served [default: http://127.0.0.1:7700]
    #[arg(value_name = "HUB")]
    positional_hub: Option<String>,
    /// The same, as an option
    #[arg(long, env = "ATHOME_HUB", hide_env_values = true, value_name = "URL")]
    hub: Option<String>,
    /// Settings in TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7701]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where downloaded checkpoints are kept [default: gateway in the home folder]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Answers computed at the same time, each on a thread of its own [default: 2]
    #[arg(long, value_name = "N")]
    concurrent: Option<usize>,
}

impl Gateway {
    pub(crate) async fn execute(
        self,
        places: &Places,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        gateway::serve(self.settings(places)?, shutdown).await
    }

    fn settings(self, places: &Places) -> anyhow::Result<gateway::Config> {
        let mut config = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("can't read {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("{} can't be used", path.display()))?
            }
            None => gateway::Config {
                cache: places.gateway(),
                hub: HUB_DEFAULT.to_owned(),
                ..gateway::Config::default()
            },
        };
        if let Some(hub) = self.positional_hub.or(self.hub) {
            config.hub = hub;
        }
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(cache) = self.cache {
            config.cache = cache;
        }
        if let Some(concurrent) = self.concurrent {
            config.concurrent_answers = concurrent;
        }
        Ok(config)
    }
}
