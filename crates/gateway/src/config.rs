//! The gateway's settings, and the one rule about where a research preview may be served.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Most answers computed at the same time that a configuration may ask for.
const CONCURRENT_ANSWERS_MAX: usize = 64;
/// Most answers waiting that a configuration may ask for.
const WAITING_ANSWERS_MAX: usize = 1024;
/// Most checkpoints of one run kept in memory.
const CHECKPOINTS_KEPT_MAX: usize = 16;

/// Settings of a gateway; every field has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Address of the hub whose models are served.
    pub hub: String,
    /// Folder of downloaded checkpoints and tokenizers; everything in it can be downloaded again.
    pub cache: PathBuf,
    /// Most bytes of that folder; what was used longest ago goes first.
    pub cache_bytes_max: u64,
    /// Answers computed at the same time, each on a thread of its own.
    pub concurrent_answers: usize,
    /// Answers that wait for a place; the next is refused with status 429.
    pub waiting_answers: usize,
    /// Checkpoints of a run that stay in memory, the newest included; older ones answer under `name@round`.
    pub checkpoints_kept: usize,
    /// Time between two looks for newer checkpoints, in milliseconds.
    pub poll_ms: u64,
    /// Whether checkpoints that no gate has passed may be served to other machines.
    pub allow_remote_preview: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7701)),
            hub: "http://127.0.0.1:7700".to_owned(),
            cache: PathBuf::from("gateway-cache"),
            cache_bytes_max: 16 << 30,
            concurrent_answers: 2,
            waiting_answers: 16,
            checkpoints_kept: 2,
            poll_ms: 2_000,
            allow_remote_preview: false,
        }
    }
}

impl Config {
    /// Checks ranges, and that a research preview stays on this machine unless the operator says otherwise.
    ///
    /// # Errors
    /// A sentence that names the field and what to set.
    pub fn check(&self) -> anyhow::Result<()> {
        for (field, value, limit) in [
            (
                "concurrent_answers",
                self.concurrent_answers,
                CONCURRENT_ANSWERS_MAX,
            ),
            (
                "checkpoints_kept",
                self.checkpoints_kept,
                CHECKPOINTS_KEPT_MAX,
            ),
        ] {
            anyhow::ensure!(
                (1..=limit).contains(&value),
                "the gateway's {field} is {value}; set it to 1 to {limit}"
            );
        }
        anyhow::ensure!(
            self.waiting_answers <= WAITING_ANSWERS_MAX,
            "the gateway's waiting_answers is {}; set it to at most {WAITING_ANSWERS_MAX}",
            self.waiting_answers
        );
        anyhow::ensure!(
            (100..=3_600_000).contains(&self.poll_ms),
            "the gateway's poll_ms is {}; set it to 100 to 3600000",
            self.poll_ms
        );
        anyhow::ensure!(
            self.listen.ip().is_loopback() || self.allow_remote_preview,
            "the gateway does not listen on {}: its models are research previews that no gate has passed, \
             so they are served on this machine alone; listen on 127.0.0.1, or set allow_remote_preview = true \
             to serve them to others",
            self.listen
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config), expected: &str) {
        let mut config = Config::default();
        change(&mut config);
        let message = config.check().expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn previews_stay_on_this_machine_unless_the_operator_says_otherwise() {
        assert!(Config::default().check().is_ok());
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 7701));
        refused(|it| it.listen = everywhere, "allow_remote_preview = true");
        let config = Config {
            listen: everywhere,
            allow_remote_preview: true,
            ..Config::default()
        };
        assert!(config.check().is_ok());
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        refused(|it| it.concurrent_answers = 65, "concurrent_answers");
        refused(|it| it.waiting_answers = 1025, "waiting_answers");
        refused(|it| it.checkpoints_kept = 0, "checkpoints_kept");
        refused(|it| it.poll_ms = 0, "poll_ms");
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error =
            toml::from_str::<Config>("lisen = \"127.0.0.1:1\"").expect_err("a misspelt key");
        assert!(error.to_string().contains("lisen"), "{error}");
    }
}
