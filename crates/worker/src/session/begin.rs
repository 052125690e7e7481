//! The first minute: folder, hub, run, limits, measurement.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use network::{BlobCache, ClientError, HubClient, retry::RetryPolicy, text::printable, world};
use protocol::{
    api::RunSummary,
    charter::{Charter, is_name},
    command::Device,
    sampling::assigned_shards,
    units::{BlobReference, RunId, WorkerId},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Outbox, Session,
    catch_up::{fetch_ahead, needed_at_first},
    outbox, source,
    training::STATES_SHARE,
};
use crate::{
    Activity, Config, Ground, Plan, Status,
    carried::CarriedStore,
    folder::Folder,
    kept_model::KeptModel,
    machine::{self, Held, Machine},
    margin::Margin,
    model::Target,
    plausible::Bounds,
    poll::{HeldRound, News, Poller},
    quota::Quota,
    shards::Shards,
    takeovers::Takeovers,
};

/// How a hub is looked for that does not answer yet.
const PATIENCE: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    first_wait: Duration::from_secs(1),
    wait_max: Duration::from_secs(30),
};
const MIB: u64 = 1 << 20;
/// Longest name of a run as it is shown.
const NAME_CHARS_MAX: usize = 64;

/// Everything up to the first decision; `None` if the owner stopped the worker before.
pub(super) async fn begin<'a>(
    config: &'a Config,
    ground: Ground,
    shutdown: CancellationToken,
    report: &'a mut dyn FnMut(&Status),
) -> Result<Option<Session<'a>>> {
    let folder = Folder::open(&*ground.disk, &config.folder).await?;
    let client = ground.client(&config.hub)?;
    client.keep_addresses_in(Arc::clone(&ground.disk), &folder.addresses());
    let mut status = Status::new();
    let worker = WorkerId(folder.key().public());
    status.worker = worker.short();
    report(&status);
    let begun = async {
        let summary = find_run(config, &client, &mut status, report, |run| {
            folder.has(&*ground.disk, run)
        })
        .await?;
        let run: RunId = summary
            .id
            .parse()
            .with_context(|| format!("the hub's run has no id: {:.80}", summary.id))?;
        status.run = printable(&summary.name, NAME_CHARS_MAX);
        let charter = patiently(&client, &mut status, report, async || {
            client.charter(run).await
        });
        let charter = charter.await?;
        engine::charter::check(&charter)?;
        anyhow::Ok((run, Arc::new(charter)))
    };
    let Some((run, charter)) = shutdown.run_until_cancelled(begun).await.transpose()? else {
        return Ok(None);
    };

    let cache = BlobCache::open_on(
        Arc::clone(&ground.disk),
        &folder.cache(),
        config.cache_bytes_max,
    )?;
    client.add_addresses(charter.addresses.iter().map(String::as_str));
    let takeovers = Takeovers::open(
        Arc::clone(&ground.disk),
        folder.takeovers(run),
        &charter,
        client.clone(),
    );
    let store = CarriedStore::open(Arc::clone(&ground.disk), folder.carried(run))?;
    let (sender, mut news) = watch::channel(News::default());
    let kept_model = KeptModel::new(Arc::clone(&ground.disk), folder.model(run));
    let kept = kept_model.look(charter.model.parameter_count());
    let (token, shown) = watch::channel(None);
    let bounds = Bounds::of(&charter);
    let held_round = Arc::<HeldRound>::default();
    held_round.set(kept.map(|it| it.held.round));
    let poller = Poller {
        client: client.clone(),
        run,
        worker,
        bounds,
        takeovers,
        token: shown,
        held: Arc::clone(&held_round),
        news: sender,
    };
    let poller = tokio::spawn(poller.poll()).abort_handle();
    let first = async {
        while news.borrow().work.is_none() {
            // The poller ends only with its listeners.
            news.changed().await.context("the poller ended")?;
            status.problem.clone_from(&news.borrow().problem);
            report(&status);
        }
        anyhow::Ok(())
    };
    if shutdown
        .run_until_cancelled(first)
        .await
        .transpose()?
        .is_none()
    {
        poller.abort();
        return Ok(None);
    }

    let held_model = kept.map(|it| it.held);
    let plan = plan(config, &charter, worker, held_model, &cache, &news)?;
    ensure_memory(plan.memory_bytes)?;
    status.activity = Activity::Announcing(plan);
    report(&status);
    // The link works while the processor is measured; what fails here is asked for again, and told, when it is needed.
    let needed = match &news.borrow().work {
        Some((work, _)) => needed_at_first(work, &charter, worker, held_model, &cache)?,
        None => Vec::new(),
    };
    let source = source::open(config, &client, &cache, folder.key(), run, &charter).await;
    let prefetching = fetch_ahead(&source, needed, &shutdown);
    status.activity = Activity::Measuring;
    report(&status);
    let quota = config.cpu_quota.map(Quota::set).transpose()?;
    let threads = config.threads();
    let (mut machine, measured) = prepare(config, &ground, &charter, threads).await?;
    let file = kept_model.clone();
    let restored = world::blocking(move || {
        let held_at = machine.restore_model(&file);
        (machine, held_at)
    });
    let (machine, restored) = restored.await.context("reading the model panicked")?;
    let held_at = restored.unwrap_or_else(|error| {
        tracing::warn!("the model of the last time: {error:#}");
        None
    });
    status.tokens_per_s = measured.tokens_per_s;
    let device = Device {
        arithmetic: machine.arithmetic(),
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        memory_mib: u32::try_from(machine::memory_bytes(&charter).div_ceil(MIB))
            .unwrap_or(u32::MAX),
        tokens_per_s: measured.tokens_per_s,
    };
    let window = Duration::from_millis(charter.round.window_ms);
    let outbox = Outbox::open(
        Arc::clone(&ground.disk),
        folder.outbox(run),
        client.clone(),
        folder.key().clone(),
        window,
    )?;
    Ok(Some(Session {
        config,
        client,
        clock: ground.clock,
        tell_every: ground.tell_every,
        run,
        worker,
        cache,
        source,
        store,
        outbox,
        shutdown,
        news,
        token,
        held_round,
        kept_round: machine.held().map(|it| it.round),
        kept_model,
        poller,
        machine: Some(machine),
        shards: Shards::default(),
        measured,
        device,
        margin: Margin::new(measured.encode, window),
        attempted: None,
        reunions: None,
        rejoined: None,
        sequence: 0,
        held_at: held_at.unwrap_or(0),
        committed_at: 0,
        published: None,
        prefetching: Some(prefetching),
        warned: None,
        status,
        report,
        charter,
        folder,
        _quota: quota,
    }))
}

