//! What a host is to do next: the unit, the files it needs, and how BOINC is told of it.

mod again;
mod start;

use anyhow::{Context, Result};
use protocol::{
    Hash,
    api::Work,
    boinc::{
        EvaluationTask, Output, TrainingTask, UNIT_NAME, Unit as SignedUnit, UnitFile, UnitTask,
    },
    charter::Charter,
    sampling,
    state::State,
    units::{BlobReference, RunId, WorkerId},
};

use self::start::model_files;
pub(super) use self::start::to_delete;
use super::{
    Door, entropy,
    files::charter,
    release::Platform,
    reply::{Input, Task, output_name},
    request::SchedulerRequest,
    store::{Account, FileSum, Host, NewUnit, Unit},
};
use crate::{Hub, http::Failure, run::Run};

/// Most files of one task.
const FILES_MAX: usize = 256;
/// How long a host that enrols measures itself, with some time around it.
const ENROL_MS: u64 = 30_000;
/// A task that is no training is waited for this long.
const OTHERS_DEADLINE_MS: u64 = 24 * 3_600_000;
/// Least and longest time for measuring a model.
const MEASURE_MS: (u64, u64) = (15_000, 600_000);
/// Time kept of a window for upload and report: a tenth of it, within these bounds.
const MARGIN_MS: (u64, u64) = (3_000, 60_000);
/// Speed of a host whose client has not measured it.
const FLOPS_ASSUMED: f64 = 1e9;
/// Memory besides what a worker reckons with itself: both processes, text, an update being written, scratch of more threads.
const MEMORY_ROOM_BYTES: u64 = 192 << 20;
/// And one part in so many of it.
const MEMORY_ROOM_SHARE: u64 = 4;
/// Disk besides twice the files and a round that pauses.
const DISK_BYTES: u64 = 512 << 20;
/// Copies of the parameters on the disk while a round that pauses is written anew beside the one of before: parameters, m,
/// v and error feedback, twice.
const PAUSED_COPIES: u64 = 8;

/// For whom a task is made.
pub(super) struct For<'a> {
    pub(super) hub: &'a Hub,
    pub(super) run: &'a Run,
    pub(super) account: &'a Account,
    pub(super) host: &'a Host,
    pub(super) platform: &'a Platform,
    pub(super) request: &'a SchedulerRequest,
    /// The hub's clock when the request came.
    pub(super) now_ms: u64,
}

/// A unit before its files are summed up.
struct Draft {
    kind: &'static str,
    round: Option<u64>,
    worker: Option<WorkerId>,
    task: UnitTask,
    blobs: Vec<BlobReference>,
    expected_ms: u64,
    deadline_ms: u64,
    upload_bytes_max: u64,
}

/// Time before a round's deadline by which training ends.
pub(super) fn margin_ms(window_ms: u64) -> u64 {
    (window_ms / 10).clamp(MARGIN_MS.0, MARGIN_MS.1)
}

/// Memory that a task of a run is allowed. The application refuses what it would not have room for by its own figure, and
/// this is more.
pub(super) fn memory_bytes(charter: &Charter) -> u64 {
    let worker_bytes = engine::charter::worker_memory_bytes(charter);
    MEMORY_ROOM_BYTES + worker_bytes + worker_bytes / MEMORY_ROOM_SHARE
}

impl Door {
    /// The task by which a host becomes a worker.
    pub(super) async fn enrol(
        &self,
        whom: &For<'_>,
        sequence: u64,
        with_new_key: bool,
    ) -> Result<Task> {
        let task = UnitTask::Enrol {
            sequence,
            with_new_key,
        };
        let draft = Draft {
            kind: "enrol",
            round: None,
            worker: None,
            task,
            blobs: vec![],
            expected_ms: ENROL_MS,
            deadline_ms: whom.now_ms + OTHERS_DEADLINE_MS,
            upload_bytes_max: Output::head_bytes_max() as u64,
        };
        self.give(whom, draft).await
    }

