//! The hub's configuration: one TOML file, unknown keys refused.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use network::server::{Limits, raise_open_files};

use serde::{Deserialize, Serialize};

/// Everything an operator may set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Log, blobs and key live here.
    pub folder: PathBuf,
    /// A hub whose runs are mirrored here.
    pub follow: Option<String>,
    /// Where others reach this process; needed to take runs over when it listens on all addresses.
    pub address: Option<String>,
    /// File of a succession key: by it this process may take over runs whose charters name the key.
    pub succession_key: Option<PathBuf>,
    /// Seconds of a hub's silence after which it does so by itself; never without it.
    pub take_over_after_s: Option<u64>,
    /// Folder of a BOINC application's release, made by `athome boinc sign`; without it no BOINC client is taken.
    pub boinc_release: Option<PathBuf>,
    /// Seconds that a BOINC client waits for a round that is about to begin, at most 25 and a quarter of a round; after that it
    /// is given other work.
    pub boinc_wait_s: u64,
    /// Address of the gateway that serves this hub's models, told to the web app.
    pub gateway: Option<String>,
    /// Whoever has it may create runs from other machines; from this one it is not needed.
    pub operator_token: Option<String>,
    /// Requests a second of one address before it is told to wait.
    pub requests_per_s_per_address: u32,
    /// Requests in progress at once; long polls and event streams are counted apart.
    pub requests_in_progress_max: usize,
    /// Requests in progress of one address: slow ones must not keep the others out.
    pub requests_in_progress_per_address_max: u32,
    /// Workers never seen before, in an hour, of all addresses together; each is an entry of a log for ever.
    pub new_workers_per_hour: u32,
    /// Workers never seen before, in an hour, of one address.
    pub new_workers_per_hour_per_address: u32,
    /// Commands of one worker in a minute.
    pub commands_per_minute_per_worker: u32,
    /// How often in an hour one worker may leave, join again, or join with another name or device.
    pub moves_per_hour_per_worker: u32,
    /// Keys that may be bound to one account in an hour.
    pub bindings_per_hour_per_account: u32,
    /// Keys that may be bound from one address in an hour.
    pub bindings_per_hour_per_address: u32,
    /// MiB that one worker may upload in an hour.
    pub upload_mib_per_hour_per_worker: u32,
    /// MiB of uploads in memory at once.
    pub upload_memory_mib: usize,
    /// MiB of updates that stay decoded from their judgement to their merge; a merge takes as much again for the others.
    pub update_memory_mib: usize,
    /// Minutes for which bytes that no log names are kept: updates refused or lost, uploads given up.
    pub unused_blob_minutes: u64,
    /// Bytes of such files at once; uploads then wait, and the oldest go first.
    pub unused_bytes_max: u64,
    /// Parameters of a model that this hub takes on; it holds a few copies of 4 bytes each.
    pub parameters_max: u64,
    /// Long polls and event streams at once.
    pub streams_max: usize,
    /// Long polls and event streams of one address at once.
    pub streams_per_address_max: u32,
    /// Connections at once; fewer if the system allows the process fewer open files.
    pub connections_max: usize,
    /// Connections of one address at once.
    pub connections_per_address_max: u32,
    /// Seconds for the headers of a request.
    pub header_timeout_s: u64,
    /// Seconds that a connection may stay open between requests.
    pub idle_timeout_s: u64,
    /// Least speed of a body, up or down, while the other end is waited for; whoever is slower is cut off.
    pub bytes_per_s_min: u32,
    /// Addresses of the operator's own proxies: `X-Forwarded-For` is believed from them and from nobody else.
    pub trusted_proxies: Vec<IpAddr>,
    /// Updates judged, and rounds merged, at once; threads that evaluate.
    pub compute_threads: usize,
    /// What sampled texts begin with.
    pub sample_prompt: String,
    /// Tokens of a sampled text.
    pub sample_tokens: usize,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
            folder: PathBuf::from("athome-hub"),
            follow: None,
            address: None,
            succession_key: None,
            take_over_after_s: None,
            boinc_release: None,
            boinc_wait_s: 15,
            gateway: None,
            operator_token: None,
            requests_per_s_per_address: 500,
            requests_in_progress_max: 512,
            requests_in_progress_per_address_max: 64,
            new_workers_per_hour: 20_000,
            new_workers_per_hour_per_address: 1_000,
            commands_per_minute_per_worker: 120,
            moves_per_hour_per_worker: 120,
            bindings_per_hour_per_account: 20,
            bindings_per_hour_per_address: 200,
            upload_mib_per_hour_per_worker: 4_096,
            upload_memory_mib: 256,
            update_memory_mib: 1_024,
            unused_blob_minutes: 24 * 60,
            unused_bytes_max: 32 << 30,
            parameters_max: 1 << 30,
            streams_max: 16_384,
            streams_per_address_max: 256,
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            header_timeout_s: limits.header_timeout.as_secs(),
            idle_timeout_s: limits.idle_timeout.as_secs(),
            bytes_per_s_min: limits.bytes_per_s_min,
            trusted_proxies: limits.trusted_proxies,
            compute_threads: 1,
            sample_prompt: "The state of the union is".to_owned(),
            sample_tokens: 60,
        }
    }
}

impl Config {
    /// What connections may do; raises the process's limit of open files to have room for them.
    pub(crate) fn connections(&self) -> Limits {
        let room = raise_open_files();
        if room < self.connections_max {
            tracing::warn!(
                connections_max = self.connections_max,
                room,
                "the system allows too few open files for that many connections; raise its limit (ulimit -n)"
            );
        }
        Limits {
            connections_max: self.connections_max.min(room),
            connections_per_address_max: self.connections_per_address_max,
            header_timeout: Duration::from_secs(self.header_timeout_s),
            idle_timeout: Duration::from_secs(self.idle_timeout_s),
            bytes_per_s_min: self.bytes_per_s_min,
            trusted_proxies: self
                .trusted_proxies
                .iter()
                .map(IpAddr::to_canonical)
                .collect(),
            ..Limits::default()
        }
    }
}