/// Name for the log: the owner's, or the host's with what names do not have left out.
pub(super) fn worker_name(config: &Config, worker: WorkerId) -> Result<String> {
    if let Some(name) = &config.name {
        if !is_name(name) {
            bail!("{name:?} is no name: 1 to 64 letters, digits, spaces, '-', '_' or '.'");
        }
        return Ok(name.clone());
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"))
        .unwrap_or_default();
    Ok(if is_name(host.trim()) {
        host.trim().to_owned()
    } else {
        format!("worker-{}", worker.short())
    })
}

/// The run that is asked for; else the newest that goes on, but before others one that this worker took part in.
async fn find_run(
    config: &Config,
    client: &HubClient,
    status: &mut Status,
    report: &mut dyn FnMut(&Status),
    is_known: impl Fn(RunId) -> bool,
) -> Result<RunSummary> {
    if let Some(wanted) = &config.run {
        return patiently(client, status, report, async || client.run(wanted).await)
            .await
            .with_context(|| format!("looking for run {wanted:?}"));
    }
    let runs = patiently(client, status, report, async || client.runs().await).await?;
    let count = runs.len();
    let mut open: Vec<RunSummary> = runs
        .into_iter()
        .filter(|it| it.phase != "finished")
        .collect();
    ensure!(
        !open.is_empty(),
        match count {
            0 => "the hub has no runs yet: ask its operator, or create one",
            _ => "all runs of the hub are finished",
        }
    );
    let known = open
        .iter()
        .position(|it| it.id.parse().is_ok_and(&is_known));
    Ok(open.swap_remove(known.unwrap_or(0)))
}

/// Repeats a call until the hub answers, and says so meanwhile. What one address does not have another may.
async fn patiently<T>(
    client: &HubClient,
    status: &mut Status,
    report: &mut dyn FnMut(&Status),
    mut call: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Result<T> {
    let mut failures = 0;
    let mut elsewhere = client.addresses().len();
    loop {
        let address = client.current_address();
        match call().await {
            Ok(answer) => {
                status.problem = None;
                return Ok(answer);
            }
            Err(error) if error.is_temporary() => {
                failures += 1;
                tracing::debug!(failures, "{error}");
                status.problem = Some(error.to_string());
                report(status);
                tokio::time::sleep(PATIENCE.wait_after(failures)).await;
            }
            Err(ClientError::Refused { status: 404, .. })
                if 1 < elsewhere && client.leave_address(&address) =>
            {
                elsewhere -= 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn plan(
    config: &Config,
    charter: &Charter,
    worker: WorkerId,
    held: Option<Held>,
    cache: &BlobCache,
    news: &watch::Receiver<News>,
) -> Result<Plan> {
    let news = news.borrow();
    let (work, _) = news.work.as_ref().context("waited for above")?;
    let is_here = |it: &BlobReference| cache.contains(it);
    let route = Target::of(work)?.route(held, None, is_here);
    // Any round's shards stand for the first one's: the number is the same, the sizes alike.
    let seed = protocol::Hash::default();
    let shards = assigned_shards(charter, &seed, &worker);
    let missing = |&shard: &u32| {
        let blob = charter.data.training[shard as usize].blob;
        (!cache.contains(&blob)).then_some(blob.bytes)
    };
    Ok(Plan {
        parameters: charter.model.parameter_count(),
        memory_bytes: machine::memory_bytes(charter),
        threads: config.threads(),
        download_bytes: route.missing_bytes(is_here)
            + shards.iter().filter_map(missing).sum::<u64>(),
        disk_bytes_max: disk_bytes_max(charter, config.cache_bytes_max),
        upload_bytes_max: machine::upload_bytes_max(charter),
        window: Duration::from_millis(charter.round.window_ms),
    })
}

/// Most bytes of disk that taking part uses: downloads, the model of the last time, what is carried, and updates.
fn disk_bytes_max(charter: &Charter, cache_bytes_max: u64) -> u64 {
    let parameters = charter.model.parameter_count();
    let moments = match charter.inner.carry_inner_state {
        true => 8 * parameters,
        false => 0,
    };
    // What was carried in, and the two states of a round, of which one names the other's moments.
    let states = 3 * 4 * parameters + 2 * moments + cache_bytes_max / STATES_SHARE;
    // The new one is written beside the old one.
    let models = 2 * KeptModel::bytes(parameters);
    let published = 8 * parameters;
    let updates = outbox::bytes_max(machine::upload_bytes_max(charter) + published);
    cache_bytes_max + states + models + updates
}

/// A run whose training does not fit into this machine's memory is none for it.
fn ensure_memory(needed: u64) -> Result<()> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib = text.lines().find_map(|it| {
        it.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    });
    let Some(total): Option<u64> = total_kib.map(|it: u64| it * 1024) else {
        return Ok(());
    };
    ensure!(
        needed <= total,
        "training this run's model takes {} MiB of memory, this machine has {}",
        needed.div_ceil(MIB),
        total / MIB
    );
    Ok(())
}

/// Allocates and measures on a thread of lower priority; the training threads inherit it.
async fn prepare(
    config: &Config,
    ground: &Ground,
    charter: &Arc<Charter>,
    threads: usize,
) -> Result<(Box<Machine>, machine::Measurement)> {
    let (charter, nice) = (Arc::clone(charter), config.nice);
    let trainer = Arc::clone(&ground.trainer);
    let prepared = world::blocking(move || {
        be_nice(nice);
        let trainer = trainer(&charter, threads);
        let mut machine = Box::new(Machine::new(charter, trainer));
        let measured = machine.measure()?;
        anyhow::Ok((machine, measured))
    });
    prepared
        .await
        .context("measuring panicked: please report this")?
}

/// On Linux the niceness is the calling thread's and passes to the threads that it makes.
pub(crate) fn be_nice(nice: i32) {
    if world::is_simulated() {
        return;
    }
    #[cfg(unix)]
    if let Err(error) = rustix::process::setpriority_process(None, nice.clamp(0, 19)) {
        tracing::debug!("the niceness could not be set: {error}");
    }
    #[cfg(not(unix))]
    let _ = nice;
}
