//! The nodes of a simulation: a hub or a worker as it is, on a disk, a clock and a link of its own, which dies and starts
//! again.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Result;
use network::{disk::Disk, world::Clock};
use protocol::{SecretKey, units::WorkerId};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{Activity, Status, Summary};

use crate::{
    chance::Chance,
    disk::{SimDisk, objects::Objects, vfs::Vfs},
    machine,
    network::{Link, Network, Weather},
};

/// What the clocks show when a simulation begins, Unix milliseconds.
pub const BEGIN_MS: u64 = 1_900_000_000_000;
/// The hub's folder on its disk.
const HUB_FOLDER: &str = "/hub";
/// Nobody watches: what a worker does must not hang on its telling of it.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// A worker's folder on its disk.
const WORKER_FOLDER: &str = "/worker";

/// How a node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The process ends; what it wrote is with the operating system.
    Process,
    /// The machine loses power; what was not synced is kept or lost by chance.
    Power,
}

/// A hub.
#[derive(Debug)]
pub struct HubNode {
    /// Where it is found.
    pub name: String,
    /// Its disk.
    pub disk: SimDisk,
    /// Its clock.
    pub clock: Clock,
    network: Network,
    /// The names under which it is found.
    names: Vec<String>,
    running: Option<RunningHub>,
}

struct RunningHub {
    service: hub::Service,
    _vfs: Vfs,
    gone: CancellationToken,
}

impl std::fmt::Debug for RunningHub {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("RunningHub")
    }
}

impl HubNode {
    /// A hub that is not started yet.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(name: &str, network: Network, seed: u64) -> Result<Self> {
        let disk = SimDisk::new(Chance::of(seed, "hub disk", 0));
        let key = SecretKey::from_entropy(Chance::of(seed, "hub key", 0).key());
        write_key(&disk, &Path::new(HUB_FOLDER).join("hub.key"), &key)?;
        Ok(Self {
            name: name.to_owned(),
            names: vec![name.to_owned()],
            clock: Clock::simulated(BEGIN_MS),
            disk,
            network,
            running: None,
        })
    }

    /// The hub's address.
    #[must_use]
    pub fn address(&self) -> String {
        format!("http://{}", self.name)
    }

    /// Whether it answers.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts it from what is on its disk.
    ///
    /// # Errors
    /// The disk's.
    pub async fn start(&mut self) -> Result<()> {
        let folder = PathBuf::from(HUB_FOLDER);
        let config = hub::Config {
            folder: folder.clone(),
            requests_per_s_per_address: u32::MAX,
            requests_in_progress_max: 1 << 20,
            requests_in_progress_per_address_max: 1 << 20,
            streams_max: 1 << 20,
            // Those limits count by the system's clock.
            new_workers_per_hour: u32::MAX,
            new_workers_per_hour_per_address: u32::MAX,
            commands_per_minute_per_worker: u32::MAX,
            upload_mib_per_hour_per_worker: u32::MAX,
            sample_prompt: "a".to_owned(),
            sample_tokens: 1,
            ..hub::Config::default()
        };
        let vfs = Vfs::register(self.disk.clone());
        let ground = hub::Ground {
            clock: self.clock.clone(),
            disk: Arc::new(self.disk.clone()),
            objects: Some(Arc::new(Objects::new(
                self.disk.clone(),
                folder.join("blobs"),
            ))),
            database: Some(vfs.name().to_owned()),
            transport: None,
        };
        let service = hub::Service::open(config, ground, CancellationToken::new()).await?;
        let gone = CancellationToken::new();
        self.running = Some(RunningHub {
            service,
            _vfs: vfs,
            gone,
        });
        self.connect();
        Ok(())
    }

    /// Lets it be found under another name too.
    pub fn also_as(&mut self, name: &str) {
        self.names.push(name.to_owned());
        self.connect();
    }

    fn connect(&self) {
        if let Some(running) = &self.running {
            for name in &self.names {
                let (router, disk) = (running.service.router(), self.disk.clone());
                self.network
                    .connect(name, router, disk, running.gone.clone());
            }
        }
    }

    /// Ends it from one moment to the next.
    pub async fn die(&mut self, death: Death) {
        for name in &self.names {
            self.network.disconnect(name);
        }
        if let Some(running) = self.running.take() {
            running.gone.cancel();
            running.service.kill().await;
        }
        match death {
            Death::Process => self.disk.kill_process(),
            Death::Power => self.disk.cut_power(),
        }
    }
}

impl Drop for HubNode {
    fn drop(&mut self) {
        // Connections that close on their threads hold the disk a little longer.
        self.disk.wipe();
    }
}

