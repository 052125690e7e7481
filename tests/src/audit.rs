//! An auditor: reads a run's log, checks the chain, fetches every update that a merge names and does the merge again.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use engine::{
    replay::{Rules, RunModel, proportion::Standings},
    update::{decoded::DecodedUpdate, merge::Weighted},
};
use network::{BlobCache, HubClient, log::LogReader};
use protocol::{
    Hash,
    event::{Event, MergedUpdate},
    log::Entry,
    succession::Chain,
    units::{BlobReference, RunId, WorkerId},
    update,
};

/// Bytes of blobs that an audit keeps.
const CACHE_BYTES_MAX: u64 = 4 << 30;

/// Everything that an audit of a run found.
pub struct Audit {
    /// Merges done again, in order.
    pub merges: Vec<AuditedMerge>,
}

/// A merge that was done again.
pub struct AuditedMerge {
    /// Its round.
    pub round: u64,
    /// The updates it is made of: their makers, and the rounds that they are of.
    pub updates: Vec<(WorkerId, u64)>,
    /// Hash of the parameters, as logged and as found.
    pub parameters: Hash,
    /// For each update: the hash that the parameters would have without it.
    pub without: Vec<(WorkerId, Hash)>,
}

/// An update as a merge takes it.
#[derive(Clone)]
struct Part {
    update: DecodedUpdate,
    weight: u64,
    standing: u64,
}

/// Reads the whole log and checks that each entry continues the chain that the charter's hub signed.
///
/// # Errors
/// If it does not.
pub async fn log(client: &HubClient, run: RunId) -> Result<Vec<Entry>> {
    let charter = client.charter(run).await?;
    ensure!(
        charter.id() == run,
        "the hub's charter has another hash than the run's id"
    );
    let mut reader = LogReader::new(client.clone(), Chain::of(&charter));
    let mut entries = Vec::new();
    loop {
        let page = reader.next_page().await?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}

/// Does every merge of a run again and compares each hash with the log's.
///
/// # Errors
/// At the first difference.
pub async fn audit(client: &HubClient, run: RunId, folder: &Path) -> Result<Audit> {
    let entries = log(client, run).await?;
    let cache = BlobCache::open(folder, CACHE_BYTES_MAX)?;
    let Some(Event::RunCreated {
        charter,
        model: first,
        checkpoint: stored,
    }) = entries.first().map(|it| &it.event)
    else {
        anyhow::bail!("the log does not begin with the run's creation");
    };
    let rules = Rules::new(charter)?;
    let mut model = rules.load(
        *first,
        &fetch(client, &cache, stored.parameters).await?,
        &fetch(client, &cache, stored.outer).await?,
    )?;
    let mut merges = Vec::new();
    let mut standings = Standings::default();
    for entry in &entries {
        let Event::RoundMerged {
            round,
            rate_q16,
            updates,
            model: logged,
            ..
        } = &entry.event
        else {
            continue;
        };
        let parts = parts(&rules, client, &cache, updates, &standings).await?;
        standings.count(updates);
        let before = model.clone();
        merge(&rules, &mut model, (*round, *rate_q16), &parts)?;
        ensure!(
            model.state == *logged,
            "round {round} merges to {}, the log says {}",
            model.state.parameters,
            logged.parameters
        );
        merges.push(AuditedMerge {
            round: *round,
            updates: updates.iter().map(|it| (it.worker, it.of_round)).collect(),
            parameters: model.state.parameters,
            without: without(&rules, &before, *rate_q16, updates, &parts)?,
        });
    }
    Ok(Audit { merges })
}

async fn parts(
    rules: &Rules,
    client: &HubClient,
    cache: &BlobCache,
    updates: &[MergedUpdate],
    standings: &Standings,
) -> Result<Vec<Part>> {
    let mut parts = Vec::with_capacity(updates.len());
    for merged in updates {
        let bytes = fetch(client, cache, merged.update).await?;
        let (header, _) = update::open(&bytes)?;
        ensure!(
            header.worker == merged.worker,
            "an update is merged under another worker's name"
        );
        let decoded = rules.judge(&bytes, &header);
        let decoded = decoded.map_err(|reason| anyhow::anyhow!(reason.sentence()))?;
        parts.push(Part {
            update: decoded,
            weight: merged.weight,
            standing: standings.of(&merged.worker),
        });
    }
    Ok(parts)
}

fn merge(
    rules: &Rules,
    model: &mut RunModel,
    (round, rate_q16): (u64, u32),
    parts: &[Part],
) -> Result<()> {
    let weighted: Vec<Weighted<'_>> = parts
        .iter()
        .map(|it| Weighted {
            update: &it.update,
            weight: it.weight,
            standing: it.standing,
        })
        .collect();
    rules.merge(model, round, rate_q16, &weighted)?;
    Ok(())
}

fn without(
    rules: &Rules,
    before: &RunModel,
    rate_q16: u32,
    updates: &[MergedUpdate],
    parts: &[Part],
) -> Result<Vec<(WorkerId, Hash)>> {
    if parts.len() < 2 {
        return Ok(Vec::new());
    }
    let mut found = Vec::with_capacity(parts.len());
    for (index, left_out) in updates.iter().enumerate() {
        let mut others = parts.to_vec();
        others.remove(index);
        let mut model = before.clone();
        merge(
            rules,
            &mut model,
            (before.state.round + 1, rate_q16),
            &others,
        )?;
        found.push((left_out.worker, model.state.parameters));
    }
    Ok(found)
}

async fn fetch(client: &HubClient, cache: &BlobCache, blob: BlobReference) -> Result<Vec<u8>> {
    client
        .download(cache, blob, None, |_| {})
        .await
        .with_context(|| format!("cannot fetch the blob {}", blob.hash))?;
    cache
        .get(&blob.hash)?
        .with_context(|| format!("the blob {} is gone from the cache", blob.hash))
}
