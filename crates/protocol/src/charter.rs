//! The charter: everything about a run that is fixed when it opens. Its hash is the run's id.
//!
//! All numbers are integers with their unit in the name, because strangers must agree on the hash
//! and on what follows from it. Text form is TOML; binary form is [`crate::canonical`].

use serde::{Deserialize, Serialize};

use crate::{
    Hash, PublicKey, canonical,
    units::{BlobReference, RunId},
};

/// Longest charter accepted, text or binary.
pub const CHARTER_BYTES_MAX: usize = 256 * 1024;
/// Most data shards of one run.
pub const SHARDS_MAX: usize = 4096;
/// Longest name of a run or worker in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Time for the bytes to arrive that a charter may give however short its window is: a home link's upload is not faster
/// because rounds are short.
pub const REVEAL_MS_ALWAYS: u64 = 30_000;
const DOMAIN: &str = "AI@home 2026 charter v1";

/// The constitution of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charter {
    /// Short name for people; the id is the hash.
    pub name: String,
    /// What the run is for, one paragraph.
    pub description: String,
    /// Seed of every random choice of the run.
    pub seed: u64,
    /// Key that seals the log; a successor's key needs an event signed by a succession key.
    pub hub: PublicKey,
    /// Addresses where the hub or its mirrors are looked for, most wanted first.
    pub addresses: Vec<String>,
    /// Keys that may name a new hub.
    pub succession: Vec<PublicKey>,
    /// The model's shape.
    pub model: Model,
    /// Tokenizer and data.
    pub data: Data,
    /// What a worker does inside a round.
    pub inner: Inner,
    /// How updates become the next model.
    pub outer: Outer,
    /// When rounds open and close.
    pub round: RoundRules,
    /// Who shares in the income.
    pub income: Income,
}

/// A Llama-family model's shape, under the names of Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Number of token ids.
    pub vocab_size: u32,
    /// Width.
    pub hidden_size: u32,
    /// Width of the SwiGLU inner layer.
    pub intermediate_size: u32,
    /// Layers.
    pub num_hidden_layers: u32,
    /// Attention heads.
    pub num_attention_heads: u32,
    /// Key/value heads (grouped-query attention).
    pub num_key_value_heads: u32,
    /// Context in tokens.
    pub max_position_embeddings: u32,
    /// RMSNorm's epsilon in 10^-9.
    pub rms_norm_epsilon_nano: u32,
    /// Base of the rotary frequencies.
    pub rope_theta: u32,
    /// Whether input and output embeddings are one tensor.
    pub tie_word_embeddings: bool,
}

/// The text that a run learns from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Name of the data set, for people.
    pub name: String,
    /// `tokenizer.json`.
    pub tokenizer: BlobReference,
    /// Shards to train on, in the order that samples are numbered.
    pub training: Vec<ShardReference>,
    /// Shards held out for evaluation.
    pub held_out: Vec<ShardReference>,
    /// Most held-out tokens predicted at one evaluation.
    pub held_out_tokens_max: u32,
    /// Losses of n-gram models on the same held-out tokens: what a model must beat to have learnt anything.
    pub baselines: Baselines,
}

/// One data shard of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardReference {
    /// The encoded shard.
    pub blob: BlobReference,
    /// Tokens in it.
    pub tokens: u64,
    /// Bytes of text those tokens stand for.
    pub text_bytes: u64,
}

/// Held-out losses of counting models over the same tokens, in 10^-6 nats a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baselines {
    /// One-token frequencies.
    pub unigram_micronats: u64,
    /// Interpolated bigram model.
    pub bigram_micronats: u64,
    /// Interpolated trigram model.
    pub trigram_micronats: u64,
}

