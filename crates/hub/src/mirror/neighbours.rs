//! The other hubs and mirrors of a run: where each one's copy stands, whose log counts, and proofs of what was said twice.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use network::{ClientError, HubClient};
use protocol::{
    Hash, PublicKey,
    api::mirrors::RunHead,
    charter::Charter,
    equivocation::Equivocation,
    log::{Entry, Head},
    succession::{Choice, Sealing, Succession, choose},
};

use super::hub_address;
use crate::run::{Parts, Run};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Longest time to find where two logs part.
const SEARCH_MAX: Duration = Duration::from_secs(60);
/// Others that are asked.
const ASKED_MAX: usize = 32;
/// Longest time to show somebody a proof.
const SHOWING_MAX: Duration = Duration::from_secs(30);
/// Proofs taken over from one neighbour, and shown to it, at a look.
const PROOFS_MAX: usize = 16;

/// Another hub or mirror of a run, as it says of itself; its takeovers are checked.
pub(super) struct Neighbour {
    pub(super) client: HubClient,
    key: PublicKey,
    process: String,
    pub(super) sealing: Sealing,
    pub(super) length: u64,
    pub(super) hash: Hash,
    /// Whether it says that it seals nothing, because its key sealed two different entries.
    pub(super) is_stopped: bool,
    /// Ids of proofs.
    proofs: Vec<Hash>,
}

/// What everyone who was asked answered.
pub(super) struct Answers {
    pub(super) neighbours: Vec<Neighbour>,
    /// Where the run's hub lives and has no time to answer.
    pub(super) busy_hub: Option<String>,
}

/// What a hub finds when it looks around.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nobody knows more than this log.
    Nothing,
    /// By this statement another hub keeps the run.
    Replaced(Box<Succession>),
    /// A neighbour's log, sealed by the same key, goes on from the end of this one: it is an older copy.
    Longer,
}

impl Neighbour {
    /// Whether it keeps the run, by its own log.
    pub(super) fn is_hub(&self) -> bool {
        self.sealing.hub() == self.key
    }
}

/// Everyone that charter, takeovers and settings name, without this process itself as far as its address is known.
async fn addresses(run: &Run, parts: &Parts) -> BTreeSet<String> {
    let state = run.state.read().await;
    let mut addresses: BTreeSet<String> = state.charter.addresses.iter().cloned().collect();
    let successions = state.sealing.successions().iter();
    addresses.extend(successions.map(|it| it.address.clone()));
    addresses.extend(parts.mirroring.follow.clone());
    addresses.extend(run.copied.addresses());
    if let Some(own) = &parts.mirroring.address {
        addresses.remove(own);
    }
    addresses
}

/// Whether there is anybody who could be asked.
pub(crate) async fn has_neighbours(run: &Run, parts: &Parts) -> bool {
    let addresses = addresses(run, parts).await;
    addresses
        .iter()
        .any(|it| parts.mirroring.client(it).is_some())
}

/// Asks everyone who is known; this process itself is left out. Whatever the run's hub answers, it was heard.
pub(super) async fn neighbours(run: &Run, parts: &Parts) -> Answers {
    let addresses = addresses(run, parts).await;
    let (charter, own, hub_address) = {
        let state = run.state.read().await;
        let hub_address = hub_address(&state, &parts.mirroring);
        (state.charter.clone(), state.sealing.clone(), hub_address)
    };
    let asked = addresses.iter().take(ASKED_MAX).filter_map(|address| {
        let client = parts.mirroring.client(address)?;
        let charter = &charter;
        Some(async move { (address, ask(client, run, charter).await) })
    });
    let mut answers = Answers {
        neighbours: Vec::new(),
        busy_hub: None,
    };
    for (address, answer) in join_all(asked).await {
        match answer {
            Ok(neighbour) if neighbour.process == parts.mirroring.process => {}
            Ok(neighbour) => {
                run.copied.answered(address, neighbour.key);
                if neighbour.is_hub() && choose(&own, &neighbour.sealing) != Choice::First {
                    run.copied.hub_is_heard();
                }
                answers.neighbours.push(neighbour);
            }
            Err(error) => {
                tracing::debug!(run.id = %run.id.short(), "a neighbour is no help: {error:#}");
                let is_hub = match run.copied.who_answered(address) {
                    Some(key) => key == own.hub(),
                    None => Some(address) == hub_address.as_ref(),
                };
                if is_hub && is_from_a_living_hub(&error) {
                    run.copied.hub_is_heard();
                    answers.busy_hub = Some(address.clone());
                }
            }
        }
    }
    answers
}

/// Whether a call failed because whoever was asked lives and has no time.
pub(super) fn is_from_a_living_hub(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<ClientError>();
    error.is_some_and(ClientError::is_from_a_living_hub)
}

async fn ask(client: HubClient, run: &Run, charter: &Charter) -> Result<Neighbour> {
    let head = tokio::time::timeout(ANSWER_MAX, client.head(run.id))
        .await
        .with_context(|| format!("{} does not answer", client.address()))??;
    read(client, head, charter)
}

