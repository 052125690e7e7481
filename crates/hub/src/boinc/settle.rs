//! What follows from a result: its commands are granted, its binding is completed, its files become blobs, as if a
//! connected worker had sent them one after the other.
//!
//! Nothing is believed: signatures and hashes are checked, the run's own rules decide. What they refuse for now is tried
//! again here, because the client has done its part.

mod again;
mod file;
mod measured;
mod waiting;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use protocol::{
    boinc::Output,
    command::{CheckedCommand, Command, SignedCommand},
    identity::{Binding, KeyRole, sign_half},
    state::decide::RefusalCode,
    units::{BlobReference, WorkerId},
};
use tokio::time::Instant;

pub(super) use self::waiting::Waiting;
use self::{file::Content, waiting::Tries};
use super::{
    Door,
    scheduler::daily_quota,
    store::{Account, Settled, Unit, UnitState, Uploaded},
};
use crate::{
    Hub,
    blobs::{PART_BYTES_MAX, Upload},
    http::Failure,
    run::{Run, RunError},
};

/// Pause before all that waits is looked through again, where nothing says when.
const AGAIN: Duration = Duration::from_secs(1);

/// What is said of a task whose machine is another worker now.
const RENEWED: &str =
    "the machine has a new key (its project was reset): it takes part with that from now on";

/// How far settling came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Settled,
    /// It is taken at another moment, and tried at this one.
    Later(Instant),
}

/// Why a result is not granted.
enum No {
    /// For ever, with the reason.
    Never(String),
    /// The same, and it is what no honest machine sends: it counts as a failure of the machine's.
    Spoilt(String),
    /// Not now, with the reason.
    Later(String),
    /// The hub failed.
    Inside(anyhow::Error),
}

impl From<anyhow::Error> for No {
    fn from(error: anyhow::Error) -> Self {
        Self::Inside(error)
    }
}

impl From<std::io::Error> for No {
    fn from(error: std::io::Error) -> Self {
        Self::Inside(error.into())
    }
}

impl From<RunError> for No {
    fn from(error: RunError) -> Self {
        match &error {
            RunError::Refused(refusal) if refusal.code == RefusalCode::BetweenRounds => {
                later(error)
            }
            RunError::Refused(_) | RunError::CannotTakeOver(_) => Self::Never(error.to_string()),
            RunError::Unavailable | RunError::Mirror(_) | RunError::Stopped(_) => later(error),
        }
    }
}

fn never(why: impl Into<String>) -> No {
    No::Never(why.into())
}

fn spoilt(why: impl Into<String>) -> No {
    No::Spoilt(why.into())
}

fn later(why: impl ToString) -> No {
    No::Later(why.to_string())
}

fn not_admitted(failure: Failure) -> No {
    later(failure.message())
}

/// A result being settled.
struct Settling<'a> {
    hub: &'a Hub,
    door: &'a Door,
    run: Run,
    unit: Unit,
    content: Content,
    tries: &'a mut Tries,
}