    /// The task that trains a round. `work` has an assignment.
    pub(super) async fn train(
        &self,
        whom: &For<'_>,
        worker: WorkerId,
        mut work: Work,
    ) -> Result<Task> {
        let assignment = work.assignment.clone().context("there is no assignment")?;
        self.choose_start(whom, &mut work).await?;
        let (mut blobs, window_ms, train_ms) = {
            let charter = &whom.run.charter;
            let seed: Hash = assignment.seed.parse()?;
            let shards = sampling::assigned_shards(charter, &seed, &worker);
            let training = &charter.data.training;
            let shards = shards.iter().filter_map(|it| training.get(*it as usize));
            let blobs: Vec<_> = shards.map(|it| it.blob).collect();
            let round = &charter.round;
            (blobs, round.window_ms, round.boinc_unit_ms)
        };
        blobs.extend(model_files(&work)?);
        if let Some(inner) = &work.inner_start {
            blobs.push(BlobReference {
                hash: inner.blob.parse()?,
                bytes: inner.bytes,
            });
        }
        let until_ms = assignment.deadline_ms.saturating_sub(margin_ms(window_ms));
        // By the host's own clock.
        let host_now_ms = whom.request.now_ms.unwrap_or(whom.now_ms);
        let arithmetic = &whom.run.arithmetic;
        let upload_bytes_max = Output::head_bytes_max() as u64
            + arithmetic.upload_bytes_max(true)
            + arithmetic.upload_bytes_max(false);
        let expected_ms = train_ms.min(until_ms.saturating_sub(work.now_ms));
        let draft = Draft {
            kind: "train",
            round: Some(assignment.round),
            worker: Some(worker),
            blobs,
            expected_ms,
            // A late update still counts, less: the host is not told to give up sooner.
            deadline_ms: assignment.deadline_ms + 3 * window_ms,
            upload_bytes_max,
            task: UnitTask::Train(Box::new(TrainingTask {
                worker: worker.0,
                work,
                train_ms,
                until_ms: (until_ms + host_now_ms).saturating_sub(whom.now_ms),
                repeated_steps: None,
            })),
        };
        self.give(whom, draft).await
    }

    /// The task that measures the newest model while there is no round to train.
    pub(super) async fn evaluate(
        &self,
        whom: &For<'_>,
        worker: WorkerId,
        mut work: Work,
    ) -> Result<Task> {
        work.assignment = None;
        work.inner_start = None;
        self.choose_start(whom, &mut work).await?;
        let chance = entropy::<16>()?;
        let chance = |at: usize, below: u64| {
            let bytes: [u8; 8] = chance[at..at + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes) % below.max(1)
        };
        let (shard, windows, windows_max, window_ms) = {
            let charter = &whom.run.charter;
            let data = &charter.data;
            let sequence = u64::from(charter.inner.sequence).max(1);
            let shard = chance(0, data.held_out.len() as u64) as usize;
            let held_out = data.held_out.get(shard).context("no text is held out")?;
            let windows = held_out.tokens.saturating_sub(1) / sequence;
            let windows_max = u64::from(data.held_out_tokens_max) / sequence;
            let window_ms = charter.round.window_ms;
            ((shard, held_out.blob), windows, windows_max, window_ms)
        };
        let first_window = chance(8, windows);
        let windows = (windows - first_window.min(windows)).clamp(1, windows_max.max(1));
        let measure_ms = (window_ms / 8).clamp(MEASURE_MS.0, MEASURE_MS.1);
        let mut blobs = model_files(&work)?;
        blobs.push(shard.1);
        let draft = Draft {
            kind: "evaluate",
            round: Some(work.model.round),
            worker: Some(worker),
            blobs,
            expected_ms: measure_ms,
            deadline_ms: whom.now_ms + OTHERS_DEADLINE_MS,
            upload_bytes_max: Output::head_bytes_max() as u64,
            task: UnitTask::Evaluate(Box::new(EvaluationTask {
                round: work.model.round,
                parameters: work.model.parameters_hash.parse()?,
                work,
                shard: shard.0 as u32,
                first_window,
                windows: u32::try_from(windows).unwrap_or(u32::MAX),
                measure_ms,
            })),
        };
        self.give(whom, draft).await
    }

