//! What the bench `boinc` runs.
//!
//! `rpc HUB RUN PROCESS [SHARE]` is the load of many hosts on a hub that xtask started (see [`mix`]); with a share above 1
//! it is so much smaller and shorter, to try it. `units SECONDS` measures one stock client of Debian's (see [`units`]).
//! Output: `figure NAME VALUE UNIT` lines; everything else is for whoever watches.

#![expect(clippy::print_stdout, reason = "a bench talks to whoever started it")]

mod crowd;
mod host;
mod mix;
#[cfg(target_os = "linux")]
mod units;
mod wire;

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use protocol::{charter::Charter, units::RunId};

/// The hub, and its process, whose time is looked at.
struct Target {
    process: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |what: &str| arguments.next().with_context(|| format!("say the {what}"));
    match argument("bench: rpc or units")?.as_str() {
        "rpc" => {
            let hub: SocketAddr = argument("hub's address")?.parse()?;
            let run: RunId = argument("run's id")?.parse()?;
            let target = Target {
                process: argument("hub's process id")?.parse()?,
            };
            let share = argument("share").map_or(Ok(1), |it| it.parse())?;
            let path = format!("/api/v1/runs/{run}/charter");
            let request = wire::get(&path, "127.0.0.1");
            let mut connection = tests::connection::Connection::open(hub).await?;
            let charter = connection.ask(&request).await?.body;
            let charter = Charter::from_toml(&String::from_utf8(charter)?)?;
            mix::measure(&target, crowd::Crowd::new(hub, charter), share).await
        }
        #[cfg(target_os = "linux")]
        "units" => units::measure(argument("seconds of a unit")?.parse()?).await,
        other => bail!("there is no bench {other}"),
    }
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
