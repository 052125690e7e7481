//! From `athome join` to the first inner step that counts: a stranger's machine comes to a run at work.
//!
//! Two workers train the demo's model when a third begins in an empty folder, through a home link. The clock runs from the
//! start of its process to the end of the first inner step of an update that is accepted. Several machines come one after
//! the other, at different moments of a round; the median and the worst are told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::{
    link::{Link, Shape},
    network::{Network, Start},
    places,
};

use crate::{
    figure,
    log::{FILTER, Follower, Line, accepted},
};

/// Machines that come.
const NEWCOMERS: u32 = 5;
/// Longest wait for the end of the warm start.
const WARM_START_MAX: Duration = Duration::from_secs(300);
/// Longest wait for one of them to take part.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// Time between two questions whether an update is accepted.
const ASK_EVERY: Duration = Duration::from_millis(200);

pub(crate) async fn measure() -> Result<()> {
    let mut network = Network::start("bench-join").await?;
    let run = network.open_run_of(&places::demo_charter()?).await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.joined(run, 1).await?;
    network.start_worker_as(run, "second", &Start::default())?;
    // While the run warms up one worker has the only slot, and whoever comes waits for its end.
    network
        .watch(run, WARM_START_MAX, "a merge with both", |entry| {
            let updates = entry.body["updates"].as_array();
            (entry.kind == "round_merged" && updates.is_some_and(|it| it.len() == 2)).then_some(())
        })
        .await?;
    let client = network.client()?;
    let mut seconds = Vec::new();
    for newcomer in 0..NEWCOMERS {
        let name = format!("newcomer-{newcomer}");
        let link = Link::to(network.hub_address(), Shape::HOME)?;
        let start = Start {
            hub_url: link.hub_url(),
            environment: vec![("ATHOME_LOG", FILTER.to_owned())],
            // In its network there is nobody else.
            arguments: vec!["--no-peers".to_owned()],
            link: Some(&link),
            ..Start::default()
        };
        let mut log = Follower::new(&network.worker_log(&name));
        let begun = Instant::now();
        network.start_worker_as(run, &name, &start)?;
        let mut steps = Vec::new();
        let counted = loop {
            for line in log.lines() {
                if let Line::FirstStep(slot) = line {
                    steps.push((slot, begun.elapsed()));
                }
            }
            anyhow::ensure!(begun.elapsed() < WAIT_MAX, "{name} did not take part");
            network.must_run()?;
            let next_look = tokio::time::sleep(Duration::from_millis(10));
            if steps.is_empty() {
                next_look.await;
                continue;
            }
            let accepted = accepted(&client, run, &name).await?;
            if let Some((_, at)) = steps.iter().find(|(slot, _)| accepted.contains(slot)) {
                break *at;
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        println!(
            "{name}: {:.2} s to the first counted step, begun {} rounds before",
            counted.as_secs_f64(),
            steps.len() - 1
        );
        seconds.push(counted.as_secs_f64());
        network.stop_worker(&name).await?;
    }
    seconds.sort_by(f64::total_cmp);
    figure("join_seconds", seconds[seconds.len() / 2], "s");
    let worst = *seconds.last().context("nobody came")?;
    figure("join_seconds_worst", worst, "s");
    network.finish().await
}
