//! The task of a mirrored run: copies, says no to what only a hub does, and becomes the hub when it is told to or when the
//! hub has been silent for too long.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use protocol::{
    event::Event,
    succession::{Choice, Sealing, Succession, choose},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    copy::Copier,
    gather::Gatherer,
    neighbours::{Answers, neighbours},
};
use crate::{
    model::Rebuilt,
    run::{Keeper, Message, Ready, Role, RunError},
};

/// How often a mirror looks whether its hub has been silent for too long.
const TICK: Duration = Duration::from_secs(1);
/// Longest time to get the last entries from other mirrors before a takeover.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// How often the model is rebuilt at a takeover because more came meanwhile.
const REBUILDS_MAX: usize = 4;
/// A hub that was behind and that nobody answers any more goes on alone after that.
const ALONE_AFTER: Duration = Duration::from_secs(10);
/// A hub that lacks what it needs says so again after that.
const COMPLAINT_AFTER: Duration = Duration::from_secs(60);

/// Why a follower ended.
pub(crate) enum Ended {
    /// The process stops.
    Stopped,
    /// This process is the run's hub now.
    TookOver(Box<Ready>),
    /// This process, which the log names as the run's hub, has what it needs to go on.
    CaughtUp,
}

/// The task.
pub(crate) struct Follower {
    keeper: Keeper,
    copying: JoinSet<()>,
    stop: CancellationToken,
    /// Silence of the hub is counted from then at the earliest.
    since: Instant,
    begun: Instant,
    /// When this process may be the run's hub again, if the log names it.
    again_at: Option<Instant>,
    has_complained: bool,
}