fn read(client: HubClient, head: RunHead, charter: &Charter) -> Result<Neighbour> {
    let sealing = Sealing::of(charter);
    ensure!(head.run == sealing.run().to_string(), "it is another run's");
    let statements = head.successions.iter().map(|text| {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes())?;
        anyhow::Ok(Succession::from_bytes(&bytes)?)
    });
    let statements = statements.collect::<Result<Vec<_>>>()?;
    Ok(Neighbour {
        key: head.key.parse()?,
        process: head.process,
        sealing: sealing.with(&statements)?,
        length: head.length,
        hash: head.hash.parse()?,
        is_stopped: head.stopped.is_some(),
        proofs: head
            .equivocations
            .iter()
            .take(PROOFS_MAX)
            .filter_map(|it| it.id.parse().ok())
            .collect(),
        client,
    })
}

/// Looks around once, and keeps and shows what proofs there are.
pub(crate) async fn look(run: &Run, parts: &Parts) -> Found {
    let mut newest: Option<Sealing> = None;
    let mut is_longer = false;
    for neighbour in neighbours(run, parts).await.neighbours {
        exchange_proofs(run, parts, &neighbour).await;
        let (own, head) = {
            let state = run.state.read().await;
            (state.sealing.clone(), state.head)
        };
        match choose(&own, &neighbour.sealing) {
            Choice::First => {}
            Choice::Same if head.length < neighbour.length => {
                // Its head was read before this one: whoever copies this log is never ahead of it.
                // Its word is not enough: the next entry has this hub's seal.
                match their_entry(run, &neighbour, head.length).await {
                    Ok(next) if { head }.advance(run.id, &own.hub(), &next).is_ok() => {
                        is_longer = true;
                    }
                    Ok(_) => part_ways(run, parts, &neighbour).await,
                    Err(error) => {
                        tracing::debug!(run.id = %run.id.short(), "a neighbour is no help: {error:#}");
                    }
                }
            }
            Choice::Same | Choice::Undecided => part_ways(run, parts, &neighbour).await,
            Choice::Second => {
                let known = newest.as_ref().unwrap_or(&own);
                if choose(known, &neighbour.sealing) == Choice::Second {
                    newest = Some(neighbour.sealing);
                }
            }
        }
    }
    match newest.as_ref().and_then(Sealing::newest) {
        Some(statement) => Found::Replaced(Box::new(statement.clone())),
        None if is_longer => Found::Longer,
        None => Found::Nothing,
    }
}

/// Looks around again and again while this process is the run's hub; ends when it is to be none any more.
pub(crate) async fn look_again(run: Run, parts: Parts) {
    loop {
        tokio::time::sleep(EVERY).await;
        let found = look(&run, &parts).await;
        // However a proof came to be here.
        if let Ok(Some(why)) = why_stopped(&run, &parts).await {
            run.stop(why);
        }
        match found {
            Found::Nothing => {}
            Found::Replaced(statement) => {
                run.replaced(*statement).await;
                return;
            }
            Found::Longer => {
                run.is_behind().await;
                return;
            }
        }
    }
}

/// Why this process seals nothing although the log names it as the run's hub: what was proven of its key, if anything.
pub(crate) async fn why_stopped(run: &Run, parts: &Parts) -> Result<Option<String>> {
    let own = run.state.read().await.sealing.clone();
    if own.hub() != parts.key.public() {
        return Ok(None);
    }
    let kept = parts.store.equivocations(run.id).await?;
    let stops = kept.iter().find(|it| own.is_stopped_by(&it.proof));
    Ok(stops.and_then(|it| sentence(&it.proof)))
}

/// What a proof says, and what helps.
fn sentence(proof: &Equivocation) -> Option<String> {
    let kind = proof.check().ok()?;
    Some(format!(
        "{} (proof {}); it waits for a takeover by a succession key",
        kind.sentence(&proof.key),
        proof.id().short()
    ))
}

/// Looks whether a neighbour's log says otherwise than this one where both are sealed by the same key, and keeps the proof.
/// Logs that agree so far are no matter.
pub(super) async fn part_ways(run: &Run, parts: &Parts, neighbour: &Neighbour) {
    let found = tokio::time::timeout(SEARCH_MAX, said_twice(run, parts, neighbour)).await;
    match found {
        Ok(Ok(Some(proof))) => {
            keep(run, parts, &proof).await;
            show(run, neighbour, &proof).await;
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            tracing::debug!(run.id = %run.id.short(), "can't compare logs with {}: {error:#}", neighbour.client.address());
        }
        Err(_) => {
            tracing::debug!(run.id = %run.id.short(), "comparing logs with {} takes too long", neighbour.client.address());
        }
    }
}

