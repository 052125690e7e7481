//! The hub's configuration: one TOML file, unknown keys refused.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Everything an operator may set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Log, blobs and key live here.
    pub folder: PathBuf,
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
    /// Long polls and event streams at once.
    pub streams_max: usize,
    /// Threads that merge and evaluate.
    pub compute_threads: usize,
    /// What sampled texts begin with.
    pub sample_prompt: String,
    /// Tokens of a sampled text.
    pub sample_tokens: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
            folder: PathBuf::from("athome-hub"),
            gateway: None,
            operator_token: None,
            requests_per_s_per_address: 500,
            requests_in_progress_max: 512,
            requests_in_progress_per_address_max: 64,
            streams_max: 16_384,
            compute_threads: 1,
            sample_prompt: "The state of the union is".to_owned(),
            sample_tokens: 60,
        }
    }
}
