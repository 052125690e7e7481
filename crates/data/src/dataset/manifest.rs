//! The manifest as bytes, and what it lets others check.

use std::collections::BTreeSet;

use super::{
    DatasetError, FORMAT_VERSION, MANIFEST_BYTES_MAX, Manifest, NAME_BYTES_MAX, ShardEntry,
    check_hash,
};
use crate::{
    shard::{self, Shard, Split},
    tokenizer::{Tokenizer, VOCABULARY_SIZE_MAX, VOCABULARY_SIZE_MIN},
};

impl Manifest {
    /// The bytes of `dataset.json`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a `dataset.json`.
    ///
    /// # Errors
    /// Bytes that are too many, not a manifest of this version, or whose counts do not add up.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DatasetError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(DatasetError::TooLarge {
                path: super::MANIFEST_FILE.into(),
                bytes_max: MANIFEST_BYTES_MAX as u64,
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(DatasetError::Malformed)?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(DatasetError::OtherVersion(manifest.format_version));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// The tokenizer that these bytes are, if they are the one that the manifest names.
    ///
    /// # Errors
    /// Other bytes; a tokenizer with another number of tokens.
    pub fn decode_tokenizer(&self, bytes: &[u8]) -> Result<Tokenizer, DatasetError> {
        check_hash("the tokenizer", self.tokenizer_hash, bytes)?;
        let tokenizer = Tokenizer::from_bytes(bytes).map_err(DatasetError::Tokenizer)?;
        consistent(
            tokenizer.vocabulary_size() == self.vocabulary_size,
            "the tokenizer has another vocabulary size",
        )?;
        Ok(tokenizer)
    }

    /// The data shard that these bytes are, if they are the one that the manifest's `entry` names and describes.
    ///
    /// # Errors
    /// Other bytes; a malformed shard; a shard that is not as described.
    pub fn decode_shard(&self, entry: &ShardEntry, bytes: &[u8]) -> Result<Shard, DatasetError> {
        check_hash("a data shard", entry.hash, bytes)?;
        let shard = shard::decode(bytes).map_err(|source| DatasetError::Shard {
            hash: entry.hash,
            source,
        })?;
        let header = &shard.header;
        let text_bytes = header.documents.iter().map(|d| u128::from(d.text_bytes));
        let differences = [
            ("tokenizer", header.tokenizer_hash != self.tokenizer_hash),
            (
                "vocabulary size",
                header.vocabulary_size != self.vocabulary_size,
            ),
            ("length", bytes.len() as u64 != entry.bytes),
            ("split", header.split != entry.split),
            ("tokens", shard.tokens.len() as u64 != entry.tokens),
            (
                "text bytes",
                text_bytes.sum::<u128>() != u128::from(entry.text_bytes),
            ),
            (
                "documents",
                header.documents.len() as u64 != entry.documents,
            ),
            ("source", header.source != entry.source),
            ("licence", header.licence != entry.licence),
            ("owner", header.owner != entry.owner),
        ];
        match differences.iter().find(|(_, differs)| *differs) {
            Some(&(part, _)) => Err(DatasetError::OtherShard {
                hash: entry.hash,
                part,
            }),
            None => Ok(shard),
        }
    }

    /// Bytes of text per token of the held-out split.
    #[must_use]
    pub fn held_out_bytes_per_token(&self) -> f64 {
        self.held_out_bytes as f64 / self.held_out_tokens as f64
    }

    /// A held-out loss in nats per token as bits per byte of text, which compares across tokenizers.
    #[must_use]
    pub fn bits_per_byte(&self, nats_per_token: f64) -> f64 {
        nats_per_token / std::f64::consts::LN_2 / self.held_out_bytes_per_token()
    }

    /// What [`Manifest::from_bytes`] promises.
    fn check(&self) -> Result<(), DatasetError> {
        consistent(
            is_name(&self.name),
            "the name is empty, long or not printable",
        )?;
        consistent(
            (VOCABULARY_SIZE_MIN..=VOCABULARY_SIZE_MAX).contains(&self.vocabulary_size),
            "the vocabulary size is out of bounds",
        )?;
        let total = |split: Option<Split>, count: fn(&ShardEntry) -> u64| -> u128 {
            self.shards
                .iter()
                .filter(|entry| split.is_none_or(|split| entry.split == split))
                .map(|entry| u128::from(count(entry)))
                .sum()
        };
        let (training, held_out) = (Some(Split::Training), Some(Split::HeldOut));
        let sums = [
            (self.documents, total(None, |e| e.documents)),
            (self.held_out_documents, total(held_out, |e| e.documents)),
            (self.training_tokens, total(training, |e| e.tokens)),
            (self.training_bytes, total(training, |e| e.text_bytes)),
            (self.held_out_tokens, total(held_out, |e| e.tokens)),
            (self.held_out_bytes, total(held_out, |e| e.text_bytes)),
        ];
        consistent(
            sums.iter().all(|&(said, found)| u128::from(said) == found),
            "the shards' counts do not add up",
        )?;
        consistent(
            self.training_tokens > 0 && self.held_out_tokens > 0,
            "a split is empty",
        )?;
        let distinct: BTreeSet<_> = self.shards.iter().map(|entry| entry.hash).collect();
        consistent(
            distinct.len() == self.shards.len(),
            "a data shard is listed twice",
        )?;
        let same = |said: &[String], found: fn(&ShardEntry) -> &String| {
            let found: BTreeSet<_> = self.shards.iter().map(found).collect();
            said.iter().eq(found)
        };
        consistent(
            same(&self.sources, |e| &e.source)
                && same(&self.licences, |e| &e.licence)
                && same(&self.owners, |e| &e.owner),
            "sources, licences or owners are not those of the shards",
        )
    }
}

/// Whether a text can name a dataset.
pub(super) fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

fn consistent(holds: bool, otherwise: &'static str) -> Result<(), DatasetError> {
    if holds {
        Ok(())
    } else {
        Err(DatasetError::Inconsistent(otherwise))
    }
}
