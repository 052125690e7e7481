//! `kill -9` of the hub right before and right after each thing that it acknowledges: nothing acknowledged is lost, replay
//! gives the same hashes, and the loss goes on falling.

use std::time::Duration;

use anyhow::{Context, Result};
use protocol::units::RunId;
use tests::{
    network::{Network, Start, goes_on, last_commitment},
    relay::{Moment, Relay, Wanted},
};

/// Longest wait for an entry of the log, and for a request to stand in the trap.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The hub gets so much of an upload: its head and a part of the update.
const PART_BYTES: usize = 1_500;

/// Every acknowledgement that a worker waits for, and the moments around it.
const MOMENTS: [(Wanted, Moment); 5] = [
    (Wanted::Commitment, Moment::BeforeRequest),
    (Wanted::Commitment, Moment::BeforeAnswer),
    (Wanted::Upload, Moment::BeforeRequest),
    (Wanted::Upload, Moment::Within(PART_BYTES)),
    (Wanted::Upload, Moment::BeforeAnswer),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_is_killed_around_every_acknowledgement() -> Result<()> {
    let mut network = Network::start("faults-hub").await?;
    let run = network.open_small_run().await?;
    let relay = Relay::start(network.hub_address()).await?;
    network.start_worker_as(run, "first", &Start::with_hub(relay.url()))?;
    network.start_worker_as(run, "second", &Start::default())?;
    network.joined(run, 2).await?;
    network.merged(run, 2).await?;
    for (wanted, moment) in MOMENTS {
        killed_at(&mut network, &relay, run, wanted, moment)
            .await
            .with_context(|| format!("{wanted:?}, {moment:?}"))?;
    }
    for kind in ["update_accepted", "round_merged"] {
        killed_after(&mut network, run, kind)
            .await
            .with_context(|| format!("after {kind}"))?;
    }
    network.is_sound(run).await?;
    network.finish().await
}

/// The hub dies while a request of `first` stands at this moment, and starts again.
async fn killed_at(
    network: &mut Network,
    relay: &Relay,
    run: RunId,
    wanted: Wanted,
    moment: Moment,
) -> Result<()> {
    relay.set_trap(wanted, moment);
    relay.caught(WAIT_MAX).await?;
    let before = network.log(run).await?;
    let worker = network.worker_id(run, "first").await?;
    network.kill_hub()?;
    relay.cut();
    network.start_hub().await?;
    goes_on(&before, &network.log(run).await?)?;
    if wanted == Wanted::Upload || moment == Moment::BeforeAnswer {
        // The commitment was written before the answer, which nobody got or which came: the update is sent and counts.
        let update = last_commitment(&before, worker).context("there is no commitment")?;
        network.merged_update(run, update).await?;
    }
    network.merged_of(run, worker).await
}

/// The hub dies right after it wrote such an entry, and starts again.
async fn killed_after(network: &mut Network, run: RunId, kind: &str) -> Result<()> {
    network
        .watch(run, WAIT_MAX, kind, |it| (it.kind == kind).then_some(()))
        .await?;
    let before = network.log(run).await?;
    network.kill_hub()?;
    network.start_hub().await?;
    goes_on(&before, &network.log(run).await?)?;
    network.merged(run, 1).await
}
