//! Time from `up` to a model that has learnt something, on this machine.

use std::{
    fs,
    net::TcpListener,
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::report::Figure;
use crate::{
    up::{Addresses, Network, ask, prepare},
    workspace,
};

/// Longest wait for the trigram model to be beaten.
const WAIT_MAX: Duration = Duration::from_secs(20 * 60);
/// Time between two questions to the hub.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Starts a fresh network in a folder of its own and waits for three moments.
pub(super) fn measure() -> Result<Vec<Figure>> {
    prepare()?;
    let folder = workspace::target().join("bench-demo");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot empty the last bench's folder")?;
    }
    fs::create_dir_all(&folder)?;
    let addresses = Addresses {
        hub: free_port()?,
        gateway: free_port()?,
    };
    let begin = Instant::now();
    let mut network = Network::start(&folder, addresses, &AtomicBool::new(false))?;
    let outcome = follow(&mut network, addresses, begin);
    network.stop();
    outcome
}

fn follow(network: &mut Network, addresses: Addresses, begin: Instant) -> Result<Vec<Figure>> {
    let mut merged = None;
    let mut below_bigram = None;
    loop {
        network.look_after()?;
        let run = ask(addresses.hub)?;
        let now = begin.elapsed().as_secs_f64();
        if 0 < run.rounds_merged && merged.is_none() {
            merged = Some(now);
        }
        let loss = run
            .evaluation
            .as_ref()
            .and_then(|it| it.held_out_loss)
            .unwrap_or(f64::INFINITY);
        if loss < run.baselines.bigram && below_bigram.is_none() {
            println!("below bigram after {now:.1} s, {} tokens", run.tokens);
            below_bigram = Some(now);
        }
        if let (Some(merged), Some(below_bigram)) = (merged, below_bigram)
            && loss < run.baselines.trigram
        {
            return Ok(vec![
                Figure::new("demo_first_merge", merged, "s"),
                Figure::new("demo_below_bigram", below_bigram, "s"),
                Figure::new("demo_below_trigram", now, "s"),
                Figure::new("demo_trigram_tokens", run.tokens as f64, "tokens"),
                Figure::new("demo_held_out_loss", loss, "nats/token"),
                Figure::new("demo_trigram_loss", run.baselines.trigram, "nats/token"),
            ]);
        }
        if WAIT_MAX < begin.elapsed() || run.phase == "finished" {
            bail!(
                "the held-out loss was {loss:.3} after {now:.0} s and {} tokens; the trigram model's is {:.3}",
                run.tokens,
                run.baselines.trigram
            );
        }
        thread::sleep(ASK_EVERY);
    }
}

fn free_port() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port on loopback")?;
    Ok(listener.local_addr()?)
}
