//! Follows a hub: for every run the newest whole checkpoint becomes its model, without disturbing running answers.
//!
//! The gateway looks every few seconds; while the hub is away it looks at the other addresses that the runs' charters name,
//! and keeps answering from what it has. Nothing is believed that does not hash to its name: charter, tokenizer, checkpoint
//! file, and the parameters in it.

mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use data::tokenizer::Tokenizer;
use engine::{checkpoint, generate::Generator, update::hash::parameters_hash};
use network::{BlobCache, ClientError, HubClient, retry::RetryPolicy};
use protocol::{
    Hash,
    api::{CheckpointSummary, RunSummary},
    charter::Charter,
    units::{BlobReference, RunId},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use place::Place;

use crate::model::{Catalogue, Model};

/// Most runs of one hub whose models are kept in memory; the newest count.
const RUNS_MAX: usize = 64;
/// Time between two attempts to come back to the hub that was named to the gateway.
const RETURN_EVERY: Duration = Duration::from_secs(30);
/// It has so long to answer such an attempt.
const RETURN_MAX: Duration = Duration::from_secs(5);
/// Room for names and shapes in a checkpoint file.
const CHECKPOINT_HEADER_BYTES_MAX: u64 = 4 << 20;

/// The task that keeps the catalogue up to date.
pub(crate) struct Follower {
    pub(crate) client: HubClient,
    pub(crate) cache: BlobCache,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) hub_reached: Arc<AtomicBool>,
    pub(crate) checkpoints_kept: usize,
    pub(crate) poll: Duration,
    /// Charters, tokenizers and places of the runs that were looked at.
    pub(crate) runs: BTreeMap<RunId, Known>,
    /// When it was tried last to come back to the hub that was named.
    pub(crate) returned: Option<Instant>,
}

/// What of a run never changes, and where it is followed.
#[derive(Clone)]
pub(crate) struct Known {
    charter: Arc<Charter>,
    tokenizer: Arc<Tokenizer>,
    place: Place,
}

