//! The hub: keeps a run's log, opens its rounds, merges what comes back, serves blobs, API and web app.
//!
//! Everything that decides is in `protocol`; everything that computes is in `engine`. This crate is the thin
//! thing around them: a task per run ([`run`]), a store, blobs, HTTP, and a door for BOINC clients ([`boinc`]). It holds no
//! secret but its own key and, with an open door, the keys of accounts that it made.

pub mod boinc;

mod archive;
mod blobs;
mod clock;
mod config;
mod create;
#[cfg(test)]
mod crowd;
mod ground;
mod http;
mod metrics;
mod mirror;
mod model;
mod run;
mod store;
mod sweep;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, Result};
use network::disk::Disk;
use protocol::{
    Hash, SecretKey,
    command::{Command, Commitment, SignedCommand},
    units::{BlobReference, RunId, WorkerId},
};
use tokio::{
    sync::{Mutex, RwLock},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use archive::{Archive, EntrySetAside, StoredEntry, StoredProof};
pub use config::Config;
pub use ground::Ground;
pub use http::openapi;

use crate::{
    blobs::Blobs, clock::SteadyClock, metrics::Metrics, mirror::Mirroring, run::Run, store::Store,
};

/// The file that a hub locks while it works in a folder.
const LOCK: &str = "hub.lock";
/// The file with a hub's secret key in its folder.
const KEY: &str = "hub.key";

/// Everything that handlers share.
pub(crate) struct Hub {
    pub(crate) config: Arc<Config>,
    pub(crate) key: SecretKey,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: SteadyClock,
    pub(crate) shutdown: CancellationToken,
    pub(crate) admission: http::Admission,
    pub(crate) unused: sweep::Unused,
    pub(crate) deltas: http::Deltas,
    pub(crate) mirroring: Arc<Mirroring>,
    pub(crate) room: run::room::Room,
    /// Where BOINC clients come in, if the operator opened it.
    pub(crate) door: Option<Arc<boinc::Door>>,
    /// KiB of uploads that may be in memory at once.
    pub(crate) upload_memory: tokio::sync::Semaphore,
    runs: RwLock<BTreeMap<RunId, Run>>,
    tasks: Mutex<JoinSet<()>>,
    /// Creating takes turns, so that a name is taken once.
    creating: Mutex<()>,
}

/// The address that others are told, in its usual form: BOINC's clients keep it for ever.
fn own_address(address: &str) -> Result<String> {
    anyhow::ensure!(
        address.contains("://"),
        "the hub's address is {address:?}, and must begin with https:// or http://"
    );
    anyhow::ensure!(
        !address.contains(['&', '\'', '@']),
        "the hub's address is {address:?}, and may have no user's name and none of the signs & ' @ in it"
    );
    Ok(network::client::checked_address(address)?)
}

/// Runs a hub until `shutdown`; returns when everything acknowledged is on the disk and all tasks have ended.
pub async fn serve(mut config: Config, shutdown: CancellationToken) -> Result<()> {
    if let Some(address) = &config.address {
        config.address = Some(own_address(address)?);
    }
    let folder = config.folder.clone();
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("can't create the hub's folder {}", folder.display()))?;
    let _lock = lock(&folder)?;
    let service = Service::open(config, Ground::machine(), shutdown.clone()).await?;
    let hub = &service.hub;
    let listener = tokio::net::TcpListener::bind(hub.config.listen)
        .await
        .with_context(|| {
            format!(
                "can't listen on {}: is another hub running? Choose another address with --listen",
                hub.config.listen
            )
        })?;
    let address = listener.local_addr()?;
    tracing::info!(%address, hub.key = %hub.key.public().short(), "hub ready");
    hub.tasks
        .lock()
        .await
        .spawn(sweep::keep_clean(Arc::clone(hub)));
    http::serve(listener, Arc::clone(hub), shutdown).await;
    service.close().await;
    Ok(())
}

/// A hub without a listener: its runs at work, and the router that answers for it.
pub struct Service {
    hub: Arc<Hub>,
}

