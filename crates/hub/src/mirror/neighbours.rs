//! The other hubs and mirrors of a run: where each one's copy stands, whose log counts, and proofs of what was said twice.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use network::HubClient;
use protocol::{
    Hash, PublicKey,
    api::mirrors::RunHead,
    charter::Charter,
    equivocation::Equivocation,
    log::{Entry, Head},
    succession::{Choice, Sealing, Succession, choose},
};

use crate::run::{Parts, Run};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Longest time to find where two logs part.
const SEARCH_MAX: Duration = Duration::from_secs(60);
/// Others that are asked.
const ASKED_MAX: usize = 32;
/// Proofs taken over from one neighbour at a look.
const PROOFS_MAX: usize = 16;

/// Another hub or mirror of a run, as it says of itself; its takeovers are checked.
pub(super) struct Neighbour {
    pub(super) client: HubClient,
    key: PublicKey,
    process: String,
    pub(super) sealing: Sealing,
    pub(super) length: u64,
    pub(super) hash: Hash,
    /// Ids of proofs.
    proofs: Vec<Hash>,
}

impl Neighbour {
    /// Whether it keeps the run, by its own log.
    pub(super) fn is_hub(&self) -> bool {
        self.sealing.hub() == self.key
    }
}

/// Asks everyone that charter, takeovers and settings name; this process itself is left out.
pub(super) async fn neighbours(run: &Run, parts: &Parts) -> Vec<Neighbour> {
    let (charter, sealing) = {
        let state = run.state.read().await;
        (state.charter.clone(), state.sealing.clone())
    };
    let mut addresses: BTreeSet<String> = charter.addresses.iter().cloned().collect();
    addresses.extend(sealing.successions().iter().map(|it| it.address.clone()));
    addresses.extend(parts.mirroring.follow.clone());
    addresses.extend(run.copied.addresses());
    if let Some(own) = &parts.mirroring.address {
        addresses.remove(own);
    }
    let clients = addresses
        .iter()
        .take(ASKED_MAX)
        .filter_map(|it| parts.mirroring.client(it));
    let asked = clients.map(|client| ask(client, run, &charter));
    let answers = join_all(asked).await.into_iter();
    answers
        .filter_map(|it| match it {
            Ok(neighbour) => Some(neighbour),
            Err(error) => {
                tracing::debug!(run.id = %run.id.short(), "a neighbour is no help: {error:#}");
                None
            }
        })
        .filter(|it| it.process != parts.mirroring.process)
        .collect()
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
        proofs: head
            .equivocations
            .iter()
            .take(PROOFS_MAX)
            .filter_map(|it| it.id.parse().ok())
            .collect(),
        client,
    })
}

/// Looks around once, and keeps what proofs there are; the statement by which another hub keeps the run, if there is one.
pub(crate) async fn look(run: &Run, parts: &Parts) -> Option<Succession> {
    let mut newest: Option<Sealing> = None;
    for neighbour in neighbours(run, parts).await {
        keep_proofs(run, parts, &neighbour).await;
        let own = run.state.read().await.sealing.clone();
        match choose(&own, &neighbour.sealing) {
            Choice::First => {}
            Choice::Same | Choice::Undecided => part_ways(run, parts, &neighbour).await,
            Choice::Second => {
                let known = newest.as_ref().unwrap_or(&own);
                if choose(known, &neighbour.sealing) == Choice::Second {
                    newest = Some(neighbour.sealing);
                }
            }
        }
    }
    newest?.newest().cloned()
}

/// Looks around again and again while this process is the run's hub; ends when it is none any more.
pub(crate) async fn look_again(run: Run, parts: Parts) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Some(statement) = look(&run, &parts).await {
            run.replaced(statement).await;
            return;
        }
    }
}

/// Looks whether a neighbour's log says otherwise than this one where both are sealed by the same key, and keeps the proof.
/// Logs that agree so far are no matter.
pub(super) async fn part_ways(run: &Run, parts: &Parts, neighbour: &Neighbour) {
    let found = tokio::time::timeout(SEARCH_MAX, said_twice(run, parts, neighbour)).await;
    match found {
        Ok(Ok(Some(proof))) => keep(run, parts, &proof).await,
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

/// Takes over the proofs that a neighbour has.
async fn keep_proofs(run: &Run, parts: &Parts, neighbour: &Neighbour) {
    for id in &neighbour.proofs {
        let known = parts.store.equivocation(run.id, id).await;
        if !matches!(known, Ok(None)) {
            continue;
        }
        if let Ok(proof) = neighbour.client.equivocation(run.id, *id).await
            && neighbour.sealing.concerns(&proof.key)
        {
            keep(run, parts, &proof).await;
        }
    }
}

/// Keeps a proof that holds, and tells the operator of a new one.
async fn keep(run: &Run, parts: &Parts, proof: &Equivocation) {
    let Ok(kind) = proof.check() else {
        return;
    };
    let now = parts.clock.now_ms();
    match parts.store.keep_equivocation(run.id, proof, now).await {
        Ok(true) => tracing::error!(
            run.id = %run.id.short(), proof = %proof.id().short(),
            "{}: the proof is kept and shown; no rule says which counts, people do, by a takeover", kind.sentence(&proof.key)
        ),
        Ok(false) => {}
        Err(error) => tracing::error!("can't keep a proof: {error:#}"),
    }
}
