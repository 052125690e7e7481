//! A hub that starts again from an older copy of its folder: what it had acknowledged since then, its workers give it again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use network::{HubClient, log::LogReader};
use protocol::{Hash, command::Command, event::Event, log::Entry, succession::Chain};
use sim::{
    Profile, Simulation,
    chance::Chance,
    in_simulated_world,
    network::{Link, Weather},
    nodes::Death,
};
use tokio_util::sync::CancellationToken;

/// Longest simulated time that the hub works after the copy was made.
const LOST: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(45),
    Duration::from_secs(95),
];

#[test]
fn what_an_older_copy_lacks_its_workers_bring() {
    for (seed, lost) in (1..).zip(LOST) {
        let told = in_simulated_world(seed, move || went_back(seed, lost)).unwrap();
        assert_eq!(told.lost, BTreeSet::new(), "seed {seed}, {lost:?}");
        assert!(
            0 < told.again || lost < LOST[1],
            "seed {seed}: nothing was lost"
        );
        assert_eq!(told.failures, 0);
    }
}

struct Told {
    /// Updates of the round that was open in the copy, which the log without it had and the one after it has not.
    lost: BTreeSet<Hash>,
    /// Updates that the copy lacked and the log has.
    again: usize,
    failures: usize,
}

async fn went_back(seed: u64, lost: Duration) -> Result<Told> {
    let profile = Profile {
        workers: 4,
        ..Profile::calm()
    };
    let mut simulation = Simulation::begin(seed, profile).await?;
    simulation.live_until(Duration::from_secs(600), 5).await?;
    // In the middle of a round, when some have committed perhaps.
    let until = simulation.elapsed() + Duration::from_secs(22);
    simulation.live_until(until, u64::MAX).await?;
    let copied = log(&simulation).await.context("before the copy")?;
    let image = simulation.hub.disk.image();
    let until = simulation.elapsed() + lost;
    simulation.live_until(until, u64::MAX).await?;
    let before = log(&simulation).await.context("before the death")?;
    simulation.hub.die(Death::Process).await;
    simulation.hub.disk.restore(&image);
    simulation.hub.start().await?;
    let until = simulation.elapsed() + Duration::from_secs(300);
    simulation.live_until(until, u64::MAX).await?;
    let after = log(&simulation).await.context("at the end")?;

    let length = copied.len();
    ensure!(
        after[..length] == copied[..],
        "the copy is not the log's beginning"
    );
    let merged = |entries: &[Entry]| {
        let is_merge = |it: &&Entry| matches!(it.event, Event::RoundMerged { .. });
        entries.iter().filter(is_merge).count()
    };
    ensure!(
        merged(&copied) + 5 < merged(&after),
        "the run does not go on"
    );
    let round = copied
        .iter()
        .rev()
        .find_map(|it| match &it.event {
            Event::RoundOpened { round, .. } => Some(*round),
            _ => None,
        })
        .context("no round was opened")?;
    let (old, new) = (committed(&before[length..]), committed(&after[length..]));
    let of_round = |updates: &BTreeSet<(u64, Hash)>| -> BTreeSet<Hash> {
        let found = updates.iter().filter(|(of, _)| *of == round);
        found.map(|(_, hash)| *hash).collect()
    };
    Ok(Told {
        lost: &of_round(&old) - &of_round(&new),
        again: old.intersection(&new).count(),
        failures: simulation.failures.len(),
    })
}

/// Rounds and hashes of the updates that entries commit to.
fn committed(entries: &[Entry]) -> BTreeSet<(u64, Hash)> {
    let update = |entry: &Entry| match &entry.event {
        Event::UpdateCommitted { command } => match &command.command {
            Command::Commit(commitment) => Some((commitment.header.round, commitment.update.hash)),
            Command::Join { .. } | Command::Leave { .. } => None,
        },
        _ => None,
    };
    entries.iter().filter_map(update).collect()
}

async fn log(simulation: &Simulation) -> Result<Vec<Entry>> {
    let link = Link::new(
        simulation.network.clone(),
        0,
        Weather::calm(),
        Chance::new(0),
        Arc::default(),
        CancellationToken::new(),
    );
    let client = HubClient::over(Arc::new(link), "http://localhost");
    let charter = client.charter(simulation.run).await?;
    let mut reader = LogReader::new(client, Chain::of(&charter));
    let mut entries = Vec::new();
    loop {
        let page = reader.next_page().await?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}
