//! One run in this process: what the rest of the hub holds of it, and the task that keeps it, as its hub ([`actor`]) or as a
//! mirror of it ([`crate::mirror`]), and goes from one to the other.

mod actor;
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
    command::CheckedCommand,
    event::Event,
    identity::Binding,
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

use self::{actor::Actor, concerns::Concerns, evaluate::HeldOut, presence::Presence, room::Room};
use crate::{
    blobs::Blobs,
    clock::SteadyClock,
    config::Config,
    metrics::Metrics,
    mirror::{self, Acknowledged, Copied, Ended, Follower, Mirroring},
    model::{Arithmetic, Model, Rebuilt},
    store::{Projected, Store},
};

/// Requests waiting for the run's task; senders wait when it is full.
const QUEUE_MAX: usize = 4096;

/// What the rest of the hub holds of a run.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) id: RunId,
    /// The state after the last entry on the disk.
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) presence: Arc<Presence>,
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
    Bind(Box<Binding>, Reply),
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
}

impl Run {
    /// Grants a worker's command, or says why not. Answers when it is on the disk, and on that of a mirror that follows closely.
    pub(crate) async fn command(&self, command: CheckedCommand) -> Result<u64, RunError> {
        self.ask(|reply| Message::Command(Box::new(command), reply))
            .await
    }

    /// Records a binding signed by both sides.
    pub(crate) async fn bind(&self, binding: Binding) -> Result<u64, RunError> {
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

    /// Notes entries that are on the disk.
    pub(crate) fn note(&self, metrics: &Metrics, entries: &[(Entry, Projected)]) {
        for (entry, _) in entries {
            metrics.happened(&entry.event);
            self.concerns.note(entry.index, &entry.event);
        }
    }

    /// An error on a mirror, which says where the run's hub is.
    pub(crate) fn must_be_hub(&self) -> Result<(), RunError> {
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
    let state = parts.store.replay(id).await?;
    parts.clock.is_at_least(state.head.time_ms);
    let is_hub = state.sealing.hub() == parts.key.public();
    let (requests, inbox) = mpsc::channel(QUEUE_MAX);
    let (length_sender, length) = watch::channel(state.head.length);
    let hub_address = mirror::hub_address(&state, &parts.mirroring);
    let (role_sender, role) = watch::channel(match is_hub {
        true => Role::Hub,
        false => Role::Mirror { hub_address },
    });
    let run = Run {
        id,
        concerns: Arc::new(Concerns::new(state.head.length)),
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
        requests,
    };
    let keeper = Keeper {
        run: run.clone(),
        parts,
        inbox,
        length: length_sender,
        role: role_sender,
    };
    let ready = match is_hub {
        true => Some(keeper.ready().await?),
        false => None,
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
    /// Rebuilds the newest model from what is on the disk.
    ///
    /// # Errors
    /// Blobs are missing or damaged, or the log's hashes are not what comes out.
    pub(crate) async fn ready(&self) -> Result<Ready> {
        let Rebuilt { model, stuck } = self.rebuild().await?;
        if let Some((_, error)) = stuck {
            let name = self.run.state.read().await.charter.name.clone();
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

    /// From now on this process mirrors the run.
    async fn becomes_mirror(&self, statement: Option<&Succession>) {
        let known = {
            let state = self.run.state.read().await;
            mirror::hub_address(&state, &self.parts.mirroring)
        };
        let hub_address = statement.map(|it| it.address.clone()).or(known);
        tracing::warn!(
            run.id = %self.run.id.short(),
            hub = hub_address.as_deref().unwrap_or("unknown"),
            "another hub keeps this run now: this one mirrors it"
        );
        self.role.send_replace(Role::Mirror { hub_address });
    }
}

/// Keeps a run in one role after the other until `shutdown`.
async fn keep(mut keeper: Keeper, mut ready: Option<Ready>, shutdown: CancellationToken) {
    loop {
        if *keeper.run.role.borrow() == Role::Hub {
            // A hub that was away may have been replaced meanwhile: whoever can be asked is asked before anything is sealed.
            let replaced = tokio::select! {
                () = shutdown.cancelled() => return,
                replaced = mirror::look(&keeper.run, &keeper.parts) => replaced,
            };
            if let Some(statement) = replaced {
                keeper.becomes_mirror(Some(&statement)).await;
                continue;
            }
            let Ready { model, held_out } = match ready.take() {
                Some(ready) => ready,
                None => match keeper.ready().await {
                    Ok(ready) => ready,
                    Err(error) => {
                        tracing::error!(run.id = %keeper.run.id.short(), "can't go on as the run's hub: {error:#}");
                        keeper.becomes_mirror(None).await;
                        continue;
                    }
                },
            };
            let looking =
                tokio::spawn(mirror::look_again(keeper.run.clone(), keeper.parts.clone()));
            let replaced;
            (keeper, replaced) = Actor::new(keeper, model, held_out).work(&shutdown).await;
            looking.abort();
            match replaced {
                Some(statement) => keeper.becomes_mirror(Some(&statement)).await,
                None => return,
            }
        } else {
            let ended;
            (keeper, ended) = Follower::new(keeper).work(&shutdown).await;
            match ended {
                Ended::Stopped => return,
                Ended::TookOver(model) => {
                    ready = Some(*model);
                    keeper.role.send_replace(Role::Hub);
                }
            }
        }
    }
}