/// Settles again and again what was not settled when its client was answered, until the hub stops.
pub(crate) async fn settle_waiting(hub: Arc<Hub>, door: Arc<Door>) {
    let shutdown = hub.shutdown.clone();
    loop {
        let again = match settle_all(&hub, &door).await {
            Ok(again) => again,
            Err(error) => {
                tracing::error!("can't settle results of BOINC clients: {error:#}");
                Some(Instant::now() + AGAIN)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = door.settling.notified() => {}
            () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }
}

/// Settles what is due; gives the time when there is something to do again.
async fn settle_all(hub: &Arc<Hub>, door: &Arc<Door>) -> Result<Option<Instant>> {
    let mut soonest: Option<Instant> = None;
    for unit in door.store.unsettled().await? {
        // One that can't be settled keeps those behind it waiting no longer than it takes to say so.
        let again = match door.waiting.again(&unit) {
            Some(again) => again,
            None => match settle(hub, door, &unit, None).await {
                Ok(Step::Settled) => continue,
                Ok(Step::Later(again)) => again,
                Err(error) => {
                    tracing::error!(unit, "a result is not settled: {error:#}");
                    Instant::now() + AGAIN
                }
            },
        };
        soonest = Some(soonest.map_or(again, |it| it.min(again)));
    }
    Ok(soonest)
}

/// Settles a result that is on the disk. `client` has just sent it; what was sent before is settled without one.
pub(super) async fn settle(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    name: &str,
    client: Option<IpAddr>,
) -> Result<Step> {
    let Some(_turn) = door.store.settling.begin(name.to_owned()) else {
        return Ok(Step::Later(Instant::now() + AGAIN));
    };
    let unit = door.store.unit(name).await?.context("no such task")?;
    if unit.state != UnitState::Uploaded {
        return Ok(Step::Settled);
    }
    let content = Content::Disk(door.uploads.path(&unit));
    Ok(settle_as(hub, door, unit, content, client).await)
}

/// Settles a result that has just come from `client` and is in memory only: if it waits it must be put on the disk. Whoever
/// calls it has the right to settle it.
pub(super) async fn settle_from_memory(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    unit: Unit,
    bytes: Bytes,
    client: IpAddr,
) -> Step {
    settle_as(hub, door, unit, Content::Memory(bytes), Some(client)).await
}

async fn settle_as(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    unit: Unit,
    content: Content,
    client: Option<IpAddr>,
) -> Step {
    let name = unit.name.clone();
    let mut tries = door.waiting.take(&name);
    tries.asker.address = client.or(tries.asker.address);
    let why = match settle_once(hub, door, unit, content, &mut tries).await {
        Ok(None) => return Step::Settled,
        Ok(Some(why)) => why,
        Err(error) => {
            tracing::error!(unit = name, "a result is not settled: {error:#}");
            "the hub failed".to_owned()
        }
    };
    Step::Later(door.waiting.postpone(&name, tries, why))
}

/// Settles a result, or says why it waits.
async fn settle_once(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    unit: Unit,
    content: Content,
    tries: &mut Tries,
) -> Result<Option<String>> {
    let uploaded = match &content {
        Content::Memory(bytes) => Some(Uploaded {
            at_ms: hub.clock.now_ms(),
            bytes: bytes.len() as u64,
        }),
        Content::Disk(_) => None,
    };
    let mut settling = Settling {
        run: Door::run(hub, unit.run).await?,
        hub,
        door,
        unit,
        content,
        tries,
    };
    let settled = match settling.work().await {
        Ok(settled) => settled,
        Err(No::Later(why)) if hub.clock.now_ms() <= settling.unit.deadline_ms => {
            return Ok(Some(why));
        }
        Err(No::Later(why)) => refused(&format!("it was not taken in the task's time: {why}")),
        Err(No::Never(why)) => refused(&why),
        Err(No::Spoilt(why)) => {
            settling.note_spoilt().await?;
            refused(&why)
        }
        Err(No::Inside(error)) => return Err(error),
    };
    let unit = &settling.unit;
    if let Some(refusal) = &settled.refusal {
        tracing::info!(
            unit = unit.name,
            refusal,
            "a result of a BOINC client was refused"
        );
    }
    let is_on_disk = uploaded.is_none();
    let settled = Settled {
        uploaded,
        ..settled
    };
    door.store.settle(unit.name.clone(), settled).await?;
    // What an earlier try left of one that came whole is removed when the folder is looked through.
    if is_on_disk {
        door.uploads.remove(&unit.name, unit.account).await?;
    }
    Ok(None)
}

fn refused(why: &str) -> Settled {
    Settled {
        refusal: Some(why.to_owned()),
        ..Settled::default()
    }
}

impl Settling<'_> {
    async fn work(&mut self) -> Result<Settled, No> {
        self.run.must_be_hub()?;
        let (output, start) = self.content.head().await?;
        if output.unit != self.unit.name {
            return Err(spoilt("the result is of another task"));
        }
        let commands = output.commands.iter().cloned().map(|it| it.checked());
        let commands = commands.collect::<Result<Vec<_>, _>>();
        let commands = commands.map_err(|error| spoilt(error.to_string()))?;
        let run = self.run.id;
        if commands.iter().any(|it| it.get().run != run) {
            return Err(spoilt("the result's commands are of another run"));
        }
        match self.unit.kind.as_str() {
            "enrol" => self.enrol(&output, commands).await,
            "train" if self.is_renewed(&commands) => {
                let settled = self.enrol(&output, commands).await?;
                Ok(Settled {
                    refusal: Some(RENEWED.to_owned()),
                    ..settled
                })
            }
            "train" => self.train(start, &output, commands).await,
            "again" => self.again(start, &output, &commands).await,
            _ => self.evaluate(&output).await,
        }
    }

    /// Has the machine wait for its next task, and be given fewer in a day.
    async fn note_spoilt(&self) -> Result<()> {
        let (store, host) = (&self.door.store, self.unit.host);
        store.lessen_quota(host, 1, daily_quota(&self.run)).await?;
        store.note_failure(host, self.hub.clock.now_ms()).await
    }

    /// Whether a machine that was to train lost its key, and joins with another.
    fn is_renewed(&self, commands: &[CheckedCommand]) -> bool {
        let [join] = commands else {
            return false;
        };
        let join = join.get();
        matches!(join.command, Command::Join { .. }) && Some(join.worker) != self.unit.worker
    }

    /// The host becomes a worker of the account.
    async fn enrol(
        &mut self,
        output: &Output,
        commands: Vec<CheckedCommand>,
    ) -> Result<Settled, No> {
        let [join] = commands.as_slice() else {
            return Err(never("a machine joins by one command"));
        };
        let worker = join.get().worker;
        if !matches!(join.get().command, Command::Join { .. }) {
            return Err(never("the machine did not ask to join"));
        }
        let (host, run) = (self.unit.host, self.run.id);
        let account = self.door.store.account(self.unit.account).await?;
        let account = account.context("the task's account is gone")?;
        let (bound, sequence) = {
            let state = self.run.state.read().await;
            let record = state.workers.get(&worker);
            let bound = state.bindings.get(&worker.0).copied();
            (bound, record.map_or(0, |it| it.sequence))
        };
        let other = self.door.store.host_of_worker(run, worker).await?;
        if bound.is_some_and(|it| it != account.key) || other.is_some_and(|it| it != host) {
            self.door.store.note_copy(host, run).await?;
            return Err(never(
                "the machine's key is another machine's (its disk was copied); it makes a new one",
            ));
        }
        // Of a worker that the log knows, and the door had forgotten, the next task tells the number to go on from.
        if bound.is_none() || sequence < join.get().sequence {
            self.grant(join.clone()).await?;
        }
        if bound.is_none() {
            self.bind(&account, worker, output).await?;
        }
        if !self.door.store.enrol(host, run, worker).await? {
            self.door.store.note_copy(host, run).await?;
            return Err(never(
                "the machine's key is another machine's; it makes a new one",
            ));
        }
        Ok(Settled {
            worker: Some(worker),
            ..Settled::default()
        })
    }

    /// Adds the account's half to the worker's.
    async fn bind(
        &mut self,
        account: &Account,
        worker: WorkerId,
        output: &Output,
    ) -> Result<(), No> {
        let Some(half) = output.binding else {
            return Err(never(
                "the machine's key did not sign that it is the account's",
            ));
        };
        let binding = self
            .door
            .complete_binding(self.run.id, account, worker, half)
            .await?
            .ok_or_else(|| never("the account's key is not held by this hub"))?
            .checked()
            .map_err(|_| spoilt("the machine's signature under its binding does not hold"))?;
        let (admission, asker) = (&self.hub.admission, &mut self.tries.asker);
        let admitted = admission.check_binding(&self.run, &binding, asker).await;
        admitted.map_err(not_admitted)?;
        self.run.bind(binding).await?;
        Ok(())
    }

    async fn train(
        &mut self,
        start: u64,
        output: &Output,
        commands: Vec<CheckedCommand>,
    ) -> Result<Settled, No> {
        let worker = self.unit.worker.context("a training task of no worker")?;
        if commands.iter().any(|it| it.get().worker != worker) {
            return Err(spoilt(
                "the result is signed by another worker than the task's",
            ));
        }
        let commitment = commands.iter().find_map(|it| match &it.get().command {
            Command::Commit(commitment) => Some(commitment.clone()),
            Command::Join { .. } | Command::Leave { .. } => None,
        });
        let Some(commitment) = commitment else {
            return Err(never(
                "the machine did not come far enough in the round's time",
            ));
        };
        let inner = commitment.header.inner_state;
        let named: Vec<BlobReference> = [commitment.update].into_iter().chain(inner).collect();
        if named != output.files {
            return Err(spoilt(
                "the result's files are not those that it commits to",
            ));
        }
        for blob in &named {
            let is_update = *blob == commitment.update;
            if blob.bytes > self.run.arithmetic.upload_bytes_max(is_update) {
                return Err(spoilt("no update of this run is that long"));
            }
        }
        self.check_files_once(start, &named).await?;
        for command in commands {
            if !self.is_granted(command.get()).await {
                self.grant(command).await?;
            }
        }
        let mut at = start;
        for blob in &named {
            self.keep(at, blob).await?;
            at += blob.bytes;
        }
        self.have_checked(&commitment).await?;
        Ok(Settled::default())
    }

    /// Checks the result's files, unless an earlier try did: they may be long.
    async fn check_files_once(&mut self, start: u64, files: &[BlobReference]) -> Result<(), No> {
        if !self.tries.are_files_checked {
            self.content.check_files(start, files).await?;
            self.tries.are_files_checked = true;
        }
        Ok(())
    }

    /// Whether the log has a command: granted before an earlier settling ended, it would be refused now as a copy. A join may
    /// be followed by later commands of its worker; a commitment is the last one, and known by what it leaves to be carried.
    async fn is_granted(&self, command: &SignedCommand) -> bool {
        let state = self.run.state.read().await;
        let Some(record) = state.workers.get(&command.worker) else {
            return false;
        };
        match &command.command {
            Command::Join { .. } => record.joined && command.sequence <= record.sequence,
            Command::Commit(commitment) => {
                let header = &commitment.header;
                let left = [header.carried_after, header.carried_if_refused];
                command.sequence == record.sequence
                    && record.carried.is_some_and(|it| left.contains(&it))
            }
            Command::Leave { .. } => false,
        }
    }

    /// Has the run grant a command, within the limits that connected workers have.
    async fn grant(&mut self, command: CheckedCommand) -> Result<(), No> {
        if self.hub.names_known_blob(command.get()).await? {
            return Err(never(
                "the commitment names bytes that this hub has already; an update's hash is its maker's alone",
            ));
        }
        let (admission, asker) = (&self.hub.admission, &mut self.tries.asker);
        let admitted = admission.check(&self.run, command.get(), asker).await;
        admitted.map_err(not_admitted)?;
        self.run.command(command).await?;
        Ok(())
    }

    /// Makes a part of the result a blob of the hub's.
    async fn keep(&self, start: u64, blob: &BlobReference) -> Result<(), No> {
        // An earlier try may have left some, or all: the blobs say so.
        let mut at = 0;
        loop {
            let left = blob.bytes.checked_sub(at);
            let left =
                left.ok_or_else(|| spoilt("the hub has more of this hash than it may have"))?;
            let length = PART_BYTES_MAX.min(left as usize);
            let part = self.content.part(start + at, length).await?;
            let bytes_max = self.hub.config.unused_bytes_max;
            if !self.hub.unused.take(part.len() as u64, bytes_max) {
                return Err(later("the hub has no room for updates now"));
            }
            let kept = self.hub.blobs.append(blob, at, part).await?;
            match kept {
                Upload::Partial(held) | Upload::WrongOffset(held) => at = held,
                Upload::Complete => break,
                Upload::WrongHash | Upload::TooLong => {
                    return Err(anyhow::anyhow!("the blob {} changed", blob.hash).into());
                }
            }
        }
        self.run.uploaded(blob.hash).await;
        Ok(())
    }
}

impl Door {
    /// The whole binding of a worker to an account, if the hub holds its key; what the worker signed is not checked.
    pub(crate) async fn complete_binding(
        &self,
        run: protocol::units::RunId,
        account: &Account,
        worker: WorkerId,
        half: protocol::Signature,
    ) -> Result<Option<Binding>> {
        let held = self.store.held_key(account.id).await?;
        let role = KeyRole::Worker;
        Ok(held.map(|held| Binding {
            run,
            account: account.key,
            key: worker.0,
            role,
            account_signature: sign_half(&held, run, account.key, worker.0, role),
            key_signature: half,
        }))
    }
}
