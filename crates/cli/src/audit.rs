//! `athome audit`: does one update again and says whether it comes out the same, or where it first differs.

mod history;
mod repeat;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use protocol::{Hash, log::Entry, state::State};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use worker::audit::{Auditor, compare::Comparison};

use self::{
    history::{Facts, Record, Wanted},
    repeat::{Given, Repetition},
};
use crate::{
    output::{Output, StatusLine, grouped},
    places::Places,
    run::HUB_DEFAULT,
    source::Source,
};

const EXAMPLES: &str = "\
Examples:
  athome audit 12/0
  athome audit 5f297334a84d7f371cc97f6250f8dca9e60603792b26bb25fa7977dc35f5de7e --folder ~/.athome/hub
  athome audit 12/0 --carried ~/.athome/worker/runs/RUN/carried --leaves ~/.athome/worker/runs/RUN/leaves

An update follows from public data and from what its worker carried in. That state comes from --carried, or from doing the
worker's earlier updates again, from the last one that began afresh: the command says how many.
The log holds the root over the inner steps alone; with its worker's --leaves the step is named at which both part.

Exit status: 0 if it comes out the same (on a machine of another arithmetic class: alike), 1 if not.";

/// Do one update again and say whether it comes out the same, or where it first differs.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Audit {
    /// Hash of an update file, or ROUND/SLOT
    #[arg(value_name = "UPDATE")]
    update: String,
    /// The hub's or a mirror's address
    #[arg(long, env = "ATHOME_HUB", hide_env_values = true, default_value = HUB_DEFAULT, value_name = "URL")]
    hub: String,
    /// The folder of a hub that does not run, instead of an address
    #[arg(long, value_name = "FOLDER")]
    folder: Option<String>,
    /// Name or id of the run [default: the only one]
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// The worker's folder of carried states, or one state's file in it
    #[arg(long, value_name = "PATH")]
    carried: Option<PathBuf>,
    /// The worker's folder of leaves, or one file of it
    #[arg(long, value_name = "PATH")]
    leaves: Option<PathBuf>,
    /// Threads [default: all]
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Audited {
    update: String,
    run: String,
    worker: String,
    round: u64,
    slot: u32,
    log_entry: u64,
    steps: u32,
    /// Updates done again, this one among them.
    repeated: usize,
    /// Whether every bit agrees.
    equal: bool,
    /// Whether the worker's machine is of this machine's arithmetic class, so that every bit has to agree.
    same_arithmetic: bool,
    worker_arithmetic: String,
    own_arithmetic: String,
    /// Whether the differences are within what another arithmetic class explains.
    alike: bool,
    payload_compared: bool,
    /// The update that differs, if it is an earlier one of the worker's.
    differs_at: Option<String>,
    differences: Vec<String>,
}

impl Audit {
    pub(crate) async fn execute(
        self,
        places: &Places,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let wanted: Wanted = self.update.parse()?;
        let place = self.folder.as_deref().unwrap_or(&self.hub);
        let source = Source::open(place, self.run.as_deref(), places).await?;
        let cache = places.cache();
        std::fs::create_dir_all(&cache)
            .with_context(|| format!("can't make the folder {}", cache.display()))?;
        let states = tempfile::tempdir_in(&cache).context("can't make a folder for states")?;
        let output = Output { json: self.json };
        let stop = shutdown.clone();
        let audited =
            tokio::task::spawn_blocking(move || audit(&self, wanted, source, states.path(), &stop))
                .await??;
        output.result(&audited, || text(&audited))?;
        let is_good = match audited.same_arithmetic {
            true => audited.equal,
            false => audited.alike,
        };
        if !is_good {
            let first = audited.differences.first().map_or("", String::as_str);
            bail!("the update does not come out the same: {first}");
        }
        Ok(())
    }
}

