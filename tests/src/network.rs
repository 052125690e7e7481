//! A network on loopback: hub, workers and gateway as real processes in a folder of their own.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use network::HubClient;
use protocol::{api::LogEntry, charter::Charter, units::RunId};

use crate::{
    places,
    process::{self, Process},
};

/// Longest wait for a process to answer its first request.
const READY_MAX: Duration = Duration::from_secs(30);
/// Time between two attempts at that.
const READY_EVERY: Duration = Duration::from_millis(50);

/// Hub, gateway, workers and their folder, which is removed when the test has passed.
pub struct Network {
    /// Where everything of it lies.
    pub folder: PathBuf,
    hub_address: SocketAddr,
    gateway_address: SocketAddr,
    hub: Option<Process>,
    gateway: Option<Process>,
    workers: BTreeMap<String, Process>,
}

impl Network {
    /// A network with a hub, no run and no worker.
    ///
    /// # Errors
    /// If the hub does not answer.
    pub async fn start(name: &str) -> Result<Self> {
        let folder = places::kept().join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).context("cannot remove what the last failure left")?;
        }
        fs::create_dir_all(&folder)?;
        let [hub_address, gateway_address] = free_addresses()?;
        let mut network = Self {
            folder,
            hub_address,
            gateway_address,
            hub: None,
            gateway: None,
            workers: BTreeMap::new(),
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
        let mut hub = Process::athome(&arguments, &self.folder.join("hub.log"))?;
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
        ];
        let mut gateway = Process::athome(&arguments, &self.folder.join("gateway.log"))?;
        ready(&format!("{}/health", self.gateway_url()), &mut gateway).await?;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Starts a worker, again after [`Self::kill_worker`], on the same folder; `options` follow its usual arguments.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_worker(&mut self, run: RunId, name: &str, options: &[&str]) -> Result<()> {
        ensure!(
            !self.workers.contains_key(name),
            "the worker {name} runs already"
        );
        let mut arguments = [
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
        arguments.extend(options.iter().map(|it| (*it).to_owned()));
        let log = self.folder.join(format!("worker-{name}.log"));
        self.workers
            .insert(name.to_owned(), Process::athome(&arguments, &log)?);
        Ok(())
    }

    /// Ends a worker as a power cut would.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill_worker(&mut self, name: &str) -> Result<()> {
        self.workers
            .remove(name)
            .context("no such worker runs")?
            .kill()
    }

    /// Opens a run on the corpus of speeches. `change` may alter the demonstration's charter.
    ///
    /// # Errors
    /// If the hub refuses it.
    pub async fn open_run(&self, change: impl FnOnce(&mut Charter)) -> Result<RunId> {
        let data = self.path("data");
        let athome = places::athome()?;
        let speeches = places::speeches()?;
        let import = [
            "data".as_ref(),
            "import".as_ref(),
            speeches.as_os_str(),
            "--output".as_ref(),
            data.as_ref(),
        ];
        process::run_well(&athome, &import).await?;
        bail!(
            "the run is not opened yet: {change:p}",
            change = &raw const change
        )
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
        mut found: impl FnMut(&LogEntry) -> Option<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        let mut events = self.client()?.events(run, None).await?;
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
        let processes = self.hub.iter_mut().chain(&mut self.gateway);
        for process in processes.chain(self.workers.values_mut()) {
            process.must_run()?;
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
                .stop()
                .await
                .with_context(|| format!("worker {name}"))?;
        }
        if let Some(gateway) = self.gateway.take() {
            gateway.stop().await.context("the gateway")?;
        }
        if let Some(hub) = self.hub.take() {
            hub.stop().await.context("the hub")?;
        }
        fs::remove_dir_all(&self.folder).context("cannot remove the network's folder")
    }

    /// A client of the hub.
    ///
    /// # Errors
    /// Never for an address on loopback.
    pub fn client(&self) -> Result<HubClient> {
        Ok(HubClient::new(&self.hub_url())?)
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

/// The folder of a network that failed, for messages.
#[must_use]
pub fn folder_of(name: &str) -> PathBuf {
    Path::new(&places::kept()).join(name)
}