impl Service {
    /// Opens what is in the hub's folder and starts its runs. The caller sees to it that nobody else uses the folder.
    ///
    /// # Errors
    /// The folder, its key or its database can't be used.
    pub async fn open(config: Config, ground: Ground, shutdown: CancellationToken) -> Result<Self> {
        let folder = config.folder.clone();
        let key = own_key(&*ground.disk, &folder.join(KEY))?;
        let hub = Arc::new(Hub {
            door: boinc::Door::open(&config, &key).await?,
            key,
            store: Store::open(&folder, &ground).await?,
            blobs: Blobs::open(&folder, &ground)?,
            metrics: Arc::new(Metrics::new()),
            clock: SteadyClock::new(ground.clock),
            shutdown,
            admission: http::Admission::new(&config),
            unused: sweep::Unused::default(),
            deltas: http::Deltas::default(),
            mirroring: Arc::new(Mirroring::new(
                &config,
                &*ground.disk,
                ground.transport.clone(),
            )?),
            room: run::room::Room::new(&config),
            upload_memory: tokio::sync::Semaphore::new(config.upload_memory_mib.max(8) * 1024),
            runs: RwLock::default(),
            tasks: Mutex::default(),
            creating: Mutex::default(),
            config: Arc::new(config),
        });
        for id in hub.store.runs().await? {
            // One run that cannot start must not keep the others from their work.
            if let Err(error) = hub.start(id).await {
                tracing::error!(run.id = %id.short(), "this run stays closed: {error:#}");
            }
        }
        let following = mirror::follow_runs(Arc::clone(&hub));
        hub.tasks.lock().await.spawn(following);
        if let Some(door) = &hub.door {
            let settling = boinc::settle_waiting(Arc::clone(&hub), Arc::clone(door));
            let cleaning = boinc::clean_often(Arc::clone(&hub), Arc::clone(door));
            let mut tasks = hub.tasks.lock().await;
            tasks.spawn(settling);
            tasks.spawn(cleaning);
        }
        Ok(Self { hub })
    }

    /// What answers requests; each must carry its sender's address as `axum::extract::ConnectInfo`.
    pub fn router(&self) -> axum::Router {
        http::router(Arc::clone(&self.hub))
    }

    /// Ends the hub's runs from one moment to the next, as the death of its process would.
    pub async fn kill(self) {
        let mut tasks = std::mem::take(&mut *self.hub.tasks.lock().await);
        tasks.shutdown().await;
    }

    /// Stops the hub's runs; everything acknowledged is on the disk when this returns.
    pub async fn close(&self) {
        self.stop_runs().await;
        self.hub.store.close().await;
    }

    /// Ends what writes to the logs. What they hold can still be read.
    async fn stop_runs(&self) {
        self.hub.shutdown.cancel();
        let mut tasks = std::mem::take(&mut *self.hub.tasks.lock().await);
        while tasks.join_next().await.is_some() {}
    }
}

impl Hub {
    /// A run by id or name.
    pub(crate) async fn find(&self, name: &str) -> Option<Run> {
        let runs = self.runs.read().await;
        if let Ok(id) = name.parse::<RunId>() {
            return runs.get(&id).cloned();
        }
        for run in runs.values() {
            if run.state.read().await.charter.name == name {
                return Some(run.clone());
            }
        }
        None
    }

    /// All runs, newest first.
    pub(crate) async fn all(&self) -> Vec<Run> {
        self.runs.read().await.values().cloned().collect()
    }

    /// What runs work with.
    pub(crate) fn parts(&self) -> run::Parts {
        run::Parts {
            key: self.key.clone(),
            store: self.store.clone(),
            blobs: self.blobs.clone(),
            metrics: Arc::clone(&self.metrics),
            config: Arc::clone(&self.config),
            clock: self.clock.clone(),
            mirroring: Arc::clone(&self.mirroring),
            room: self.room.clone(),
        }
    }

    /// Starts a run that is in the store.
    async fn start(&self, id: RunId) -> Result<()> {
        let parts = self.parts();
        let mut tasks = self.tasks.lock().await;
        let run = run::start(id, parts, &mut tasks, self.shutdown.clone()).await?;
        self.runs.write().await.insert(id, run);
        Ok(())
    }

    /// The run in which somebody (or this worker) committed to a blob, the commitment, and the blob it names: the update or
    /// the inner state.
    pub(crate) async fn committed(
        &self,
        hash: &Hash,
        worker: Option<WorkerId>,
    ) -> Option<(Run, Commitment, BlobReference)> {
        for run in self.runs.read().await.values() {
            let state = run.state.read().await;
            let commitment = state
                .commitment_of_blob(hash)
                .filter(|(_, _, it)| worker.is_none_or(|worker| it.header.worker == worker))
                .and_then(|(_, _, it)| {
                    let mut blobs = [Some(it.update), it.header.inner_state].into_iter();
                    let blob = blobs.find_map(|blob| blob.filter(|blob| blob.hash == *hash))?;
                    Some((it.clone(), blob))
                });
            if let Some((commitment, blob)) = commitment {
                drop(state);
                return Some((run.clone(), commitment, blob));
            }
        }
        None
    }

