//! How much of its time a worker behind a home link spends in inner steps that count.
//!
//! `utilisation` = time in inner steps of accepted updates (the worker measures each: tokens, forward, backward, AdamW; not
//! the hashes of the step tree) over wall time, from the beginning of one round's training to the beginning of another's,
//! so that everything between two rounds counts against it. The worker has a core for itself; hub, relay and a second,
//! slower worker, which keeps rounds from closing as soon as the first has committed, share the other.
//!
//! `utilisation_1b_simulated` runs the same programs as a model of a run with 10^9 parameters in which everything takes a
//! twentieth of its time: a window of 30 s for 10 minutes, 30 inner steps in it, and a link on which model A's update and
//! delta take a twentieth of what 27.3 MB (64 of 4096 kept) and 125 MB take at 10 and 50 Mb/s. Sealing, hashing and applying
//! are not scaled: they are measured as they are for model A, which has 1/81 of the parameters, so they stand for a machine
//! whose processor does them 4 times as fast as the one core here. Waits of the protocol with fixed lengths are not scaled
//! either, and count twentyfold.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use protocol::units::RunId;
use tests::{
    link::{Link, Shape},
    network::{Network, Start},
};

use crate::{
    charters, figure,
    log::{FILTER, Follower, Line, Slot, accepted},
};

/// Rounds before the counted ones: the first has no update to send, and memory is touched for the first time.
const ROUNDS_BEFORE: usize = 1;
/// Rounds that are counted.
const ROUNDS: usize = 5;

/// A run to measure in.
struct Scenario {
    part: &'static str,
    figure: &'static str,
    folder: &'static str,
    window: Duration,
    batch_rows: u64,
    shape: Shape,
}

/// Model A as it is. At 1,000 tokens a second a minute has about 30 inner steps of 2,048 tokens, which the references name
/// for models of this size.
const MODEL_A: Scenario = Scenario {
    part: "a",
    figure: "utilisation",
    folder: "bench-home-link",
    window: Duration::from_secs(60),
    batch_rows: 8,
    shape: Shape::HOME,
};

/// Seconds that the simulated run's window, upload and download take, at 10 and 50 Mb/s.
const BILLION_WINDOW_S: u64 = 600;
const BILLION_UPLOAD_S: f64 = 27.3 * 8.0 / 10.0;
const BILLION_DOWNLOAD_S: f64 = 125.0 * 8.0 / 50.0;
/// How much faster everything goes.
const FASTER: u64 = 20;
/// Sizes of model A's update and delta.
const UPDATE_BITS: f64 = 233e3 * 8.0;
const DELTA_BITS: f64 = 1.62e6 * 8.0;

fn billion() -> Scenario {
    Scenario {
        part: "1b",
        figure: "utilisation_1b_simulated",
        folder: "bench-home-link-1b",
        window: Duration::from_secs(BILLION_WINDOW_S / FASTER),
        batch_rows: 4,
        shape: Shape {
            up_bits_per_s: (UPDATE_BITS / BILLION_UPLOAD_S * FASTER as f64) as u64,
            down_bits_per_s: (DELTA_BITS / BILLION_DOWNLOAD_S * FASTER as f64) as u64,
            round_trip: Shape::HOME.round_trip / FASTER as u32,
            ..Shape::HOME
        },
    }
}

pub(crate) async fn measure(part: Option<&str>) -> Result<()> {
    for scenario in [MODEL_A, billion()] {
        if part.is_some_and(|it| it != scenario.part) {
            continue;
        }
        let utilisation = utilisation(&scenario).await?;
        figure(scenario.figure, utilisation, "ratio");
    }
    Ok(())
}

async fn utilisation(scenario: &Scenario) -> Result<f64> {
    let under = |core: &str| Start::under(&format!("taskset -c {core}"));
    let mut network = Network::start_as(scenario.folder, under("0")).await?;
    let window_ms = scenario.window.as_millis() as u64;
    let charter = charters::model_a(window_ms, scenario.batch_rows)?;
    let run = network.open_run_of(&charter).await?;
    let link = Link::to(network.hub_address(), scenario.shape)?;
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
        arguments: vec!["--nice".to_owned(), "5".to_owned()],
        ..under("0")
    };
    network.start_worker_as(run, "slow", &slow)?;

    let mut log = Follower::new(&network.worker_log("measured"));
    let (begins, ends) = follow(&mut network, &mut log, scenario.window).await?;
    // The last counted round's update is judged and merged while the next one trains.
    let last_counted = begins[ROUNDS_BEFORE + ROUNDS - 1].0.0;
    merged(&network, run, last_counted, scenario.window).await?;
    let counted = accepted(&network.client()?, run, "measured").await?;
    let (first, last) = (begins[ROUNDS_BEFORE], begins[ROUNDS_BEFORE + ROUNDS]);
    let stepping_ms: u64 = ends
        .iter()
        .filter(|(slot, _)| (first.0.0..last.0.0).contains(&slot.0) && counted.contains(slot))
        .map(|(_, stepping_ms)| stepping_ms)
        .sum();
    for pair in begins.windows(2) {
        let (round, took) = (pair[0].0.0, pair[1].1 - pair[0].1);
        let stepping = ends.iter().find(|it| it.0.0 == round).map_or(0, |it| it.1);
        println!(
            "round {round}: {:.2} s, {:.2} s in inner steps",
            took.as_secs_f64(),
            stepping as f64 / 1e3
        );
    }
    let (up, down) = link.traffic();
    println!("on the link: {up:?} up, {down:?} down");
    // A step of the slow one may take longer than a test waits for a process to stop: both are let go of.
    drop(network);
    Ok(stepping_ms as f64 / 1e3 / (last.1 - first.1).as_secs_f64())
}

/// Waits until a round is merged.
async fn merged(network: &Network, run: RunId, round: u64, longest: Duration) -> Result<()> {
    let (client, begun) = (network.client()?, Instant::now());
    while client.round(run, round).await?.phase != "merged" {
        ensure!(begun.elapsed() < longest, "round {round} is not merged");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// When rounds began, and how long their inner steps took in milliseconds.
async fn follow(
    network: &mut Network,
    log: &mut Follower,
    window: Duration,
) -> Result<(Vec<(Slot, Instant)>, Vec<(Slot, u64)>)> {
    let (mut begins, mut ends) = (Vec::new(), Vec::new());
    let longest = window * (2 * (ROUNDS_BEFORE + ROUNDS) as u32 + 3);
    let begun = Instant::now();
    while begins.len() <= ROUNDS_BEFORE + ROUNDS {
        for line in log.lines() {
            match line {
                Line::Begins(slot) => begins.push((slot, Instant::now())),
                Line::FirstStep(_) => {}
                Line::Ends(slot, stepping_ms) => ends.push((slot, stepping_ms)),
            }
        }
        network.must_run()?;
        ensure!(begun.elapsed() < longest, "rounds take too long");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok((begins, ends))
}
