//! Mirrors: copies of other hubs' runs, which serve what is public and take a run over when its hub is gone.
//!
//! A process is the hub of a run while the run's log says so (`protocol::succession`), and else a mirror of it: [`Follower`]
//! copies log ([`copy`]) and blobs ([`gather`]), [`neighbours`] asks the others that the charter names who keeps the run.
//! A takeover is one entry: a statement of a succession key, sealed by the new hub. Whoever was replaced finds out by looking
//! or by being shown the statement, sets aside what it sealed alone, and mirrors its successor. A hub that was restored from
//! an older copy mirrors those who have more of its log, until it has all of it.

mod acknowledged;
mod copy;
mod follower;
mod gather;
mod neighbours;
mod reach;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use network::{HubClient, client::Transport, disk::Disk, retry::RetryPolicy, world};
use protocol::{SecretKey, api::RunSummary, state::State, succession::Sealing, units::RunId};

pub(crate) use self::{
    acknowledged::Acknowledged,
    copy::Copied,
    follower::{Ended, Follower},
    neighbours::{Found, has_neighbours, keep, look, look_again, why_stopped},
};
use crate::{Hub, config::Config};

/// Time between two looks at the runs of the hub that is followed.
const RUNS_EVERY: Duration = Duration::from_secs(10);
/// Most runs that are mirrored.
const RUNS_MAX: usize = 64;

/// How this process mirrors.
#[derive(Debug, Default)]
pub(crate) struct Mirroring {
    /// The hub whose runs are copied.
    pub(crate) follow: Option<String>,
    /// Where others reach this process, if it may become a hub.
    pub(crate) address: Option<String>,
    /// The key by which it may.
    pub(crate) succession: Option<SecretKey>,
    /// How long a hub is silent until this mirror takes over by itself.
    pub(crate) take_over_after: Option<Duration>,
    /// Drawn at each start: by it a process knows itself again, wherever it is asked.
    pub(crate) process: String,
    transport: Option<Arc<dyn Transport>>,
}

impl Mirroring {
    /// Reads the settings and the succession key.
    ///
    /// # Errors
    /// The key's file, or settings that contradict each other.
    pub(crate) fn new(
        config: &Config,
        disk: &dyn Disk,
        transport: Option<Arc<dyn Transport>>,
    ) -> Result<Self> {
        let succession = config.succession_key.as_deref();
        let succession = succession.map(|it| read_key(disk, it)).transpose()?;
        ensure!(
            succession.is_some() || config.take_over_after_s.is_none(),
            "take_over_after_s needs a succession_key"
        );
        let listens_everywhere = config.listen.ip().is_unspecified();
        let own = || format!("http://{}", config.listen);
        let address = match &config.address {
            Some(address) => Some(address.clone()),
            None => (!listens_everywhere).then(own),
        };
        ensure!(
            succession.is_none() || address.is_some(),
            "a mirror that may take runs over must say where it is reached then: set address (--address)"
        );
        if let Some(follow) = &config.follow {
            HubClient::new(follow)?;
        }
        Ok(Self {
            follow: config.follow.clone(),
            address,
            succession,
            take_over_after: config.take_over_after_s.map(Duration::from_secs),
            process: drawn(),
            transport,
        })
    }

    /// A client that asks at this address alone, once; `None` for what is no address, or has no network to it.
    fn client(&self, address: &str) -> Option<HubClient> {
        let client = match &self.transport {
            Some(transport) => HubClient::over(Arc::clone(transport), address),
            None if world::is_simulated() => return None,
            None => HubClient::new(address).ok()?,
        };
        Some(client.with_retry(RetryPolicy::once()))
    }

    /// The key by which this process may take over the run that `sealing` is of, and its place among the charter's.
    fn may_take_over(&self, sealing: &Sealing) -> Option<(&SecretKey, usize)> {
        let key = self.succession.as_ref()?;
        Some((key, sealing.rank(&key.public())?))
    }
}

fn drawn() -> String {
    let [first, second] = [(); 2].map(|()| world::unit_interval().to_bits());
    format!("{first:016x}{second:016x}")
}

fn read_key(disk: &dyn Disk, path: &Path) -> Result<SecretKey> {
    let bytes = disk
        .read(path)
        .with_context(|| format!("can't read the succession key {}", path.display()))?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim);
    text.and_then(|it| SecretKey::from_text(it).ok())
        .with_context(|| {
            format!(
                "{} is no key: `athome run succession-key FILE` makes one",
                path.display()
            )
        })
}

/// Where a run's hub is reached, as far as its log and these settings say.
pub(crate) fn hub_address(state: &State, mirroring: &Mirroring) -> Option<String> {
    let named = state.sealing.newest().map(|it| &it.address);
    let first = mirroring.follow.as_ref();
    let address = named.or(first).or(state.charter.addresses.first());
    address
        .filter(|it| Some(*it) != mirroring.address.as_ref())
        .cloned()
}

/// Begins to mirror every run of the hub that is followed, again and again until the process stops.
pub(crate) async fn follow_runs(hub: Arc<Hub>) {
    let Some(address) = hub.mirroring.follow.clone() else {
        return;
    };
    let Some(client) = hub.mirroring.client(&address) else {
        return;
    };
    let mut complaint = String::new();
    loop {
        let found = tokio::select! {
            () = hub.shutdown.cancelled() => return,
            found = find_runs(&hub, &client) => found,
        };
        let trouble = found.err().map_or_else(String::new, |it| format!("{it:#}"));
        if trouble != complaint && !trouble.is_empty() {
            tracing::warn!(hub = address, "can't look for runs to mirror: {trouble}");
        }
        complaint = trouble;
        let pause = tokio::time::sleep(RUNS_EVERY);
        if hub.shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

async fn find_runs(hub: &Hub, client: &HubClient) -> Result<()> {
    let mut outcome = Ok(());
    for run in client.runs().await?.into_iter().take(RUNS_MAX) {
        let begun = begin(hub, client, &run).await;
        outcome = outcome.and(begun.with_context(|| format!("run {}", run.name)));
    }
    outcome
}

/// Begins to mirror a run, unless it is here.
async fn begin(hub: &Hub, client: &HubClient, run: &RunSummary) -> Result<()> {
    let id: RunId = run.id.parse().context("its id does not read")?;
    let _turn = hub.creating.lock().await;
    if hub.find(&id.to_string()).await.is_some() {
        return Ok(());
    }
    let count = hub.all().await.len();
    ensure!(count < RUNS_MAX, "this process has {count} runs already");
    let page = client.log_entries(id, 0, 1).await?;
    let first = page.entries.first().context("its log is empty")?;
    let state = State::create(first)?;
    ensure!(state.run == id, "its log is that of another run");
    let (parameters, parameters_max) = (
        state.charter.model.parameter_count(),
        hub.config.parameters_max,
    );
    ensure!(
        parameters <= parameters_max,
        "the model has {parameters} parameters, this mirror takes {parameters_max} at most (parameters_max in its settings)"
    );
    ensure!(
        hub.find(&state.charter.name).await.is_none(),
        "another run of that name is here"
    );
    hub.store.create(first, &state).await?;
    hub.start(id).await?;
    tracing::info!(run.id = %id.short(), hub = client.address(), "mirroring the run {}", state.charter.name);
    Ok(())
}
