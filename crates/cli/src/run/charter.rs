//! Charters: the template to start from, and what `create` fills in.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use data::{baseline::Ngram, dataset::Dataset, shard::Split};
use protocol::{
    PublicKey,
    charter::{Baselines, Charter, Data, Income, Inner, Model, Outer, RoundRules, ShardReference},
    units::BlobReference,
};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Context, dataset_folder};
use crate::output::grouped;

const TEMPLATE: &str = include_str!("template.toml");
/// Where the template's comments begin.
const COMMENT_COLUMN: usize = 36;
/// Held-out tokens of one evaluation, where the charter doesn't say.
const HELD_OUT_TOKENS: u32 = 65_536;

/// Print a commented charter to start from, with the settings that learnt best in our measurements.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  athome run charter-template > charter.toml\n  athome run charter-template --data speeches --size medium --name speeches > charter.toml\n\nEdit it, then open the run with `athome run create charter.toml --data speeches`."
)]
pub(super) struct CharterTemplate {
    /// Dataset that the run will learn from: its vocabulary and name are put in
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The model's size
    #[arg(long, value_enum, default_value_t = Size::Small)]
    size: Size,
    /// The run's name [default: the dataset's]
    #[arg(long)]
    name: Option<String>,
}

/// Sizes that were measured.
#[derive(Clone, Copy, ValueEnum)]
enum Size {
    /// 0.14 million parameters: minutes on one core
    Tiny,
    /// 0.9 million parameters: an hour on one core
    Small,
    /// 12 million parameters: wants a vocabulary of 4096 and several machines
    Medium,
}

