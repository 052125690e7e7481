//! What the owner of a machine allows and asks for.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

/// Disk that cached blobs may take unless the owner says otherwise: 4 GiB.
const CACHE_BYTES_MAX_DEFAULT: u64 = 4 << 30;
/// Training gives way to everything else on the machine.
const NICE_DEFAULT: i32 = 10;

/// Settings of a worker.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The hub's address.
    pub hub: String,
    /// The run, by id or name; left out, the hub's first open run.
    #[serde(default)]
    pub run: Option<String>,
    /// Folder of the key, of what is carried between rounds and of cached blobs; one worker at a time.
    pub folder: PathBuf,
    /// Name for people; left out, the machine's host name.
    #[serde(default)]
    pub name: Option<String>,
    /// Threads that train; left out, one for each core that the process may use.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Most bytes of cached blobs.
    #[serde(default = "cache_bytes_max_default")]
    pub cache_bytes_max: u64,
    /// Cores' worth of processor time, such as 0.5; Linux only, and only where the machine permits it.
    #[serde(default)]
    pub cpu_quota: Option<f32>,
    /// The training threads' niceness, 0 to 19.
    #[serde(default = "nice_default")]
    pub nice: i32,
    /// Whether models, deltas and text are exchanged with other workers, which spares the hub; without, all of it comes
    /// from the hub.
    #[serde(default = "peers_default")]
    pub peers: bool,
    /// Where other workers reach this one (UDP); left out, any free port, on loopback alone if the hub is there too.
    #[serde(default)]
    pub peers_listen: Option<SocketAddr>,
    /// Most bytes a second sent to other workers; left out, no limit.
    #[serde(default)]
    pub peers_upload_bytes_per_s_max: Option<u64>,
    /// Addresses of iroh relays, by which machines behind routers reach each other; none unless the owner names some.
    #[serde(default)]
    pub relays: Vec<String>,
}

impl Config {
    /// The defaults for a hub and a folder.
    #[must_use]
    pub fn new(hub: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self {
            hub: hub.into(),
            run: None,
            folder: folder.into(),
            name: None,
            threads: None,
            cache_bytes_max: CACHE_BYTES_MAX_DEFAULT,
            cpu_quota: None,
            nice: NICE_DEFAULT,
            peers: peers_default(),
            peers_listen: None,
            peers_upload_bytes_per_s_max: None,
            relays: Vec::new(),
        }
    }

    /// Threads that train, at least 1.
    pub(crate) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(cores).max(1)
    }
}

fn cache_bytes_max_default() -> u64 {
    CACHE_BYTES_MAX_DEFAULT
}

fn peers_default() -> bool {
    true
}

fn nice_default() -> i32 {
    NICE_DEFAULT
}
