//! A network on loopback: hub, workers and gateway as real processes in a folder of their own.

mod mirrors;
mod rounds;
mod start;

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use network::{HubClient, events::Events};
use protocol::{api::LogEntry, units::RunId};

use mirrors::Mirror;
pub use rounds::{goes_on, last_commitment};
pub use start::Start;

use crate::{
    places,
    process::{Process, run_well},
};

/// What `athome join` says where it can't make a control group.
const NO_QUOTA: &str = "does not permit a processor quota";
/// Longest wait for a process to answer its first request, and for the gateway to follow the hub.
const READY_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a worker to have joined.
const JOINED_MAX: Duration = Duration::from_secs(90);
/// Time between two attempts at that.
const READY_EVERY: Duration = Duration::from_millis(50);

/// Hub, gateway, workers and their folder, which is removed when the test has passed.
pub struct Network {
    /// Where everything of it lies.
    pub folder: PathBuf,
    hub_address: SocketAddr,
    gateway_address: SocketAddr,
    hub: Option<Process>,
    hub_start: Start<'static>,
    gateway: Option<Process>,
    workers: BTreeMap<String, Worker>,
    mirrors: BTreeMap<String, Mirror>,
    /// Who is asked instead of the hub, if not that one.
    asked: Option<String>,
}

/// A worker, and how to start it again.
struct Worker {
    process: Process,
    /// With a priority instead of a quota.
    instead: Vec<String>,
    log: PathBuf,
}

