//! From a charter's integers to this crate's settings.
//!
//! A charter speaks in integers, so that strangers agree on its hash; the engine computes with `f32`. Each conversion is one
//! exact or correctly rounded operation, so every machine gets the same settings. The charter's own check knows nothing of
//! this engine's limits: [`check`] does, and everything else here assumes a charter that passed it.

use protocol::charter::{Charter, Codec, Inner, Model, Outer};
use thiserror::Error;

use crate::config::{ConfigError, ModelConfig};
use crate::train::{OptimizerSettings, Trainer};
use crate::update::settings::{
    DeltaSettings, DenseSettings, DenseWidth, MergeSettings, SettingsError, SparseSettings,
    UpdateSettings,
};

/// Standard deviation of a new run's matrices; the charter has no field for it.
const INITIALIZER_RANGE: f32 = 0.02;
/// Copies of the parameters that a worker holds beside its trainer: the base and the error feedback, and at a round's end
/// copies of m and v, which are hashed and written.
const WORKER_COPIES: usize = 4;

/// Why this engine can't carry out a charter.
#[derive(Debug, Error)]
pub enum CharterSettingsError {
    /// A model beyond the engine's limits.
    #[error("the charter's model is beyond what this engine trains")]
    Model(#[from] ConfigError),
    /// A codec or merge beyond the engine's limits.
    #[error("the charter's outer settings are beyond what this engine does")]
    Outer(#[from] SettingsError),
}

/// Whether this engine can carry out the charter.
///
/// # Errors
/// [`CharterSettingsError`], naming the first setting beyond the engine's limits.
pub fn check(charter: &Charter) -> Result<(), CharterSettingsError> {
    model_config(&charter.model).validate()?;
    update_settings(&charter.outer).check()?;
    merge_settings(&charter.outer).check()?;
    Ok(())
}

/// The model's configuration; begin and end tokens are the tokenizer's and stay open.
pub fn model_config(model: &Model) -> ModelConfig {
    ModelConfig {
        vocab_size: model.vocab_size as usize,
        hidden_size: model.hidden_size as usize,
        intermediate_size: model.intermediate_size as usize,
        num_hidden_layers: model.num_hidden_layers as usize,
        num_attention_heads: model.num_attention_heads as usize,
        num_key_value_heads: model.num_key_value_heads as usize,
        max_position_embeddings: model.max_position_embeddings as usize,
        rms_norm_eps: (f64::from(model.rms_norm_epsilon_nano) / 1e9) as f32,
        rope_theta: model.rope_theta as f32,
        tie_word_embeddings: model.tie_word_embeddings,
        bos_token_id: None,
        eos_token_id: None,
        initializer_range: INITIALIZER_RANGE,
    }
}

/// Bytes that a worker holds to train by this charter on one thread: the trainer's own for one batch, and the copies of the
/// model around it. A worker refuses a machine with less, and whoever gives it work reckons with the same figure.
pub fn worker_memory_bytes(charter: &Charter) -> u64 {
    let config = model_config(&charter.model);
    let batch = (
        charter.inner.batch_rows as usize,
        charter.inner.sequence as usize,
    );
    let copies = 4 * config.parameter_count() * WORKER_COPIES;
    (Trainer::memory_bytes(&config, batch.0, batch.1) + copies) as u64
}

/// AdamW's constants.
pub fn optimizer(inner: &Inner) -> OptimizerSettings {
    OptimizerSettings {
        beta1: millionths(inner.beta1_ppm),
        beta2: millionths(inner.beta2_ppm),
        epsilon: (inner.epsilon_pico as f64 / 1e12) as f32,
        weight_decay: millionths(inner.weight_decay_ppm),
        clip_norm: millionths(inner.clip_norm_ppm),
    }
}

/// A learning rate from 10⁻⁹ units, as `protocol::schedule` gives it.
pub fn learning_rate(nano: u64) -> f32 {
    (nano as f64 / 1e9) as f32
}

/// How a worker writes its update.
pub fn update_settings(outer: &Outer) -> UpdateSettings {
    match outer.codec {
        Codec::Sparse { chunk, kept, .. } => UpdateSettings::Sparse(SparseSettings { chunk, kept }),
        Codec::Dense { chunk, bits } => UpdateSettings::Dense(DenseSettings {
            chunk,
            width: width(bits),
        }),
    }
}

/// What a worker multiplies its error feedback by; 0 with the dense codec, which keeps none.
pub fn error_decay(outer: &Outer) -> f32 {
    match outer.codec {
        Codec::Sparse {
            error_decay_q16, ..
        } => error_decay_q16 as f32 / 65_536.0,
        Codec::Dense { .. } => 0.0,
    }
}

/// How the updates of a round are merged and published. The delta has the update codec's form: sparse with
/// `delta_kept`, or dense with the same chunk and width.
pub fn merge_settings(outer: &Outer) -> MergeSettings {
    MergeSettings {
        outer_rate_q16: outer.rate_q16,
        momentum_q16: (outer.momentum_q16 > 0).then_some(outer.momentum_q16),
        denominator_floor_q16: outer.denominator_floor_q16,
        delta: match outer.codec {
            Codec::Sparse { chunk, .. } => DeltaSettings::Sparse(SparseSettings {
                chunk,
                kept: outer.delta_kept,
            }),
            Codec::Dense { chunk, bits } => DeltaSettings::Dense(DenseSettings {
                chunk,
                width: width(bits),
            }),
        },
    }
}

/// The charter's check admits 8 and 16.
fn width(bits: u32) -> DenseWidth {
    if bits == 8 {
        DenseWidth::Eight
    } else {
        DenseWidth::Sixteen
    }
}

fn millionths(ppm: u32) -> f32 {
    (f64::from(ppm) / 1e6) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 64,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        }
    }

