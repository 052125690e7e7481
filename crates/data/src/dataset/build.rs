//! From documents to a dataset: duplicates out, split, tokenizer, shards, baselines, folder.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::Path,
};

use protocol::Hash;

use super::{
    Abandon, Baselines, BuildSettings, DatasetError, FORMAT_VERSION, MANIFEST_FILE, Manifest,
    SHARDS_FOLDER, ShardEntry, TOKENIZER_FILE, folder::PartialFolder, manifest::is_name,
};
use crate::{
    baseline::{Ngram, ORDER_MAX},
    held_out,
    import::Document,
    shard::{self, DocumentBounds, HEADER_BYTES_MAX, Header, Shard, Split, TOKENS_MAX},
    tokenizer::Tokenizer,
};

/// Training tokens that baselines count at most; they are held in memory.
const BASELINE_TOKENS_MAX: usize = 1 << 26;
/// A shard is closed when its header may have grown so large.
const HEADER_BYTES_TARGET: usize = HEADER_BYTES_MAX / 4;
/// Bytes of a document's bounds in a header, without its title and metadata, at most.
const BOUNDS_BYTES_MAX: usize = 64;
/// Bytes that the length of a string takes in a header, at most.
const LENGTH_BYTES_MAX: usize = 10;

type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// Documents of one shard have these in common; shards come in this order.
type Group = (Split, String, String, String);

pub(super) fn build(
    documents: Vec<Document>,
    settings: &BuildSettings,
    out_dir: &Path,
    abandon: &Abandon,
    progress: Progress<'_>,
) -> Result<Manifest, DatasetError> {
    check_settings(settings)?;
    let folder = PartialFolder::create(out_dir, abandon)?;

    let given = documents.len() as u64;
    let documents = without_duplicates(documents, progress)?;
    let groups = split(&documents, settings.held_out_every)?;

    progress("train tokenizer", 0, 1);
    let training_texts = groups
        .iter()
        .filter(|((split, ..), _)| *split == Split::Training)
        .flat_map(|(_, documents)| documents.iter().map(|document| document.text.as_str()));
    let tokenizer = Tokenizer::train(training_texts, settings.vocabulary_size)
        .map_err(DatasetError::Tokenizer)?;
    progress("train tokenizer", 1, 1);
    folder.write(TOKENIZER_FILE, tokenizer.to_bytes())?;

    let mut writer = ShardWriter::new(&folder, &tokenizer, settings);
    let total_bytes = documents.iter().map(|d| d.text.len() as u64).sum();
    let mut done_bytes = 0;
    for (group, documents) in &groups {
        for document in documents {
            progress("encode", done_bytes, total_bytes);
            writer.add(group, document)?;
            done_bytes += document.text.len() as u64;
        }
        writer.close(group)?;
    }
    progress("encode", total_bytes, total_bytes);

    let baselines = measure(&writer, settings.baseline_context, progress);

    let shards = writer.entries;
    let manifest = describe(settings, &tokenizer, shards, given, baselines);
    folder.write(MANIFEST_FILE, &manifest.to_bytes())?;
    folder.finish()?;
    Ok(manifest)
}

fn check_settings(settings: &BuildSettings) -> Result<(), DatasetError> {
    let refused = |setting, expected: &str| {
        Err(DatasetError::Setting {
            setting,
            expected: expected.to_owned(),
        })
    };
    if !is_name(&settings.name) {
        return refused("name", "1 to 128 bytes of printable text");
    }
    if settings.held_out_every < 2 {
        return refused("held_out_every", "at least 2");
    }
    if !(1..=TOKENS_MAX).contains(&settings.shard_tokens_max) {
        return refused("shard_tokens_max", "1 to 2^26");
    }
    if settings.baseline_context == 0 {
        return refused("baseline_context", "at least 1");
    }
    Ok(())
}

/// The documents whose text no earlier one has, all checked.
fn without_duplicates(
    documents: Vec<Document>,
    progress: Progress<'_>,
) -> Result<Vec<Document>, DatasetError> {
    let total = documents.len() as u64;
    let mut seen = HashSet::new();
    let mut kept = Vec::with_capacity(documents.len());
    for (position, document) in documents.into_iter().enumerate() {
        progress("check documents", position as u64, total);
        document.check().map_err(|reason| DatasetError::Document {
            position,
            title: document.title.clone(),
            reason,
        })?;
        if seen.insert(Hash::of_blob(document.text.as_bytes())) {
            kept.push(document);
        }
    }
    progress("check documents", total, total);
    Ok(kept)
}

