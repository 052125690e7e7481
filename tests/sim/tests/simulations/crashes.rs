//! Power cuts in the middle of each of many writes: what was not synced is kept, lost or torn, sector by sector.

use std::time::Duration;

use anyhow::Result;
use sim::{Profile, Simulation};

use super::{check, few};

/// Rounds of one simulation.
const ROUNDS: u64 = 5;

fn small() -> Profile {
    Profile {
        window_ms: 8_000,
        reveal_ms: 4_000,
        step_ms: (500, 2_000),
        start_within: Duration::from_secs(4),
        ..few(3)
    }
}

/// Lets the power of one machine fail after so many writes of its second round, and the run go on.
fn fails(
    seed: u64,
    writes: std::ops::Range<u64>,
    fail: impl Fn(&mut Simulation, u64) + Copy + Send + 'static,
) {
    for writes in writes {
        let outcome = check(
            seed + writes,
            small(),
            async move |simulation| -> Result<()> {
                simulation.live_to_round(1).await?;
                fail(simulation, writes);
                simulation.live_to_round(ROUNDS).await
            },
        );
        assert!(outcome.updates_merged > ROUNDS, "{writes} writes");
    }
}

/// A round of three workers takes the hub a little more than a hundred writes and syncs.
#[test]
fn the_hub_loses_power_in_the_middle_of_any_write() {
    fails(5_000, 0..40, |simulation, writes| {
        // Denser at first, where a round begins, and through a whole round.
        let writes = writes + writes * writes / 12;
        simulation.hub.disk.fail_power_after(writes);
    });
}

#[test]
fn a_worker_loses_power_in_the_middle_of_any_write() {
    fails(6_000, 0..16, |simulation, writes| {
        for worker in &simulation.workers {
            worker.disk.fail_power_after(writes);
        }
    });
}