/// The inner optimiser (AdamW) and its schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inner {
    /// Sequences in one step.
    pub batch_rows: u32,
    /// Tokens in one sequence; at most the model's context.
    pub sequence: u32,
    /// Peak learning rate in 10^-9.
    pub learning_rate_peak_nano: u64,
    /// Accepted tokens over which the rate rises.
    pub warmup_tokens: u64,
    /// Accepted tokens after which the run is finished.
    pub tokens_max: u64,
    /// The rate at the end, in millionths of the peak.
    pub final_rate_ppm: u32,
    /// AdamW's first decay in millionths.
    pub beta1_ppm: u32,
    /// AdamW's second decay in millionths.
    pub beta2_ppm: u32,
    /// AdamW's epsilon in 10^-12.
    pub epsilon_pico: u64,
    /// Weight decay on matrices in millionths.
    pub weight_decay_ppm: u32,
    /// Gradient norm clip in millionths.
    pub clip_norm_ppm: u32,
    /// Whether a worker keeps m and v from round to round.
    pub carry_inner_state: bool,
}

/// The outer step: codec, merge and published delta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outer {
    /// How a worker's update is written.
    pub codec: Codec,
    /// Step size in units of 2^-16.
    pub rate_q16: u32,
    /// Share of the whole weight below which the denominator of a coordinate never falls, in units of 2^-16.
    pub denominator_floor_q16: u32,
    /// Nesterov momentum in units of 2^-16; zero for none.
    pub momentum_q16: u32,
    /// Values kept of each chunk of the published delta (sparse codec).
    pub delta_kept: u32,
    /// An update whose norm is more than this many times the round's median, or smaller by more than that, is refused,
    /// in units of 2^-16.
    pub norm_ratio_max_q16: u32,
}

/// The update codecs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Codec {
    /// SparseLoCo: top-k of each chunk, two bits a value, error feedback.
    Sparse {
        /// Values in a chunk.
        chunk: u32,
        /// Values kept of a whole chunk.
        kept: u32,
        /// Decay of the error feedback in units of 2^-16.
        error_decay_q16: u32,
    },
    /// DiLoCo: every value, 8 or 16 bits.
    Dense {
        /// Values that share a scale.
        chunk: u32,
        /// Bits of a value, 8 or 16.
        bits: u32,
    },
}

/// When a round opens, closes and counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRules {
    /// Time to train, from opening to the deadline for commitments.
    pub window_ms: u64,
    /// Time after the deadline for the committed bytes to arrive; at most the window, or [`REVEAL_MS_ALWAYS`], because the
    /// next round takes commitments until this one is merged.
    pub reveal_ms: u64,
    /// Fewest inner steps of a counted update.
    pub steps_min: u32,
    /// Most inner steps of a counted update.
    pub steps_max: u32,
    /// Fewest updates that a round should have: below it the round is extended once, then merged with a smaller step.
    pub quorum: u32,
    /// Places in a round; a quarter more workers are given slots.
    pub slots_max: u32,
    /// Largest share of a round's weight for one worker, in units of 2^-16; 65536 for no cap.
    pub weight_cap_q16: u32,
    /// Shards that one assignment draws its samples from.
    pub shards_per_assignment: u32,
    /// Rounds between checkpoints that are kept whole.
    pub checkpoint_every: u32,
    /// Inner steps between leaves of an update's Merkle tree.
    pub leaf_steps: u32,
    /// Accepted tokens up to which a round has one slot, given to the fastest worker, whose inner state everyone then starts from.
    #[serde(default)]
    pub warm_start_tokens: u64,
    /// How many times faster than its own measured speed a worker may claim to be, in units of 2^-16.
    pub speed_ratio_max_q16: u32,
    /// Time that a BOINC client's work unit trains, at most the window; 0 where the run takes none of them.
    #[serde(default)]
    pub boinc_unit_ms: u64,
}

impl RoundRules {
    /// Most workers that are given a slot: a quarter more than there are places, because some never come.
    #[must_use]
    pub fn assigned_max(&self) -> u32 {
        self.slots_max.saturating_add(self.slots_max.div_ceil(4))
    }
}

/// Presets of the split of income (`docs/glossary.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Income {
    /// Serving machines, and a royalty to everyone who made the model.
    EveryoneWhoMadeIt,
    /// Serving and training machines alone.
    OnlyComputers,
}