/// A worker.
#[derive(Debug)]
pub struct WorkerNode {
    /// Its number, from 1.
    pub number: u64,
    /// Who it is.
    pub id: WorkerId,
    /// Its disk.
    pub disk: SimDisk,
    /// Its clock.
    pub clock: Clock,
    /// Whether its link is cut.
    pub is_down: Arc<AtomicBool>,
    seed: u64,
    lives: u64,
    network: Network,
    weather: Weather,
    target: Arc<Vec<f32>>,
    step: Duration,
    hub: String,
    running: Option<RunningWorker>,
    shown: Arc<Mutex<Option<Status>>>,
}

#[derive(Debug)]
struct RunningWorker {
    dead: CancellationToken,
    shutdown: CancellationToken,
    task: JoinHandle<Result<Summary>>,
}

/// What all workers of a simulation have in common.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The simulation's seed.
    pub seed: u64,
    /// The network.
    pub network: Network,
    /// Every link's weather.
    pub weather: Weather,
    /// Where honest work leads.
    pub target: Arc<Vec<f32>>,
    /// The hub's address.
    pub hub: String,
}

impl WorkerNode {
    /// A worker that is not started yet; a step takes it `step`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(around: &Surroundings, number: u64, step: Duration) -> Result<Self> {
        let seed = around.seed;
        let disk = SimDisk::new(Chance::of(seed, "worker disk", number));
        let key = SecretKey::from_entropy(Chance::of(seed, "worker key", number).key());
        write_key(&disk, &Path::new(WORKER_FOLDER).join("worker.key"), &key)?;
        Ok(Self {
            number,
            id: WorkerId(key.public()),
            disk,
            clock: Clock::simulated(BEGIN_MS),
            is_down: Arc::default(),
            seed,
            lives: 0,
            network: around.network.clone(),
            weather: around.weather.clone(),
            target: Arc::clone(&around.target),
            step,
            hub: around.hub.clone(),
            running: None,
            shown: Arc::default(),
        })
    }

    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|it| !it.task.is_finished())
    }

    /// What it last showed its owner.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone()
    }

    /// Whether it is in the middle of training.
    #[must_use]
    pub fn is_training(&self) -> bool {
        let status = self.status();
        status.is_some_and(|it| matches!(it.activity, Activity::Training { .. }))
    }

    /// Starts its process from what is on its disk.
    pub fn start(&mut self) {
        self.lives += 1;
        let dead = CancellationToken::new();
        let shutdown = CancellationToken::new();
        let life = self.number << 20 | self.lives;
        let link = Link::new(
            self.network.clone(),
            self.number,
            self.weather.clone(),
            Chance::of(self.seed, "link", life),
            Arc::clone(&self.is_down),
            dead.clone(),
        );
        let ground = worker::Ground {
            clock: self.clock.clone(),
            disk: Arc::new(self.disk.clone()),
            transport: Some(Arc::new(link)),
            trainer: machine::trainer(
                Arc::clone(&self.target),
                self.number,
                self.step,
                dead.clone(),
            ),
            tell_every: TELL_EVERY,
        };
        let mut config = worker::Config::new(self.hub.clone(), WORKER_FOLDER);
        config.name = Some(format!("worker-{}", self.number));
        config.threads = Some(1);
        let (stop, shown) = (shutdown.clone(), Arc::clone(&self.shown));
        let task = tokio::task::spawn_local(async move {
            let report = |status: &Status| {
                let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                *shown = Some(status.clone());
            };
            worker::run_on(ground, &config, stop, report).await
        });
        self.running = Some(RunningWorker {
            dead,
            shutdown,
            task,
        });
    }

    /// Ends it from one moment to the next.
    pub async fn die(&mut self, death: Death) {
        if let Some(running) = self.running.take() {
            running.dead.cancel();
            running.task.abort();
            // Aborted, finished or failed: it is over.
            let _ = running.task.await;
        }
        match death {
            Death::Process => self.disk.kill_process(),
            Death::Power => self.disk.cut_power(),
        }
    }

    /// Lets its owner stop it, and waits for that.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.shutdown.cancel();
            // Why it ended does not matter any more.
            let _ = running.task.await;
            running.dead.cancel();
        }
        self.disk.kill_process();
    }

    /// The error that its process ended with, if it did.
    pub async fn take_failure(&mut self) -> Option<String> {
        let running = self.running.take_if(|it| it.task.is_finished())?;
        running.dead.cancel();
        self.disk.kill_process();
        match running.task.await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(error) => Some(format!("{error}")),
        }
    }
}

fn write_key(disk: &SimDisk, path: &Path, key: &SecretKey) -> Result<()> {
    disk.write_private(path, key.to_secret_text().as_bytes())?;
    Disk::sync(disk, path)?;
    Ok(())
}
