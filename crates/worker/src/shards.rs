//! The training text in memory: decoded shards of the current assignment, and as many others as fit.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context, Result, bail};
use protocol::charter::Charter;

/// Tokens kept in memory at most, beyond those of the current assignment: 256 MiB.
const TOKENS_KEPT_MAX: usize = 1 << 26;

/// Decoded shards by their place in the charter. Clones share the tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shards {
    loaded: HashMap<u32, Arc<[u32]>>,
}

impl Shards {
    /// Whether this shard is in memory.
    pub(crate) fn contains(&self, shard: u32) -> bool {
        self.loaded.contains_key(&shard)
    }

    /// A shard's tokens.
    ///
    /// # Panics
    /// If it was not inserted: the caller loads what is assigned before it trains.
    pub(crate) fn tokens(&self, shard: u32) -> &[u32] {
        &self.loaded[&shard]
    }

    /// Adds a decoded shard.
    pub(crate) fn insert(&mut self, shard: u32, tokens: Arc<[u32]>) {
        self.loaded.insert(shard, tokens);
    }

    /// Drops shards outside `needed` while there are too many tokens.
    pub(crate) fn trim(&mut self, needed: &[u32]) {
        let kept: usize = self.loaded.values().map(|tokens| tokens.len()).sum();
        let mut over = kept.saturating_sub(TOKENS_KEPT_MAX);
        self.loaded.retain(|shard, tokens| {
            let keep = over == 0 || needed.contains(shard);
            if !keep {
                over = over.saturating_sub(tokens.len());
            }
            keep
        });
    }
}

/// Decodes a shard and compares it with what the charter says of it.
pub(crate) fn decode(charter: &Charter, shard: u32, bytes: &[u8]) -> Result<Arc<[u32]>> {
    let reference = &charter.data.training[shard as usize];
    let decoded = data::shard::decode(bytes)
        .with_context(|| format!("training shard {shard} of the run is no data shard"))?;
    if decoded.tokens.len() as u64 != reference.tokens {
        bail!(
            "training shard {shard} has {} tokens, the charter says {}",
            decoded.tokens.len(),
            reference.tokens
        );
    }
    if decoded.header.vocabulary_size > charter.model.vocab_size {
        bail!(
            "training shard {shard} has a vocabulary of {} tokens, the model one of {}",
            decoded.header.vocabulary_size,
            charter.model.vocab_size
        );
    }
    if decoded.header.tokenizer_hash != charter.data.tokenizer.hash {
        bail!("training shard {shard} was made with another tokenizer than the run's");
    }
    Ok(decoded.tokens.into())
}
