//! Workers fetch from each other: what the hub sends in a round does not grow with their number, and when some die the
//! others only take more from the hub.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::units::RunId;
use tests::{
    charters,
    network::{Network, Start},
};

/// Workers at first, and at last.
const FEW: usize = 3;
const MANY: usize = 8;
/// Rounds over which bytes are counted.
const ROUNDS: usize = 4;
/// Longest wait for a number of rounds in which everyone is.
const TOGETHER_MAX: Duration = Duration::from_secs(240);

/// What the hub sent in some rounds.
#[derive(Debug)]
struct Sent {
    bytes_per_round: f64,
    /// Bytes of one round's delta, on average.
    delta: f64,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_sends_no_more_for_more_workers() -> Result<()> {
    let mut network = Network::start("peers").await?;
    // Eight workers on two cores come to a few steps, and have the patience with each other that goes with such a window; no
    // rounds of one worker at the start.
    let charter = charters::small()?
        .replace("window_ms = 1500", "window_ms = 20000")
        .replace("warm_start_tokens = 2000", "warm_start_tokens = 0");
    ensure!(charter.contains("= 20000") && charter.contains("tokens = 0"));
    let run = network.open_small_run_of(&charter).await?;
    for number in 0..FEW {
        network.start_worker_as(run, &format!("peer-{number}"), &Start::default())?;
    }
    let few = count(&mut network, run, FEW).await?;
    for number in FEW..MANY {
        network.start_worker_as(run, &format!("peer-{number}"), &Start::default())?;
    }
    let many = count(&mut network, run, MANY).await?;
    ensure!(
        many.bytes_per_round < 1.5 * few.bytes_per_round.max(2.0 * many.delta),
        "with {FEW} workers the hub sent {few:?} a round, with {MANY} {many:?}"
    );

    // The first ones are those that gave to the others.
    for number in 0..FEW {
        network.kill_worker(&format!("peer-{number}"))?;
    }
    let rest = MANY - FEW;
    let mut rounds = 0;
    network
        .watch(run, TOGETHER_MAX, "rounds of those who are left", |entry| {
            let updates = entry.body["updates"].as_array().map_or(0, Vec::len);
            rounds += usize::from(entry.kind == "round_merged" && updates * 2 > rest);
            (rounds == ROUNDS).then_some(())
        })
        .await?;
    network.finish().await
}

/// Waits until all are at work, and counts over the next rounds.
async fn count(network: &mut Network, run: RunId, workers: usize) -> Result<Sent> {
    at_work(network, run, workers).await?;
    let before = bytes_sent(network).await?;
    let (mut rounds, mut deltas) = (0, 0);
    network
        .watch(run, TOGETHER_MAX, "rounds", |entry| {
            if entry.kind == "round_merged" {
                rounds += 1;
                deltas += entry.body["delta"]["bytes"].as_u64().unwrap_or(0);
            }
            (rounds == ROUNDS).then_some(())
        })
        .await?;
    let bytes = bytes_sent(network).await? - before;
    ensure!(deltas > 0, "no merge names its delta's size");
    Ok(Sent {
        bytes_per_round: bytes / ROUNDS as f64,
        delta: deltas as f64 / ROUNDS as f64,
    })
}

/// Waits until so many workers have two accepted updates each: what newcomers fetch once is behind them.
async fn at_work(network: &mut Network, run: RunId, workers: usize) -> Result<()> {
    let begin = Instant::now();
    loop {
        network
            .watch(run, TOGETHER_MAX, "a round", |entry| {
                (entry.kind == "round_merged").then_some(())
            })
            .await?;
        let all = network.client()?.workers(run).await?;
        let settled = all.iter().filter(|it| it.updates_accepted >= 2).count();
        if settled == workers {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < TOGETHER_MAX,
            "only {settled} of {workers} workers got to work"
        );
    }
}

/// Bytes of blobs that the hub has sent, from its metrics.
async fn bytes_sent(network: &Network) -> Result<f64> {
    let text = reqwest::get(format!("{}/metrics", network.hub_url()))
        .await?
        .text()
        .await?;
    text.lines()
        .find_map(|line| line.strip_prefix("athome_blob_bytes_sent_total "))
        .context("the hub does not count what it sends")?
        .trim()
        .parse()
        .context("a count is a number")
}
