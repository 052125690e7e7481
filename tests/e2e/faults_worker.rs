//! What happens to workers: `kill -9` in mid-step, mid-commit and mid-upload, a partition, a wrong clock, half of them gone at
//! once. What a worker committed to counts, it comes back as who it was, and the others' rounds go on meanwhile.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use protocol::{
    event::Event,
    log::Entry,
    units::{RunId, WorkerId},
};
use tests::{
    charters,
    network::{Network, Start, last_commitment},
    relay::{Moment, Relay, Wanted},
};

/// Longest wait for a request to stand in the trap, or a line in a log.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The hub gets so much of an upload: its head and a part of the update.
const PART_BYTES: usize = 1_500;
/// Where Debian puts libfaketime; the loader fills in `$LIB`.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// Workers and the hours that their clocks are fast.
const CLOCKS: [(&str, i64); 2] = [("early", -5), ("late", 7)];
/// Where in a round the worker dies.
const MOMENTS: [(Wanted, Moment); 4] = [
    (Wanted::Commitment, Moment::BeforeRequest),
    (Wanted::Commitment, Moment::BeforeAnswer),
    (Wanted::Upload, Moment::Within(PART_BYTES)),
    (Wanted::Upload, Moment::BeforeAnswer),
];

#[tokio::test(flavor = "multi_thread")]
async fn workers_die_vanish_and_come_back() -> Result<()> {
    let mut network = Network::start("faults-worker").await?;
    // A worker that starts again on a busy machine takes seconds, and its update counts for three rounds more: rounds of
    // seconds, then, though the others commit early.
    let charter = charters::small()?
        .replace("window_ms = 1500", "window_ms = 4000")
        .replace("reveal_ms = 10000", "reveal_ms = 30000")
        .replace("batch_rows = 2", "batch_rows = 8");
    ensure!(charter.contains("= 4000") && charter.contains("= 30000"));
    ensure!(charter.contains("batch_rows = 8"));
    let run = network.open_small_run_of(&charter).await?;
    let relay = Relay::start(network.hub_address()).await?;
    let first = Start {
        environment: vec![("ATHOME_LOG", "warn,worker=info".to_owned())],
        ..Start::with_hub(relay.url())
    };
    network.start_worker_as(run, "first", &first)?;
    network.start_worker_as(run, "second", &Start::default())?;
    network.joined(run, 2).await?;
    network.merged(run, 2).await?;
    killed_in_mid_step(&mut network, run, &first).await?;
    for (wanted, moment) in MOMENTS {
        killed_at(&mut network, &relay, run, &first, (wanted, moment))
            .await
            .with_context(|| format!("{wanted:?}, {moment:?}"))?;
    }
    parted(&mut network, &relay, run).await?;
    stopped_and_back(&mut network, run, &first).await?;
    half_of_them(&mut network, run).await?;
    network.is_sound(run).await?;
    network.finish().await
}

/// The worker dies between two steps of a round.
async fn killed_in_mid_step(network: &mut Network, run: RunId, start: &Start<'_>) -> Result<()> {
    let worker = network.worker_id(run, "first").await?;
    step_is_done(&network.worker_log("first")).await?;
    network.kill_worker("first")?;
    network.start_worker_as(run, "first", start)?;
    network.merged_of(run, worker).await
}

/// The worker dies while its request stands at this moment.
async fn killed_at(
    network: &mut Network,
    relay: &Relay,
    run: RunId,
    start: &Start<'_>,
    (wanted, moment): (Wanted, Moment),
) -> Result<()> {
    let worker = network.worker_id(run, "first").await?;
    let refused = refused(network, run, "first").await?;
    relay.set_trap(wanted, moment);
    relay.caught(WAIT_MAX).await?;
    network.kill_worker("first")?;
    let committed = last_commitment(&network.log(run).await?, worker);
    relay.cut();
    network.start_worker_as(run, "first", start)?;
    if wanted == Wanted::Upload || moment == Moment::BeforeAnswer {
        // The hub has the commitment: the worker finds the update on its disk and sends the rest.
        let update = committed.context("there is no commitment")?;
        network.merged_update(run, update).await?;
    }
    network.merged_of(run, worker).await?;
    ensure!(
        network.worker_id(run, "first").await? == worker,
        "it came back as somebody else"
    );
    let now = self::refused(network, run, "first").await?;
    ensure!(now == refused, "what it carries no longer fits");
    Ok(())
}