/// Holds out the last of every `held_out_every` documents, and groups each split by provenance, in the documents' order.
fn split(
    documents: &[Document],
    held_out_every: usize,
) -> Result<BTreeMap<Group, Vec<&Document>>, DatasetError> {
    if documents.len() < held_out_every {
        return Err(DatasetError::TooFewDocuments {
            documents: documents.len(),
            held_out_every,
        });
    }
    let mut groups: BTreeMap<Group, Vec<&Document>> = BTreeMap::new();
    for (position, document) in documents.iter().enumerate() {
        let split = if position % held_out_every == held_out_every - 1 {
            Split::HeldOut
        } else {
            Split::Training
        };
        let group = (
            split,
            document.source.clone(),
            document.licence.clone(),
            document.owner.clone(),
        );
        groups.entry(group).or_default().push(document);
    }
    Ok(groups)
}

/// Encodes documents into the open shard, and writes it when it is full.
struct ShardWriter<'a> {
    folder: &'a PartialFolder,
    tokenizer: &'a Tokenizer,
    tokenizer_hash: Hash,
    tokens_max: usize,
    open: Vec<DocumentBounds>,
    open_tokens: Vec<u32>,
    open_header_bytes: usize,
    entries: Vec<ShardEntry>,
    /// The first [`BASELINE_TOKENS_MAX`] tokens of the training split.
    training_tokens: Vec<u32>,
    held_out_tokens: Vec<u32>,
}

impl<'a> ShardWriter<'a> {
    fn new(folder: &'a PartialFolder, tokenizer: &'a Tokenizer, settings: &BuildSettings) -> Self {
        Self {
            folder,
            tokenizer,
            tokenizer_hash: tokenizer.hash(),
            tokens_max: settings.shard_tokens_max,
            open: Vec::new(),
            open_tokens: Vec::new(),
            open_header_bytes: 0,
            entries: Vec::new(),
            training_tokens: Vec::new(),
            held_out_tokens: Vec::new(),
        }
    }

    fn add(&mut self, group: &Group, document: &Document) -> Result<(), DatasetError> {
        let mut tokens = self.tokenizer.encode(&document.text);
        tokens.push(self.tokenizer.end_of_text());
        if tokens.len() > TOKENS_MAX {
            return Err(DatasetError::DocumentTooLong {
                title: document.title.clone(),
                tokens: tokens.len(),
            });
        }
        let header_bytes = header_bytes(document);
        let full = self.open_tokens.len() + tokens.len() > self.tokens_max
            || self.open_header_bytes + header_bytes > HEADER_BYTES_TARGET;
        if full {
            self.close(group)?;
        }
        let count = |tokens: usize| u32::try_from(tokens).expect("a shard has at most 2^26 tokens");
        self.open.push(DocumentBounds {
            first_token: count(self.open_tokens.len()),
            tokens: count(tokens.len()),
            text_bytes: document.text.len() as u64,
            text_hash: Hash::of_blob(document.text.as_bytes()),
            title: document.title.clone(),
            metadata: document.metadata.clone(),
        });
        self.open_tokens.extend_from_slice(&tokens);
        self.open_header_bytes += header_bytes;
        Ok(())
    }