    /// Whether a commitment names a blob that this hub had before: no update that was made in this round has such a hash.
    pub(crate) async fn names_known_blob(&self, command: &SignedCommand) -> anyhow::Result<bool> {
        let Command::Commit(commitment) = &command.command else {
            return Ok(false);
        };
        for blob in [Some(commitment.update), commitment.header.inner_state]
            .into_iter()
            .flatten()
        {
            // The same commitment again, whose first reply was lost, is no copy.
            let is_own = self
                .committed(&blob.hash, Some(command.worker))
                .await
                .is_some();
            if !is_own && self.blobs.length(&blob.hash).await?.is_some() {
                return Ok(!self.made(commitment, command.worker).await?);
            }
        }
        Ok(false)
    }

    /// Whether an update that is here is this worker's by what stands inside: a hub that went on from an older log has bytes
    /// of commitments that it does not have, and they are made again.
    async fn made(&self, commitment: &Commitment, worker: WorkerId) -> anyhow::Result<bool> {
        let head = self.blobs.head(&commitment.update.hash).await?;
        let opened = head.as_ref().map(|it| protocol::update::open(it));
        Ok(
            matches!(opened, Some(Ok((header, _))) if header == commitment.header && header.worker == worker),
        )
    }

    /// The run in which a blob is an update that others must not see yet, if it is one: its round still takes commitments.
    pub(crate) async fn private_in(&self, hash: &Hash) -> Option<Run> {
        let (run, _, _) = self.committed(hash, None).await?;
        let is_private = {
            let state = run.state.read().await;
            let training = state.training.as_ref();
            training.is_some_and(|it| it.slot_of_blob(hash).is_some())
        };
        is_private.then_some(run)
    }
}

/// The commitments of the rounds in progress.
pub(crate) fn commitments(
    state: &protocol::state::State,
) -> impl Iterator<Item = &protocol::command::Commitment> {
    let slots = state.rounds_in_progress().flat_map(|it| it.slots());
    slots.filter_map(|it| it.commitment())
}

/// One hub a folder.
fn lock(folder: &Path) -> Result<std::fs::File> {
    let path = folder.join(LOCK);
    let file = std::fs::File::create(&path)
        .with_context(|| format!("can't write to the hub's folder {}", folder.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(
        |_| {
            anyhow::anyhow!(
                "another hub works in {}; stop it or choose another --folder",
                folder.display()
            )
        },
    )?;
    Ok(file)
}

/// The hub's key, made once.
fn own_key(disk: &dyn Disk, path: &Path) -> Result<SecretKey> {
    match disk.read(path) {
        Ok(text) => {
            return std::str::from_utf8(&text)
                .ok()
                .and_then(|it| SecretKey::from_text(it).ok())
                .with_context(|| format!("the hub's key {} is damaged", path.display()));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error)
                .with_context(|| format!("can't read the hub's key {}", path.display()));
        }
    }
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy)
        .map_err(|error| anyhow::anyhow!("no entropy for a key: {error}"))?;
    let key = SecretKey::from_entropy(entropy);
    // Written whole or not at all: a half key would be refused forever.
    let draft = path.with_extension("draft");
    disk.write_private(&draft, key.to_secret_text().as_bytes())?;
    disk.sync(&draft)?;
    disk.rename(&draft, path)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::own_address;

    #[test]
    fn a_hub_is_told_by_a_whole_address() {
        for (given, expected) in [
            ("https://hub.example/", Some("https://hub.example")),
            ("http://10.0.0.1:8700", Some("http://10.0.0.1:8700")),
            ("not-a-url", None),
            ("https://a:b@hub.example", None),
            ("https://hub.example/&'", None),
            ("ftp://hub.example", None),
            ("https://hub.example/?x", None),
            (
                "https://hub.example/\"><x>",
                Some("https://hub.example/%22%3E%3Cx%3E"),
            ),
        ] {
            assert_eq!(own_address(given).ok().as_deref(), expected, "{given}");
        }
    }
}
