//! The model's configuration: Hugging Face's `config.json` of a Llama model.
//!
//! Read with limits, because it may come from a stranger; a setting that would change the arithmetic and that this
//! engine does not implement is refused by name, never ignored.
//! Source of the field names: `LlamaConfig` of Hugging Face transformers.

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Largest `config.json` that is read, in bytes.
pub const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// Most layers of a model.
pub const LAYERS_MAX: usize = 1024;
/// Largest width of a hidden, intermediate or context dimension.
pub const DIMENSION_MAX: usize = 1 << 20;
/// Largest vocabulary.
pub const VOCABULARY_MAX: usize = 1 << 20;
/// Most parameters of a model; bounds what a hostile configuration can make us allocate.
pub const PARAMETERS_MAX: usize = 1 << 36;

/// Shape and constants of a Llama-family model.
///
/// Field names are those of `config.json`. Build one by literal or by [`ModelConfig::from_json`], and call
/// [`ModelConfig::validate`] on one that was built by literal from outside numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the SwiGLU layer.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Number of query heads; divides `hidden_size` into an even head width.
    pub num_attention_heads: usize,
    /// Number of key/value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// The context: the most positions a sequence has.
    pub max_position_embeddings: usize,
    /// The epsilon of RMSNorm, added to the mean square.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Whether the output matrix is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Token that starts a document, where the tokenizer has one.
    #[serde(default)]
    pub bos_token_id: Option<u32>,
    /// Token that ends a document, where the tokenizer has one.
    #[serde(default)]
    pub eos_token_id: Option<u32>,
    /// Standard deviation of initial matrices.
    #[serde(default = "initializer_range_default")]
    pub initializer_range: f32,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// More bytes than [`CONFIG_BYTES_MAX`].
    #[error("config.json has {bytes} bytes, at most {CONFIG_BYTES_MAX} are read")]
    TooLong {
        /// Size of the refused document.
        bytes: usize,
    },
    /// Not JSON, or a field is missing or of another type.
    #[error("config.json cannot be read")]
    Json(#[from] serde_json::Error),
    /// A number outside its range, or numbers that contradict each other.
    #[error("config.json: {field} {reason}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting that this engine does not implement.
    #[error("config.json: {field} = {value} is not supported")]
    Unsupported {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: String,
    },
}

/// What is read from a foreign `config.json`, before it is checked.
#[derive(Deserialize)]
struct Document {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    #[serde(default = "context_default")]
    max_position_embeddings: usize,
    #[serde(default = "epsilon_default")]
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<TokenIds>,
    #[serde(default = "initializer_range_default")]
    initializer_range: f32,
    hidden_act: Option<String>,
    head_dim: Option<usize>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// The newer spelling of the rotary settings.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
}

/// `eos_token_id` is a number or a list of numbers; the first of a list counts.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

const ROPE_THETA_DEFAULT: f32 = 10_000.0;

fn initializer_range_default() -> f32 {
    0.02
}

fn context_default() -> usize {
    2048
}

fn epsilon_default() -> f32 {
    1e-6
}