/// What differs between the sizes.
struct Shape {
    hidden: u32,
    intermediate: u32,
    layers: u32,
    heads: u32,
    context: u32,
    tokens: u64,
    window_ms: u64,
    vocabulary: u32,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed {
    charter: String,
}

impl Size {
    fn shape(self) -> Shape {
        let shape =
            |hidden, intermediate, layers, heads, context, tokens, window_ms, vocabulary| Shape {
                hidden,
                intermediate,
                layers,
                heads,
                context,
                tokens,
                window_ms,
                vocabulary,
            };
        match self {
            Self::Tiny => shape(64, 176, 2, 4, 128, 4_000_000, 5_000, 512),
            Self::Small => shape(128, 352, 4, 4, 128, 10_000_000, 10_000, 512),
            Self::Medium => shape(384, 1024, 6, 6, 256, 100_000_000, 30_000, 4096),
        }
    }
}

impl CharterTemplate {
    pub(super) fn execute(self, context: &Context<'_>) -> anyhow::Result<()> {
        let dataset = match self.data {
            Some(folder) => Some(data::dataset::open(&dataset_folder(
                folder,
                context.places,
            ))?),
            None => None,
        };
        let manifest = dataset.as_ref().map(|dataset| &dataset.manifest);
        let name = self.name.or_else(|| manifest.map(|it| it.name.clone()));
        let charter = template(
            self.size,
            name.as_deref().unwrap_or("my-run"),
            manifest.map(|it| it.vocabulary_size),
        );
        context.output.result(
            &Printed {
                charter: charter.clone(),
            },
            || charter,
        )
    }
}

fn template(size: Size, name: &str, vocabulary: Option<u32>) -> String {
    let shape = size.shape();
    let model = Model {
        vocab_size: vocabulary.unwrap_or(shape.vocabulary),
        hidden_size: shape.hidden,
        intermediate_size: shape.intermediate,
        num_hidden_layers: shape.layers,
        num_attention_heads: shape.heads,
        num_key_value_heads: shape.heads,
        max_position_embeddings: shape.context,
        rms_norm_epsilon_nano: 10_000,
        rope_theta: 10_000,
        tie_word_embeddings: true,
    };
    let vocabulary = match vocabulary {
        Some(size) => format!("vocab_size = {size}"),
        None => "# vocab_size is the dataset's".to_owned(),
    };
    let name: String = name
        .chars()
        .map(|it| {
            if it.is_alphanumeric() || "-_. ".contains(it) {
                it
            } else {
                '-'
            }
        })
        .collect();
    let mut text = TEMPLATE.to_owned();
    for (key, value) in [
        ("{name}", name.trim().to_owned()),
        (
            "{description}",
            "A language model that many machines train together.".to_owned(),
        ),
        ("{parameters}", grouped(model.parameter_count())),
        ("{vocabulary}", vocabulary),
        ("{hidden}", shape.hidden.to_string()),
        ("{intermediate}", shape.intermediate.to_string()),
        ("{layers}", shape.layers.to_string()),
        ("{heads}", shape.heads.to_string()),
        ("{context}", shape.context.to_string()),
        ("{tokens}", spaced(shape.tokens)),
        ("{warmup}", spaced(shape.tokens / 20)),
        ("{warm_start}", spaced(shape.tokens / 5)),
        ("{window}", spaced(shape.window_ms)),
    ] {
        text = text.replace(key, &value);
    }
    let lines: Vec<String> = text.lines().map(aligned).collect();
    lines.join("\n") + "\n"
}

/// A line whose comment, if it follows a value, begins at [`COMMENT_COLUMN`].
fn aligned(line: &str) -> String {
    match line.split_once(" #") {
        Some((value, comment)) if !line.starts_with('#') => {
            format!("{:COMMENT_COLUMN$}#{comment}", value.trim_end())
        }
        _ => line.to_owned(),
    }
}

/// A number as TOML writes long ones.
fn spaced(number: u64) -> String {
    grouped(number).replace(',', "_")
}

/// A charter as people write it: what [`fill`] can fill in may be missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it is read for its errors alone")]
struct Written {
    name: String,
    description: String,
    seed: u64,
    hub: Option<PublicKey>,
    addresses: Option<Vec<String>>,
    succession: Option<Vec<PublicKey>>,
    income: Option<Income>,
    model: WrittenModel,
    data: Option<WrittenData>,
    inner: Inner,
    outer: Outer,
    round: RoundRules,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it is read for its errors alone")]
struct WrittenModel {
    vocab_size: Option<u32>,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: u32,
    max_position_embeddings: u32,
    rms_norm_epsilon_nano: u32,
    rope_theta: u32,
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it is read for its errors alone")]
struct WrittenData {
    name: Option<String>,
    tokenizer: Option<BlobReference>,
    training: Option<Vec<ShardReference>>,
    held_out: Option<Vec<ShardReference>>,
    held_out_tokens_max: Option<u32>,
    baselines: Option<Baselines>,
}

/// A charter from its text, with everything filled in that it leaves out and the dataset has.
pub(super) fn fill(
    text: &str,
    dataset: Option<&Dataset>,
    address: &str,
) -> anyhow::Result<Charter> {
    // Read before anything is put in, so that an error names the line of what was written.
    let _: Written = toml::from_str(text)?;
    let mut table: Table = text.parse()?;
    let mut default = |key: &str, value: Value| {
        table.entry(key.to_owned()).or_insert(value);
    };
    default("hub", Value::try_from(PublicKey([0; 32]))?);
    default("addresses", Value::from(vec![address.to_owned()]));
    default("succession", Value::Array(Vec::new()));
    default("income", Value::from("everyone_who_made_it"));
    match dataset {
        Some(dataset) => fill_data(&mut table, dataset)?,
        None if !table.contains_key("data") => bail!(
            "the charter has no data section: give a dataset with --data FOLDER (`athome data import` makes one)"
        ),
        None => {}
    }
    // Through text, so that what is checked is what the hub will read.
    Ok(Charter::from_toml(&toml::to_string(&table)?)?)
}

fn fill_data(table: &mut Table, dataset: &Dataset) -> anyhow::Result<()> {
    let manifest = &dataset.manifest;
    if let Some(model) = table.get_mut("model").and_then(Value::as_table_mut) {
        model
            .entry("vocab_size")
            .or_insert(Value::from(i64::from(manifest.vocabulary_size)));
    }
    let sequence = table
        .get("inner")
        .and_then(|inner| inner.get("sequence"))
        .and_then(Value::as_integer)
        .and_then(|sequence| u32::try_from(sequence).ok())
        .filter(|sequence| *sequence > 0)
        .context("the charter's inner.sequence is missing or no number of tokens")?;
    let section = table.entry("data").or_insert(Value::Table(Table::new()));
    let section = section
        .as_table_mut()
        .context("the charter's data is no section")?;
    let tokens_max = match section.get("held_out_tokens_max") {
        None => HELD_OUT_TOKENS,
        Some(value) => value
            .as_integer()
            .and_then(|tokens| u32::try_from(tokens).ok())
            .context("the charter's data.held_out_tokens_max is no number of tokens")?,
    };
    let filled = Data {
        name: manifest.name.clone(),
        tokenizer: BlobReference::of(dataset.tokenizer.to_bytes()),
        training: shards(dataset, Split::Training),
        held_out: shards(dataset, Split::HeldOut),
        held_out_tokens_max: tokens_max,
        baselines: if section.contains_key("baselines") {
            Baselines::default()
        } else {
            baselines(dataset, sequence, tokens_max)?
        },
    };
    for (key, value) in Table::try_from(filled)? {
        section.entry(key).or_insert(value);
    }
    Ok(())
}

fn shards(dataset: &Dataset, split: Split) -> Vec<ShardReference> {
    let entries = dataset
        .manifest
        .shards
        .iter()
        .filter(|entry| entry.split == split);
    entries
        .map(|entry| ShardReference {
            blob: BlobReference {
                hash: entry.hash,
                bytes: entry.bytes,
            },
            tokens: entry.tokens,
            text_bytes: entry.text_bytes,
        })
        .collect()
}

/// The losses to beat on exactly the tokens that the run will be evaluated on.
fn baselines(dataset: &Dataset, sequence: u32, tokens_max: u32) -> anyhow::Result<Baselines> {
    let of_all = dataset
        .manifest
        .baselines
        .filter(|all| all.context == sequence && u64::from(tokens_max) >= all.predicted_tokens);
    if let Some(all) = of_all {
        return Ok(Baselines {
            unigram_micronats: all.unigram_micro_nats,
            bigram_micronats: all.bigram_micro_nats,
            trigram_micronats: all.trigram_micro_nats,
        });
    }
    let ngram = Ngram::train(
        &dataset.tokens(Split::Training)?,
        dataset.manifest.vocabulary_size,
    );
    let held_out = dataset.tokens(Split::HeldOut)?;
    let micronats = |order| {
        let nats = ngram.nats_per_token(order, &held_out, sequence as usize, tokens_max as usize);
        let nats = nats.context(
            "the dataset's held-out text is shorter than one sequence: lower inner.sequence, raise \
             data.held_out_tokens_max, or import more documents",
        )?;
        anyhow::Ok((nats * 1e6).round() as u64)
    };
    Ok(Baselines {
        unigram_micronats: micronats(1)?,
        bigram_micronats: micronats(2)?,
        trigram_micronats: micronats(3)?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use data::{
        dataset::{BuildSettings, build, open},
        import::Document,
    };

    use super::*;
    use protocol::charter::Codec;

    fn dataset(folder: &std::path::Path) -> Dataset {
        let documents = (0..40)
            .map(|index| Document {
                text: format!("Speech {index} on the state of the union. ").repeat(60),
                title: format!("speech {index}"),
                source: "test".to_owned(),
                licence: "CC0-1.0".to_owned(),
                owner: "nobody".to_owned(),
                metadata: BTreeMap::new(),
            })
            .collect();
        let settings = BuildSettings {
            name: "speeches".to_owned(),
            vocabulary_size: 300,
            ..BuildSettings::default()
        };
        let path = folder.join("speeches");
        build(documents, &settings, &path, &mut |_, _, _| {}).expect("a dataset");
        open(&path).expect("the dataset")
    }

    #[test]
    fn every_template_with_a_dataset_is_a_charter_that_the_engine_can_train() {
        let folder = tempfile::tempdir().expect("a folder");
        let dataset = dataset(folder.path());
        for size in [Size::Tiny, Size::Small, Size::Medium] {
            for vocabulary in [None, Some(dataset.manifest.vocabulary_size)] {
                let text = template(size, "speeches: 1", vocabulary);
                let charter = fill(&text, Some(&dataset), "http://h:1").expect("a charter");
                engine::charter::check(&charter).expect("the engine's limits");
                assert_eq!(charter.name, "speeches- 1");
                assert_eq!(charter.model.vocab_size, dataset.manifest.vocabulary_size);
                assert_eq!(charter.data.tokenizer.hash, dataset.tokenizer.hash());
                assert_eq!(charter.data.training.len(), 1);
                let baselines = charter.data.baselines;
                assert!(
                    baselines.trigram_micronats < baselines.unigram_micronats,
                    "{baselines:?}"
                );
                assert!(baselines.trigram_micronats > 0);
            }
        }
    }

    #[test]
    fn what_the_charter_says_itself_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let dataset = dataset(folder.path());
        let text = format!(
            "income = \"only_computers\"\n{}\n[data]\nname = \"mine\"\nheld_out_tokens_max = 256\n",
            template(Size::Tiny, "r", None)
        );
        let charter = fill(&text, Some(&dataset), "http://h:1").expect("a charter");
        assert_eq!(charter.data.name, "mine");
        assert_eq!(charter.data.held_out_tokens_max, 256);
        assert_eq!(charter.income, Income::OnlyComputers);
        // A charter with every field is one that people may write, too.
        let again = fill(&charter.to_toml(), None, "http://other:1").expect("a charter");
        assert_eq!(again, charter);
    }

    #[test]
    fn an_error_names_the_line_that_was_written_once() {
        let text = template(Size::Tiny, "r", Some(300));
        for (right, wrong, expected) in [
            ("kept = 128", "keept = 128", "keept"),
            ("seed = 1", "seed = \"one\"", "invalid type: string"),
            ("rope_theta = 10_000", "rope_theta = ", "rope_theta"),
            ("quorum = 1", "", "missing field `quorum`"),
        ] {
            let written = text.replace(right, wrong);
            assert_ne!(written, text);
            let error = fill(&written, None, "http://h:1").expect_err(wrong);
            let said = format!("{error:#}");
            assert!(said.contains(expected), "{said}");
            assert_eq!(said.matches("TOML parse error").count(), 1, "{said}");
            let line = written
                .lines()
                .position(|line| !wrong.is_empty() && line.starts_with(wrong));
            if let Some(line) = line {
                assert!(said.contains(&format!("line {}", line + 1)), "{said}");
            }
        }
    }

    #[test]
    fn the_dense_form_in_the_templates_comments_is_a_charter_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let dataset = dataset(folder.path());
        let text = template(Size::Tiny, "r", None);
        let (before, rest) = text.split_once("[outer.codec.sparse]").expect("sparse");
        let (_, after) = rest
            .split_once("error_decay_q16 = 62_259\n")
            .expect("sparse");
        let dense = format!("{before}{after}")
            .replace("# [outer.codec.dense]", "[outer.codec.dense]")
            .replace("# chunk = 4096", "chunk = 4096")
            .replace("# bits = 8", "bits = 8")
            .replace("momentum_q16 = 0 ", "momentum_q16 = 58_982 ")
            .replace("rate_q16 = 65_536 ", "rate_q16 = 45_875 ");
        let charter = fill(&dense, Some(&dataset), "http://h:1").expect("a charter");
        engine::charter::check(&charter).expect("the engine's limits");
        assert_eq!(
            charter.outer.codec,
            Codec::Dense {
                chunk: 4096,
                bits: 8
            }
        );
        assert_eq!(
            (charter.outer.rate_q16, charter.outer.momentum_q16),
            (45_875, 58_982)
        );
    }

    #[test]
    fn a_charter_without_data_says_what_to_do() {
        let error =
            fill(&template(Size::Tiny, "r", Some(300)), None, "http://h:1").expect_err("no data");
        assert!(error.to_string().contains("--data"), "{error}");
    }
}
