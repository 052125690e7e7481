//! One run in this process: what the rest of the hub holds of it, and the task that keeps it, as its hub ([`actor`]) or as a
//! mirror of it ([`crate::mirror`]), and goes from one to the other.

mod actor;
mod census;
pub(crate) mod concerns;
pub(crate) mod evaluate;
mod jobs;
pub(crate) mod peers;
pub(crate) mod presence;
mod retry;
pub(crate) mod room;

use std::sync::Arc;

use anyhow::{Context, Result};
use protocol::{
    SecretKey,
    charter::Charter,
    command::CheckedCommand,
    event::Event,
    identity::CheckedBinding,
    log::Entry,
    state::{State, decide::Refusal},
    succession::Succession,
    units::RunId,
};
use tokio::{
    sync::{RwLock, mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    actor::Actor, census::Census, concerns::Concerns, evaluate::HeldOut, presence::Presence,
    retry::Retry, room::Room,
};
use crate::{
    blobs::Blobs,
    clock::SteadyClock,
    config::Config,
    metrics::Metrics,
    mirror::{self, Acknowledged, Copied, Follower, Mirroring},
    model::{Arithmetic, Model, Rebuilt},
    store::{Projected, Store},
};

/// Requests waiting for the run's task; senders wait when it is full.
const QUEUE_MAX: usize = 4096;

/// What the rest of the hub holds of a run.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    /// What the state has too, for whoever needs nothing else.
    pub(crate) charter: Arc<Charter>,
    /// The state after the last entry on the disk.
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) census: Arc<Census>,
    pub(crate) arithmetic: Arc<Arithmetic>,
    /// Entries on the disk.
    pub(crate) length: watch::Receiver<u64>,
    /// Whom they concern.
    pub(crate) concerns: Arc<Concerns>,
    /// What this process is to the run.
    pub(crate) role: watch::Receiver<Role>,
    /// Up to where mirrors have the log on their disks.
    pub(crate) acknowledged: Arc<Acknowledged>,
    /// How far this mirror's copy is.
    pub(crate) copied: Arc<Copied>,
    /// Why nothing is sealed here although the log names this process as the run's hub: its key is proven to have sealed two
    /// different entries.
    pub(crate) stopped: watch::Sender<Option<String>>,
    requests: mpsc::Sender<Message>,
}

/// What a process is to a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The run's hub: it seals the log.
    Hub,
    /// A copy of it, which answers questions and takes nothing.
    Mirror {
        /// Where the run's hub is reached, as far as is known.
        hub_address: Option<String>,
    },
}

/// Why a request was not granted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The state machine refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be written; nothing of it happened.
    #[error("the hub could not write it to its log; nothing of it happened, try again")]
    Unavailable,
    /// Only the run's hub can do that, and this is none.
    #[error("this is a mirror of the run; its hub takes that{}", at(.0.as_deref()))]
    Mirror(Option<String>),
    /// This is the run's hub, and it seals nothing more.
    #[error("this hub seals nothing more: {0}")]
    Stopped(String),
    /// The run was not taken over.
    #[error("{0}")]
    CannotTakeOver(String),
}

/// Where the hub is, as the end of a sentence.
fn at(address: Option<&str>) -> String {
    address.map_or_else(
        || " (this mirror does not know where it is)".to_owned(),
        |it| format!(", at {it}"),
    )
}

type Reply = oneshot::Sender<Result<u64, RunError>>;

/// What the run's task is asked.
pub(crate) enum Message {
    Command(Box<CheckedCommand>, Reply),
    Bind(Box<CheckedBinding>, Reply),
    /// A blob that somebody committed to is whole.
    Uploaded(protocol::Hash),
    /// A worker came or went: look at the clock.
    Look,
    /// The operator has this mirror become the run's hub.
    TakeOver {
        /// Even though its hub answers.
        force: bool,
        reply: Reply,
    },
    /// A statement by which another hub keeps the run, checked against the charter's succession keys.
    Replaced(Box<Succession>),
    /// Others have a log that goes on from the end of this one, sealed by the same key.
    IsBehind,
}