    /// Writes the open shard, if there is anything in it.
    fn close(&mut self, (split, source, licence, owner): &Group) -> Result<(), DatasetError> {
        if self.open.is_empty() {
            return Ok(());
        }
        let shard = Shard {
            header: Header {
                tokenizer_hash: self.tokenizer_hash,
                vocabulary_size: self.tokenizer.vocabulary_size(),
                end_of_text: self.tokenizer.end_of_text(),
                split: *split,
                source: source.clone(),
                licence: licence.clone(),
                owner: owner.clone(),
                documents: std::mem::take(&mut self.open),
            },
            tokens: std::mem::take(&mut self.open_tokens),
        };
        self.open_header_bytes = 0;
        let bytes = shard::encode(&shard).expect("the documents and their sizes were checked");
        let hash = Hash::of_blob(&bytes);
        self.folder
            .write(Path::new(SHARDS_FOLDER).join(hash.to_string()), &bytes)?;
        self.entries.push(ShardEntry {
            hash,
            bytes: bytes.len() as u64,
            split: *split,
            tokens: shard.tokens.len() as u64,
            text_bytes: shard.header.documents.iter().map(|d| d.text_bytes).sum(),
            documents: shard.header.documents.len() as u64,
            source: source.clone(),
            licence: licence.clone(),
            owner: owner.clone(),
        });
        match split {
            Split::Training => {
                let room = BASELINE_TOKENS_MAX - self.training_tokens.len();
                let taken = shard.tokens.len().min(room);
                self.training_tokens
                    .extend_from_slice(&shard.tokens[..taken]);
            }
            Split::HeldOut => self.held_out_tokens.extend_from_slice(&shard.tokens),
        }
        Ok(())
    }
}

/// An upper bound of what a document adds to a shard's header.
fn header_bytes(document: &Document) -> usize {
    let pair = |(name, value): (&String, &String)| name.len() + value.len() + 2 * LENGTH_BYTES_MAX;
    BOUNDS_BYTES_MAX + document.title.len() + document.metadata.iter().map(pair).sum::<usize>()
}

/// The n-gram losses on all windows of the held-out split.
fn measure(writer: &ShardWriter<'_>, context: u32, progress: Progress<'_>) -> Option<Baselines> {
    let (tokens, window) = (&writer.held_out_tokens, context as usize);
    let windows = held_out::starts(tokens.len(), window, usize::MAX).len();
    if windows == 0 {
        return None;
    }
    progress("measure baselines", 0, ORDER_MAX as u64 + 1);
    let ngram = Ngram::train(&writer.training_tokens, writer.tokenizer.vocabulary_size());
    let mut micro_nats = |order: usize| -> Option<u64> {
        progress("measure baselines", order as u64, ORDER_MAX as u64 + 1);
        let nats = ngram.nats_per_token(order, tokens, window, usize::MAX)?;
        Some((nats * 1e6).round() as u64)
    };
    let baselines = Baselines {
        context,
        predicted_tokens: (windows * window) as u64,
        counted_tokens: writer.training_tokens.len() as u64,
        unigram_micro_nats: micro_nats(1)?,
        bigram_micro_nats: micro_nats(2)?,
        trigram_micro_nats: micro_nats(3)?,
    };
    progress(
        "measure baselines",
        ORDER_MAX as u64 + 1,
        ORDER_MAX as u64 + 1,
    );
    Some(baselines)
}

fn describe(
    settings: &BuildSettings,
    tokenizer: &Tokenizer,
    shards: Vec<ShardEntry>,
    given: u64,
    baselines: Option<Baselines>,
) -> Manifest {
    let distinct = |part: fn(&ShardEntry) -> &String| -> Vec<String> {
        let set: BTreeSet<_> = shards.iter().map(part).collect();
        set.into_iter().cloned().collect()
    };
    let total = |split: Split, count: fn(&ShardEntry) -> u64| -> u64 {
        let of_split = shards.iter().filter(|entry| entry.split == split);
        of_split.map(count).sum()
    };
    let documents = shards.iter().map(|entry| entry.documents).sum();
    Manifest {
        format_version: FORMAT_VERSION,
        name: settings.name.clone(),
        tokenizer_hash: tokenizer.hash(),
        vocabulary_size: tokenizer.vocabulary_size(),
        sources: distinct(|entry| &entry.source),
        licences: distinct(|entry| &entry.licence),
        owners: distinct(|entry| &entry.owner),
        documents,
        duplicates_removed: given - documents,
        held_out_documents: total(Split::HeldOut, |entry| entry.documents),
        held_out_every: settings.held_out_every as u64,
        training_tokens: total(Split::Training, |entry| entry.tokens),
        training_bytes: total(Split::Training, |entry| entry.text_bytes),
        held_out_tokens: total(Split::HeldOut, |entry| entry.tokens),
        held_out_bytes: total(Split::HeldOut, |entry| entry.text_bytes),
        shards,
        baselines,
    }
}
