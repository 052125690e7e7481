//! The task of a mirrored run: copies, says no to what only a hub does, and becomes the hub when it is told to or when the
//! hub has been silent for too long.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use protocol::{
    event::Event,
    succession::{Choice, Succession, choose},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{copy::Copier, gather::Gatherer, neighbours::neighbours};
use crate::{
    model::Rebuilt,
    run::{Keeper, Message, Ready, Role, RunError},
};

/// How often a mirror looks whether its hub has been silent for too long.
const TICK: Duration = Duration::from_secs(1);
/// Longest time to get the last entries from other mirrors before a takeover.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);

/// Why a follower ended.
pub(crate) enum Ended {
    /// The process stops.
    Stopped,
    /// This process is the run's hub now.
    TookOver(Box<Ready>),
}

/// The task.
pub(crate) struct Follower {
    keeper: Keeper,
    copying: JoinSet<()>,
    stop: CancellationToken,
    /// Silence of the hub is counted from then at the earliest.
    since: Instant,
}

impl Follower {
    pub(crate) fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            copying: JoinSet::new(),
            stop: CancellationToken::new(),
            since: Instant::now(),
        }
    }

    /// Mirrors the run until `shutdown`, or until this process is its hub.
    pub(crate) async fn work(mut self, shutdown: &CancellationToken) -> (Keeper, Ended) {
        self.begin_copying();
        let ended = loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => break Ended::Stopped,
                message = self.keeper.inbox.recv() => message,
                () = tokio::time::sleep(TICK) => {
                    if !self.is_hub_silent().await {
                        continue;
                    }
                    match self.try_to_take_over(false).await {
                        Ok(ready) => break Ended::TookOver(Box::new(ready)),
                        Err(error) => {
                            tracing::warn!(run.id = %self.keeper.run.id.short(), "can't take the run over: {error:#}");
                            self.since = Instant::now();
                            continue;
                        }
                    }
                }
            };
            let not_here = || RunError::Mirror(self.hub_address());
            match message {
                None => break Ended::Stopped,
                Some(Message::Command(_, reply) | Message::Bind(_, reply)) => {
                    let _ = reply.send(Err(not_here()));
                }
                Some(Message::Uploaded(_) | Message::Look | Message::Replaced(_)) => {}
                Some(Message::TakeOver { force, reply }) => {
                    match self.try_to_take_over(force).await {
                        Ok(ready) => {
                            let length = *self.keeper.length.borrow();
                            let _ = reply.send(Ok(length));
                            break Ended::TookOver(Box::new(ready));
                        }
                        Err(error) => {
                            let why = format!("{error:#}");
                            let _ = reply.send(Err(RunError::CannotTakeOver(why)));
                        }
                    }
                }
            }
        };
        self.stop_copying().await;
        (self.keeper, ended)
    }

    fn hub_address(&self) -> Option<String> {
        match &*self.keeper.run.role.borrow() {
            Role::Hub => None,
            Role::Mirror { hub_address } => hub_address.clone(),
        }
    }

    fn copier(&self) -> Copier {
        Copier {
            run: self.keeper.run.clone(),
            parts: self.keeper.parts.clone(),
            length: self.keeper.length.clone(),
            role: self.keeper.role.clone(),
        }
    }

    fn begin_copying(&mut self) {
        self.stop = CancellationToken::new();
        let gatherer = Gatherer::new(self.keeper.run.clone(), self.keeper.parts.clone());
        self.copying.spawn(self.copier().copy(self.stop.clone()));
        self.copying.spawn(gatherer.gather(self.stop.clone()));
    }

    /// The copying tasks end by themselves, never within a write.
    async fn stop_copying(&mut self) {
        self.stop.cancel();
        while self.copying.join_next().await.is_some() {}
    }

    /// Whether it is time to take over. The charter's later keys wait longer, so that they don't take over at once.
    async fn is_hub_silent(&self) -> bool {
        let mirroring = &self.keeper.parts.mirroring;
        let Some(patience) = mirroring.take_over_after else {
            return false;
        };
        let state = self.keeper.run.state.read().await;
        let Some((_, rank)) = mirroring.may_take_over(&state.sealing) else {
            return false;
        };
        if state.is_finished() {
            return false;
        }
        let heard = self.keeper.run.copied.hub_heard();
        let silent = heard.map_or(self.since, |it| it.max(self.since)).elapsed();
        patience * (rank as u32 + 1) <= silent
    }

    /// Stops copying, becomes the hub, or goes on copying and says why not.
    async fn try_to_take_over(&mut self, force: bool) -> Result<Ready> {
        self.stop_copying().await;
        let taken = self.take_over(force).await;
        if taken.is_err() {
            self.begin_copying();
        }
        taken
    }

    async fn take_over(&mut self, force: bool) -> Result<Ready> {
        let parts = self.keeper.parts.clone();
        let key = {
            let state = self.keeper.run.state.read().await;
            ensure!(
                !state.is_finished(),
                "the run is finished: nothing is left to be done"
            );
            let Some((key, _)) = parts.mirroring.may_take_over(&state.sealing) else {
                bail!(
                    "this mirror holds none of the succession keys that the run's charter names (--succession-key)"
                );
            };
            key.clone()
        };
        self.take_the_most(force).await?;
        let ready = self
            .ready()
            .await
            .context("this mirror has not what a hub needs; it goes on copying, try again later")?;
        let address = parts.mirroring.address.as_deref();
        let address = address.context("this mirror does not know where it is reached")?;
        let state = std::sync::Arc::clone(&self.keeper.run.state);
        let mut state = state.write().await;
        let now_ms = parts.clock.now_ms().max(state.head.time_ms);
        let own = parts.key.public();
        let succession = Succession::sign(&key, &state.sealing, &state.head, own, address);
        let generation = succession.generation;
        let entries = [self
            .keeper
            .seal(&mut state, now_ms, Event::HubReplaced { succession })];
        if let Err(error) = parts.store.append(&entries).await {
            *state = parts.store.replay(self.keeper.run.id).await?;
            return Err(error).context("can't write the takeover");
        }
        self.keeper.tell(&entries, state.head.length);
        tracing::warn!(
            run.id = %self.keeper.run.id.short(), generation, entry = state.head.length - 1, address,
            "took the run over: this process is its hub now"
        );
        Ok(ready)
    }

    /// What a hub needs in memory. A log that names merges whose updates were never copied can't be gone on with: what
    /// follows the last merge that can be done again is set aside; workers have those updates still, and bring them again.
    async fn ready(&self) -> Result<Ready> {
        let Rebuilt { model, stuck } = self.keeper.rebuild().await?;
        if let Some((length, error)) = stuck {
            tracing::warn!(run.id = %self.keeper.run.id.short(), "the newest merges can't be done again here: {error:#}");
            self.copier().set_aside(length).await?;
        }
        self.keeper.ready_with(model).await
    }

    /// Gets the entries and blobs that other mirrors have beyond this one's; refuses if somebody keeps the run.
    async fn take_the_most(&self, force: bool) -> Result<()> {
        let (run, parts) = (&self.keeper.run, &self.keeper.parts);
        let copier = self.copier();
        for neighbour in neighbours(run, parts).await {
            let own = run.state.read().await.sealing.clone();
            match choose(&own, &neighbour.sealing) {
                Choice::First => continue,
                Choice::Second => bail!(
                    "another hub took the run over, as {} says; this mirror follows it",
                    neighbour.client.address()
                ),
                Choice::Same | Choice::Undecided => {}
            }
            ensure!(
                force || !neighbour.is_hub(),
                "the run's hub answers at {}; take over all the same with --force",
                neighbour.client.address()
            );
            // Whoever lies or breaks off is done without.
            let gathered = async {
                if neighbour.length > run.state.read().await.head.length {
                    copier.catch_up(&neighbour).await?;
                }
                let mut gatherer = Gatherer::new(run.clone(), parts.clone());
                gatherer.look(Some(neighbour.client.clone())).await
            };
            if let Ok(Err(error)) = tokio::time::timeout(CATCH_UP_MAX, gathered).await {
                tracing::debug!(run.id = %run.id.short(), "{error:#}");
            }
        }
        Ok(())
    }
}
