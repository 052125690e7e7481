//! After a takeover nobody needs to be told: a worker that starts anew with the dead hub's address finds the new hub, so does
//! who watches the run, and the dead hub, back from its old folder, leads nobody away.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use protocol::units::RunId;
use tests::{
    charters,
    network::{Network, Start},
    places,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// Longest wait for a line of whoever watches.
const WATCHED_MAX: Duration = Duration::from_secs(60);
const MIRROR: &str = "mirror";

#[tokio::test(flavor = "multi_thread")]
async fn everyone_finds_the_new_hub_again() -> Result<()> {
    let mut network = Network::start("takeover").await?;
    let mirror_url = network.plan_mirror(MIRROR)?;
    let hub_url = network.hub_url();
    let key = network.folder.join("succession.key");
    let key = key.to_string_lossy().into_owned();
    let made = network
        .athome(&["run", "succession-key", &key, "--json"])
        .await?;
    let made: serde_json::Value = serde_json::from_str(&made)?;
    let public = made["public_key"].as_str().context("no public key")?;
    let charter = format!(
        "addresses = [{hub_url:?}, {mirror_url:?}]\nsuccession = [{public:?}]\n{}",
        charters::small()?
    );
    let run = network.open_small_run_of(&charter).await?;
    network
        .start_mirror(MIRROR, &["--follow", &hub_url, "--succession-key", &key])
        .await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.start_worker_as(run, "second", &Start::default())?;
    network.joined(run, 2).await?;
    network.merged(run, 2).await?;
    let mut watching = Watching::start(&network, run)?;
    watching.sees("round_merged").await?;

    network.kill_hub()?;
    network.ask(Some(MIRROR));
    network
        .athome(&["run", "take-over", &run.to_string(), "--hub", &mirror_url])
        .await?;
    watching.sees("hub_replaced").await?;
    watching.sees("round_merged").await?;

    // Told of the dead hub alone, as at its first start.
    let first = network.worker_id(run, "first").await?;
    network.kill_worker("first")?;
    let start = Start::with_hub(hub_url.clone());
    network.start_worker_as(run, "first", &start)?;
    network.merged_of(run, first).await?;
    network.merged_of(run, first).await?;
    let workers = network.client()?.workers(run).await?;
    ensure!(workers.len() == 2, "it came back as somebody else");

    network.start_hub().await?;
    network.kill_worker("first")?;
    network.start_worker_as(run, "first", &start)?;
    network.merged_of(run, first).await?;
    network.merged(run, 1).await?;
    network.is_sound(run).await?;
    network.finish().await
}

/// `athome run watch --json`, ended with this.
struct Watching {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watching {
    fn start(network: &Network, run: RunId) -> Result<Self> {
        let mut process = Command::new(places::athome()?)
            .args(["run", "watch", &run.to_string(), "--json"])
            .args(["--hub", &network.hub_url()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().context("no output")?;
        Ok(Self {
            _process: process,
            lines: BufReader::new(output).lines(),
        })
    }

    /// Waits for an entry of this kind.
    async fn sees(&mut self, kind: &str) -> Result<()> {
        let seen = async {
            while let Some(line) = self.lines.next_line().await? {
                let entry: serde_json::Value = serde_json::from_str(&line)?;
                if entry["kind"] == kind {
                    return anyhow::Ok(());
                }
            }
            anyhow::bail!("it ended without {kind}")
        };
        tokio::time::timeout(WATCHED_MAX, seen)
            .await
            .with_context(|| format!("who watches saw no {kind}"))?
    }
}