/// What is wrong with a charter.
#[derive(Debug, thiserror::Error)]
pub enum CharterError {
    /// Not TOML, or not the fields that a charter has.
    #[error("the charter does not read")]
    Text(#[from] Box<toml::de::Error>),
    /// Too long.
    #[error("the charter has {0} bytes; at most {CHARTER_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// A value outside what the protocol allows.
    #[error("charter: {field} {problem}")]
    Value {
        /// The field, dotted.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Charter {
    /// Reads and checks a charter's TOML text.
    pub fn from_toml(text: &str) -> Result<Self, CharterError> {
        if text.len() > CHARTER_BYTES_MAX {
            return Err(CharterError::TooLong(text.len()));
        }
        let charter: Self =
            toml::from_str(text).map_err(|error| CharterError::Text(Box::new(error)))?;
        charter.check()?;
        Ok(charter)
    }

    /// The TOML text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a charter has a TOML form by construction")
    }

    /// The run's id.
    #[must_use]
    pub fn id(&self) -> RunId {
        RunId(Hash::in_domain(DOMAIN, &canonical::encode(self)))
    }

    /// Tokens of one inner step.
    #[must_use]
    pub fn tokens_per_step(&self) -> u64 {
        u64::from(self.inner.batch_rows) * u64::from(self.inner.sequence)
    }

    /// Refuses every value that the protocol has no meaning for.
    pub fn check(&self) -> Result<(), CharterError> {
        self.check_names()?;
        self.model.check()?;
        self.check_data()?;
        self.check_inner()?;
        self.check_outer()?;
        self.check_round()
    }

    fn check_names(&self) -> Result<(), CharterError> {
        require(
            is_name(&self.name),
            "name",
            "must be 1 to 64 letters, digits, '-', '_', '.' or spaces",
        )?;
        require(
            self.description.len() <= 4096,
            "description",
            "is longer than 4096 bytes",
        )?;
        require(
            self.addresses.len() <= 16 && self.addresses.iter().all(|it| it.len() <= 256),
            "addresses",
            "are at most 16 of at most 256 bytes",
        )?;
        require(
            self.succession.len() <= 16,
            "succession",
            "has more than 16 keys",
        )
    }

    fn check_data(&self) -> Result<(), CharterError> {
        let data = &self.data;
        for (field, shards) in [
            ("data.training", &data.training),
            ("data.held_out", &data.held_out),
        ] {
            require(
                !shards.is_empty() && shards.len() <= SHARDS_MAX,
                field,
                "must name 1 to 4096 shards",
            )?;
            require(
                shards
                    .iter()
                    .all(|it| it.tokens > 0 && it.tokens <= 1 << 32 && it.text_bytes <= 1 << 40),
                field,
                "has a shard of no tokens or more than 2^32",
            )?;
        }
        require(
            (1..=1 << 24).contains(&data.held_out_tokens_max),
            "data.held_out_tokens_max",
            "must be 1 to 2^24",
        )?;
        let longest = data.training.iter().map(|it| it.tokens).max().unwrap_or(0);
        require(
            longest > u64::from(self.inner.sequence),
            "data.training",
            "has no shard longer than inner.sequence",
        )
    }

    fn check_inner(&self) -> Result<(), CharterError> {
        let inner = &self.inner;
        require(
            (1..=4096).contains(&inner.batch_rows),
            "inner.batch_rows",
            "must be 1 to 4096",
        )?;
        require(
            inner.sequence >= 1 && inner.sequence <= self.model.max_position_embeddings,
            "inner.sequence",
            "must be 1 to the model's context",
        )?;
        require(
            (1..=1_000_000_000).contains(&inner.learning_rate_peak_nano),
            "inner.learning_rate_peak_nano",
            "must be 1 to 10^9 (a rate of at most 1)",
        )?;
        require(
            inner.tokens_max >= 1
                && inner.tokens_max <= 1 << 60
                && inner.warmup_tokens < inner.tokens_max,
            "inner.tokens_max",
            "must be more than inner.warmup_tokens and at most 2^60",
        )?;
        for (field, value, limit) in [
            ("inner.final_rate_ppm", inner.final_rate_ppm, 1_000_000),
            ("inner.beta1_ppm", inner.beta1_ppm, 999_999),
            ("inner.beta2_ppm", inner.beta2_ppm, 999_999),
            ("inner.weight_decay_ppm", inner.weight_decay_ppm, 1_000_000),
        ] {
            require(value <= limit, field, &format!("must be at most {limit}"))?;
        }
        require(
            inner.epsilon_pico >= 1,
            "inner.epsilon_pico",
            "must be at least 1",
        )?;
        require(
            inner.clip_norm_ppm >= 1,
            "inner.clip_norm_ppm",
            "must be at least 1",
        )
    }

    fn check_outer(&self) -> Result<(), CharterError> {
        let outer = &self.outer;
        match outer.codec {
            Codec::Sparse {
                chunk,
                kept,
                error_decay_q16,
            } => {
                require(
                    (16..=65_536).contains(&chunk),
                    "outer.codec.sparse.chunk",
                    "must be 16 to 65536",
                )?;
                require(
                    kept >= 1 && kept <= chunk,
                    "outer.codec.sparse.kept",
                    "must be 1 to the chunk",
                )?;
                require(
                    error_decay_q16 <= 65_536,
                    "outer.codec.sparse.error_decay_q16",
                    "must be at most 65536",
                )?;
                require(
                    outer.delta_kept >= 1 && outer.delta_kept <= chunk,
                    "outer.delta_kept",
                    "must be 1 to the chunk",
                )?;
                require(
                    outer.momentum_q16 == 0,
                    "outer.momentum_q16",
                    "must be 0 with the sparse codec: error feedback takes its place",
                )?;
            }
            Codec::Dense { chunk, bits } => {
                require(
                    (16..=65_536).contains(&chunk),
                    "outer.codec.dense.chunk",
                    "must be 16 to 65536",
                )?;
                require(
                    bits == 8 || bits == 16,
                    "outer.codec.dense.bits",
                    "must be 8 or 16",
                )?;
            }
        }
        for (field, value, limit) in [
            ("outer.rate_q16", outer.rate_q16, 1 << 18),
            (
                "outer.denominator_floor_q16",
                outer.denominator_floor_q16,
                1 << 16,
            ),
            ("outer.momentum_q16", outer.momentum_q16, (1 << 16) - 1),
        ] {
            require(value <= limit, field, &format!("must be at most {limit}"))?;
        }
        require(outer.rate_q16 >= 1, "outer.rate_q16", "must be at least 1")?;
        require(
            outer.norm_ratio_max_q16 >= 1 << 16,
            "outer.norm_ratio_max_q16",
            "must be at least 65536 (once the median)",
        )
    }

    fn check_round(&self) -> Result<(), CharterError> {
        let round = &self.round;
        let week_ms = 7 * 24 * 3_600_000;
        for (field, value) in [
            ("round.window_ms", round.window_ms),
            ("round.reveal_ms", round.reveal_ms),
        ] {
            require(
                (100..=week_ms).contains(&value),
                field,
                "must be 100 ms to a week",
            )?;
        }
        require(
            round.reveal_ms <= round.window_ms.max(REVEAL_MS_ALWAYS),
            "round.reveal_ms",
            "must be at most the window, or half a minute: the next round can't close before",
        )?;
        require(
            round.boinc_unit_ms <= round.window_ms,
            "round.boinc_unit_ms",
            "must be at most the window: a work unit is handed in before its round closes",
        )?;
        require(
            round.steps_min >= 1
                && round.steps_min <= round.steps_max
                && round.steps_max <= 1_000_000,
            "round.steps_min",
            "must be 1 to round.steps_max, and that at most 10^6",
        )?;
        require(
            round.slots_max >= 1 && round.slots_max <= 65_536,
            "round.slots_max",
            "must be 1 to 65536",
        )?;
        require(
            round.quorum >= 1 && round.quorum <= round.slots_max,
            "round.quorum",
            "must be 1 to round.slots_max",
        )?;
        require(
            (1..=65_536).contains(&round.weight_cap_q16),
            "round.weight_cap_q16",
            "must be 1 to 65536",
        )?;
        for (field, value) in [
            ("round.shards_per_assignment", round.shards_per_assignment),
            ("round.checkpoint_every", round.checkpoint_every),
            ("round.leaf_steps", round.leaf_steps),
        ] {
            require((1..=65_536).contains(&value), field, "must be 1 to 65536")?;
        }
        require(
            round.warm_start_tokens == 0
                || self.inner.carry_inner_state
                    && round.quorum == 1
                    && round.warm_start_tokens < self.inner.tokens_max,
            "round.warm_start_tokens",
            "needs inner.carry_inner_state, a quorum of 1, and fewer tokens than inner.tokens_max",
        )?;
        require(
            round.speed_ratio_max_q16 >= 65_536,
            "round.speed_ratio_max_q16",
            "must be at least 65536 (once the measured speed)",
        )
    }
}

impl Model {
    fn check(&self) -> Result<(), CharterError> {
        for (field, value, limit) in [
            ("model.vocab_size", self.vocab_size, 1 << 20),
            ("model.hidden_size", self.hidden_size, 1 << 16),
            ("model.intermediate_size", self.intermediate_size, 1 << 18),
            ("model.num_hidden_layers", self.num_hidden_layers, 1 << 10),
            (
                "model.num_attention_heads",
                self.num_attention_heads,
                1 << 10,
            ),
            (
                "model.num_key_value_heads",
                self.num_key_value_heads,
                1 << 10,
            ),
            (
                "model.max_position_embeddings",
                self.max_position_embeddings,
                1 << 20,
            ),
            ("model.rope_theta", self.rope_theta, u32::MAX),
            (
                "model.rms_norm_epsilon_nano",
                self.rms_norm_epsilon_nano,
                1_000_000,
            ),
        ] {
            require(
                value >= 1 && value <= limit,
                field,
                &format!("must be 1 to {limit}"),
            )?;
        }
        require(
            self.hidden_size.is_multiple_of(self.num_attention_heads)
                && (self.hidden_size / self.num_attention_heads).is_multiple_of(2),
            "model.hidden_size",
            "must be an even multiple of model.num_attention_heads",
        )?;
        require(
            self.num_attention_heads
                .is_multiple_of(self.num_key_value_heads),
            "model.num_attention_heads",
            "must be a multiple of model.num_key_value_heads",
        )
    }

