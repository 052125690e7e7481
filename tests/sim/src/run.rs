//! The run of a simulation: a tiny model, a few tokens, a charter with short rounds.

use std::collections::BTreeMap;

use anyhow::Result;
use bytes::Bytes;
use data::{
    shard::{self, DocumentBounds, Header, Shard, Split},
    tokenizer::Tokenizer,
};
use network::{HubClient, UploadAuthorisation};
use protocol::{
    Hash, PublicKey,
    api::CreateRun,
    charter::{
        Baselines, Charter, Codec, Data, Income, Inner, Model, Outer, RoundRules, ShardReference,
    },
    units::{BlobReference, RunId},
};

use crate::{chance::Chance, profile::Profile};

/// Ids of the tokenizer: every byte, and the end of a text.
const VOCABULARY: u32 = 257;
/// Tokens of a training sequence.
pub const SEQUENCE: u32 = 8;
/// Tokens of one data shard.
const SHARD_TOKENS: u32 = 512;
/// Training shards.
const SHARDS: u64 = 4;

/// A run before it is created.
#[derive(Debug)]
pub struct Plan {
    /// Its charter; the hub's key is still open.
    pub charter: Charter,
    /// What must be uploaded first.
    pub blobs: Vec<Bytes>,
}

impl Plan {
    /// The run of a profile and seed.
    ///
    /// # Errors
    /// The data crate's, which for these texts are bugs.
    pub fn new(profile: &Profile, seed: u64) -> Result<Self> {
        let tokenizer = Tokenizer::train(["a few words"].into_iter(), VOCABULARY)?;
        let mut blobs = vec![Bytes::copy_from_slice(tokenizer.to_bytes())];
        let mut make = |number: u64, split| -> Result<ShardReference> {
            let shard = shard_of(&tokenizer, Chance::of(seed, "text", number), split);
            let bytes = shard::encode(&shard)?;
            let blob = BlobReference::of(&bytes);
            blobs.push(bytes.into());
            Ok(ShardReference {
                blob,
                tokens: u64::from(SHARD_TOKENS),
                text_bytes: u64::from(SHARD_TOKENS) - 1,
            })
        };
        let training = (0..SHARDS)
            .map(|number| make(number, Split::Training))
            .collect::<Result<Vec<_>>>()?;
        let held_out = vec![make(SHARDS, Split::HeldOut)?];
        let charter = Charter {
            name: "simulated".to_owned(),
            description: String::new(),
            seed,
            hub: PublicKey([0; 32]),
            addresses: Vec::new(),
            succession: Vec::new(),
            model: Model {
                vocab_size: tokenizer.vocabulary_size(),
                hidden_size: 4,
                intermediate_size: 4,
                num_hidden_layers: 1,
                num_attention_heads: 1,
                num_key_value_heads: 1,
                max_position_embeddings: SEQUENCE,
                rms_norm_epsilon_nano: 10_000,
                rope_theta: 10_000,
                tie_word_embeddings: true,
            },
            data: Data {
                name: "simulated".to_owned(),
                tokenizer: BlobReference::of(tokenizer.to_bytes()),
                training,
                held_out,
                held_out_tokens_max: 64,
                baselines: Baselines::default(),
            },
            inner: Inner {
                batch_rows: 1,
                sequence: SEQUENCE,
                learning_rate_peak_nano: 1_000_000,
                warmup_tokens: 100,
                tokens_max: 1 << 40,
                final_rate_ppm: 100_000,
                beta1_ppm: 900_000,
                beta2_ppm: 990_000,
                epsilon_pico: 10_000,
                weight_decay_ppm: 0,
                clip_norm_ppm: 1_000_000,
                carry_inner_state: false,
            },
            outer: Outer {
                codec: Codec::Sparse {
                    chunk: 128,
                    kept: 12,
                    error_decay_q16: 62_259,
                },
                rate_q16: 65_536,
                denominator_floor_q16: 32_768,
                momentum_q16: 0,
                delta_kept: 48,
                norm_ratio_max_q16: 20 << 16,
            },
            round: RoundRules {
                window_ms: profile.window_ms,
                reveal_ms: profile.reveal_ms,
                steps_min: 1,
                steps_max: profile.steps_max,
                quorum: profile.quorum,
                slots_max: profile.slots_max,
                weight_cap_q16: 65_536,
                shards_per_assignment: 1,
                checkpoint_every: 10,
                leaf_steps: 4,
                warm_start_tokens: 0,
                speed_ratio_max_q16: 2 << 16,
                boinc_unit_ms: 0,
            },
            income: Income::EveryoneWhoMadeIt,
        };
        Ok(Self { charter, blobs })
    }

    /// Uploads the blobs and opens the run; what is there already is left as it is.
    ///
    /// # Errors
    /// The hub's.
    pub async fn create(&self, client: &HubClient) -> Result<RunId> {
        for bytes in &self.blobs {
            let operator = UploadAuthorisation::Operator { token: None };
            client
                .upload(Hash::of_blob(bytes), bytes.clone(), &operator, |_| {})
                .await?;
        }
        let request = CreateRun {
            charter: self.charter.to_toml(),
            parameters: None,
        };
        Ok(client.create_run(&request, None).await?.id.parse()?)
    }
}

fn shard_of(tokenizer: &Tokenizer, mut chance: Chance, split: Split) -> Shard {
    let end = tokenizer.end_of_text();
    let mut tokens: Vec<u32> = Vec::new();
    while tokens.len() + 1 < SHARD_TOKENS as usize {
        let token = chance.below(u64::from(tokenizer.vocabulary_size())) as u32;
        if token != end {
            tokens.push(token);
        }
    }
    tokens.push(end);
    Shard {
        header: Header {
            tokenizer_hash: tokenizer.hash(),
            vocabulary_size: tokenizer.vocabulary_size(),
            end_of_text: end,
            split,
            source: "simulated".to_owned(),
            licence: "CC0-1.0".to_owned(),
            owner: "nobody".to_owned(),
            documents: vec![DocumentBounds {
                first_token: 0,
                tokens: SHARD_TOKENS,
                text_bytes: u64::from(SHARD_TOKENS) - 1,
                text_hash: Hash::default(),
                title: "noise".to_owned(),
                metadata: BTreeMap::new(),
            }],
        },
        tokens,
    }
}
