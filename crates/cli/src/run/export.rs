//! `athome run export`: a checkpoint as a folder that Hugging Face transformers opens.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use data::{shard, tokenizer::Tokenizer};
use engine::{checkpoint, update::hash::parameters_hash};
use network::BlobCache;
use protocol::{
    Hash,
    api::{CheckpointSummary, RunSummary},
    charter::Charter,
    units::BlobReference,
};
use serde::Serialize;

use super::Context;
use crate::output::{StatusLine, size};

/// Most disk for blobs that exports download.
const CACHE_BYTES_MAX: u64 = 16 << 30;
/// Data shards that are read for their licences, bytes in all.
const LICENCE_BYTES_MAX: u64 = 256 << 20;
/// Checkpoints of a run that are looked through for a round.
const CHECKPOINTS_MAX: u64 = 10_000;

/// Write a checkpoint as a Hugging Face folder: weights, configuration, tokenizer and a model card.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run export speeches --out model\n  athome run export speeches --out model --round 120\n\nThen, in Python:\n  AutoModelForCausalLM.from_pretrained(\"model\"), AutoTokenizer.from_pretrained(\"model\")\n\nEvery hash is checked on the way: tokenizer, checkpoint file, and the parameters in it."
)]
pub(super) struct Export {
    /// Name or id
    #[arg(value_name = "RUN")]
    run: String,
    /// Folder to write; it must not exist, or be empty
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// The checkpoint of this round [default: the newest]
    #[arg(long)]
    round: Option<u64>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Exported {
    folder: PathBuf,
    run: String,
    round: u64,
    checkpoint: String,
    parameters_hash: String,
    log_position: u64,
}

impl Export {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let taken = std::fs::read_dir(&self.out).is_ok_and(|mut items| items.next().is_some());
        ensure!(
            !taken && !self.out.is_file(),
            "{} exists already; choose another --out",
            self.out.display()
        );
        let (id, run) = context.run(&self.run).await?;
        let charter = context.client.charter(id).await?;
        let summary = self.find(context, &run).await?;
        let blobs = Blobs {
            context,
            cache: BlobCache::open(&context.places.cache(), CACHE_BYTES_MAX)?,
        };
        let mut status = StatusLine::new();
        let tokenizer_bytes = blobs
            .get(&charter.data.tokenizer, "the tokenizer", &mut status)
            .await?;
        let reference = BlobReference {
            hash: summary.blob.parse().context("the checkpoint's hash")?,
            bytes: summary.bytes,
        };
        let bytes = blobs.get(&reference, "the checkpoint", &mut status).await?;
        let licences = blobs.licences(&charter, &mut status).await?;
        status.set("writing the folder");
        let card = card(&run, &charter, &summary, &licences);
        let exported = Exported {
            folder: self.out.clone(),
            run: run.id.clone(),
            round: summary.round,
            checkpoint: summary.blob.clone(),
            parameters_hash: summary.parameters_hash.clone(),
            log_position: summary.event,
        };
        let out = self.out;
        tokio::task::spawn_blocking(move || {
            write(
                &out,
                &charter,
                &summary,
                &run,
                &bytes,
                &tokenizer_bytes,
                &card,
            )
        })
        .await??;
        status.end();
        context.output.result(&exported, || {
            format!(
                "The model of round {} is in {} (research preview; hashes checked).",
                exported.round,
                exported.folder.display()
            )
        })
    }

    async fn find(
        &self,
        context: &Context<'_>,
        run: &RunSummary,
    ) -> anyhow::Result<CheckpointSummary> {
        let limit = if self.round.is_some() {
            CHECKPOINTS_MAX
        } else {
            1
        };
        let mut listed = context.client.checkpoints(run.id.parse()?, limit).await?;
        match self.round {
            None => listed
                .into_iter()
                .next()
                .context("the run has no checkpoint yet; try again after its first round"),
            Some(round) => {
                let rounds: Vec<String> = listed
                    .iter()
                    .take(10)
                    .map(|it| it.round.to_string())
                    .collect();
                listed.retain(|it| it.round == round);
                listed.into_iter().next().with_context(|| {
                    format!("there is no whole checkpoint of round {round}; the newest are of rounds {}", rounds.join(", "))
                })
            }
        }
    }
}

/// Downloads that say how far they are.
struct Blobs<'a> {
    context: &'a Context<'a>,
    cache: BlobCache,
}

