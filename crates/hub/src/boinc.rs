//! BOINC: stock clients take part in runs.
//!
//! A thin translation: a client's requests become what a connected worker would have asked and sent, and what the run
//! answers becomes files and tasks as BOINC knows them. What counts is in the runs' logs; what is kept here (accounts,
//! hosts, tasks, bytes on their way) is the door's own.

mod accounts;
mod clean;
mod credit;
pub mod decoders;
mod files;
mod hosts;
mod kept;
mod limits;
mod programs;
pub mod release;
mod reply;
mod request;
mod scheduler;
mod settle;
mod statistics;
mod store;
mod tasks;
mod teams;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod token;
mod upload;
mod xml;

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use network::server::Shares;
use protocol::SecretKey;

pub(crate) use self::{
    accounts::{AccountError, SESSION_MS, Secret, normal_name, password_hash},
    clean::clean_often,
    credit::cobblestones,
    files::{Source, read_file},
    request::SchedulerRequest,
    scheduler::{answer, too_long},
    settle::settle_waiting,
    store::{Account, Host, Unit},
    tasks::run_for_hosts,
    upload::receive,
    xml::XmlError,
    xml::escaped,
};
use self::{
    credit::Credit, limits::DoorLimits, programs::Programs, release::Release, store::DoorStore,
    store::UnitState, upload::Uploads,
};
use crate::config::Config;

/// Requests to the scheduler that are read at once, in KiB.
const REQUEST_MEMORY_KIB: usize = 64 << 10;
/// Long requests to the scheduler that are read at once.
const LONG_REQUESTS_MAX: usize = 16;
/// And those of one address.
const LONG_REQUESTS_PER_ADDRESS_MAX: u32 = 2;
/// Where clients ask for work.
pub(crate) const SCHEDULER_PATH: &str = "/boinc/scheduler";
/// Where they bring results.
pub(crate) const UPLOAD_PATH: &str = "/boinc/file_upload_handler";
/// Longest result with its head: above 2 GiB clients count wrong.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 31;
/// The project's name at BOINC clients.
pub(crate) const PROJECT: &str = "AI@home";
/// What BOINC's clients call themselves.
const USER_AGENT: &str = "BOINC client";

/// The door of a hub that takes BOINC clients.
pub(crate) struct Door {
    pub(crate) release: Release,
    pub(crate) store: DoorStore,
    programs: Programs,
    /// What requests to the scheduler take of it, in KiB.
    pub(crate) memory: tokio::sync::Semaphore,
    /// Places of long requests: who sends many of them slowly takes these and leaves the memory.
    pub(crate) long_requests: tokio::sync::Semaphore,
    pub(crate) long_requests_of_addresses: Shares,
    /// Places of results on their way in, taken by those who may bring one.
    results: Arc<tokio::sync::Semaphore>,
    credit: Credit,
    limits: DoorLimits,
    uploads: Uploads,
    sums: files::Sums,
    statistics_kept: statistics::StatisticsKept,
    teams_kept: kept::Kept<Vec<teams::ListedTeam>>,
    /// Hosts whose requests are being answered.
    hosts: Busy<String>,
    /// And those that wait for it.
    waiting: settle::Waiting,
    /// Wakes whoever settles what is left.
    settling: tokio::sync::Notify,
    token_key: token::TokenKey,
}

impl Door {
    /// Opens the door, if the hub's settings say so.
    ///
    /// # Errors
    /// The release is not whole, or the folder can't be used.
    pub(crate) async fn open(config: &Config, key: &SecretKey) -> Result<Option<Arc<Self>>> {
        let Some(folder) = &config.boinc_release else {
            return Ok(None);
        };
        let release = Release::read(folder)
            .with_context(|| format!("can't take BOINC clients with {}", folder.display()))?;
        let results_max = config.requests_in_progress_max;
        Self::open_with(release, folder, &config.folder, key, results_max)
            .await
            .map(|it| Some(Arc::new(it)))
    }

