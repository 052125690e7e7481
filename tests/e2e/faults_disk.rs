//! Full disks: the hub waits for room and goes on, a worker says so and goes on, and nothing acknowledged is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{
    disk::SmallDisk,
    network::{Network, Start, goes_on},
};

/// Room for the run and a little more.
const DISK_BYTES: u64 = 48 << 20;
/// Longest wait for somebody to notice.
const NOTICED_MAX: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_waits_for_room() -> Result<()> {
    let folder = Network::fresh_folder("faults-disk-hub")?;
    let disk = SmallDisk::new(&folder.join("hub"), DISK_BYTES)?;
    let mut network = Network::start_in(folder, disk.start()).await?;
    let run = network.open_small_run().await?;
    for name in ["first", "second"] {
        network.start_worker_as(run, name, &Start::default())?;
    }
    network.joined(run, 2).await?;
    network.merged(run, 2).await?;
    disk.fill()?;
    let full = network.folder.join("hub.log");
    says(&mut network, &full, "full").await?;
    let before = network.log(run).await?;
    disk.free()?;
    network.merged(run, 2).await?;
    goes_on(&before, &network.log(run).await?)?;
    // What is on the disk after all that is enough to start from.
    network.kill_hub()?;
    network.start_hub().await?;
    goes_on(&before, &network.log(run).await?)?;
    network.merged(run, 1).await?;
    network.is_sound(run).await?;
    network.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_so_and_goes_on() -> Result<()> {
    let mut network = Network::start("faults-disk-worker").await?;
    let disk = SmallDisk::new(&network.folder.join("worker-first"), DISK_BYTES)?;
    let run = network.open_small_run().await?;
    network.start_worker_as(run, "first", &disk.start())?;
    network.start_worker_as(run, "second", &Start::default())?;
    let worker = network.has_joined(run, "first").await?;
    network.merged_of(run, worker).await?;
    disk.fill()?;
    let log = network.worker_log("first");
    says(&mut network, &log, "the disk is full").await?;
    network.merged(run, 2).await?;
    disk.free()?;
    // By itself: whoever gives a machine's spare time does not sit beside it.
    network.merged_of(run, worker).await?;
    let records = network.client()?.workers(run).await?;
    let record = records.iter().find(|it| it.name == "first");
    let record = record.context("it never joined")?;
    ensure!(
        record.updates_refused == 0,
        "what it carries no longer fits: {:?}",
        record.last_refusal
    );
    network.finish().await
}

/// Waits until a log contains a word.
async fn says(network: &mut Network, log: &std::path::Path, word: &str) -> Result<()> {
    let begun = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(50));
    while !std::fs::read_to_string(log)?.contains(word) {
        network.must_run()?;
        ensure!(begun.elapsed() < NOTICED_MAX, "nobody noticed");
        look.tick().await;
    }
    Ok(())
}