impl Blobs<'_> {
    async fn get(
        &self,
        reference: &BlobReference,
        what: &str,
        status: &mut StatusLine,
    ) -> anyhow::Result<Vec<u8>> {
        let total = reference.bytes;
        let progress = |bytes| {
            status.set(&format!(
                "downloading {what}: {} of {}",
                size(bytes),
                size(total)
            ))
        };
        self.context
            .client
            .download(&self.cache, *reference, None, progress)
            .await
            .with_context(|| format!("{what} could not be downloaded"))?;
        self.cache
            .get(&reference.hash)?
            .context("the cache lost a blob; try again")
    }

    /// The licences of the data, from the shards themselves; empty if they are too large to fetch for that.
    async fn licences(
        &self,
        charter: &Charter,
        status: &mut StatusLine,
    ) -> anyhow::Result<BTreeSet<String>> {
        let shards = charter.data.training.iter().chain(&charter.data.held_out);
        if shards.clone().map(|shard| shard.blob.bytes).sum::<u64>() > LICENCE_BYTES_MAX {
            return Ok(BTreeSet::new());
        }
        let mut licences = BTreeSet::new();
        for reference in shards {
            let bytes = self
                .get(&reference.blob, "a data shard, for its licence", status)
                .await?;
            let header = shard::decode(&bytes)
                .context("a data shard can't be read")?
                .header;
            licences.insert(format!(
                "{} (from {}, owned by {})",
                header.licence, header.source, header.owner
            ));
        }
        Ok(licences)
    }
}

fn write(
    out: &std::path::Path,
    charter: &Charter,
    summary: &CheckpointSummary,
    run: &RunSummary,
    bytes: &[u8],
    tokenizer_bytes: &[u8],
    card: &str,
) -> anyhow::Result<()> {
    let tokenizer = Tokenizer::from_bytes(tokenizer_bytes)?;
    let mut config = engine::charter::model_config(&charter.model);
    config.validate().context("the charter's model")?;
    let parameters =
        checkpoint::from_safetensors(bytes, &config).context("the checkpoint can't be read")?;
    let found = Hash(parameters_hash(&parameters));
    ensure!(
        found.to_string() == summary.parameters_hash,
        "the checkpoint's parameters hash to {found}, the run's log says {}: the hub is not to be trusted",
        summary.parameters_hash
    );
    // One token ends a document and begins the next.
    config.bos_token_id = Some(tokenizer.end_of_text());
    config.eos_token_id = Some(tokenizer.end_of_text());
    let metadata = BTreeMap::from(
        [
            ("athome.run", run.id.clone()),
            ("athome.round", summary.round.to_string()),
            ("athome.log_position", summary.event.to_string()),
            ("athome.parameters_hash", summary.parameters_hash.clone()),
            ("athome.release", "research preview".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    checkpoint::write_folder(out, &config, &parameters, tokenizer_bytes, &metadata)?;
    let path = out.join("README.md");
    std::fs::write(&path, card).with_context(|| format!("can't write {}", path.display()))
}

/// The model card: what this is, where it comes from, what is known of it.
fn card(
    run: &RunSummary,
    charter: &Charter,
    summary: &CheckpointSummary,
    licences: &BTreeSet<String>,
) -> String {
    let loss = summary.held_out_loss.map_or_else(
        || "not evaluated yet".to_owned(),
        |loss| {
            format!(
                "{loss:.4} nats a token (trigram model: {:.4})",
                run.baselines.trigram
            )
        },
    );
    let licences = if licences.is_empty() {
        "- in the header of each data shard that the charter names\n".to_owned()
    } else {
        licences
            .iter()
            .map(|licence| format!("- {licence}\n"))
            .collect()
    };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}, round {round}\n\n\
         **Research preview**: no gate has passed this model. It may write anything that its text contains, and worse.\n\n\
         {description}\n\n\
         | | |\n|---|---|\n\
         | run | `{id}` |\n| round | {round} |\n| log position | {event} |\n\
         | parameters | {parameters}, hash `{hash}` |\n| checkpoint file | `{blob}` |\n\
         | accepted tokens of the run so far | {tokens} |\n| held-out loss | {loss} |\n\
         | context | {context} tokens |\n\n\
         Data: {data}. Licence of the data:\n\n{licences}\n\
         Trained together by the machines of many people; the run's log says who contributed what, and anyone can recompute\n\
         every checkpoint from it.\n",
        name = run.name,
        round = summary.round,
        description = run.description,
        id = run.id,
        event = summary.event,
        parameters = run.parameters,
        hash = summary.parameters_hash,
        blob = summary.blob,
        tokens = run.tokens,
        context = charter.model.max_position_embeddings,
        data = charter.data.name,
    )
}
