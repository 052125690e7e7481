//! Workers go, and come back.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use protocol::units::WorkerId;
use sim::{Outcome, Simulation, nodes::Death};

use super::{MINUTE, check, few};

/// Everyone merged something in a round after this one.
#[track_caller]
fn are_all_back(outcome: &Outcome, workers: &[WorkerId], after: u64) {
    for worker in workers {
        let rounds = outcome.rounds_of.get(worker);
        let last = rounds.and_then(BTreeSet::last).copied();
        assert!(last > Some(after), "{worker}: {rounds:?}");
    }
}

fn ids(simulation: &Simulation) -> Vec<WorkerId> {
    simulation.workers.iter().map(|it| it.id).collect()
}

async fn kill(simulation: &mut Simulation, workers: std::ops::Range<usize>) {
    for worker in &mut simulation.workers[workers] {
        worker.die(Death::Process).await;
    }
}

async fn is_training(simulation: &mut Simulation) -> Result<()> {
    while !simulation.workers.iter().all(|it| it.is_training()) {
        simulation.live_for(Duration::from_secs(1)).await?;
    }
    Ok(())
}

#[test]
fn all_workers_leave_for_a_day() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = check(21, few(5), async move |simulation| {
        simulation.live_to_round(3).await?;
        is_training(simulation).await?;
        kill(simulation, 0..5).await;
        simulation.live_for(24 * 60 * MINUTE).await?;
        let merged = simulation.rounds_merged();
        ensure!(merged <= 5, "{merged} rounds were merged without anyone");
        for worker in &mut simulation.workers {
            worker.start();
        }
        let begun = simulation.elapsed();
        simulation.live_to_round(merged + 4).await?;
        let took = simulation.elapsed() - begun;
        ensure!(took < 5 * MINUTE, "{} s to four rounds", took.as_secs());
        sender.send((ids(simulation), merged))?;
        Ok(())
    });
    let (workers, merged) = receiver.recv().unwrap();
    are_all_back(&outcome, &workers, merged);
    assert!(outcome.simulated >= 24 * 60 * MINUTE);
    // A day without anyone is no day of empty rounds.
    assert!(outcome.rounds_empty <= 2, "{}", outcome.rounds_empty);
}

#[test]
fn half_the_workers_leave_at_once() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = check(22, few(8), async move |simulation| {
        simulation.live_to_round(4).await?;
        is_training(simulation).await?;
        kill(simulation, 0..4).await;
        let before = simulation.rounds_merged();
        simulation.live_for(6 * MINUTE).await?;
        let merged = simulation.rounds_merged();
        // A window is half a minute; nobody waits for the others longer than the hard cap of the first round.
        ensure!(merged >= before + 8, "{before} to {merged} rounds");
        for worker in &mut simulation.workers[..4] {
            worker.start();
        }
        simulation.live_to_round(merged + 4).await?;
        sender.send((ids(simulation), before, merged))?;
        Ok(())
    });
    let (workers, before, merged) = receiver.recv().unwrap();
    are_all_back(&outcome, &workers, merged);
    // What those who left had committed to may have come in; nothing more.
    for worker in &workers[..4] {
        let meanwhile = outcome.rounds_of[worker].range(before + 3..merged);
        assert_eq!(meanwhile.count(), 0, "{worker}");
    }
}