    /// The same task again, whose first reply was lost.
    pub(super) async fn resend(&self, whom: &For<'_>, unit: &Unit) -> Result<Option<Task>> {
        let Some(sealed) = self.store.sealed(&unit.sealed_hash).await? else {
            return Ok(None);
        };
        let (signed, _) = SignedUnit::open(&sealed)?;
        let mut files = vec![Self::sum_of_bytes(&sealed)];
        for file in &signed.files {
            files.push(self.sum_of_file(whom, &file.blob).await?);
        }
        let open_names = signed.files.iter().map(|it| it.open_name.as_str());
        let open_names: Vec<&str> = [UNIT_NAME].into_iter().chain(open_names).collect();
        Ok(Some(
            self.task(whom, unit, inputs(&files, &open_names)).await,
        ))
    }

    /// Seals a unit, notes it, and says how BOINC is told.
    async fn give(&self, whom: &For<'_>, draft: Draft) -> Result<Task> {
        let mut files = vec![Self::sum_of_bytes(&charter(whom.run))];
        anyhow::ensure!(draft.blobs.len() < FILES_MAX, "a task with too many files");
        for blob in &draft.blobs {
            if !files.iter().any(|it| it.blob == *blob) {
                files.push(self.sum_of(whom.hub, blob).await?);
            }
        }
        let named = |(index, it): (usize, &FileSum)| UnitFile {
            open_name: match index {
                0 => "charter".to_owned(),
                _ => it.blob.hash.to_string(),
            },
            blob: it.blob,
        };
        let takeovers = takeovers(&*whom.run.state.read().await);
        let signed = SignedUnit {
            name: unit_name(&draft, whom.host)?,
            run: whom.run.id,
            account: whom.account.key,
            task: draft.task,
            takeovers,
            files: files.iter().enumerate().map(named).collect(),
        };
        let sealed = signed.seal(&whom.hub.key);
        let open_names = signed.files.iter().map(|it| it.open_name.as_str());
        let open_names: Vec<&str> = [UNIT_NAME].into_iter().chain(open_names).collect();
        files.insert(0, Self::sum_of_bytes(&sealed));
        let new = NewUnit {
            name: signed.name.clone(),
            host: whom.host.id,
            account: whom.account.id,
            run: whom.run.id,
            kind: draft.kind,
            round: draft.round,
            worker: draft.worker,
            sealed,
            upload_bytes_max: draft.upload_bytes_max,
            expected_ms: draft.expected_ms,
            sent_ms: whom.now_ms,
            deadline_ms: draft.deadline_ms,
        };
        let noted = new.noted();
        self.store.add_unit(new).await?;
        Ok(self.task(whom, &noted, inputs(&files, &open_names)).await)
    }

    /// How BOINC is told of a unit.
    async fn task(&self, whom: &For<'_>, unit: &Unit, inputs: Vec<Input>) -> Task {
        let (parameters, memory_bytes) = {
            let charter = &whom.run.charter;
            (charter.model.parameter_count(), memory_bytes(charter))
        };
        let bytes: u64 = inputs.iter().map(|it| it.bytes).sum();
        let machine = &whom.host.machine;
        let allowed = f64::from(machine.processors) * whom.request.processors_percent / 100.0;
        let file = output_name(&unit.name);
        let expires_s = unit.deadline_ms / 1_000 + 90 * 86_400;
        Task {
            app: self.release.app.clone(),
            version: self.release.version_num,
            platform: whom.platform.clone(),
            processors: (allowed as u32).max(1),
            flops: match machine.flops > 0.0 {
                true => machine.flops,
                false => FLOPS_ASSUMED,
            },
            seconds: unit.expected_ms as f64 / 1_000.0,
            memory_bytes,
            disk_bytes: DISK_BYTES
                + 2 * (bytes + unit.upload_bytes_max)
                + 4 * parameters * PAUSED_COPIES,
            inputs,
            upload_bytes_max: unit.upload_bytes_max,
            upload_token: self
                .token_key
                .token(&file, unit.upload_bytes_max, expires_s),
            deadline_s: unit.deadline_ms / 1_000,
            name: unit.name.clone(),
        }
    }