async fn said_twice(
    run: &Run,
    parts: &Parts,
    neighbour: &Neighbour,
) -> Result<Option<Equivocation>> {
    let own = run.state.read().await.sealing.clone();
    let differing = own
        .successions()
        .iter()
        .zip(neighbour.sealing.successions())
        .find(|(one, other)| one != other);
    if let Some((one, other)) = differing {
        // Two takeovers of one generation.
        let ours = own_entry(run, parts, one.index).await?;
        let theirs = their_entry(run, neighbour, other.index).await?;
        return Ok(Equivocation::find(one.key, &ours, &theirs));
    }
    let agreed = agreed(run, parts, neighbour).await?;
    let length = run.state.read().await.head.length;
    if agreed >= length.min(neighbour.length) {
        return Ok(None);
    }
    let ours = own_entry(run, parts, agreed).await?;
    let theirs = their_entry(run, neighbour, agreed).await?;
    let keys = own.successions().iter().map(|it| it.hub);
    let first = run.state.read().await.charter.hub;
    let mut keys = keys.chain([first]);
    Ok(keys.find_map(|key| Equivocation::find(key, &ours, &theirs)))
}

/// How many entries this log and a neighbour's have in common.
pub(super) async fn agreed(run: &Run, parts: &Parts, neighbour: &Neighbour) -> Result<u64> {
    let own = run.state.read().await.head;
    let (mut same, mut differ) = (0, own.length.min(neighbour.length) + 1);
    // The ends of the logs first: mostly one is the beginning of the other.
    let mut length = differ - 1;
    while same + 1 < differ {
        let is_same = match length {
            0 => true,
            _ => {
                hash_at(run, parts, &own, length).await?
                    == their_hash_at(run, neighbour, length).await?
            }
        };
        if is_same {
            same = length;
        } else {
            differ = length;
        }
        length = same + (differ - same) / 2;
    }
    Ok(same)
}

async fn hash_at(run: &Run, parts: &Parts, own: &Head, length: u64) -> Result<Hash> {
    if length == own.length {
        return Ok(own.hash);
    }
    Ok(own_entry(run, parts, length - 1).await?.hash())
}

async fn their_hash_at(run: &Run, neighbour: &Neighbour, length: u64) -> Result<Hash> {
    if length == neighbour.length {
        return Ok(neighbour.hash);
    }
    Ok(their_entry(run, neighbour, length - 1).await?.hash())
}

async fn own_entry(run: &Run, parts: &Parts, index: u64) -> Result<Entry> {
    let entries = parts.store.entries(run.id, index, 1).await?;
    entries.into_iter().next().context("the log is shorter")
}

async fn their_entry(run: &Run, neighbour: &Neighbour, index: u64) -> Result<Entry> {
    let page = neighbour.client.log_entries(run.id, index, 1).await?;
    let entry = page.entries.into_iter().next();
    entry
        .filter(|it| it.index == index)
        .context("its log is shorter than it says")
}

/// Takes over the proofs that a neighbour has, and shows it those that it does not speak of.
pub(super) async fn exchange_proofs(run: &Run, parts: &Parts, neighbour: &Neighbour) {
    let Ok(known) = parts.store.equivocation_ids(run.id).await else {
        return;
    };
    for id in neighbour.proofs.iter().filter(|it| !known.contains(it)) {
        if let Ok(proof) = neighbour.client.equivocation(run.id, *id).await {
            keep(run, parts, &proof).await;
        }
    }
    for id in known.iter().take(PROOFS_MAX) {
        if !neighbour.proofs.contains(id)
            && let Ok(Some(proof)) = parts.store.equivocation(run.id, id).await
        {
            show(run, neighbour, &proof).await;
        }
    }
}

/// Shows a proof to a neighbour, once: it may be what that one's key said twice. What breaks off is shown again.
async fn show(run: &Run, neighbour: &Neighbour, proof: &Equivocation) {
    let id = proof.id();
    if run.copied.was_shown(&neighbour.process, &id) {
        return;
    }
    let shown = neighbour.client.show_equivocation(run.id, proof);
    match tokio::time::timeout(SHOWING_MAX, shown).await {
        Ok(Ok(_)) => run.copied.is_shown(&neighbour.process, id),
        refused => {
            tracing::debug!(run.id = %run.id.short(), "{} does not take a proof: {refused:?}", neighbour.client.address());
        }
    }
}

/// Keeps a proof that holds and concerns this run, and tells the operator of a new one. If it says that this process's own
/// key sealed two different entries, nothing more is sealed here. False if it proves nothing of this run.
pub(crate) async fn keep(run: &Run, parts: &Parts, proof: &Equivocation) -> bool {
    let Ok(kind) = proof.check() else {
        return false;
    };
    let own = run.state.read().await.sealing.clone();
    if proof.first.run != run.id || !own.concerns(&proof.key) {
        return false;
    }
    let now = parts.clock.now_ms();
    match parts.store.keep_equivocation(run.id, proof, now).await {
        Ok(true) => tracing::error!(
            run.id = %run.id.short(), proof = %proof.id().short(),
            "{}: the proof is kept and shown; no rule says which counts, people do, by a takeover", kind.sentence(&proof.key)
        ),
        Ok(false) => {}
        Err(error) => tracing::error!("can't keep a proof: {error:#}"),
    }
    if own.hub() == parts.key.public()
        && own.is_stopped_by(proof)
        && let Some(why) = sentence(proof)
    {
        run.stop(why);
    }
    true
}