impl Follower {
    /// A mirror of the run. If the log names this process as its hub, it is to be that again when it has what it needs, and not
    /// before `again_at`.
    pub(crate) fn new(keeper: Keeper, again_at: Option<Instant>) -> Self {
        keeper.run.copied.begin();
        Self {
            keeper,
            copying: JoinSet::new(),
            stop: CancellationToken::new(),
            since: Instant::now(),
            begun: Instant::now(),
            again_at,
            has_complained: false,
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
                    if self.can_be_hub_again().await {
                        break Ended::CaughtUp;
                    }
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
                Some(
                    Message::Uploaded(_) | Message::Look | Message::Replaced(_) | Message::IsBehind,
                ) => {}
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
        let (run, parts) = (&self.keeper.run, &self.keeper.parts);
        let needed = Gatherer::of_needed(run.clone(), parts.clone());
        let named = Gatherer::of_named(run.clone(), parts.clone());
        self.copying.spawn(self.copier().copy(self.stop.clone()));
        self.copying.spawn(needed.gather(self.stop.clone()));
        self.copying.spawn(named.gather(self.stop.clone()));
    }

    /// The copying tasks end by themselves, never within a write.
    async fn stop_copying(&mut self) {
        self.stop.cancel();
        while self.copying.join_next().await.is_some() {}
    }

    /// Whether the log names this process as the run's hub, and nothing keeps it from going on: it has what its neighbours have,
    /// or is alone, and no proof stops it.
    async fn can_be_hub_again(&mut self) -> bool {
        let run = &self.keeper.run;
        let (hub, length) = {
            let state = run.state.read().await;
            (state.sealing.hub(), state.head.length)
        };
        if hub != self.keeper.parts.key.public() || run.stopped.borrow().is_some() {
            return false;
        }
        let reach = run.copied.reach();
        if reach < length && !self.has_complained && COMPLAINT_AFTER <= self.begun.elapsed() {
            self.has_complained = true;
            tracing::warn!(
                run.id = %run.id.short(), entries = length, reach,
                "this hub still lacks updates without which it can't go on; what nobody has any more, a takeover by a succession key gives up"
            );
        }
        let is_alone = run.copied.source().is_none() && ALONE_AFTER <= self.begun.elapsed();
        length <= reach
            && self.again_at.is_none_or(|it| it <= Instant::now())
            && (run.copied.is_current() || is_alone)
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
        // A hub that waits for its operator, or for what it lacks, is not silent to itself.
        if state.is_finished() || state.sealing.hub() == self.keeper.parts.key.public() {
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
        let ready = self.make_ready(force).await?;
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

    /// What a hub needs in memory, of the longest log that can be had. The model takes a while: whether the hub answers again,
    /// and whether others have more, is looked at once more before anything is set aside or sealed.
    ///
    /// A log that names merges whose updates were never copied can't be gone on with: what follows the last merge that can be
    /// done again is set aside; workers have those updates still, and bring them again. Of what the hub was told is here,
    /// nothing is, unless the operator says so.
    async fn make_ready(&self, force: bool) -> Result<Ready> {
        const LATER: &str =
            "this mirror has not what a hub needs; it goes on copying, try again later";
        let run = &self.keeper.run;
        for rebuilds in 1..=REBUILDS_MAX {
            self.take_the_most(force).await?;
            let before = *self.keeper.length.borrow();
            let Rebuilt { model, stuck } = self.keeper.rebuild().await.context(LATER)?;
            if !force {
                self.take_the_most(force).await?;
            }
            let Some((length, error)) = stuck else {
                if before == *self.keeper.length.borrow() {
                    return self.keeper.ready_with(model).await.context(LATER);
                }
                continue;
            };
            let error = error.context("the newest merges can't be done again here");
            let came = !force && length < run.copied.reach() && rebuilds < REBUILDS_MAX;
            if came || before != *self.keeper.length.borrow() {
                tracing::debug!(run.id = %run.id.short(), "{error:#}; trying again");
                continue;
            }
            let confirmed = run.copied.confirmed();
            if !force && length < confirmed {
                return Err(error.context(format!(
                    "the hub was told that the first {confirmed} entries are here, and what follows the first {length} would be set aside: only with --force"
                )));
            }
            tracing::warn!(run.id = %run.id.short(), "{error:#}");
            self.copier().set_aside(length).await?;
            let ready = self.keeper.ready_with(model).await.context(LATER)?;
            let answers = neighbours(run, &self.keeper.parts).await;
            refuse_if_kept(&answers, &run.state.read().await.sealing, force)?;
            return Ok(ready);
        }
        bail!("{LATER}: what it has changed while the model was rebuilt")
    }

    /// Gets the entries and blobs that other mirrors have beyond this one's; refuses if somebody keeps the run.
    async fn take_the_most(&self, force: bool) -> Result<()> {
        let (run, parts) = (&self.keeper.run, &self.keeper.parts);
        let copier = self.copier();
        let answers = neighbours(run, parts).await;
        refuse_if_kept(&answers, &run.state.read().await.sealing, force)?;
        let mut needed = Gatherer::of_needed(run.clone(), parts.clone());
        let mut named = Gatherer::of_named(run.clone(), parts.clone());
        for neighbour in answers.neighbours {
            let own = run.state.read().await.sealing.clone();
            if choose(&own, &neighbour.sealing) == Choice::First {
                continue;
            }
            // Whoever lies or breaks off is done without.
            let until = Instant::now() + CATCH_UP_MAX;
            if run.state.read().await.head.length < neighbour.length
                && let Err(error) = copier.catch_up(&neighbour, until).await
            {
                tracing::debug!(run.id = %run.id.short(), "{error:#}");
            }
            let gathered = async {
                needed.look(Some(neighbour.client.clone())).await?;
                named.look(Some(neighbour.client.clone())).await
            };
            if let Ok(Err(error)) = tokio::time::timeout_at(until, gathered).await {
                tracing::debug!(run.id = %run.id.short(), "{error:#}");
            }
        }
        // How far it reaches now.
        needed.look(None).await.map(|_| ())
    }
}

/// Refuses to take a run over that somebody keeps: a hub that answers, be it that it has no time, unless the operator insists;
/// one that was named after this log ends, in any case. A hub that says that it seals nothing keeps nothing.
fn refuse_if_kept(answers: &Answers, own: &Sealing, force: bool) -> Result<()> {
    let insists = "take over all the same with --force";
    if let Some(address) = &answers.busy_hub {
        ensure!(
            force,
            "the run's hub at {address} lives and has no time to answer; {insists}"
        );
    }
    for neighbour in &answers.neighbours {
        let address = neighbour.client.address();
        match choose(own, &neighbour.sealing) {
            Choice::First => continue,
            Choice::Second => {
                bail!("another hub took the run over, as {address} says; this mirror follows it")
            }
            Choice::Same | Choice::Undecided => {}
        }
        ensure!(
            force || !neighbour.is_hub() || neighbour.is_stopped,
            "the run's hub answers at {address}; {insists}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
