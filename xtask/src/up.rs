//! `cargo xtask up`: a whole network on this machine, in front of you.
//!
//! Hub, three workers of different speed and the gateway run as real processes on loopback and work on the run `demo`.
//! Ctrl-C stops them in order; the next `up` continues where this one stopped.

mod children;
mod demo;
mod preparation;
mod status;

use std::{
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{http, workspace};
use children::{Children, Program};
pub(crate) use preparation::build as prepare;
pub(crate) use status::ask;

/// Longest wait for hub or gateway to answer.
const READY_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at the children.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Time between two lines of status where nobody watches a terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How to start it.
#[derive(Args)]
pub(crate) struct Options {
    /// Forget the last `up`: new keys, new run, new model.
    #[arg(long)]
    fresh: bool,
    /// Where keys, log, blobs and logs of programs are kept [default: .athome in the repository].
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Port of the hub and its web app.
    #[arg(long, default_value_t = 7700)]
    hub_port: u16,
    /// Port of the gateway.
    #[arg(long, default_value_t = 7701)]
    gateway_port: u16,
}

/// Addresses of one network.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    /// The hub and its web app.
    pub(crate) hub: SocketAddr,
    /// The gateway.
    pub(crate) gateway: SocketAddr,
}

/// Starts everything and stays until Ctrl-C.
pub(crate) fn run(options: &Options) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let folder = options
        .folder
        .clone()
        .unwrap_or_else(|| workspace::root().join(".athome"));
    let addresses = Addresses {
        hub: loopback(options.hub_port),
        gateway: loopback(options.gateway_port),
    };
    let _lock = preparation::claim(&folder, options.fresh)?;
    preparation::check_ports(addresses)?;
    preparation::check_disk(&folder)?;
    preparation::build()?;
    let mut network = Network::start(&folder, addresses, &stop)?;
    println!(
        "\n  web app   http://{}/\n  gateway   http://{}/v1   (OpenAI clients: base_url)\n  logs      {}\n\nCtrl-C stops everything; the next `cargo xtask up` continues.\n",
        addresses.hub,
        addresses.gateway,
        folder.join("logs").display()
    );
    let outcome = watch(&mut network, addresses, &stop);
    println!("\nstopping");
    network.children.stop();
    println!("stopped; everything is kept in {}", folder.display());
    outcome
}

/// Hub, gateway and workers.
pub(crate) struct Network {
    children: Children,
}

impl Network {
    /// Starts the hub, opens the run `demo` if it is not there, then gateway and workers.
    pub(crate) fn start(folder: &Path, addresses: Addresses, stop: &AtomicBool) -> Result<Self> {
        let mut children = Children::new(folder.join("logs"))?;
        children.start(demo::hub(folder, addresses))?;
        ready(&mut children, addresses.hub, "/api/v1/hub", stop)?;
        demo::open_run(folder, addresses)?;
        children.start(demo::gateway(folder, addresses))?;
        ready(&mut children, addresses.gateway, "/health", stop)?;
        for (index, worker) in demo::workers(folder, addresses).into_iter().enumerate() {
            children.start(worker)?;
            if index == 0 {
                // A worker measures its speed before it joins, and the fastest begins alone:
                // three that measure at once on two cores would measure one another.
                wait(&mut children, stop, "the first worker to join", || {
                    let run = status::ask(addresses.hub);
                    run.is_ok_and(|it| 0 < it.workers_present || it.phase == "finished")
                })?;
            }
        }
        Ok(Self { children })
    }

    /// Restarts what died; an error when something dies again and again.
    pub(crate) fn look_after(&mut self) -> Result<()> {
        self.children.look_after()
    }

    /// Stops everything in order.
    pub(crate) fn stop(&mut self) {
        self.children.stop();
    }
}

fn ready(
    children: &mut Children,
    address: SocketAddr,
    path: &str,
    stop: &AtomicBool,
) -> Result<()> {
    wait(
        children,
        stop,
        &format!("http://{address}{path} to answer"),
        || http::get(address, path).is_ok_and(|it| it.status == 200),
    )
}

fn wait(
    children: &mut Children,
    stop: &AtomicBool,
    what: &str,
    is_so: impl Fn() -> bool,
) -> Result<()> {
    let begin = Instant::now();
    while !is_so() {
        children.look_after()?;
        if stop.load(Ordering::Relaxed) {
            bail!("stopped before everything had started");
        }
        if READY_MAX < begin.elapsed() {
            bail!(
                "waited {} s in vain for {what}; see the logs in {}",
                READY_MAX.as_secs(),
                children.logs().display()
            );
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn watch(network: &mut Network, addresses: Addresses, stop: &AtomicBool) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let mut next_line = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        network.look_after()?;
        let now = Instant::now();
        if next_line <= now {
            let line = status::line(addresses.hub);
            if terminal {
                status::rewrite(&line).context("cannot write to the terminal")?;
                next_line = now + Duration::from_secs(1);
            } else {
                println!("{line}");
                next_line = now + LINE_EVERY;
            }
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A program named after its part, running the `athome` binary.
fn athome(name: &str, arguments: Vec<String>) -> Program {
    Program {
        name: name.to_owned(),
        binary: workspace::athome(),
        arguments,
        fallback: None,
        may_end: false,
    }
}