    fn outer(codec: Codec) -> Outer {
        Outer {
            codec,
            rate_q16: 65_536,
            denominator_floor_q16: 32_768,
            momentum_q16: 0,
            delta_kept: 512,
            norm_ratio_max_q16: 20 << 16,
        }
    }

    #[test]
    fn the_model_counts_as_the_charter_counts() {
        let config = model_config(&model());
        assert_eq!(config.parameter_count() as u64, model().parameter_count());
        assert_eq!(config.rms_norm_eps, 1e-5);
        assert!(config.validate().is_ok());
    }

    #[test]
    fn numbers_are_the_decimal_ones() {
        let inner = Inner {
            batch_rows: 4,
            sequence: 64,
            learning_rate_peak_nano: 3_000_000,
            warmup_tokens: 0,
            tokens_max: 1,
            final_rate_ppm: 0,
            beta1_ppm: 900_000,
            beta2_ppm: 990_000,
            epsilon_pico: 10_000,
            weight_decay_ppm: 100_000,
            clip_norm_ppm: 1_000_000,
            carry_inner_state: true,
        };
        assert_eq!(optimizer(&inner), OptimizerSettings::default());
        assert_eq!(learning_rate(inner.learning_rate_peak_nano), 3e-3);
    }

    #[test]
    fn both_codecs_give_an_update_and_a_delta() {
        let sparse = outer(Codec::Sparse {
            chunk: 4096,
            kept: 128,
            error_decay_q16: 32_768,
        });
        assert_eq!(
            update_settings(&sparse),
            UpdateSettings::Sparse(SparseSettings {
                chunk: 4096,
                kept: 128
            })
        );
        assert_eq!(merge_settings(&sparse), MergeSettings::default());
        assert_eq!(error_decay(&sparse), 0.5);
        let dense = Outer {
            momentum_q16: 58_982,
            ..outer(Codec::Dense {
                chunk: 4096,
                bits: 8,
            })
        };
        let eight = DenseSettings {
            chunk: 4096,
            width: DenseWidth::Eight,
        };
        assert_eq!(update_settings(&dense), UpdateSettings::Dense(eight));
        assert_eq!(merge_settings(&dense).delta, DeltaSettings::Dense(eight));
        assert_eq!(merge_settings(&dense).momentum_q16, Some(58_982));
        assert_eq!(error_decay(&dense), 0.0);
    }
}
