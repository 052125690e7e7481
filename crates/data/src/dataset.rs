//! Datasets: a folder with everything that a run needs to know about its data, built whole or not at all.
//!
//! ```text
//! dataset.json        the manifest: what is in it, counted; the losses to beat
//! tokenizer.json      named by its hash in the manifest
//! shards/<BLAKE3>     data shards, each the hash of its bytes
//! ```
//!
//! [`build`] makes the folder in a temporary sibling and renames it, so a folder of that name is always complete.
//! [`open`] and [`Manifest::decode_shard`] check every byte against the manifest; the manifest's own hash is the dataset's name.

mod build;
mod folder;
mod manifest;

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use protocol::Hash;
use serde::{Deserialize, Serialize};

use crate::{
    import::{Document, ImportReason},
    shard::{Shard, ShardError, Split, TOKENS_MAX},
    tokenizer::{TOKENIZER_BYTES_MAX, Tokenizer, TokenizerError},
};

/// The version of the manifest that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a manifest at most: about 100,000 data shards.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;
/// Bytes of a dataset's name at most.
pub const NAME_BYTES_MAX: usize = 128;

const MANIFEST_FILE: &str = "dataset.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const SHARDS_FOLDER: &str = "shards";

/// What [`build`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildSettings {
    /// The dataset's name, for people: 1 to [`NAME_BYTES_MAX`] bytes, no control characters.
    pub name: String,
    /// Tokens of the vocabulary to train; fewer come out if the texts have no more pairs to merge.
    pub vocabulary_size: u32,
    /// Of every so many documents (duplicates not counted) the last is held out; at least 2.
    pub held_out_every: usize,
    /// A data shard is closed before it would pass this many tokens; a longer document has a shard of its own.
    pub shard_tokens_max: usize,
    /// Tokens of context in the windows that baselines are measured on.
    pub baseline_context: u32,
}

impl Default for BuildSettings {
    /// Vocabulary 512, every 20th document held out, shards of at most 2^20 tokens (2 MiB), baselines at context 128; the name is empty.
    fn default() -> Self {
        Self {
            name: String::new(),
            vocabulary_size: 512,
            held_out_every: 20,
            shard_tokens_max: 1 << 20,
            baseline_context: 128,
        }
    }
}

/// What a dataset is: the content of `dataset.json`. All counts are exact; tokens include one end-of-text token per document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The name it was built under.
    pub name: String,
    /// BLAKE3 of `tokenizer.json`.
    pub tokenizer_hash: Hash,
    /// The number of tokens that the tokenizer has.
    pub vocabulary_size: u32,
    /// The distinct sources of the documents, sorted.
    pub sources: Vec<String>,
    /// The distinct licences of the documents, sorted.
    pub licences: Vec<String>,
    /// The distinct owners of the documents, sorted.
    pub owners: Vec<String>,
    /// Documents in the shards, both splits.
    pub documents: u64,
    /// Documents that were left out because an earlier one has the same text.
    pub duplicates_removed: u64,
    /// Documents of the held-out split.
    pub held_out_documents: u64,
    /// Of every so many documents the last is held out.
    pub held_out_every: u64,
    /// Tokens of the training split.
    pub training_tokens: u64,
    /// Bytes of text of the training split.
    pub training_bytes: u64,
    /// Tokens of the held-out split.
    pub held_out_tokens: u64,
    /// Bytes of text of the held-out split.
    pub held_out_bytes: u64,
    /// The data shards; the tokens of a split are those of its shards in this order.
    pub shards: Vec<ShardEntry>,
    /// Losses of n-gram models; none if the held-out split is shorter than one window.
    pub baselines: Option<Baselines>,
}

/// One data shard of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// BLAKE3 of the shard's bytes.
    pub hash: Hash,
    /// Length of the shard in bytes.
    pub bytes: u64,
    /// Which split its documents belong to.
    pub split: Split,
    /// Its tokens.
    pub tokens: u64,
    /// Bytes of its documents' texts.
    pub text_bytes: u64,
    /// Its documents.
    pub documents: u64,
    /// Where its documents come from.
    pub source: String,
    /// Under which licence.
    pub licence: String,
    /// Whose they are.
    pub owner: String,
}

