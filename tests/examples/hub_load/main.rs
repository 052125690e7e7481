//! Load on a hub: a stated mix of requests as fast as they are answered, and thousands of connected workers.
//!
//! `cargo xtask bench hub` starts the hub on one core and this on another. Everything that is sent is real: signed joins and
//! commitments, updates of 100 kB whose hashes were committed to, downloads. Prints `figure NAME VALUE UNIT` lines.

#![expect(clippy::print_stdout, reason = "a bench talks to whoever started it")]

mod connected;
mod crowd;
mod mix;
mod wire;

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use protocol::units::RunId;

/// Where the hub is, and its process, whose memory is looked at.
struct Target {
    hub: SocketAddr,
    run: RunId,
    process: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what: &str| arguments.next().with_context(|| format!("say the {what}"));
    let bench = argument("bench: mix or connected")?;
    let target = Target {
        hub: argument("hub's address")?.parse()?,
        run: argument("run's id")?.parse()?,
        process: argument("hub's process id")?.parse()?,
    };
    let count = argument("number of connections or workers")?.parse()?;
    match bench.as_str() {
        "mix" => mix::measure(&target, count).await,
        "connected" => connected::measure(&target, count).await,
        other => bail!("there is no bench {other}"),
    }
}

/// Memory of the hub's process, in bytes.
fn resident_bytes(process: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kib = line.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.context("the hub has ended")? * 1024)
}

/// Processor time that the hub's process has used, in seconds.
fn processor_seconds(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Fields are counted after the name, which may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .context("no fields")?
        .1
        .split(' ')
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux of today.
    Ok(ticks as f64 / 100.0)
}

/// The value that 99 of 100 are below, in milliseconds.
fn p99_ms(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let index = (seconds.len() * 99 / 100).min(seconds.len().saturating_sub(1));
    seconds.get(index).copied().unwrap_or(f64::NAN) * 1e3
}