    async fn sum_of_file(&self, whom: &For<'_>, blob: &BlobReference) -> Result<FileSum> {
        let charter = charter(whom.run);
        match BlobReference::of(&charter) == *blob {
            true => Ok(Self::sum_of_bytes(&charter)),
            false => self.sum_of(whom.hub, blob).await,
        }
    }
}

/// The answer that a worker's poll would have.
pub(super) async fn poll(hub: &Hub, run: &Run, worker: WorkerId) -> Result<Work> {
    let answer = crate::http::work(hub, run, worker, None).await;
    answer.map_err(|error: Failure| anyhow::anyhow!("{error:?}"))
}

fn inputs(files: &[FileSum], open_names: &[&str]) -> Vec<Input> {
    let pairs = files.iter().zip(open_names);
    pairs
        .map(|(file, open_name)| Input {
            name: file.blob.hash.to_string(),
            open_name: (*open_name).to_owned(),
            bytes: file.blob.bytes,
            md5: file.md5.clone(),
            // The unit is of use once.
            is_sticky: *open_name != UNIT_NAME,
        })
        .collect()
}

fn takeovers(state: &State) -> Vec<String> {
    let successions = state.sealing.successions().iter();
    successions
        .map(|it| data_encoding::HEXLOWER.encode(&it.to_bytes()))
        .collect()
}

fn unit_name(draft: &Draft, host: &Host) -> Result<String> {
    let chance = data_encoding::HEXLOWER.encode(&entropy::<4>()?);
    let round = draft.round.unwrap_or(0);
    Ok(format!("{}_{round}_{}_{chance}", draft.kind, host.id))
}

/// Whether a round still takes this worker's update, or has it already: a hub that was stopped in between knows of the
/// commitment, and the machine is still to hear of it, and perhaps to send the bytes again.
pub(super) fn is_wanted(state: &State, round: u64, worker: &WorkerId) -> bool {
    let is_open = state.training.as_ref().is_some_and(|it| it.round == round);
    let mut closed = state.closed.iter();
    let is_missing = closed.any(|it| it.round == round && it.missing.contains_key(worker));
    let mut slots = state.rounds_in_progress().flat_map(|it| it.slots());
    let mut is_committed = || {
        slots.any(|it| it.of_round == round && it.worker == *worker && it.commitment().is_some())
    };
    let record = state.workers.get(worker);
    let is_merged = || record.is_some_and(|it| it.last_of_round() == Some(round));
    is_open || is_missing || is_committed() || is_merged()
}

/// The run that BOINC hosts work for: the newest that takes them.
pub(crate) async fn run_for_hosts(hub: &Hub) -> Result<Option<Run>> {
    let mut open = Vec::new();
    for run in hub.all().await {
        let takes = run.charter.round.boinc_unit_ms > 0 && run.must_be_hub().is_ok();
        if takes && !run.state.read().await.is_finished() {
            open.push(run);
        }
    }
    // Most hubs have one, and no need to look how old it is.
    if open.len() < 2 {
        return Ok(open.pop());
    }
    let mut newest: Option<(u64, RunId, Run)> = None;
    for run in open {
        let created_ms = hub.store.created_ms(run.id).await?;
        if newest
            .as_ref()
            .is_none_or(|it| (it.0, it.1) < (created_ms, run.id))
        {
            newest = Some((created_ms, run.id, run));
        }
    }
    Ok(newest.map(|it| it.2))
}
