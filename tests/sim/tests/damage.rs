//! A hub's disk that loses what was acknowledged: the run goes on, with the bytes if their worker sends them again in time,
//! and without them if not.

use std::{collections::BTreeSet, path::Path, sync::Arc, sync::atomic::Ordering, time::Duration};

use anyhow::{Context, Result};
use network::{HubClient, disk::Disk, log::LogReader};
use protocol::{
    Hash,
    event::{Event, RefusalReason},
    log::Entry,
    state::{SlotProgress, State},
    succession::Chain,
    units::WorkerId,
};
use sim::{
    Profile, Simulation,
    chance::Chance,
    in_simulated_world,
    network::{Link, Weather},
    nodes::Death,
};
use tokio_util::sync::CancellationToken;

/// Between two looks for an update that was accepted and not merged yet.
const LOOK: Duration = Duration::from_millis(100);
/// Longest simulated time for anything.
const LONGEST: Duration = Duration::from_secs(1_200);

#[test]
fn a_damaged_update_is_sent_again_and_merged() {
    let told = in_simulated_world(1, || damaged(1, true)).unwrap();
    assert_eq!(told.broken, Vec::<String>::new());
    assert!(told.is_merged, "{told:?}");
    assert_eq!(told.lost, BTreeSet::new());
}

#[test]
fn a_damaged_update_that_nobody_sends_again_stops_nothing() {
    let told = in_simulated_world(2, || damaged(2, false)).unwrap();
    assert_eq!(told.broken, Vec::<String>::new());
    assert!(!told.is_merged, "{told:?}");
    assert_eq!(told.lost, BTreeSet::from([told.update]));
}

#[derive(Debug)]
struct Told {
    update: Hash,
    is_merged: bool,
    /// Updates that the log says the hub lost.
    lost: BTreeSet<Hash>,
    broken: Vec<String>,
}

/// One bit of an accepted update is another when the hub starts again, before it is merged; its worker is there or not.
async fn damaged(seed: u64, worker_is_there: bool) -> Result<Told> {
    let profile = Profile {
        workers: 3,
        ..Profile::calm()
    };
    let mut simulation = Simulation::begin(seed, profile).await?;
    simulation.live_until(LONGEST, 2).await?;
    let (update, worker) = loop {
        let until = simulation.elapsed() + LOOK;
        simulation.live_until(until, u64::MAX).await?;
        if let Some(found) = accepted(&log(&simulation).await?)? {
            break found;
        }
        anyhow::ensure!(simulation.elapsed() < LONGEST, "nothing was accepted early");
    };
    simulation.hub.die(Death::Process).await;
    let file = Path::new("/hub/blobs").join(update.to_string());
    let mut bytes = simulation.hub.disk.read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    simulation.hub.disk.write_private(&file, &bytes)?;
    if !worker_is_there {
        let workers = simulation.workers.iter();
        let its = workers.filter(|it| it.id == worker);
        its.for_each(|it| it.is_down.store(true, Ordering::Relaxed));
    }
    simulation.hub.start().await?;
    let until = simulation.elapsed() + Duration::from_secs(300);
    simulation.live_until(until, u64::MAX).await?;
    let entries = log(&simulation).await?;
    let merges = entries.iter().filter_map(|it| match &it.event {
        Event::RoundMerged { updates, .. } => Some(updates),
        _ => None,
    });
    anyhow::ensure!(merges.clone().count() >= 6, "the run stands still");
    let is_merged = merges.flatten().any(|it| it.update.hash == update);
    let lost = lost(&entries)?;
    let outcome = simulation.end().await?;
    // Nobody can give back what was lost: its bytes are gone, and an honest update is refused.
    let gone = format!("the acknowledged blob {update} is gone");
    let reason = RefusalReason::Lost.sentence();
    let is_of_it = |it: &str| it == gone || it.ends_with(&reason);
    let broken = outcome.broken.into_iter();
    Ok(Told {
        broken: broken.filter(|it| is_merged || !is_of_it(it)).collect(),
        update,
        is_merged,
        lost,
    })
}

/// An update that is accepted and waits for its merge at the log's end, and its worker.
fn accepted(entries: &[Entry]) -> Result<Option<(Hash, WorkerId)>> {
    let state = folded(entries, |_, _| {})?;
    let slots = state.rounds_in_progress().flat_map(|it| it.slots());
    let mut accepted = slots.filter_map(|it| match &it.progress {
        SlotProgress::Accepted { commitment, .. } => Some((commitment.update.hash, it.worker)),
        _ => None,
    });
    Ok(accepted.next())
}

/// Updates that the log says were lost.
fn lost(entries: &[Entry]) -> Result<BTreeSet<Hash>> {
    let mut lost = BTreeSet::new();
    folded(entries, |state, event| {
        if let Event::UpdateRefused {
            round,
            slot,
            reason: RefusalReason::Lost,
            ..
        } = event
        {
            let round = state.round_in_progress(*round);
            let part = round.and_then(|it| it.slots().get(*slot as usize));
            lost.extend(part.and_then(|it| Some(it.commitment()?.update.hash)));
        }
    })?;
    Ok(lost)
}

fn folded(entries: &[Entry], mut each: impl FnMut(&State, &Event)) -> Result<State> {
    let mut state = State::create(entries.first().context("the log is empty")?)?;
    for entry in &entries[1..] {
        each(&state, &entry.event);
        state.apply_decided(entry)?;
    }
    Ok(state)
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
