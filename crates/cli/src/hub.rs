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
  athome hub --address https://hub.example --boinc-release release
  athome hub --follow https://hub.example --folder mirror --listen 127.0.0.1:7710
  athome hub --follow https://hub.example --succession-key mirror.key --address https://mirror.example

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
    /// Mirror the runs of the hub at this address: copy their logs and blobs, and serve them read-only
    #[arg(long, value_name = "URL")]
    follow: Option<String>,
    /// Where others reach this process [default: where it listens]
    #[arg(long, value_name = "URL")]
    address: Option<String>,
    /// Key by which a mirror may take over the runs whose charters name it (`athome run succession-key` makes one)
    #[arg(long, value_name = "FILE")]
    succession_key: Option<PathBuf>,
    /// Take over by itself when a run's hub was silent for so many seconds; without it `athome run take-over` says when
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=604_800))]
    take_over_after: Option<u64>,
    /// Take BOINC clients, with the application's release in this folder (`athome boinc sign` makes one)
    #[arg(long, value_name = "DIR")]
    boinc_release: Option<PathBuf>,
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
        config.boinc_release = self.boinc_release.or(config.boinc_release);
        config.gateway = self.gateway.or(config.gateway);
        config.follow = self.follow.or(config.follow);
        config.address = self.address.or(config.address);
        config.succession_key = self.succession_key.or(config.succession_key);
        config.take_over_after_s = self.take_over_after.or(config.take_over_after_s);
        Ok(config)
    }
}