/// Mean losses in millionths of a nat per token, over the windows of [`crate::held_out`] at `context`, all of them.
/// The models ([`crate::baseline::Ngram`]) see tokens before a window's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baselines {
    /// Tokens of context of a window.
    pub context: u32,
    /// Held-out tokens that were predicted.
    pub predicted_tokens: u64,
    /// Training tokens that were counted: all, or the first 2^26.
    pub counted_tokens: u64,
    /// Loss of the unigram.
    pub unigram_micro_nats: u64,
    /// Loss of the interpolated bigram.
    pub bigram_micro_nats: u64,
    /// Loss of the interpolated trigram.
    pub trigram_micro_nats: u64,
}

/// An opened dataset, all of whose files were found to be what its manifest says. Shards are read again when asked for.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What it is.
    pub manifest: Manifest,
    /// BLAKE3 of `dataset.json`: the dataset's name among machines.
    pub manifest_hash: Hash,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    dir: PathBuf,
}

/// Ends a build from another thread, see [`build_unless`]. Copies end the same build.
#[derive(Clone, Debug, Default)]
pub struct Abandon(Arc<Mutex<folder::Stage>>);

/// Why a dataset was not built or not opened.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A setting that [`build`] cannot use.
    #[error("the setting {setting} must be {expected}")]
    Setting {
        /// The field of [`BuildSettings`].
        setting: &'static str,
        /// What it must be.
        expected: String,
    },
    /// A document that no importer would have let through.
    #[error("document {position} ({title}) cannot be used")]
    Document {
        /// Counted from 0.
        position: usize,
        /// Its title.
        title: String,
        /// What is wrong with it.
        #[source]
        reason: ImportReason,
    },
    /// A document with more tokens than a data shard holds.
    #[error("the document {title} has {tokens} tokens, more than the {TOKENS_MAX} of a data shard")]
    DocumentTooLong {
        /// Its title.
        title: String,
        /// Its tokens.
        tokens: usize,
    },
    /// Too few documents for a held-out split.
    #[error(
        "{documents} distinct documents are too few to hold out every {held_out_every}th; give more or lower held_out_every"
    )]
    TooFewDocuments {
        /// Documents that are no duplicates.
        documents: usize,
        /// The setting.
        held_out_every: usize,
    },
    /// The tokenizer was not trained or not accepted.
    #[error("the dataset's tokenizer is unusable")]
    Tokenizer(#[source] TokenizerError),
    /// There is something at the place where the dataset should go.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// Another process is building the same dataset.
    #[error("another process is writing {0}")]
    Busy(PathBuf),
    /// [`Abandon::now`] was called.
    #[error("the dataset was abandoned before it was done")]
    Abandoned,
    /// The operating system refused.
    #[error("cannot {doing} {path}")]
    File {
        /// `read`, `write`, `rename`, …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its words.
        #[source]
        source: io::Error,
    },
    /// A file that is larger than its kind may be, or than the manifest says.
    #[error("{path} has more than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// `dataset.json` is not a manifest.
    #[error("the dataset's manifest is malformed")]
    Malformed(#[source] serde_json::Error),
    /// A manifest of another time.
    #[error("the dataset has format version {0}, this program reads version {FORMAT_VERSION}")]
    OtherVersion(u32),
    /// A manifest whose parts contradict each other.
    #[error("the dataset's manifest contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// Bytes that are not what the manifest names.
    #[error("{what} has the hash {found}, the manifest says {expected}")]
    OtherHash {
        /// The tokenizer or a data shard.
        what: &'static str,
        /// The manifest's hash.
        expected: Hash,
        /// That of the bytes.
        found: Hash,
    },
    /// A data shard that is not well-formed.
    #[error("data shard {hash} is unusable")]
    Shard {
        /// Its name.
        hash: Hash,
        /// What is wrong with it.
        #[source]
        source: ShardError,
    },
    /// A data shard that is well-formed but not the one that the manifest describes.
    #[error("data shard {hash} differs from its manifest entry in its {part}")]
    OtherShard {
        /// Its name.
        hash: Hash,
        /// What differs.
        part: &'static str,
    },
}

/// Builds a dataset from documents and puts it at `out_dir`, which must not exist; its parent folder is created if needed.
///
/// Of documents with the same text the first is kept. The rest is split by position, see [`BuildSettings::held_out_every`];
/// the tokenizer and the baselines see the training split only. The same documents and settings give the same bytes.
///
/// `progress` is told the phase, how much of it is done and out of how much, in units that depend on the phase.
///
/// # Errors
/// Unusable settings or documents, a taken `out_dir`, a failing disk. Nothing is left at `out_dir` or beside it then.
/// (What a killed process leaves beside it, the next build of the same `out_dir` removes.)
pub fn build(
    documents: Vec<Document>,
    settings: &BuildSettings,
    out_dir: &Path,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<Manifest, DatasetError> {
    build_unless(documents, settings, out_dir, &Abandon::default(), progress)
}

/// Like [`build`], but can be ended from another thread, also where it computes for long: nothing is left beside `out_dir` then.
///
/// # Errors
/// Those of [`build`], and [`DatasetError::Abandoned`].
pub fn build_unless(
    documents: Vec<Document>,
    settings: &BuildSettings,
    out_dir: &Path,
    abandon: &Abandon,
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<Manifest, DatasetError> {
    build::build(documents, settings, out_dir, abandon, progress)
}

/// Opens a dataset and reads all of it once, to check it.
///
/// # Errors
/// Any file that is missing, too large, malformed or not what the manifest says.
pub fn open(dir: &Path) -> Result<Dataset, DatasetError> {
    let bytes = read_bounded(&dir.join(MANIFEST_FILE), MANIFEST_BYTES_MAX as u64)?;
    let manifest = Manifest::from_bytes(&bytes)?;
    let tokenizer_bytes = read_bounded(&dir.join(TOKENIZER_FILE), TOKENIZER_BYTES_MAX as u64)?;
    let tokenizer = manifest.decode_tokenizer(&tokenizer_bytes)?;
    let dataset = Dataset {
        manifest_hash: Hash::of_blob(&bytes),
        manifest,
        tokenizer,
        dir: dir.to_owned(),
    };
    for entry in &dataset.manifest.shards {
        let shard = dataset.shard(entry)?;
        if shard.header.end_of_text != dataset.tokenizer.end_of_text() {
            return Err(DatasetError::OtherShard {
                hash: entry.hash,
                part: "end-of-text token",
            });
        }
    }
    Ok(dataset)
}

impl Dataset {
    /// The folder that was opened.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a data shard lies.
    #[must_use]
    pub fn shard_path(&self, entry: &ShardEntry) -> PathBuf {
        self.dir.join(SHARDS_FOLDER).join(entry.hash.to_string())
    }

    /// A data shard's bytes, checked against its hash.
    ///
    /// # Errors
    /// The file is missing or has changed.
    pub fn shard_bytes(&self, entry: &ShardEntry) -> Result<Vec<u8>, DatasetError> {
        let bytes = read_bounded(&self.shard_path(entry), entry.bytes)?;
        check_hash("a data shard", entry.hash, &bytes)?;
        Ok(bytes)
    }

    /// A data shard, checked against the manifest.
    ///
    /// # Errors
    /// The file is missing or has changed.
    pub fn shard(&self, entry: &ShardEntry) -> Result<Shard, DatasetError> {
        let bytes = self.shard_bytes(entry)?;
        self.manifest.decode_shard(entry, &bytes)
    }

    /// All tokens of a split: its shards' tokens in the manifest's order.
    ///
    /// # Errors
    /// A file is missing or has changed.
    pub fn tokens(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        let mut tokens = Vec::new();
        for entry in self.manifest.shards.iter().filter(|e| e.split == split) {
            tokens.extend(self.shard(entry)?.tokens);
        }
        Ok(tokens)
    }
}

/// A file's bytes, if they are at most `bytes_max`.
fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, DatasetError> {
    let refused = |source| DatasetError::File {
        doing: "read",
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(refused)?.is_file() {
        return Err(refused(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(bytes_max.saturating_add(1))
                .read_to_end(&mut bytes)
        })
        .map_err(refused)?;
    if bytes.len() as u64 > bytes_max {
        return Err(DatasetError::TooLarge {
            path: path.to_owned(),
            bytes_max,
        });
    }
    Ok(bytes)
}

fn check_hash(what: &'static str, expected: Hash, bytes: &[u8]) -> Result<(), DatasetError> {
    let found = Hash::of_blob(bytes);
    if found == expected {
        Ok(())
    } else {
        Err(DatasetError::OtherHash {
            what,
            expected,
            found,
        })
    }
}

#[cfg(test)]
mod tests;
