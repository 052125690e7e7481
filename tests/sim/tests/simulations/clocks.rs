//! Clocks that are wrong by hours.

use anyhow::{Result, ensure};
use sim::Simulation;

use super::{MINUTE, check, few};

const HOUR_MS: i64 = 3_600_000;

/// Rounds go on at their pace, by the time that passes.
async fn keeps_pace(simulation: &mut Simulation) -> Result<()> {
    let before = simulation.rounds_merged();
    simulation.live_for(5 * MINUTE).await?;
    let merged = simulation.rounds_merged() - before;
    // Half a minute each; one more closes at once when a deadline is leapt over.
    ensure!(
        (7..=14).contains(&merged),
        "{merged} rounds in five minutes"
    );
    Ok(())
}

#[test]
fn the_hub_leaps_forth_and_back() {
    let outcome = check(41, few(5), async move |simulation| {
        simulation.live_to_round(3).await?;
        for wrong_ms in [7 * HOUR_MS, -11 * HOUR_MS, 0, 30 * HOUR_MS] {
            simulation.hub.clock.set_wrong_by_ms(wrong_ms);
            keeps_pace(simulation).await?;
        }
        Ok(())
    });
    assert_eq!(outcome.updates_refused, 0);
}

#[test]
fn a_hub_starts_with_a_clock_behind_its_log() {
    check(42, few(5), async move |simulation| {
        simulation.live_to_round(3).await?;
        simulation.hub.clock.set_wrong_by_ms(9 * HOUR_MS);
        simulation.live_to_round(5).await?;
        simulation.hub.die(sim::nodes::Death::Process).await;
        simulation.hub.clock.set_wrong_by_ms(-9 * HOUR_MS);
        simulation.hub.start().await?;
        keeps_pace(simulation).await
    });
}

#[test]
fn workers_are_wrong_each_in_their_own_way() {
    let outcome = check(43, few(5), async move |simulation| {
        let wrong = [-20 * HOUR_MS, -HOUR_MS, HOUR_MS, 6 * HOUR_MS, 48 * HOUR_MS];
        for (worker, wrong_ms) in simulation.workers.iter().zip(wrong) {
            worker.clock.set_wrong_by_ms(wrong_ms);
        }
        simulation.live_to_round(6).await?;
        // Commands are numbered by the clock: one that went back must not make a worker mute.
        for (worker, wrong_ms) in simulation.workers.iter().zip(wrong) {
            worker.clock.set_wrong_by_ms(-wrong_ms);
        }
        keeps_pace(simulation).await
    });
    assert_eq!(outcome.rounds_of.len(), 5);
    for (worker, rounds) in &outcome.rounds_of {
        assert!(rounds.len() >= 10, "{worker}: {rounds:?}");
    }
}