/// Nothing passes between a worker and the hub for longer than a round; then it does again.
async fn parted(network: &mut Network, relay: &Relay, run: RunId) -> Result<()> {
    let worker = network.worker_id(run, "first").await?;
    relay.part();
    // The others' rounds go on without it.
    network.merged(run, 3).await?;
    relay.heal();
    network.merged_of(run, worker).await
}

/// A worker that was stopped goes on from the model that it held: no checkpoint is fetched, four bytes for each parameter.
async fn stopped_and_back(network: &mut Network, run: RunId, start: &Start<'_>) -> Result<()> {
    let worker = network.worker_id(run, "first").await?;
    network.stop_worker("first").await?;
    let cache = network.folder.join("worker-first").join("cache");
    let checkpoints = async |network: &Network| -> Result<Vec<PathBuf>> {
        let known = network.client()?.checkpoints(run, 100).await?;
        let places = known.iter().map(|it| cache.join(&it.blob));
        Ok(places.filter(|it| it.exists()).collect())
    };
    let cached = checkpoints(network).await?;
    ensure!(!cached.is_empty(), "it began with a checkpoint");
    for place in cached {
        std::fs::remove_file(place)?;
    }
    network.start_worker_as(run, "first", start)?;
    network.merged_of(run, worker).await?;
    ensure!(checkpoints(network).await?.is_empty(), "it fetched one");
    Ok(())
}

/// Two of four die at once and come back at once.
async fn half_of_them(network: &mut Network, run: RunId) -> Result<()> {
    for name in ["third", "fourth"] {
        network.start_worker_as(run, name, &Start::default())?;
        let worker = network.has_joined(run, name).await?;
        network.merged_of(run, worker).await?;
    }
    let mut gone = Vec::new();
    for name in ["second", "third"] {
        gone.push((name, network.worker_id(run, name).await?));
        network.kill_worker(name)?;
    }
    network.merged(run, 2).await?;
    for (name, _) in &gone {
        network.start_worker_as(run, name, &Start::default())?;
    }
    for (_, worker) in gone {
        network.merged_of(run, worker).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_wrong_by_hours_do_not_matter() -> Result<()> {
    let mut network = Network::start("faults-clock").await?;
    let run = network.open_small_run().await?;
    for (name, hours) in CLOCKS {
        let start = Start {
            environment: vec![
                ("LD_PRELOAD", FAKETIME.to_owned()),
                ("FAKETIME", format!("{hours:+}h")),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ],
            ..Start::default()
        };
        network.start_worker_as(run, name, &start)?;
    }
    for (name, hours) in CLOCKS {
        let worker = network.has_joined(run, name).await?;
        network.merged_of(run, worker).await?;
        let wrong = clock_error_hours(&network.log(run).await?, worker)?;
        ensure!(
            (wrong - hours as f64).abs() < 1.0,
            "its clock is {wrong:.1} hours wrong: is libfaketime there (`cargo xtask setup`)?"
        );
        ensure!(refused(&network, run, name).await? == 0, "it was refused");
    }
    // A clock that is set right while the worker is away must not make its next commands look old.
    let worker = network.worker_id(run, "late").await?;
    network.kill_worker("late")?;
    network.start_worker_as(run, "late", &Start::default())?;
    network.merged_of(run, worker).await?;
    network.finish().await
}

/// Hours that a worker's clock was ahead of the hub's when it joined: its first command is numbered by its clock.
fn clock_error_hours(log: &[Entry], worker: WorkerId) -> Result<f64> {
    let (sequence, time_ms) = log
        .iter()
        .find_map(|entry| match &entry.event {
            Event::WorkerJoined { command } if command.worker == worker => {
                Some((command.sequence, entry.time_ms))
            }
            _ => None,
        })
        .context("it never joined")?;
    Ok((sequence as f64 - time_ms as f64) / 3.6e6)
}

/// Waits for the end of a first step that is not in the log yet.
async fn step_is_done(log: &Path) -> Result<()> {
    let count = || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        text.matches("first step done").count()
    };
    let (before, begun) = (count(), std::time::Instant::now());
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while count() == before {
        ensure!(begun.elapsed() < WAIT_MAX, "no step within {WAIT_MAX:?}");
        look.tick().await;
    }
    Ok(())
}

async fn refused(network: &Network, run: RunId, name: &str) -> Result<u64> {
    let workers = network.client()?.workers(run).await?;
    let worker = workers.iter().find(|it| it.name == name);
    Ok(worker.context("it never joined")?.updates_refused)
}
