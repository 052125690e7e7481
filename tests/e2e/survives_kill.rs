//! Power cuts: what the hub acknowledged is still there, and everyone goes on where they stood.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use protocol::{
    SecretKey,
    command::{Command, Device, SignedCommand},
    event::Event,
    units::RunId,
};
use tests::{audit, network::Network};

/// Longest wait for a round to open or to be merged.
const ROUND_MAX: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost() -> Result<()> {
    let mut network = Network::start("survives-kill").await?;
    let run = network.open_run().await?;
    network.start_worker(run, "first", "1.0")?;
    network.joined(run, 1).await?;
    network.start_worker(run, "second", "0.5")?;
    merged(&mut network, run, 2).await?;
    the_hub_is_killed(&mut network, run).await?;
    a_worker_is_killed(&mut network, run).await?;
    network.finish().await
}

/// `kill -9` of the hub in mid-round, right after it acknowledged a command.
async fn the_hub_is_killed(network: &mut Network, run: RunId) -> Result<()> {
    network
        .watch(run, ROUND_MAX, "round in progress", |entry| {
            (entry.kind == "round_opened").then_some(())
        })
        .await?;
    let client = network.client()?;
    let command = a_strangers_join(run);
    let reply = client.command(&command).await?;
    let before = audit::log(&client, run).await?;
    network.kill_hub()?;
    network.start_hub().await?;

    let after = audit::log(&client, run).await?;
    ensure!(
        reply.log_length <= before.len() as u64,
        "an acknowledged entry was not in the log"
    );
    ensure!(before.len() <= after.len(), "the log has become shorter");
    for (old, new) in before.iter().zip(&after) {
        ensure!(
            old == new,
            "entry {} is another one after the restart",
            old.index
        );
    }
    ensure!(
        after.iter().any(
            |it| matches!(&it.event, Event::WorkerJoined { command: found } if *found == command)
        ),
        "the acknowledged join is lost"
    );
    merged(network, run, 2).await?;
    let audited = audit::audit(&client, run, &network.folder.join("audit")).await?;
    ensure!(!audited.merges.is_empty(), "nothing was merged");
    network.must_run()
}

/// `kill -9` of a worker in mid-round: it comes back as who it was and its work counts again.
async fn a_worker_is_killed(network: &mut Network, run: RunId) -> Result<()> {
    let client = network.client()?;
    network
        .watch(run, ROUND_MAX, "round in progress", |entry| {
            (entry.kind == "round_opened").then_some(())
        })
        .await?;
    network.kill_worker("first")?;
    let before = client.workers(run).await?;
    let first = before
        .iter()
        .find(|it| it.name == "first")
        .context("first never joined")?;
    network.start_worker(run, "first", "1.0")?;
    let id = first.id.clone();
    network
        .watch(
            run,
            ROUND_MAX,
            "merge of the returned worker's update",
            |entry| {
                let updates = entry.body["updates"].as_array()?;
                let is_there = updates.iter().any(|it| it["worker"] == id.as_str());
                (entry.kind == "round_merged" && is_there).then_some(())
            },
        )
        .await?;
    let after = client.workers(run).await?;
    ensure!(after.len() == before.len(), "it came back as somebody else");
    let returned = after
        .iter()
        .find(|it| it.id == first.id)
        .context("first is gone")?;
    ensure!(
        first.updates_accepted < returned.updates_accepted,
        "its work does not count"
    );
    ensure!(
        returned.updates_refused <= first.updates_refused + 1,
        "what it carries no longer fits: {:?}",
        returned.last_refusal
    );
    Ok(())
}

async fn merged(network: &mut Network, run: RunId, rounds: usize) -> Result<()> {
    let mut merged = 0;
    network
        .watch(run, ROUND_MAX * 2, "merged rounds", |entry| {
            merged += usize::from(entry.kind == "round_merged");
            (merged == rounds).then_some(())
        })
        .await
}

fn a_strangers_join(run: RunId) -> SignedCommand {
    let key = SecretKey::from_entropy([42; 32]);
    let device = Device {
        arithmetic: "portable-f32-1".to_owned(),
        threads: 1,
        memory_mib: 64,
        tokens_per_s: 1_000,
    };
    let name = "stranger".to_owned();
    SignedCommand::sign(&key, run, 1, Command::Join { name, device })
}