impl Follower {
    /// Looks at the hub until told to stop.
    pub(crate) async fn follow(mut self, stop: CancellationToken) {
        let mut complaint = String::new();
        loop {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.look() => outcome,
            };
            // The same trouble is told once, not at every look.
            let trouble = outcome
                .err()
                .map_or_else(String::new, |error| format!("{error:#}"));
            if trouble != complaint && !trouble.is_empty() {
                tracing::warn!(
                    hub = self.client.address(),
                    "models are not up to date: {trouble}"
                );
            } else if trouble != complaint {
                tracing::info!(hub = self.client.address(), "models are up to date again");
            }
            complaint = trouble;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.poll) => {}
            }
        }
    }

    /// One look at all runs; the first trouble is returned after all were looked at.
    async fn look(&mut self) -> anyhow::Result<()> {
        self.come_back().await;
        let runs = self.client.runs().await;
        self.hub_reached.store(runs.is_ok(), Ordering::Relaxed);
        let is_named = *self.client.current_address() == *self.client.address();
        // Another address lists perhaps only some.
        let is_whole = runs.is_ok() && is_named;
        let mut outcome = Ok(());
        let mut runs = match runs {
            Ok(runs) => runs,
            Err(error) => {
                outcome = Err(error).context("the hub's runs could not be read");
                Vec::new()
            }
        };
        runs.sort_by_key(|run| std::cmp::Reverse(run.created_ms));
        runs.truncate(RUNS_MAX);
        let mut listed = BTreeSet::new();
        for run in &runs {
            let refreshed = match run.id.parse::<RunId>() {
                Ok(id) => {
                    listed.insert(id);
                    self.refresh(id, run).await
                }
                Err(error) => Err(error.into()),
            };
            outcome = outcome.and(refreshed.with_context(|| format!("run {}", run.name)));
        }
        let others: Vec<RunId> = self.runs.keys().copied().collect();
        for id in others.into_iter().filter(|it| !listed.contains(it)) {
            let refreshed = self.refresh_unlisted(id, is_whole).await;
            outcome = outcome.and(refreshed.with_context(|| format!("run {}", id.short())));
        }
        outcome
    }

    /// Goes back to the hub that was named, if it answers again: it lists all runs, another address perhaps only some.
    async fn come_back(&mut self) {
        let is_elsewhere = *self.client.current_address() != *self.client.address();
        let is_due = self.returned.is_none_or(|it| RETURN_EVERY <= it.elapsed());
        if !is_elsewhere || !is_due {
            return;
        }
        self.returned = Some(Instant::now());
        let Ok(named) = self.client.at(self.client.address()) else {
            return;
        };
        let named = named.with_retry(RetryPolicy::once());
        if let Ok(Ok(_)) = tokio::time::timeout(RETURN_MAX, named.runs()).await {
            self.client.prefer_address(named.address());
        }
    }

    /// A run that whoever was asked does not list: it is looked for where its charter says, and if it is nowhere, it is
    /// given up where the list was whole.
    async fn refresh_unlisted(&mut self, id: RunId, is_whole: bool) -> anyhow::Result<()> {
        let Some(known) = self.runs.get_mut(&id) else {
            return Ok(());
        };
        known.place.settle().await?;
        match known.place.summary(id).await {
            Ok(run) => self.refresh_at(id, &run).await,
            Err(ClientError::Refused { status: 404, .. }) if is_whole => {
                let name = &known.charter.name;
                tracing::info!(run.id = %id, "no hub has the run {name} any more");
                self.catalogue.replace(id, Vec::new());
                self.runs.remove(&id);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn refresh(&mut self, id: RunId, listed: &RunSummary) -> anyhow::Result<()> {
        self.known(id).await?;
        let Some(known) = self.runs.get_mut(&id) else {
            return Ok(());
        };
        known.place.settle().await?;
        if known.place.client.current_address() == self.client.current_address() {
            return self.refresh_at(id, listed).await;
        }
        let run = known.place.summary(id).await?;
        self.refresh_at(id, &run).await
    }

    /// Takes over what is new of a run as it stands at its place.
    async fn refresh_at(&mut self, id: RunId, run: &RunSummary) -> anyhow::Result<()> {
        let client = self.known(id).await?.place.client;
        let mut models = self.catalogue.of_run(id);
        if models
            .first()
            .is_none_or(|newest| newest.round != run.checkpoint_round)
        {
            let listed = client.checkpoints(id, 1).await?;
            let checkpoint = listed.first().context("it has no checkpoint yet")?;
            if models
                .first()
                .is_none_or(|newest| newest.checkpoint.to_string() != checkpoint.blob)
            {
                let model = self.load(id, run, checkpoint).await?;
                models.retain(|older| older.round != model.round);
                models.insert(0, model);
                models.truncate(self.checkpoints_kept);
            }
        }
        self.evaluate(id, run, &mut models).await?;
        self.catalogue.replace(id, models);
        Ok(())
    }

    /// Fills in held-out losses that came after their checkpoints.
    async fn evaluate(
        &self,
        id: RunId,
        run: &RunSummary,
        models: &mut [Model],
    ) -> anyhow::Result<()> {
        let evaluated = run
            .evaluation
            .as_ref()
            .map_or(0, |evaluation| evaluation.round);
        let lacking = |model: &Model| model.bits_per_byte.is_none() && model.round <= evaluated;
        let Some(known) = self.runs.get(&id).filter(|_| models.iter().any(lacking)) else {
            return Ok(());
        };
        let listed = known
            .place
            .client
            .checkpoints(id, self.checkpoints_kept as u64)
            .await?;
        for model in models.iter_mut().filter(|model| lacking(model)) {
            let checkpoint = listed
                .iter()
                .find(|checkpoint| checkpoint.round == model.round);
            let loss = checkpoint.and_then(|checkpoint| checkpoint.held_out_loss);
            model.bits_per_byte = loss.map(|nats| bits_per_byte(&known.charter, nats));
        }
        Ok(())
    }

    async fn load(
        &mut self,
        id: RunId,
        run: &RunSummary,
        checkpoint: &CheckpointSummary,
    ) -> anyhow::Result<Model> {
        let Known {
            charter,
            tokenizer,
            place,
        } = self.known(id).await?;
        let hash: Hash = checkpoint.blob.parse().context("the checkpoint's hash")?;
        let bytes_max = 4 * charter.model.parameter_count() + CHECKPOINT_HEADER_BYTES_MAX;
        ensure!(
            checkpoint.bytes <= bytes_max,
            "the checkpoint has {} bytes, its model at most {bytes_max}",
            checkpoint.bytes
        );
        let reference = BlobReference {
            hash,
            bytes: checkpoint.bytes,
        };
        let bytes = self.blob(&place.client, &reference).await;
        let bytes = bytes.context("the checkpoint")?;
        let expected: Hash = checkpoint
            .parameters_hash
            .parse()
            .context("the parameters' hash")?;
        let of_run = Arc::clone(&charter);
        let generator =
            tokio::task::spawn_blocking(move || generator(&of_run, &bytes, expected)).await??;
        let held_out = checkpoint
            .held_out_loss
            .map(|nats| bits_per_byte(&charter, nats));
        tracing::info!(run.id = %id, round = checkpoint.round, "serving a newer checkpoint of {}", run.name);
        Ok(Model {
            run: id,
            run_name: run.name.clone(),
            run_created_ms: run.created_ms,
            round: checkpoint.round,
            stored_ms: checkpoint.time_ms,
            checkpoint: hash,
            bits_per_byte: held_out,
            generator,
            tokenizer,
        })
    }

    async fn known(&mut self, id: RunId) -> anyhow::Result<Known> {
        if let Some(known) = self.runs.get(&id) {
            return Ok(known.clone());
        }
        let charter = self.client.charter(id).await?;
        engine::charter::check(&charter).context("the charter")?;
        let place = Place::new(&self.client, &charter)?;
        // Where the run may go, the list of runs may be looked for too.
        self.client
            .add_addresses(charter.addresses.iter().map(String::as_str));
        let bytes = self
            .blob(&place.client, &charter.data.tokenizer)
            .await
            .context("the tokenizer")?;
        let tokenizer =
            tokio::task::spawn_blocking(move || Tokenizer::from_bytes(&bytes)).await??;
        ensure!(
            tokenizer.vocabulary_size() <= charter.model.vocab_size,
            "the tokenizer has more tokens than the model"
        );
        let known = Known {
            charter: Arc::new(charter),
            tokenizer: Arc::new(tokenizer),
            place,
        };
        self.runs.insert(id, known.clone());
        Ok(known)
    }

    async fn blob(&self, client: &HubClient, reference: &BlobReference) -> anyhow::Result<Vec<u8>> {
        client
            .download(&self.cache, *reference, None, |_bytes| {})
            .await?;
        let (cache, hash) = (self.cache.clone(), reference.hash);
        let bytes = tokio::task::spawn_blocking(move || cache.get(&hash)).await??;
        bytes.context("the cache dropped it again: allow it more space")
    }
}

fn generator(charter: &Charter, bytes: &[u8], expected: Hash) -> anyhow::Result<Generator> {
    let config = engine::charter::model_config(&charter.model);
    let parameters = checkpoint::from_safetensors(bytes, &config)?;
    ensure!(
        Hash(parameters_hash(&parameters)) == expected,
        "the checkpoint's parameters are not those of the round's hash"
    );
    Ok(Generator::new(&config, Arc::new(parameters))?)
}

/// A held-out loss in nats a token as bits a byte of text, by the charter's counts of both.
fn bits_per_byte(charter: &Charter, nats_per_token: f64) -> f64 {
    let shards = &charter.data.held_out;
    let tokens: u64 = shards.iter().map(|shard| shard.tokens).sum();
    let bytes: u64 = shards.iter().map(|shard| shard.text_bytes).sum();
    nats_per_token / std::f64::consts::LN_2 * tokens as f64 / bytes as f64
}

#[cfg(test)]
mod tests;