    /// Trainable values.
    #[must_use]
    pub fn parameter_count(&self) -> u64 {
        let width = u64::from(self.hidden_size);
        let key_value =
            width / u64::from(self.num_attention_heads) * u64::from(self.num_key_value_heads);
        let layer = 2 * width * width
            + 2 * width * key_value
            + 3 * width * u64::from(self.intermediate_size)
            + 2 * width;
        let embeddings =
            u64::from(self.vocab_size) * width * if self.tie_word_embeddings { 1 } else { 2 };
        embeddings + layer * u64::from(self.num_hidden_layers) + width
    }

    /// Reference FLOP to train on one token: 6·N + 12·L·d·s, N with the unembedding and without the look-up.
    #[must_use]
    pub fn training_flop_per_token(&self, sequence: u32) -> u64 {
        let look_up = if self.tie_word_embeddings {
            0
        } else {
            u64::from(self.vocab_size) * u64::from(self.hidden_size)
        };
        let active = self.parameter_count() - look_up;
        6 * active
            + 12 * u64::from(self.num_hidden_layers)
                * u64::from(self.hidden_size)
                * u64::from(sequence)
    }
}

/// Whether `text` serves as the name of a run or a worker.
#[must_use]
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.trim() == text
        && text
            .chars()
            .all(|it| it.is_alphanumeric() || matches!(it, '-' | '_' | '.' | ' '))
}

fn require(holds: bool, field: &'static str, problem: &str) -> Result<(), CharterError> {
    if holds {
        Ok(())
    } else {
        Err(CharterError::Value {
            field,
            problem: problem.to_owned(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