impl ModelConfig {
    /// Reads and checks a Hugging Face `config.json`.
    ///
    /// # Errors
    /// Too long, not JSON, a number out of range, or a setting that the engine does not implement (another
    /// `model_type`, another activation, biases, scaled rotary frequencies, a free head width).
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLong { bytes: bytes.len() });
        }
        let document: Document = serde_json::from_slice(bytes)?;
        refuse_unsupported(&document)?;
        let from_parameters = document.rope_parameters.and_then(|rope| rope.rope_theta);
        let config = ModelConfig {
            vocab_size: document.vocab_size,
            hidden_size: document.hidden_size,
            intermediate_size: document.intermediate_size,
            num_hidden_layers: document.num_hidden_layers,
            num_attention_heads: document.num_attention_heads,
            num_key_value_heads: document
                .num_key_value_heads
                .unwrap_or(document.num_attention_heads),
            max_position_embeddings: document.max_position_embeddings,
            rms_norm_eps: document.rms_norm_eps,
            rope_theta: document
                .rope_theta
                .or(from_parameters)
                .unwrap_or(ROPE_THETA_DEFAULT),
            tie_word_embeddings: document.tie_word_embeddings,
            bos_token_id: document.bos_token_id,
            eos_token_id: document.eos_token_id.and_then(|ids| match ids {
                TokenIds::One(id) => Some(id),
                TokenIds::Many(ids) => ids.first().copied(),
            }),
            initializer_range: document.initializer_range,
        };
        config.validate()?;
        if let Some(head_dim) = document.head_dim
            && head_dim != config.head_size()
        {
            return Err(ConfigError::Unsupported {
                field: "head_dim",
                value: head_dim.to_string(),
            });
        }
        Ok(config)
    }

    /// The full `config.json` that transformers' `AutoModelForCausalLM` reads; ends with a newline, same bytes for equal
    /// configurations.
    pub fn to_json(&self) -> String {
        let value = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "head_dim": self.head_size(),
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": shortest(self.initializer_range),
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_scaling": null,
            "rope_theta": shortest(self.rope_theta),
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        format!("{value:#}\n")
    }

    /// Checks ranges and divisibility; everything else in this crate assumes a configuration that passed.
    ///
    /// # Errors
    /// [`ConfigError::Field`] naming the first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        in_range("vocab_size", self.vocab_size, VOCABULARY_MAX)?;
        in_range("hidden_size", self.hidden_size, DIMENSION_MAX)?;
        in_range("intermediate_size", self.intermediate_size, DIMENSION_MAX)?;
        in_range("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?;
        in_range(
            "num_attention_heads",
            self.num_attention_heads,
            self.hidden_size,
        )?;
        in_range(
            "num_key_value_heads",
            self.num_key_value_heads,
            self.num_attention_heads,
        )?;
        in_range(
            "max_position_embeddings",
            self.max_position_embeddings,
            DIMENSION_MAX,
        )?;
        check(
            self.hidden_size
                .is_multiple_of(2 * self.num_attention_heads),
            "hidden_size",
            "must be an even multiple of num_attention_heads",
        )?;
        check(
            self.num_attention_heads
                .is_multiple_of(self.num_key_value_heads),
            "num_attention_heads",
            "must be a multiple of num_key_value_heads",
        )?;
        check(
            self.rms_norm_eps > 0.0 && self.rms_norm_eps <= 0.1,
            "rms_norm_eps",
            "must be in (0, 0.1]",
        )?;
        check(
            self.rope_theta >= 1.0 && self.rope_theta <= 1e12,
            "rope_theta",
            "must be in [1, 1e12]",
        )?;
        check(
            self.initializer_range >= 0.0 && self.initializer_range <= 10.0,
            "initializer_range",
            "must be in [0, 10]",
        )?;
        for (field, id) in [
            ("bos_token_id", self.bos_token_id),
            ("eos_token_id", self.eos_token_id),
        ] {
            check(
                id.is_none_or(|id| (id as usize) < self.vocab_size),
                field,
                "must be a token of the vocabulary",
            )?;
        }
        let count = self.parameter_count_wide();
        check(
            count <= PARAMETERS_MAX as u128,
            "num_hidden_layers",
            "makes a model of too many parameters",
        )
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Width of all keys (or all values) of a position.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_size()
    }

    /// Where each tensor lies in the flat parameter vector.
    pub fn layout(&self) -> Layout {
        Layout::new(self)
    }

    /// Number of parameters; a tied matrix counts once.
    pub fn parameter_count(&self) -> usize {
        self.parameter_count_wide() as usize
    }

    /// Reference FLOP of training one token in sequences of `sequence` tokens: `6·N_active + 12·L·d·s`, where N_active
    /// leaves out the embedding look-up but counts the output matrix, tied or not.
    pub fn training_flops_per_token(&self, sequence: usize) -> u64 {
        let embedding = (self.vocab_size * self.hidden_size) as u64;
        let looked_up = if self.tie_word_embeddings {
            0
        } else {
            embedding
        };
        let active = self.parameter_count() as u64 - looked_up;
        6 * active + 12 * (self.num_hidden_layers * self.hidden_size * sequence) as u64
    }

    fn parameter_count_wide(&self) -> u128 {
        let hidden = self.hidden_size as u128;
        let key_value = self.key_value_size() as u128;
        let attention = 2 * hidden * hidden + 2 * hidden * key_value;
        let mlp = 3 * hidden * self.intermediate_size as u128;
        let layer = attention + mlp + 2 * hidden;
        let embeddings = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers as u128 * layer
            + hidden
            + embeddings * hidden * self.vocab_size as u128
    }
}

/// The f64 that prints as the f32 does, so that `1e-5` is written as `1e-5`.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn refuse_unsupported(document: &Document) -> Result<(), ConfigError> {
    let refuse = |field, value: String| Err(ConfigError::Unsupported { field, value });
    match document.model_type.as_deref() {
        None | Some("llama") => {}
        Some(other) => return refuse("model_type", other.to_owned()),
    }
    match document.hidden_act.as_deref() {
        None | Some("silu") => {}
        Some(other) => return refuse("hidden_act", other.to_owned()),
    }
    if document.attention_bias {
        return refuse("attention_bias", "true".to_owned());
    }
    if document.mlp_bias {
        return refuse("mlp_bias", "true".to_owned());
    }
    if let Some(scaling) = &document.rope_scaling
        && !scaling.is_null()
    {
        return refuse("rope_scaling", scaling.to_string());
    }
    match document
        .rope_parameters
        .as_ref()
        .and_then(|rope| rope.rope_type.as_deref())
    {
        None | Some("default") => Ok(()),
        Some(other) => refuse("rope_type", other.to_owned()),
    }
}

fn in_range(field: &'static str, value: usize, max: usize) -> Result<(), ConfigError> {
    check(
        (1..=max).contains(&value),
        field,
        &format!("= {value} is not in 1..={max}"),
    )
}

fn check(holds: bool, field: &'static str, reason: &str) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::Field {
            field,
            reason: reason.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