impl Run {
    /// Grants a worker's command, or says why not. Answers when it is on the disk, and on that of a mirror that follows closely.
    pub(crate) async fn command(&self, command: CheckedCommand) -> Result<u64, RunError> {
        self.ask(|reply| Message::Command(Box::new(command), reply))
            .await
    }

    /// Records a binding signed by both sides.
    pub(crate) async fn bind(&self, binding: CheckedBinding) -> Result<u64, RunError> {
        self.ask(|reply| Message::Bind(Box::new(binding), reply))
            .await
    }

    /// Becomes the run's hub, if this process is a mirror that may.
    pub(crate) async fn take_over(&self, force: bool) -> Result<u64, RunError> {
        self.ask(|reply| Message::TakeOver { force, reply }).await
    }

    /// Says that an update's bytes are here.
    pub(crate) async fn uploaded(&self, hash: protocol::Hash) {
        let _ = self.requests.send(Message::Uploaded(hash)).await;
    }

    /// Takes note of a statement that somebody shows: if by it another hub keeps the run, this one stops.
    pub(crate) async fn shown(&self, statement: Succession) {
        if *self.role.borrow() != Role::Hub {
            return;
        }
        let counts = self.state.read().await.sealing.is_superseded_by(&statement);
        if counts {
            self.replaced(statement).await;
        }
    }

    /// Says that by this statement, whose log counts, another hub keeps the run.
    pub(crate) async fn replaced(&self, statement: Succession) {
        self.copied.remember(&statement.address);
        let message = Message::Replaced(Box::new(statement));
        let _ = self.requests.send(message).await;
    }

    /// Says that others have more of this log than this hub, which was restored from an older copy.
    pub(crate) async fn is_behind(&self) {
        let _ = self.requests.send(Message::IsBehind).await;
    }

    /// Nothing is sealed here from this moment on, until the run is taken over.
    pub(crate) fn stop(&self, why: String) {
        self.stopped.send_if_modified(|stopped| {
            let is_news = stopped.is_none();
            if is_news {
                tracing::error!(run.id = %self.id.short(), "this hub seals nothing more: {why}");
                *stopped = Some(why);
            }
            is_news
        });
    }

    /// Why nothing is sealed here, if that is so.
    pub(crate) fn refuses(&self) -> Result<(), RunError> {
        match &*self.stopped.borrow() {
            Some(why) => Err(RunError::Stopped(why.clone())),
            None => Ok(()),
        }
    }

    /// Notes entries that are on the disk.
    pub(crate) fn note(&self, metrics: &Metrics, entries: &[(Entry, Projected)]) {
        for (entry, _) in entries {
            metrics.happened(&entry.event);
            self.concerns.note(entry.index, &entry.event);
            // What was proven of one hub says nothing of the next.
            if matches!(entry.event, Event::HubReplaced { .. }) {
                self.stopped.send_replace(None);
            }
        }
    }

    /// An error on a mirror, which says where the run's hub is.
    pub(crate) fn must_be_hub(&self) -> Result<(), RunError> {
        self.refuses()?;
        match &*self.role.borrow() {
            Role::Hub => Ok(()),
            Role::Mirror { hub_address } => Err(RunError::Mirror(hub_address.clone())),
        }
    }

    /// Waits until the log has an entry after the first `known` that concerns this worker.
    /// Ends at once for whoever knows of more entries than there are: that was another log; and when this process is the
    /// run's hub no more.
    pub(crate) async fn news_for(&self, worker: protocol::units::WorkerId, known: u64) {
        if *self.length.borrow() < known {
            return;
        }
        let mut role = self.role.clone();
        tokio::select! {
            () = self.concerns.news_for(worker, known) => {}
            // The sender lives as long as the run's task; after that the hub stops.
            _ = role.wait_for(|it| *it != Role::Hub) => {}
        }
    }

