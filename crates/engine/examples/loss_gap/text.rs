//! The tokens of a dataset folder, and who trains on which.

use std::{error::Error, fs, path::Path};

use serde_json::Value;

/// Bytes before a data shard's header: magic, version, the header's length (`data::shard`).
const SHARD_PREFIX_BYTES: usize = 14;

/// A dataset's tokens in memory.
pub(crate) struct Text {
    /// The training split, shard after shard.
    pub(crate) training: Vec<u32>,
    /// Windows of `sequence + 1` held-out tokens that share one token with their neighbours (`data::held_out`).
    pub(crate) held_out: Vec<u32>,
    /// The manifest's shards and tokenizer by hash.
    pub(crate) hash: String,
    sequence: usize,
}

/// The random windows of one trainer, with replacement.
pub(crate) struct Sampler {
    seed: [u8; 32],
    drawn: u64,
}

impl Text {
    /// Reads every shard and checks it against its name.
    pub(crate) fn read(folder: &Path, sequence: usize) -> Result<Self, Box<dyn Error>> {
        let manifest: Value = serde_json::from_slice(&fs::read(folder.join("dataset.json"))?)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(manifest["tokenizer_hash"].to_string().as_bytes());
        let (mut training, mut stream) = (Vec::new(), Vec::new());
        for entry in manifest["shards"].as_array().ok_or("no shards")? {
            let hash = entry["hash"].as_str().ok_or("a shard without a hash")?;
            let bytes = fs::read(folder.join("shards").join(hash))?;
            if blake3::hash(&bytes).to_hex().as_str() != hash {
                return Err(format!("shard {hash} has other bytes than its name says").into());
            }
            hasher.update(hash.as_bytes());
            let split = if entry["split"] == "training" {
                &mut training
            } else {
                &mut stream
            };
            let pairs = shard_tokens(&bytes).ok_or("a shard that is cut short")?;
            split.extend(
                pairs
                    .iter()
                    .map(|&pair| u32::from(u16::from_le_bytes(pair))),
            );
        }
        if training.len() <= sequence || stream.len() <= sequence {
            return Err("the text is shorter than one sequence".into());
        }
        let windows = (stream.len() - 1) / sequence;
        let held_out = (0..windows)
            .flat_map(|window| &stream[window * sequence..=(window + 1) * sequence])
            .copied()
            .collect();
        Ok(Self {
            training,
            held_out,
            hash: hasher.finalize().to_hex()[..12].to_owned(),
            sequence,
        })
    }

    /// Every `every`th held-out window.
    pub(crate) fn held_out_part(&self, every: usize) -> Vec<u32> {
        let windows = self.held_out.chunks_exact(self.sequence + 1);
        windows.step_by(every).flatten().copied().collect()
    }
}

/// The tokens of a shard of a vocabulary of at most 65,536: two bytes each after the header.
fn shard_tokens(bytes: &[u8]) -> Option<&[[u8; 2]]> {
    let length = bytes.get(SHARD_PREFIX_BYTES - 4..SHARD_PREFIX_BYTES)?;
    let header = u32::from_le_bytes(length.try_into().ok()?) as usize;
    Some(bytes.get(SHARD_PREFIX_BYTES + header..)?.as_chunks().0)
}

impl Sampler {
    /// The windows of one `trainer` in a run with this `seed`.
    pub(crate) fn new(seed: u64, trainer: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&trainer.to_le_bytes());
        Self {
            seed: hasher.finalize().into(),
            drawn: 0,
        }
    }

    /// Passes over so many windows.
    pub(crate) fn skip(&mut self, windows: u64) {
        self.drawn += windows;
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        let hash = blake3::keyed_hash(&self.seed, &self.drawn.to_le_bytes());
        self.drawn += 1;
        let bits = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight of 32 bytes"));
        ((u128::from(bits) * u128::from(limit)) >> 64) as u64
    }

    /// The next `rows` windows of `sequence + 1` training tokens.
    pub(crate) fn batch(&mut self, text: &Text, rows: u32) -> Vec<u32> {
        let starts = (text.training.len() - text.sequence) as u64;
        let windows = (0..rows).map(|_| {
            let start = self.below(starts) as usize;
            &text.training[start..=start + text.sequence]
        });
        windows.flatten().copied().collect()
    }
}