    async fn open_with(
        release: Release,
        release_folder: &Path,
        folder: &Path,
        key: &SecretKey,
        results_max: usize,
    ) -> Result<Self> {
        let store = DoorStore::open(folder).await?;
        let files = release.platforms.iter().flat_map(|it| &it.files);
        let files = files.map(|it| (it.name.clone(), it.blake3)).collect();
        if let Some(name) = store.note_released(files).await? {
            anyhow::bail!(
                "{name} was offered before with other bytes, and clients never fetch a name twice: sign the program with a \
                 higher version, into a new folder"
            );
        }
        Ok(Self {
            programs: Programs::open(folder.join("boinc-programs"), &release, release_folder)
                .await?,
            release,
            memory: tokio::sync::Semaphore::new(REQUEST_MEMORY_KIB),
            long_requests: tokio::sync::Semaphore::new(LONG_REQUESTS_MAX),
            long_requests_of_addresses: Shares::new(LONG_REQUESTS_PER_ADDRESS_MAX),
            results: Arc::new(tokio::sync::Semaphore::new(results_max)),
            credit: Credit::default(),
            limits: DoorLimits::new(),
            sums: files::Sums::default(),
            statistics_kept: statistics::StatisticsKept::default(),
            teams_kept: kept::Kept::default(),
            uploads: Uploads::open(&folder.join("boinc-uploads"), &store).await?,
            store,
            hosts: Busy::default(),
            waiting: settle::Waiting::default(),
            settling: tokio::sync::Notify::new(),
            token_key: token::TokenKey::of(key),
        })
    }

    /// Platforms that the application is made for.
    pub(crate) fn platforms(&self) -> impl Iterator<Item = &str> {
        self.release.platforms.iter().map(|it| it.platform.as_str())
    }

    /// Gives tasks of an account's hosts up, with what came of their results.
    async fn give_up(
        &self,
        account: u64,
        names: Vec<String>,
        state: UnitState,
        why: &'static str,
    ) -> Result<()> {
        let given_up = self.store.give_up(names, state, why).await?;
        Ok(self.uploads.give_up(&given_up, account).await?)
    }

    /// Says that there is a result to be settled.
    fn wake_settling(&self) {
        self.settling.notify_one();
    }

    /// Forgets addresses that ask no more.
    pub(crate) fn forget(&self) {
        self.limits.forget();
    }
}

/// Whether a request is one of a BOINC client's, by its path and by what the client calls itself: it must never see an
/// answer that BOINC takes for the end of a file.
pub(crate) fn is_of_client(path: &str, user_agent: Option<&str>) -> bool {
    path.starts_with("/boinc/")
        || path.starts_with("/stats/")
        || path.ends_with(".php")
        || (path == "/" && is_client(user_agent))
}

/// Whether a program calls itself a BOINC client.
pub(crate) fn is_client(user_agent: Option<&str>) -> bool {
    user_agent.is_some_and(|it| it.starts_with(USER_AGENT))
}

/// What is being worked on: each thing once at a time.
#[derive(Debug)]
struct Busy<T>(Arc<Mutex<HashSet<T>>>);

impl<T> Clone for Busy<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Busy<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// The right to work on one thing, until it is dropped.
#[derive(Debug)]
struct Turn<T: Eq + std::hash::Hash> {
    busy: Arc<Mutex<HashSet<T>>>,
    thing: T,
}

impl<T: Eq + std::hash::Hash + Clone> Busy<T> {
    /// Takes a thing, unless somebody has it.
    fn begin(&self, thing: T) -> Option<Turn<T>> {
        // Each change is one insertion or removal: the set is right after any panic.
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(thing.clone()).then(|| Turn {
            busy: Arc::clone(&self.0),
            thing,
        })
    }

    /// Whether somebody has a thing.
    fn has(&self, thing: &T) -> bool {
        let busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.contains(thing)
    }
}

impl<T: Eq + std::hash::Hash> Drop for Turn<T> {
    fn drop(&mut self) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.thing);
    }
}

/// Random bytes.
fn entropy<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no entropy: {error}"))?;
    Ok(bytes)
}