    /// Entries of the log as far as everyone may see it: the database has some a moment before the state does.
    pub(crate) async fn entries(&self, store: &Store, from: u64, limit: u64) -> Result<Vec<Entry>> {
        let shown = *self.length.borrow();
        let limit = limit.min(shown.saturating_sub(from));
        store.entries(self.id, from, limit).await
    }

    /// Makes the run look at who is present, without waiting.
    pub(crate) fn look(&self) {
        let _ = self.requests.try_send(Message::Look);
    }

    async fn ask(&self, message: impl FnOnce(Reply) -> Message) -> Result<u64, RunError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(message(reply))
            .await
            .map_err(|_| RunError::Unavailable)?;
        let length = answer.await.map_err(|_| RunError::Unavailable)??;
        self.acknowledged.wait_for(length).await;
        Ok(length)
    }
}

/// What a run's task works with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) key: SecretKey,
    pub(crate) store: Store,
    pub(crate) blobs: Blobs,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) clock: SteadyClock,
    pub(crate) mirroring: Arc<Mirroring>,
    pub(crate) room: Room,
}

/// What the task of a run holds in either role.
pub(crate) struct Keeper {
    pub(crate) run: Run,
    pub(crate) parts: Parts,
    pub(crate) inbox: mpsc::Receiver<Message>,
    pub(crate) length: watch::Sender<u64>,
    pub(crate) role: watch::Sender<Role>,
}

/// Replays a run's log and starts its task. As its hub it must be able to go on: the model is rebuilt first.
pub(crate) async fn start(
    id: RunId,
    parts: Parts,
    tasks: &mut JoinSet<()>,
    shutdown: CancellationToken,
) -> Result<Run> {
    let keeper = Keeper::open(id, parts).await?;
    let run = keeper.run.clone();
    let is_hub = *run.role.borrow() == Role::Hub;
    let ready = match is_hub {
        true => match keeper.ready().await {
            Ok(ready) => Some(ready),
            // What is missing may be had from others.
            Err(error) if mirror::has_neighbours(&keeper.run, &keeper.parts).await => {
                cannot_go_on(&keeper.run, &error);
                keeper.becomes_mirror(None).await;
                None
            }
            Err(error) => return Err(error),
        },
        false => {
            keeper.says_why_it_mirrors().await;
            None
        }
    };
    tasks.spawn(keep(keeper, ready, shutdown));
    Ok(run)
}

/// What a hub needs in memory before it goes on with a run.
pub(crate) struct Ready {
    model: Model,
    held_out: HeldOut,
}

impl Keeper {
    /// Replays a run's log; no task is at work on it yet.
    ///
    /// # Errors
    /// The log does not hold, or its charter asks for more than the engine can do.
    pub(crate) async fn open(id: RunId, parts: Parts) -> Result<Self> {
        let state = parts.store.replay(id).await?;
        parts.clock.is_at_least(state.head.time_ms);
        let (requests, inbox) = mpsc::channel(QUEUE_MAX);
        let (length_sender, length) = watch::channel(state.head.length);
        let hub_address = mirror::hub_address(&state, &parts.mirroring);
        let (role_sender, role) = watch::channel(match state.sealing.hub() == parts.key.public() {
            true => Role::Hub,
            false => Role::Mirror { hub_address },
        });
        let run = Run {
            id,
            charter: Arc::new(state.charter.clone()),
            concerns: Arc::new(Concerns::new(state.head.length)),
            census: Arc::default(),
            presence: Arc::new(Presence::new(
                state.charter.round.window_ms,
                parts.clock.clone(),
            )),
            arithmetic: Arc::new(Arithmetic::new(&state.charter)?),
            state: Arc::new(RwLock::new(state)),
            length,
            role,
            acknowledged: Arc::default(),
            copied: Arc::default(),
            stopped: watch::Sender::new(None),
            requests,
        };
        Ok(Self {
            run,
            parts,
            inbox,
            length: length_sender,
            role: role_sender,
        })
    }

