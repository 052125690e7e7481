//! How much of its time a worker behind a home link spends in inner steps that count.
//!
//! Model A, 10 Mb/s up, 50 Mb/s down, 40 ms. The worker has a core for itself; hub, relay and a second, slower worker, which
//! keeps rounds from closing as soon as the first has committed, share the other.
//!
//! `utilisation` = time in inner steps of accepted updates (the worker measures each: tokens, forward, backward, AdamW; not
//! the hashes of the step tree) over wall time, from the beginning of one round's training to the beginning of another's,
//! so that everything between two rounds counts against it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::{
    link::{Link, Shape},
    network::{Network, Start},
};

use crate::{
    charters, figure,
    log::{FILTER, Follower, Line, Slot, accepted},
};

/// A round's window: at 1,000 tokens a second about 30 inner steps of 2,048 tokens, which the references name for models of
/// this size.
const WINDOW: Duration = Duration::from_secs(60);
/// Rounds before the counted ones: the first has no update to send, and memory is touched for the first time.
const ROUNDS_BEFORE: usize = 1;
/// Rounds that are counted.
const ROUNDS: usize = 6;

pub(crate) async fn measure() -> Result<()> {
    let under = |core: &str| Start::under(&format!("taskset -c {core}"));
    let mut network = Network::start_as("bench-home-link", under("0")).await?;
    let charter = charters::model_a(WINDOW.as_millis() as u64)?;
    let run = network.open_run_of(&charter).await?;
    let link = Link::to(network.hub_address(), Shape::HOME)?;
    let start = Start {
        hub_url: link.hub_url(),
        environment: vec![("ATHOME_LOG", FILTER.to_owned())],
        arguments: vec!["--nice".to_owned(), "0".to_owned()],
        link: Some(&link),
        ..under("1")
    };
    network.start_worker_as(run, "measured", &start)?;
    network.joined(run, 1).await?;
    let slow = Start {
        arguments: vec!["--nice".to_owned(), "19".to_owned()],
        ..under("0")
    };
    network.start_worker_as(run, "slow", &slow)?;

    let mut log = Follower::new(&network.worker_log("measured"));
    let mut begins: Vec<(Slot, Instant)> = Vec::new();
    let mut ends: Vec<(Slot, u64)> = Vec::new();
    let longest = WINDOW * (2 * (ROUNDS_BEFORE + ROUNDS) as u32 + 3);
    let begun = Instant::now();
    while begins.len() <= ROUNDS_BEFORE + ROUNDS {
        for line in log.lines() {
            match line {
                Line::Begins(slot) => begins.push((slot, Instant::now())),
                Line::FirstStep(_) => {}
                Line::Ends(slot, stepping_ms) => {
                    println!("round {}: {stepping_ms} ms in inner steps", slot.0);
                    ends.push((slot, stepping_ms));
                }
            }
        }
        network.must_run()?;
        ensure!(begun.elapsed() < longest, "rounds take too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let counted = accepted(&network.client()?, run, "measured").await?;
    let first = begins[ROUNDS_BEFORE];
    let last = begins[ROUNDS_BEFORE + ROUNDS];
    let in_window = |slot: &Slot| first.0.0 <= slot.0 && slot.0 < last.0.0;
    let stepping_ms: u64 = ends
        .iter()
        .filter(|(slot, _)| in_window(slot) && counted.contains(slot))
        .map(|(_, stepping_ms)| stepping_ms)
        .sum();
    let wall = last.1 - first.1;
    for pair in begins.windows(2) {
        println!(
            "round {}: {:.2} s until the next began",
            pair[0].0.0,
            (pair[1].1 - pair[0].1).as_secs_f64()
        );
    }
    let (up, down) = link.traffic();
    println!("on the link: {up:?} up, {down:?} down");
    let utilisation = stepping_ms as f64 / 1e3 / wall.as_secs_f64();
    figure("utilisation", utilisation, "ratio");
    figure("utilisation_rounds", ROUNDS as f64, "rounds");
    figure("utilisation_window", WINDOW.as_secs_f64(), "s");
    network.finish().await
}