impl Network {
    /// A network with a hub, no run and no worker.
    ///
    /// # Errors
    /// If the hub does not answer.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_as(name, Start::default()).await
    }

    /// The same with the hub started in another way, now and whenever it starts again.
    ///
    /// # Errors
    /// If the hub does not answer.
    pub async fn start_as(name: &str, hub: Start<'static>) -> Result<Self> {
        Self::start_in(Self::fresh_folder(name)?, hub).await
    }

    /// An empty folder for a network of this name.
    ///
    /// # Errors
    /// If what the last failure left can't be removed.
    pub fn fresh_folder(name: &str) -> Result<PathBuf> {
        let folder = places::kept().join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).context("cannot remove what the last failure left")?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// A network in this folder.
    ///
    /// # Errors
    /// If the hub does not answer.
    pub async fn start_in(folder: PathBuf, hub: Start<'static>) -> Result<Self> {
        let [hub_address, gateway_address] = free_addresses()?;
        let mut network = Self {
            folder,
            hub_address,
            gateway_address,
            hub: None,
            hub_start: hub,
            gateway: None,
            workers: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            asked: None,
        };
        network.start_hub().await?;
        Ok(network)
    }

    /// Starts the hub, again after [`Self::kill_hub`], on the same address and folder.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn start_hub(&mut self) -> Result<()> {
        ensure!(self.hub.is_none(), "the hub runs already");
        let arguments = [
            "hub".to_owned(),
            "--folder".to_owned(),
            self.path("hub"),
            "--listen".to_owned(),
            self.hub_address.to_string(),
            "--gateway".to_owned(),
            self.gateway_url(),
        ];
        let mut hub = self.hub_process(&arguments)?;
        ready(&format!("{}/api/v1/hub", self.hub_url()), &mut hub).await?;
        self.hub = Some(hub);
        Ok(())
    }

    /// Ends the hub as a power cut would.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill_hub(&mut self) -> Result<()> {
        self.hub.take().context("no hub runs")?.kill()
    }

    /// Stops the hub in order; its folder stays.
    ///
    /// # Errors
    /// If it was not running, or does not stop.
    pub async fn stop_hub(&mut self) -> Result<()> {
        self.hub.take().context("no hub runs")?.stop().await
    }

    /// Starts the gateway.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn start_gateway(&mut self) -> Result<()> {
        let arguments = [
            "gateway".to_owned(),
            self.hub_url(),
            "--listen".to_owned(),
            self.gateway_address.to_string(),
            "--cache".to_owned(),
            self.path("gateway"),
        ];
        let mut gateway = Process::athome(&arguments, &self.folder.join("gateway.log"))?;
        ready(&format!("{}/health", self.gateway_url()), &mut gateway).await?;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Waits until the gateway has taken over a checkpoint of this round or a later one; it looks every two seconds.
    ///
    /// # Errors
    /// If it has not in half a minute.
    pub async fn gateway_serves(&self, round: u64) -> Result<()> {
        let url = format!("{}/v1/models", self.gateway_url());
        let begin = Instant::now();
        loop {
            let models: serde_json::Value = reqwest::get(&url).await?.json().await?;
            let served = models["data"]
                .as_array()
                .and_then(|it| it.iter().filter_map(|it| it["round"].as_u64()).max());
            if served.is_some_and(|it| round <= it) {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < READY_MAX,
                "the gateway serves round {served:?} and not {round} after {READY_MAX:?}"
            );
            tokio::time::sleep(READY_EVERY).await;
        }
    }

    /// Starts a worker with one thread, again after [`Self::kill_worker`], on the same folder.
    ///
    /// `cores` holds it to a core or a part of one. Where the machine permits no quota it gets a lower priority instead.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_worker(&mut self, run: RunId, name: &str, cores: &str) -> Result<()> {
        ensure!(
            !self.workers.contains_key(name),
            "the worker {name} runs already"
        );
        let arguments = [
            "join",
            &self.hub_url(),
            "--run",
            &run.to_string(),
            "--name",
            name,
            "--folder",
            &self.path(&format!("worker-{name}")),
            "--threads",
            "1",
        ]
        .map(str::to_owned)
        .to_vec();
        let nice = match cores {
            "1.0" => "0",
            "0.5" => "12",
            _ => "19",
        };
        let mut limited = arguments.clone();
        limited.extend(["--cpu-quota".to_owned(), cores.to_owned()]);
        let log = self.folder.join(format!("worker-{name}.log"));
        let process = Process::athome(&limited, &log)?;
        let worker = Worker {
            process,
            instead: [arguments, vec!["--nice".to_owned(), nice.to_owned()]].concat(),
            log,
        };
        self.workers.insert(name.to_owned(), worker);
        Ok(())
    }

    /// Waits until so many workers have joined a run.
    ///
    /// A worker measures its speed before it joins: let the swiftest join before the others start to.
    ///
    /// # Errors
    /// If they do not.
    pub async fn joined(&mut self, run: RunId, workers: usize) -> Result<()> {
        let events = self.client()?.events(run, Some(0)).await?;
        let mut joined = 0;
        self.follow(events, JOINED_MAX, "join", |entry| {
            joined += usize::from(entry.kind == "worker_joined");
            (joined == workers).then_some(())
        })
        .await
    }

    /// Ends a worker as a power cut would.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill_worker(&mut self, name: &str) -> Result<()> {
        self.workers
            .remove(name)
            .context("no such worker runs")?
            .process
            .kill()
    }

    /// Opens the demonstration's run on the corpus of speeches.
    ///
    /// # Errors
    /// If the hub refuses it.
    pub async fn open_run(&self) -> Result<RunId> {
        self.open_run_of(&places::demo_charter()?).await
    }

    /// Imports the speeches and opens a run of this charter's text on them; the tokenizer gets as many tokens as the model.
    ///
    /// # Errors
    /// If `athome` refuses either.
    pub async fn open_run_of(&self, charter: &str) -> Result<RunId> {
        let data = self.path("speeches");
        let speeches = places::speeches()?.to_string_lossy().into_owned();
        let vocabulary = charter
            .lines()
            .find_map(|it| it.strip_prefix("vocab_size = "))
            .context("the charter has no vocab_size")?;
        let mut import = vec!["data", "import", "sotu", &speeches, "--out", &data];
        import.extend(["--vocabulary", vocabulary]);
        self.athome(&import).await?;
        self.create(charter, &data).await
    }

    /// Runs an `athome` command that must succeed; returns what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub async fn athome(&self, arguments: &[&str]) -> Result<String> {
        let home = self.path("home");
        run_well(
            &places::athome()?,
            &[&["--home", &home], arguments].concat(),
        )
        .await
    }

    /// The log entries of a run from now on until `found` answers with something.
    ///
    /// # Errors
    /// If that takes longer than `wait`, or a process dies meanwhile.
    pub async fn watch<T>(
        &mut self,
        run: RunId,
        wait: Duration,
        what: &str,
        found: impl FnMut(&LogEntry) -> Option<T>,
    ) -> Result<T> {
        let events = self.client()?.events(run, None).await?;
        self.follow(events, wait, what, found).await
    }

    async fn follow<T>(
        &mut self,
        mut events: Events,
        wait: Duration,
        what: &str,
        mut found: impl FnMut(&LogEntry) -> Option<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        let mut last = String::from("nothing");
        loop {
            let left = wait.saturating_sub(begin.elapsed());
            let Ok(next) =
                tokio::time::timeout(left.min(Duration::from_secs(5)), events.next()).await
            else {
                self.must_run()?;
                ensure!(
                    begin.elapsed() < wait,
                    "no {what} within {wait:?}; the last event was {last}"
                );
                continue;
            };
            let entry = next?.context("the hub closed the stream of events")?;
            if let Some(value) = found(&entry) {
                return Ok(value);
            }
            last = format!("{} at {}", entry.kind, entry.index);
        }
    }

    /// An error with the end of its log if any process has ended.
    ///
    /// # Errors
    /// See there.
    pub fn must_run(&mut self) -> Result<()> {
        for process in self.hub.iter_mut().chain(&mut self.gateway) {
            process.must_run()?;
        }
        for mirror in self.mirrors.values_mut() {
            if let Some(process) = &mut mirror.process {
                process.must_run()?;
            }
        }
        for worker in self.workers.values_mut() {
            let Err(error) = worker.process.must_run() else {
                continue;
            };
            if !error.to_string().contains(NO_QUOTA) {
                return Err(error);
            }
            worker.log.set_extension("again.log");
            worker.process = Process::athome(&worker.instead, &worker.log)?;
        }
        Ok(())
    }

    /// Stops everything in order and removes the folder: what a passing test does last.
    ///
    /// # Errors
    /// If something does not stop by itself.
    pub async fn finish(mut self) -> Result<()> {
        for (name, worker) in std::mem::take(&mut self.workers) {
            worker
                .process
                .stop()
                .await
                .with_context(|| format!("worker {name}"))?;
        }
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await.context("the gateway")?;
        }
        for (name, mirror) in std::mem::take(&mut self.mirrors) {
            if let Some(process) = mirror.process {
                let stopped = process.stop().await;
                stopped.with_context(|| format!("mirror {name}"))?;
            }
        }
        if let Some(hub) = self.hub.take() {
            hub.stop().await.context("the hub")?;
        }
        fs::remove_dir_all(&self.folder).context("cannot remove the network's folder")
    }

    /// Memory that the hub's process takes, in bytes.
    ///
    /// # Errors
    /// If it does not run.
    pub fn hub_resident_bytes(&self) -> Result<u64> {
        self.hub.as_ref().context("no hub runs")?.resident_bytes()
    }

    /// A client of the hub, or of whoever [`Self::ask`] named.
    ///
    /// # Errors
    /// Never for an address on loopback.
    pub fn client(&self) -> Result<HubClient> {
        let url = match &self.asked {
            None => self.hub_url(),
            Some(mirror) => self.mirror_url(mirror)?,
        };
        Ok(HubClient::new(&url)?)
    }

    /// The hub's address as a URL.
    #[must_use]
    pub fn hub_url(&self) -> String {
        format!("http://{}", self.hub_address)
    }

    /// The hub's address.
    #[must_use]
    pub fn hub_address(&self) -> SocketAddr {
        self.hub_address
    }

    /// The gateway's address as a URL.
    #[must_use]
    pub fn gateway_url(&self) -> String {
        format!("http://{}", self.gateway_address)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }
}

async fn ready(url: &str, process: &mut Process) -> Result<()> {
    let begin = Instant::now();
    let mut attempts = tokio::time::interval(READY_EVERY);
    while begin.elapsed() < READY_MAX {
        attempts.tick().await;
        process.must_run()?;
        if let Ok(answer) = reqwest::get(url).await
            && answer.status().is_success()
        {
            return Ok(());
        }
    }
    bail!("{url} does not answer:\n{}", process.log_end())
}

/// Two addresses of loopback that were free a moment ago.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let listeners = [
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    ];
    Ok([listeners[0].local_addr()?, listeners[1].local_addr()?])
}