    /// Rebuilds the newest model from what is on the disk.
    ///
    /// # Errors
    /// Blobs are missing or damaged, or the log's hashes are not what comes out.
    pub(crate) async fn ready(&self) -> Result<Ready> {
        let Rebuilt { model, stuck } = self.rebuild().await?;
        if let Some((_, error)) = stuck {
            let name = &self.run.charter.name;
            return Err(error).with_context(|| format!("can't rebuild the model of run {name}"));
        }
        self.ready_with(model).await
    }

    /// Rebuilds the newest model that can be, from what is on the disk.
    ///
    /// # Errors
    /// The disk's, or no checkpoint is here.
    pub(crate) async fn rebuild(&self) -> Result<Rebuilt> {
        let (run, parts) = (&self.run, &self.parts);
        let bytes_max = parts.room.merge_bytes_max();
        let rebuilt = run
            .arithmetic
            .rebuild(run.id, &parts.store, &parts.blobs, bytes_max);
        rebuilt.await
    }

    /// The same when the model is rebuilt already.
    ///
    /// # Errors
    /// It is not the newest one that the log names, or the held-out text is missing or damaged.
    pub(crate) async fn ready_with(&self, model: Model) -> Result<Ready> {
        let state = self.run.state.read().await;
        let name = &state.charter.name;
        anyhow::ensure!(
            model.state == state.model,
            "the rebuilt model of run {name} is not the one that its log names"
        );
        let held_out = HeldOut::read(&state, &self.parts.blobs).await?;
        Ok(Ready { model, held_out })
    }

    /// Seals one event and folds it; an event that does not fold is a bug of whoever decided on it.
    pub(crate) fn seal(&self, state: &mut State, now: u64, event: Event) -> (Entry, Projected) {
        let mut projected = Projected::before(state, &event);
        let entry = state.head.next(&self.parts.key, self.run.id, now, event);
        state
            .apply_decided(&entry)
            .expect("the state machine takes the events it decided on");
        projected.tokens = state.tokens;
        (entry, projected)
    }

    /// Tells everyone who waits that entries are on the disk.
    pub(crate) fn tell(&self, entries: &[(Entry, Projected)], length: u64) {
        self.run.note(&self.parts.metrics, entries);
        self.length.send_replace(length);
    }

    /// Tells everyone who waits that the log has so many entries, of which nobody knows any more what they were.
    pub(crate) fn tell_all(&self, length: u64) {
        self.run.concerns.note_all(length);
        self.length.send_replace(length);
    }

    /// From now on this process mirrors the run, whose hub is there as far as is known.
    async fn becomes_mirror(&self, hub_address: Option<String>) {
        let known = {
            let state = self.run.state.read().await;
            mirror::hub_address(&state, &self.parts.mirroring)
        };
        let hub_address = hub_address.or(known);
        self.role.send_replace(Role::Mirror { hub_address });
    }

    async fn is_replaced(&self, statement: &Succession) {
        tracing::warn!(
            run.id = %self.run.id.short(), hub = statement.address,
            "another hub keeps this run now: this one mirrors it"
        );
        self.becomes_mirror(Some(statement.address.clone())).await;
    }

    /// A process whose key does not seal the run can't be its hub: whoever meant it to be reads why.
    async fn says_why_it_mirrors(&self) {
        let state = self.run.state.read().await;
        let (name, sealing) = (&state.charter.name, &state.sealing);
        let named = match sealing.newest() {
            Some(statement) => format!(
                "since takeover {} the log names the hub {} at {}",
                statement.generation,
                sealing.hub().short(),
                statement.address
            ),
            None => format!("the charter names the hub {}", sealing.hub().short()),
        };
        let own = self.parts.key.public();
        let why = format!(
            "this process mirrors the run {name}: {named}, and its own key is {}",
            own.short()
        );
        match &self.parts.mirroring.follow {
            Some(_) => tracing::info!(run.id = %self.run.id.short(), "{why}"),
            None => tracing::warn!(run.id = %self.run.id.short(), "{why}"),
        }
    }
}

