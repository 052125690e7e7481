//! `kill -9` of the hub right before and right after each thing that it acknowledges: nothing acknowledged is lost, replay
//! gives the same hashes, and the loss goes on falling.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use protocol::{
    command::{Command, Device},
    event::Event,
    log::Entry,
    units::{RunId, WorkerId},
};
use tests::{
    charters,
    network::{Network, Start, goes_on, last_commitment},
    places, process,
    relay::{Moment, Relay, Wanted},
};

/// Longest wait for an entry of the log, and for a request to stand in the trap.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// The hub gets so much of an upload: its head and a part of the update.
const PART_BYTES: usize = 1_500;

/// What a worker waits for in a round, and the moments around it.
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
    // A hub starts again within the time for a commitment's bytes, on a busy machine too.
    let charter = charters::small()?.replace("reveal_ms = 10000", "reveal_ms = 30000");
    ensure!(charter.contains("= 30000"));
    let run = network.open_small_run_of(&charter).await?;
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
    // The first worker joins again whenever it finds itself faster: this one is the third's alone.
    let of_third = Relay::start(network.hub_address()).await?;
    for moment in [Moment::BeforeRequest, Moment::BeforeAnswer] {
        killed_while_one_joins(&mut network, &of_third, run, moment)
            .await
            .with_context(|| format!("join, {moment:?}"))?;
        killed_while_one_leaves(&mut network, &of_third, run, moment)
            .await
            .with_context(|| format!("leave, {moment:?}"))?;
        killed_while_a_run_is_opened(&mut network, &relay, run, moment)
            .await
            .with_context(|| format!("new run, {moment:?}"))?;
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

/// The hub dies while a third worker joins: it becomes a worker all the same, and once.
async fn killed_while_one_joins(
    network: &mut Network,
    relay: &Relay,
    run: RunId,
    moment: Moment,
) -> Result<()> {
    relay.set_trap(Wanted::Join, moment);
    network.start_worker_as(run, "third", &Start::with_hub(relay.url()))?;
    relay.caught(WAIT_MAX).await?;
    let before = network.log(run).await?;
    network.kill_hub()?;
    relay.cut();
    network.start_hub().await?;
    let after = network.log(run).await?;
    goes_on(&before, &after)?;
    network.has_joined(run, "third").await?;
    let third = network.worker_id(run, "third").await?;
    network.merged_of(run, third).await?;
    let log = network.log(run).await?;
    let stays = stays_of(&log, third);
    // The same join again costs the log nothing; one that tells of a higher speed is another.
    for devices in &stays {
        let is_new = |pair: &[&Device]| pair[0] != pair[1];
        ensure!(devices.windows(2).all(is_new), "joins: {devices:?}");
    }
    let is_granted = moment == Moment::BeforeAnswer;
    let stay_before = stays_of(&before, third).len();
    ensure!(
        !is_granted || stays.len() == stay_before,
        "the join that was granted is lost"
    );
    Ok(())
}

/// What the worker said about its machine whenever it joined, by its stays in the run.
fn stays_of(log: &[Entry], worker: WorkerId) -> Vec<Vec<&Device>> {
    let mut stays: Vec<Vec<&Device>> = vec![];
    let mut is_away = true;
    for entry in log {
        match &entry.event {
            Event::WorkerJoined { command } if command.worker == worker => {
                let Command::Join { device, .. } = &command.command else {
                    continue;
                };
                match stays.last_mut().filter(|_| !is_away) {
                    Some(stay) => stay.push(device),
                    None => stays.push(vec![device]),
                }
                is_away = false;
            }
            Event::WorkerLeft { command } if command.worker == worker => is_away = true,
            _ => {}
        }
    }
    stays
}

/// The hub dies while that worker says goodbye: it stops, and whether it has left is what the log says.
async fn killed_while_one_leaves(
    network: &mut Network,
    relay: &Relay,
    run: RunId,
    moment: Moment,
) -> Result<()> {
    let third = network.worker_id(run, "third").await?;
    let leaves = |log: &[Entry]| {
        let left = log.iter().filter(
            |it| matches!(&it.event, Event::WorkerLeft { command } if command.worker == third),
        );
        left.count()
    };
    let earlier = leaves(&network.log(run).await?);
    relay.set_trap(Wanted::Leave, moment);
    network.ask_worker_to_stop("third")?;
    relay.caught(WAIT_MAX).await?;
    let before = network.log(run).await?;
    network.kill_hub()?;
    relay.cut();
    network.start_hub().await?;
    let after = network.log(run).await?;
    goes_on(&before, &after)?;
    network.worker_ends("third").await?;
    let is_written = moment == Moment::BeforeAnswer;
    ensure!(
        !is_written || leaves(&network.log(run).await?) == earlier + 1,
        "a goodbye that was granted is lost"
    );
    network.merged(run, 1).await
}

/// The hub dies while its operator opens a run: it is there whole, or not at all and can be opened.
async fn killed_while_a_run_is_opened(
    network: &mut Network,
    relay: &Relay,
    run: RunId,
    moment: Moment,
) -> Result<()> {
    let name = format!("other-{moment:?}");
    let charter = std::fs::read_to_string(network.folder.join("charter.toml"))?;
    let charter = charter.replace("name = \"demo\"", &format!("name = \"{name}\""));
    let file = network.folder.join(format!("{name}.toml"));
    std::fs::write(&file, charter)?;
    let [file, data] = [file, network.folder.join("small")].map(|it| it.display().to_string());
    let before = network.log(run).await?;
    relay.set_trap(Wanted::NewRun, moment);
    let (home, program) = (network.folder.join("home"), places::athome()?);
    let url = relay.url();
    let home = home.display().to_string();
    let arguments = [
        "--home", &home, "run", "create", &file, "--data", &data, "--hub", &url,
    ]
    .map(str::to_owned);
    let creating = tokio::spawn(async move { process::run(&program, &arguments).await });
    relay.caught(WAIT_MAX).await?;
    network.kill_hub()?;
    relay.cut();
    network.start_hub().await?;
    goes_on(&before, &network.log(run).await?)?;
    creating.await??;
    let is_there = async |network: &Network| -> Result<bool> {
        let runs = network.client()?.runs().await?;
        Ok(runs.iter().any(|it| it.name == name))
    };
    let is_written = moment == Moment::BeforeAnswer;
    ensure!(!is_written || is_there(network).await?, "the run is lost");
    if !is_there(network).await? {
        let hub = network.hub_url();
        network
            .athome(&["run", "create", &file, "--data", &data, "--hub", &hub])
            .await?;
        ensure!(is_there(network).await?);
    }
    network.merged(run, 1).await
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
