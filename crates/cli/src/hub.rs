//! `athome hub`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::places::Places;

const EXAMPLES: &str = "\
Examples:
  athome hub
  athome hub --listen 0.0.0.0:7700 --gateway http://127.0.0.1:7701
  athome hub --config hub.toml

The web app is at the hub's address. Options win over the configuration file.";

/// Keep runs: their logs, rounds, models and web app.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Hub {
    /// Settings in TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7700]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where log, blobs and key are kept [default: hub in the home folder]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Address of the gateway that serves this hub's models, told to the web app
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
}

impl Hub {
    pub(crate) async fn execute(
        self,
        places: &Places,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        hub::serve(self.settings(places)?, shutdown).await
    }

    fn settings(self, places: &Places) -> anyhow::Result<hub::Config> {
        let mut config = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("can't read {}", path.display()))?;
                toml::from_str(&text)
                    .with_context(|| format!("{} can't be used", path.display()))?
            }
            None => hub::Config {
                folder: places.hub(),
                ..hub::Config::default()
            },
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(folder) = self.folder {
            config.folder = folder;
        }
        config.gateway = self.gateway.or(config.gateway);
        Ok(config)
    }
}