fn cannot_go_on(run: &Run, error: &anyhow::Error) {
    tracing::error!(run.id = %run.id.short(), "can't go on as the run's hub until what is missing is here: {error:#}");
}

/// Why the hub's task ended.
pub(crate) enum Ended {
    /// The process stops.
    Stopped,
    /// By this statement another hub keeps the run.
    Replaced(Box<Succession>),
    /// Others have more of this log.
    IsBehind,
    /// Its key is proven to have sealed two different entries.
    Proven,
}

/// Keeps a run in one role after the other until `shutdown`.
async fn keep(mut keeper: Keeper, mut ready: Option<Ready>, shutdown: CancellationToken) {
    let mut failures = Retry::default();
    loop {
        if *keeper.run.role.borrow() == Role::Hub {
            let begun = tokio::select! {
                () = shutdown.cancelled() => return,
                begun = may_seal(&keeper) => begun,
            };
            if !begun {
                // The log may be another one when this process is the run's hub again.
                ready = None;
                continue;
            }
            let Ready { model, held_out } = match ready.take() {
                Some(ready) => ready,
                None => match keeper.ready().await {
                    Ok(ready) => ready,
                    Err(error) => {
                        cannot_go_on(&keeper.run, &error);
                        failures.failed();
                        keeper.becomes_mirror(None).await;
                        continue;
                    }
                },
            };
            failures = Retry::default();
            let looking =
                tokio::spawn(mirror::look_again(keeper.run.clone(), keeper.parts.clone()));
            let ended;
            let actor = Actor::new(keeper, model, held_out).await;
            (keeper, ended) = actor.work(&shutdown).await;
            looking.abort();
            match ended {
                Ended::Stopped => return,
                Ended::Replaced(statement) => keeper.is_replaced(&statement).await,
                // Looking again says what to do.
                Ended::IsBehind | Ended::Proven => {}
            }
        } else {
            let ended;
            (keeper, ended) = Follower::new(keeper, failures.due_at())
                .work(&shutdown)
                .await;
            match ended {
                mirror::Ended::Stopped => return,
                mirror::Ended::TookOver(model) => {
                    ready = Some(*model);
                    keeper.run.stopped.send_replace(None);
                    keeper.role.send_replace(Role::Hub);
                }
                mirror::Ended::CaughtUp => {
                    ready = None;
                    keeper.role.send_replace(Role::Hub);
                }
            }
        }
    }
}

/// Whether a hub may seal, which it asks before it seals anything after a start: a hub that was away may have been replaced
/// meanwhile, its folder may be an older copy, or a copy of it may have sealed something else. Whoever can be asked is asked.
/// If it may not, it is a mirror now.
async fn may_seal(keeper: &Keeper) -> bool {
    let (run, parts) = (&keeper.run, &keeper.parts);
    let found = mirror::look(run, parts).await;
    match mirror::why_stopped(run, parts).await {
        Ok(None) => {}
        Ok(Some(why)) => run.stop(why),
        Err(error) => {
            tracing::error!(run.id = %run.id.short(), "can't read what is proven: {error:#}")
        }
    }
    match found {
        mirror::Found::Replaced(statement) => keeper.is_replaced(&statement).await,
        _ if run.refuses().is_err() => keeper.becomes_mirror(None).await,
        mirror::Found::Longer => {
            tracing::warn!(
                run.id = %run.id.short(),
                "this hub's copy of its log is an older one: it copies what others have of it before it goes on"
            );
            keeper.becomes_mirror(None).await;
        }
        mirror::Found::Nothing => return true,
    }
    false
}
