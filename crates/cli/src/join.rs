//! `athome join`.

use std::path::PathBuf;

use clap::Args;
use tokio_util::sync::CancellationToken;
use worker::{Activity, Config, Status};

use crate::{
    output::{self, StatusLine},
    places::Places,
};

const EXAMPLES: &str = "\
Examples:
  athome join http://127.0.0.1:7700
  athome join https://hub.example --run speeches --name \"kitchen laptop\"
  athome join http://127.0.0.1:7700 --threads 2 --cpu-quota 0.5

Before anything is used, it says what it will use: memory, threads, downloads, disk.
Ctrl-C leaves in order; the next `athome join` goes on with the same key and credit.
Two workers on one machine need two folders (--folder).";

/// More threads than any machine has cores.
const THREADS_MAX: u64 = 4096;

/// Let this machine take part in a run.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Join {
    /// The hub's address
    #[arg(env = "ATHOME_HUB", hide_env_values = true, value_name = "URL")]
    hub: String,
    /// The run, by name or id [default: the hub's first open run]
    #[arg(long)]
    run: Option<String>,
    /// This worker's name in the log [default: the machine's name]
    #[arg(long)]
    name: Option<String>,
    /// Threads that train [default: one for each core]
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=THREADS_MAX), value_name = "N")]
    threads: Option<usize>,
    /// Cores' worth of processor time, such as 0.5 (Linux)
    #[arg(long, value_name = "CORES")]
    cpu_quota: Option<f32>,
    /// How far training gives way to everything else, 0 to 19
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i32).range(0..=19), value_name = "N")]
    nice: i32,
    /// Most disk for cached downloads, in GiB
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=65_536), value_name = "GIB")]
    cache: u64,
    /// Fetch everything from the hub, and give nothing to other workers
    #[arg(long)]
    no_peers: bool,
    /// Where other workers reach this one, UDP [default: any free port; loopback alone if the hub is there too]
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "no_peers")]
    peers_listen: Option<std::net::SocketAddr>,
    /// Most that is sent to other workers, in kB a second [default: no limit]
    #[arg(long, value_name = "KB", conflicts_with = "no_peers", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    peers_upload: Option<u64>,
    /// Address of an iroh relay, by which machines behind routers reach each other; can be given more than once
    #[arg(long, value_name = "URL", conflicts_with = "no_peers")]
    relay: Vec<String>,
    /// Where the key and what is carried from round to round are kept [default: worker in the home folder]
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl Join {
    pub(crate) async fn execute(
        self,
        places: &Places,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let config = Config {
            run: self.run,
            name: self.name,
            threads: self.threads,
            cpu_quota: self.cpu_quota,
            nice: self.nice,
            cache_bytes_max: self.cache << 30,
            peers: !self.no_peers,
            peers_listen: self.peers_listen,
            peers_upload_bytes_per_s_max: self.peers_upload.map(|it| it * 1_000),
            relays: self.relay,
            ..Config::new(self.hub, self.folder.unwrap_or_else(|| places.worker()))
        };
        let mut line = StatusLine::new();
        let cores = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        if let Some(threads) = self.threads
            && threads > cores
        {
            line.keep(&format!(
                "This machine has {cores} cores for this worker: {threads} threads will wait for each other."
            ));
        }
        let mut told = Told::default();
        let summary = worker::run(&config, shutdown, |status| told.tell(status, &mut line)).await;
        line.end();
        output::print(&summary?.to_string())
    }
}

/// What the owner was told already and need not read twice.
#[derive(Default)]
struct Told {
    updates_refused: u64,
    announced: bool,
}

impl Told {
    fn tell(&mut self, status: &Status, line: &mut StatusLine) {
        if let Activity::Announcing(plan) = &status.activity
            && !self.announced
        {
            self.announced = true;
            line.keep(&plan.to_string());
        }
        if status.updates_refused > self.updates_refused {
            self.updates_refused = status.updates_refused;
            let reason = status
                .last_refusal
                .as_deref()
                .unwrap_or("the hub gave no reason");
            line.keep(&format!("An update was refused: {reason}"));
        }
        line.set(&status.to_string());
    }
}
