//! What a worker sends and receives per round, with everything that IP and TCP add: polls, commands, uploads, downloads.
//!
//! Every worker sits behind a home link of its own, which counts. Counting begins when all the training text is there, and
//! there is no warm start: both happen once, in a worker's or in a run's life.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use protocol::units::RunId;
use tests::{
    link::{Link, Shape, Traffic},
    network::{Network, Start},
};

use crate::{charters, figure};

/// Longest wait for a round.
const ROUND_MAX: Duration = Duration::from_secs(90);

/// One run to count in.
struct Counting {
    name: &'static str,
    charter: String,
    workers: usize,
    /// Rounds before counting begins.
    rounds_before: usize,
    /// Rounds that are counted.
    rounds: usize,
}

/// What one worker sent and received on average, per parameter and round.
struct PerParameter {
    up: f64,
    down: f64,
}

pub(crate) async fn measure(part: Option<&str>) -> Result<()> {
    if part != Some("a") {
        let loss_gap = count(&Counting {
            name: "bench-bytes-b",
            charter: tests::charters::with(&[
                ("kept", 128),
                ("delta_kept", 512),
                // The warm start publishes m and v, once in a run's life.
                ("warm_start_tokens", 0),
                ("steps_max", 10),
                ("window_ms", 10_000),
                ("reveal_ms", 30_000),
                ("checkpoint_every", 20),
            ])?,
            workers: 4,
            rounds_before: 6,
            rounds: 20,
        })
        .await?;
        figure("upload_per_param_round", loss_gap.up, "bytes");
        figure("download_per_param_round", loss_gap.down, "bytes");
    }
    if part != Some("b") {
        let model_a = count(&Counting {
            name: "bench-bytes-a",
            // How much is trained between two updates changes none of their bytes.
            charter: charters::model_a(30_000, 1)?.replace("steps_max = 1000\n", "steps_max = 2\n"),
            workers: 2,
            rounds_before: 2,
            rounds: 6,
        })
        .await?;
        figure("upload_per_param_round_k64", model_a.up, "bytes");
        figure("download_per_param_round_k64", model_a.down, "bytes");
    }
    Ok(())
}

async fn count(counting: &Counting) -> Result<PerParameter> {
    let mut network = Network::start(counting.name).await?;
    let run = network.open_run_of(&counting.charter).await?;
    let mut links = Vec::new();
    for worker in 0..counting.workers {
        let link = Link::to(network.hub_address(), Shape::HOME)?;
        let start = Start {
            hub_url: link.hub_url(),
            // Counted is what goes between a worker and its hub; in its network there is nobody else.
            arguments: vec!["--no-peers".to_owned()],
            link: Some(&link),
            ..Start::default()
        };
        network.start_worker_as(run, &format!("worker-{worker}"), &start)?;
        links.push(link);
        network.joined(run, worker + 1).await?;
    }
    merges(&mut network, run, counting.rounds_before, counting.workers).await?;
    text_is_there(&network, run, counting.workers).await?;
    merges(&mut network, run, 1, counting.workers).await?;
    let before: Vec<_> = links.iter().map(Link::traffic).collect();
    merges(&mut network, run, counting.rounds, counting.workers).await?;
    let after: Vec<_> = links.iter().map(Link::traffic).collect();

    let parameters = network.client()?.run(&run.to_string()).await?.parameters;
    let share = 1.0 / (counting.rounds * counting.workers) as f64;
    let mean = |way: fn(&(Traffic, Traffic)) -> Traffic| {
        let sum = |all: &[(Traffic, Traffic)]| -> (f64, f64) {
            all.iter()
                .map(way)
                .fold((0.0, 0.0), |(bytes, packets), it| {
                    (bytes + it.bytes as f64, packets + it.packets as f64)
                })
        };
        let (now, then) = (sum(&after), sum(&before));
        ((now.0 - then.0) * share, (now.1 - then.1) * share)
    };
    let (up, down) = (mean(|it| it.0), mean(|it| it.1));
    println!(
        "{}: per worker and round {:.0} bytes in {:.0} packets up, {:.0} bytes in {:.0} packets down; {parameters} parameters",
        counting.name, up.0, up.1, down.0, down.1
    );
    network.finish().await?;
    Ok(PerParameter {
        up: up.0 / parameters as f64,
        down: down.0 / parameters as f64,
    })
}

/// Waits for so many merges of all workers' updates.
async fn merges(network: &mut Network, run: RunId, rounds: usize, workers: usize) -> Result<()> {
    let mut merged = 0;
    network
        .watch(
            run,
            ROUND_MAX * rounds as u32,
            "merged rounds of all",
            |entry| {
                let updates = entry.body["updates"].as_array().map_or(0, Vec::len);
                merged += usize::from(entry.kind == "round_merged" && updates == workers);
                (merged == rounds).then_some(())
            },
        )
        .await
}

/// Waits until every worker has all the training text.
async fn text_is_there(network: &Network, run: RunId, workers: usize) -> Result<()> {
    let charter = network.client()?.charter(run).await?;
    let begun = std::time::Instant::now();
    for worker in 0..workers {
        let cache = network.folder.join(format!("worker-worker-{worker}/cache"));
        loop {
            let names: Vec<String> = std::fs::read_dir(&cache)
                .with_context(|| format!("no cache at {}", cache.display()))?
                .filter_map(|it| it.ok()?.file_name().into_string().ok())
                .collect();
            let is_there = |hash: &str| names.iter().any(|it| it == hash);
            let texts = &charter.data.training;
            if texts.iter().all(|it| is_there(&it.blob.hash.to_string())) {
                break;
            }
            ensure!(begun.elapsed() < ROUND_MAX, "worker {worker} has no text");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
