//! Full disks.

use anyhow::ensure;

use super::{MINUTE, check, few};

#[test]
fn a_full_hub_goes_on_when_there_is_room() {
    let outcome = check(51, few(5), async move |simulation| {
        simulation.live_to_round(3).await?;
        simulation.hub.disk.set_full(true);
        simulation.live_for(4 * MINUTE).await?;
        let merged = simulation.rounds_merged();
        ensure!(merged <= 5, "{merged} rounds were written to a full disk");
        simulation.hub.disk.set_full(false);
        let begun = simulation.elapsed();
        simulation.live_to_round(merged + 4).await?;
        let took = simulation.elapsed() - begun;
        ensure!(took < 4 * MINUTE, "{} s to four rounds", took.as_secs());
        Ok(())
    });
    assert_eq!(outcome.rounds_of.len(), 5);
}

#[test]
fn a_full_worker_comes_back_when_there_is_room() {
    let outcome = check(52, few(4), async move |simulation| {
        simulation.live_to_round(3).await?;
        let full = &simulation.workers[0].disk;
        full.set_full(true);
        simulation.live_for(3 * MINUTE).await?;
        let merged = simulation.rounds_merged();
        ensure!(
            merged >= 6,
            "one full disk holds up the others: {merged} rounds"
        );
        simulation.workers[0].disk.set_full(false);
        simulation.live_to_round(merged + 5).await
    });
    for (worker, rounds) in &outcome.rounds_of {
        let last = rounds.last().copied().unwrap_or_default();
        assert!(last + 3 > outcome.rounds_merged, "{worker}: {rounds:?}");
    }
    assert_eq!(outcome.rounds_of.len(), 4);
}
