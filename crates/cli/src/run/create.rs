//! `athome run create`.

use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use data::dataset::Dataset;
use network::UploadAuthorisation;
use protocol::{Hash, api::CreateRun, charter::CHARTER_BYTES_MAX};
use serde::Serialize;

use super::{Context, charter, dataset_folder};
use crate::output::{StatusLine, size};

const EXAMPLES: &str = "\
Examples:
  athome run create charter.toml --data speeches
  ATHOME_OPERATOR_TOKEN=… athome run create charter.toml --data speeches --hub https://hub.example

What the charter leaves out (the hub's key, tokenizer, data shards, vocabulary, losses to beat) is filled in;
tokenizer and data shards are uploaded. The same charter again gives the same run.";

/// Open a run.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Create {
    /// The charter in TOML (`athome run charter-template` prints one)
    #[arg(value_name = "CHARTER")]
    charter: PathBuf,
    /// Dataset to learn from, a folder or the name of one in the home folder
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Start from these parameters instead of random ones: a safetensors file of the charter's shape
    #[arg(long, value_name = "FILE")]
    parameters: Option<PathBuf>,
    /// The operator's token; not needed on the hub's own machine
    #[arg(
        long,
        env = "ATHOME_OPERATOR_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    operator_token: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Created {
    id: String,
    name: String,
}

impl Create {
    pub(super) async fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let length = std::fs::metadata(&self.charter).map_or(0, |it| it.len());
        anyhow::ensure!(
            length <= CHARTER_BYTES_MAX as u64,
            "{} is too long for a charter: {length} bytes, at most {CHARTER_BYTES_MAX}",
            self.charter.display()
        );
        let text = std::fs::read_to_string(&self.charter)
            .with_context(|| format!("can't read {}", self.charter.display()))?;
        let folder = self
            .data
            .clone()
            .map(|folder| dataset_folder(folder, context.places));
        let mut status = StatusLine::new();
        status.set("checking the dataset and measuring the losses to beat");
        let address = context.client.address().to_owned();
        let path = self.charter.clone();
        let prepare = move || {
            let dataset =
                match folder {
                    Some(folder) => Some(data::dataset::open(&folder).with_context(|| {
                        format!("the dataset {} can't be used", folder.display())
                    })?),
                    None => None,
                };
            let charter = charter::fill(&text, dataset.as_ref(), &address)
                .with_context(|| format!("the charter {} can't be used", path.display()))?;
            anyhow::Ok((charter, dataset))
        };
        let (charter, dataset) = tokio::task::spawn_blocking(prepare).await??;
        if let Some(dataset) = &dataset {
            self.upload_dataset(context, dataset, &mut status).await?;
        }
        let parameters = self.upload_parameters(context, &mut status).await?;
        status.set("opening the run");
        let request = CreateRun {
            charter: charter.to_toml(),
            parameters,
        };
        let created = context
            .client
            .create_run(&request, self.operator_token.as_deref())
            .await?;
        status.end();
        let created = Created {
            id: created.id,
            name: charter.name,
        };
        context.output.result(&created, || {
            format!(
                "The run {} is open.\n  id      {}\n  join    athome join {} --run \"{}\"\n  watch   athome run watch \"{}\"",
                created.name,
                created.id,
                context.client.address(),
                created.name,
                created.name
            )
        })
    }

    async fn upload_dataset(
        &self,
        context: &Context<'_>,
        dataset: &Dataset,
        status: &mut StatusLine,
    ) -> anyhow::Result<()> {
        let tokenizer = Bytes::copy_from_slice(dataset.tokenizer.to_bytes());
        self.upload(context, "the tokenizer", tokenizer, status)
            .await?;
        let count = dataset.manifest.shards.len();
        for (index, entry) in dataset.manifest.shards.iter().enumerate() {
            let bytes = Bytes::from(dataset.shard_bytes(entry)?);
            let what = format!("data shard {} of {count}", index + 1);
            self.upload(context, &what, bytes, status).await?;
        }
        Ok(())
    }

    async fn upload_parameters(
        &self,
        context: &Context<'_>,
        status: &mut StatusLine,
    ) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.parameters else {
            return Ok(None);
        };
        let bytes =
            std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let hash = self
            .upload(context, "the parameters", Bytes::from(bytes), status)
            .await?;
        Ok(Some(hash.to_string()))
    }

    async fn upload(
        &self,
        context: &Context<'_>,
        what: &str,
        bytes: Bytes,
        status: &mut StatusLine,
    ) -> anyhow::Result<Hash> {
        let hash = Hash::of_blob(&bytes);
        let total = bytes.len() as u64;
        let authorisation = UploadAuthorisation::Operator {
            token: self.operator_token.clone(),
        };
        let progress = |sent| {
            status.set(&format!(
                "uploading {what}: {} of {}",
                size(sent),
                size(total)
            ))
        };
        context
            .client
            .upload(hash, bytes, &authorisation, progress)
            .await?;
        Ok(hash)
    }
}