/// Everything, on a thread for blocking calls.
fn audit(
    options: &Audit,
    wanted: Wanted,
    mut source: Source,
    states: &std::path::Path,
    shutdown: &CancellationToken,
) -> anyhow::Result<Audited> {
    let mut status = StatusLine::new();
    status.set("reading the log");
    let facts = Facts::read(&mut source, &wanted, shutdown)?;
    let records = facts.records_of_worker(&mut source, shutdown)?;
    let target = records.last().context("the update left the log")?.clone();
    let threads = match options.threads {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let auditor = Auditor::new(facts.charter.clone(), threads, states)?;
    let given = Given {
        carried: options.carried.clone(),
        leaves: options.leaves.clone(),
    };
    let mut repetition = Repetition::new(auditor, &facts, &mut source, given)?;
    let chain = repetition.chain(&records)?;
    let (mut at, mut comparison) = (None, None);
    for (place, record) in chain.iter().enumerate() {
        if shutdown.is_cancelled() {
            bail!("stopped before it was done");
        }
        let header = &record.commitment.header;
        status.set(&format!(
            "doing update {} of {} again: round {}, {} steps",
            place + 1,
            chain.len(),
            header.round,
            header.steps
        ));
        let found = repetition.repeat(record)?;
        let is_last = place + 1 == chain.len();
        let is_other = facts.is_own_class() && !found.is_equal();
        if is_last || is_other {
            at = Some((*record).clone());
            comparison = Some(found);
            break;
        }
    }
    status.end();
    let (at, comparison) = at.zip(comparison).expect("a chain has a last update");
    Ok(audited(&facts, &target, &at, chain.len(), &comparison))
}

fn audited(
    facts: &Facts,
    target: &Record,
    at: &Record,
    repeated: usize,
    comparison: &Comparison,
) -> Audited {
    let header = &target.commitment.header;
    Audited {
        update: target.commitment.update.hash.to_string(),
        run: header.run.to_string(),
        worker: header.worker.to_string(),
        round: header.round,
        slot: header.slot,
        log_entry: target.entry,
        steps: header.steps,
        repeated,
        equal: comparison.is_equal(),
        same_arithmetic: facts.is_own_class(),
        worker_arithmetic: facts.arithmetic.clone(),
        own_arithmetic: engine::arithmetic::class(),
        alike: comparison.is_alike,
        payload_compared: comparison.is_payload_compared,
        differs_at: (at.entry != target.entry).then(|| named(at)),
        differences: comparison
            .differences
            .iter()
            .map(ToString::to_string)
            .collect(),
    }
}

fn named(record: &Record) -> String {
    let header = &record.commitment.header;
    format!(
        "round {}, slot {} ({})",
        header.round, header.slot, record.commitment.update.hash
    )
}

fn text(audited: &Audited) -> String {
    let mut lines = vec![
        format!("update    {}", audited.update),
        format!(
            "          round {}, slot {}, {} steps, log entry {}",
            audited.round,
            audited.slot,
            audited.steps,
            grouped(audited.log_entry)
        ),
        format!("worker    {}", audited.worker),
        format!(
            "repeated  {} update{} of this worker, from its last fresh start or given state",
            audited.repeated,
            if audited.repeated == 1 { "" } else { "s" }
        ),
    ];
    if !audited.same_arithmetic {
        lines.push(format!(
            "class     {} here, {} there: bits can't be expected to agree; compared by loss and direction",
            audited.own_arithmetic, audited.worker_arithmetic
        ));
    }
    if !audited.payload_compared {
        lines.push(
            "payload   its file is not here: only what it commits to was compared".to_owned(),
        );
    }
    if let Some(at) = &audited.differs_at {
        lines.push(format!(
            "differs   at an earlier update of this worker already: {at}"
        ));
    }
    let verdict = match (audited.equal, audited.same_arithmetic, audited.alike) {
        (true, _, _) => "EQUAL: the update comes out the same, bit for bit.",
        (false, false, true) => "ALIKE: within what another arithmetic class explains.",
        (false, _, _) => "DIFFERENT. In the order of its making:",
    };
    lines.extend([String::new(), verdict.to_owned()]);
    lines.extend(audited.differences.iter().map(|it| format!("  {it}")));
    lines.join("\n")
}

/// Folds a log, entry by entry, until `each` has seen enough.
fn fold(
    source: &mut Source,
    shutdown: &CancellationToken,
    mut each: impl FnMut(&Entry, &State) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut state: Option<State> = None;
    loop {
        let from = state.as_ref().map_or(0, |it| it.head.length);
        let (entries, broken) = source.entries(from)?;
        let is_end = entries.is_empty();
        for entry in entries {
            if shutdown.is_cancelled() {
                bail!("stopped before it was done");
            }
            match &mut state {
                None => state = Some(State::create(&entry)?),
                Some(state) => state.apply(&entry)?,
            }
            let state = state.as_ref().expect("made a moment ago");
            anyhow::ensure!(
                state.run == source.run(),
                "the log is another run's than the one asked for"
            );
            if each(&entry, state)? {
                return Ok(());
            }
        }
        if let Some(problem) = broken {
            let next = state.as_ref().map_or(0, |it| it.head.length);
            bail!("log entry {next}: {problem}");
        }
        if is_end {
            return Ok(());
        }
    }
}

/// The bytes of a blob that the audit can't do without.
fn required(
    source: &mut Source,
    blob: &protocol::units::BlobReference,
    what: &str,
) -> anyhow::Result<Vec<u8>> {
    use engine::replay::verify::Blobs as _;
    let place = source.blob_place(&blob.hash);
    let read = source.read(blob).map_err(anyhow::Error::msg);
    let bytes = read
        .with_context(|| format!("reading {what} ({place})"))?
        .with_context(|| format!("{what} is not here ({place})"))?;
    anyhow::ensure!(
        Hash::of_blob(&bytes) == blob.hash,
        "{what} was changed: its bytes are not those of its hash ({place})"
    );
    Ok(bytes)
}
