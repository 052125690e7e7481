//! Opens the way to other workers, as far as the owner permits it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use network::{
    BlobCache, HubClient, Source,
    peers::{Patience, Peers, Settings},
    world,
};
use protocol::{SecretKey, charter::Charter, units::RunId};

use crate::Config;

/// A run's source of blobs; from the hub alone if the owner wants no peers, or no endpoint could be opened.
pub(super) async fn open(
    config: &Config,
    client: &HubClient,
    cache: &BlobCache,
    key: &SecretKey,
    run: RunId,
    charter: &Charter,
) -> Source {
    let mut peers = None;
    // A simulated world has no sockets.
    if config.peers && !world::is_simulated() {
        let settings = Settings {
            relays: config.relays.clone(),
            upload_bytes_per_s_max: config.peers_upload_bytes_per_s_max,
            ..Settings::new(
                config
                    .peers_listen
                    .unwrap_or_else(|| beside_hub(client.address())),
            )
        };
        match Peers::start(cache.clone(), &settings).await {
            Ok(opened) => {
                let window = Duration::from_millis(charter.round.window_ms);
                peers = Some((opened, Patience::for_window(window)));
            }
            Err(error) => {
                tracing::warn!("other workers are not reached, the hub gives everything: {error}");
            }
        }
    }
    let source = Source::new(client.clone(), cache.clone(), key.clone(), run, peers);
    for shard in &charter.data.training {
        if cache.contains(&shard.blob) {
            source.publish(shard.blob.hash);
        }
    }
    source
}

/// Where to listen if the owner says nothing: on loopback for a hub on this machine, else everywhere; any free port.
fn beside_hub(hub: &str) -> SocketAddr {
    let host = hub.split_once("://").map_or(hub, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    let host = match host.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_here = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let address = match is_here {
        true => Ipv4Addr::LOCALHOST,
        false => Ipv4Addr::UNSPECIFIED,
    };
    SocketAddr::from((address, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_on_this_machine_needs_no_other_machine() {
        #[track_caller]
        fn check(hub: &str, is_here: bool) {
            assert_eq!(beside_hub(hub).ip().is_loopback(), is_here, "{hub}");
        }
        check("http://127.0.0.1:7700", true);
        check("http://[::1]:7700", true);
        check("http://localhost", true);
        check("https://localhost:7700/athome", true);
        check("https://hub.example", false);
        check("https://hub.example:7700/a", false);
        check("http://192.168.1.4:7700", false);
        check("http://localhost.example:7700", false);
    }
}
