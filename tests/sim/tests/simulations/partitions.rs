//! A partition, and its end.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use anyhow::ensure;
use sim::Simulation;

use super::{MINUTE, check, few};

fn cut_off(simulation: &Simulation, workers: usize, is_down: bool) {
    for worker in &simulation.workers[..workers] {
        worker.is_down.store(is_down, Ordering::Relaxed);
    }
}

#[test]
fn most_workers_are_cut_off_and_come_back() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = check(31, few(6), async move |simulation| {
        simulation.live_to_round(3).await?;
        let before = simulation.rounds_merged();
        cut_off(simulation, 4, true);
        simulation.live_for(5 * MINUTE).await?;
        let merged = simulation.rounds_merged();
        ensure!(
            merged >= before + 6,
            "{before} to {merged} rounds with two of six"
        );
        cut_off(simulation, 4, false);
        simulation.live_to_round(merged + 4).await?;
        let ids: Vec<_> = simulation.workers.iter().map(|it| it.id).collect();
        sender.send((ids, before, merged))?;
        Ok(())
    });
    let (workers, before, merged) = receiver.recv().unwrap();
    for (index, worker) in workers.iter().enumerate() {
        let rounds = &outcome.rounds_of[worker];
        assert!(rounds.last() > Some(&merged), "{worker}: {rounds:?}");
        let meanwhile: BTreeSet<_> = rounds.range(before + 3..=merged).collect();
        assert_eq!(meanwhile.is_empty(), index < 4, "{worker}: {rounds:?}");
    }
}

#[test]
fn everyone_is_cut_off_in_the_middle_of_a_round() {
    let outcome = check(32, few(5), async move |simulation| {
        simulation.live_to_round(3).await?;
        cut_off(simulation, 5, true);
        // A round and a half: commitments and uploads of that time wait at the workers.
        simulation.live_for(MINUTE * 3 / 4).await?;
        let merged = simulation.rounds_merged();
        cut_off(simulation, 5, false);
        simulation.live_to_round(merged + 4).await
    });
    assert!(
        outcome.updates_late > 0,
        "the work of the partition is lost"
    );
}
