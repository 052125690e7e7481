//! Generation: a key/value cache per session, temperature, top-p, seed and stop tokens.
//!
//! A session that has filled the model's context ends with [`GenerateError::ContextFull`]: nothing is dropped or slid
//! over silently, because a model forgets its instructions without the reader noticing. The caller starts a new session
//! with the text it wants to keep. Deterministic: the n-th draw depends on the seed and on n alone.

use std::sync::Arc;

use crate::config::ModelConfig;
use crate::kernels::matmul::Write;
use crate::kernels::rotary::Rotary;
use crate::kernels::vector::exp;
use crate::kernels::{attention, embedding, norm, swiglu};
use crate::layout::{LayerOffsets, Offsets, SplitMix};
use crate::model::linear;
use crate::threads::Threads;

/// Positions that a prompt is processed in at a time.
const PREFILL_POSITIONS: usize = 64;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingSettings {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability are drawn from; 1 keeps all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplingSettings {
    /// The likeliest token each time.
    fn default() -> Self {
        SamplingSettings {
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// Why generation stopped or did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    /// The session would outgrow the model's context.
    #[error("the context of {context} tokens is full")]
    ContextFull {
        /// The model's context.
        context: usize,
    },
    /// A token that the vocabulary does not have.
    #[error("token {token} is not below the vocabulary's size {vocabulary}")]
    Token {
        /// The first such token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// There are no logits yet to draw from.
    #[error("nothing to continue: no token was given")]
    Empty,
    /// Logits are not finite: the parameters are damaged.
    #[error("the model's logits are not finite")]
    NotFinite,
    /// Temperature is negative or not finite, or top-p is outside (0, 1].
    #[error("temperature {temperature} or top-p {top_p} is out of range")]
    Settings {
        /// As given, printed.
        temperature: String,
        /// As given, printed.
        top_p: String,
    },
    /// Fewer or more parameters than the configuration says.
    #[error("{given} parameters, the configuration has {expected}")]
    Parameters {
        /// Length of the vector.
        given: usize,
        /// What the configuration says.
        expected: usize,
    },
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn; it is not part of the completion.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The model's context is full.
    ContextFull,
}

/// Tokens that were generated, and why they end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
}

/// A model ready to generate; sessions share its parameters.
#[derive(Clone)]
pub struct Generator {
    model: Arc<Shared>,
}

/// What sessions of one model share.
struct Shared {
    config: ModelConfig,
    parameters: Arc<Vec<f32>>,
    offsets: Offsets,
    rotary: Rotary,
}

impl Generator {
    /// Takes the parameters as [`ModelConfig::layout`] lays them out.
    ///
    /// # Errors
    /// [`GenerateError::Parameters`] if their number is wrong.
    ///
    /// # Panics
    /// If the configuration is invalid.
    pub fn new(config: &ModelConfig, parameters: Arc<Vec<f32>>) -> Result<Self, GenerateError> {
        assert!(
            config.validate().is_ok(),
            "the configuration was not validated"
        );
        let expected = config.parameter_count();
        if parameters.len() != expected {
            return Err(GenerateError::Parameters {
                given: parameters.len(),
                expected,
            });
        }
        let rotary = Rotary::new(
            config.max_position_embeddings,
            config.head_size(),
            config.rope_theta,
        );
        let offsets = Offsets::new(config);
        Ok(Generator {
            model: Arc::new(Shared {
                config: config.clone(),
                parameters,
                offsets,
                rotary,
            }),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// A new, empty session. Its cache grows with its length: `2 · layers · key_value_size` floats a token.
    pub fn session(&self) -> Session {
        Session::new(Arc::clone(&self.model))
    }
}

/// One text being continued, with its cache. Runs on the calling thread.
pub struct Session {
    model: Arc<Shared>,
    threads: Threads,
    /// Per layer: keys (rotated) and values of the positions so far, `positions × key_value_size`.
    cache: Vec<Cache>,
    position: usize,
    drawn: u64,
    /// A token that was returned but not yet run.
    pending: Option<u32>,
    logits: Vec<f32>,
    candidates: Vec<(f32, u32)>,
    buffers: Buffers,
}

#[derive(Default)]
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Buffers for up to [`PREFILL_POSITIONS`] positions.
#[derive(Default)]
struct Buffers {
    stream: Vec<f32>,
    normalised: Vec<f32>,
    reciprocal: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    scores: Vec<f32>,
    gate_up: Vec<f32>,
    activation: Vec<f32>,
}

impl Buffers {
    fn fit(&mut self, config: &ModelConfig, positions: usize) {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        self.stream.resize(positions * hidden, 0.0);
        self.normalised.resize(positions * hidden, 0.0);
        self.reciprocal.resize(positions, 0.0);
        self.normed.resize(positions * hidden, 0.0);
        self.qkv
            .resize(positions * (hidden + 2 * config.key_value_size()), 0.0);
        self.attended.resize(positions * hidden, 0.0);
        self.gate_up.resize(positions * 2 * intermediate, 0.0);
        self.activation.resize(positions * intermediate, 0.0);
    }
}

impl Session {
    fn new(model: Arc<Shared>) -> Self {
        let cache = model
            .offsets
            .layers
            .iter()
            .map(|_| Cache::default())
            .collect();
        let logits = vec![0.0; model.config.vocab_size];
        Session {
            model,
            threads: Threads::new(1),
            cache,
            position: 0,
            drawn: 0,
            pending: None,
            logits,
            candidates: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    /// Tokens that the session holds, the last drawn one included.
    pub fn len(&self) -> usize {
        self.position + usize::from(self.pending.is_some())
    }

    /// Whether nothing was given yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends tokens of a prompt.
    ///
    /// # Errors
    /// A token outside the vocabulary, or more tokens than the context has room for; then nothing was appended.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<(), GenerateError> {
        let vocabulary = self.model.config.vocab_size;
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(GenerateError::Token { token, vocabulary });
        }
        let context = self.model.config.max_position_embeddings;
        if tokens.len() > context - self.len().min(context) {
            return Err(GenerateError::ContextFull { context });
        }
        if let Some(token) = self.pending.take() {
            self.run(&[token]);
        }
        for part in tokens.chunks(PREFILL_POSITIONS) {
            self.run(part);
        }
        Ok(())
    }

    /// Draws the next token and appends it. The last token that fits the context can still be drawn.
    ///
    /// # Errors
    /// No prompt, a full context, settings out of range, or damaged parameters.
    pub fn next_token(&mut self, settings: &SamplingSettings) -> Result<u32, GenerateError> {
        check_settings(settings)?;
        self.settle()?;
        if !self.logits.iter().all(|logit| logit.is_finite()) {
            return Err(GenerateError::NotFinite);
        }
        let token = self.draw(settings);
        self.drawn += 1;
        self.pending = Some(token);
        Ok(token)
    }

    /// Logits of the token that would come next: vocabulary numbers.
    ///
    /// # Errors
    /// No prompt, or a full context.
    pub fn logits(&mut self) -> Result<&[f32], GenerateError> {
        self.settle()?;
        Ok(&self.logits)
    }

    /// Draws until a stop token, `tokens_max` tokens, or the end of the context.
    ///
    /// # Errors
    /// As [`Session::next_token`], except that a full context is an ordinary end.
    pub fn complete(
        &mut self,
        settings: &SamplingSettings,
        tokens_max: usize,
        stop: &[u32],
    ) -> Result<Completion, GenerateError> {
        let mut tokens = Vec::new();
        while tokens.len() < tokens_max {
            match self.next_token(settings) {
                Ok(token) if stop.contains(&token) => {
                    return Ok(Completion {
                        tokens,
                        finish: Finish::Stop,
                    });
                }
                Ok(token) => tokens.push(token),
                Err(GenerateError::ContextFull { .. }) => {
                    return Ok(Completion {
                        tokens,
                        finish: Finish::ContextFull,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Completion {
            tokens,
            finish: Finish::Length,
        })
    }

    /// Runs the pending token, so that the logits are those after all tokens.
    fn settle(&mut self) -> Result<(), GenerateError> {
        let context = self.model.config.max_position_embeddings;
        if self.is_empty() {
            return Err(GenerateError::Empty);
        }
        if let Some(token) = self.pending {
            if self.position == context {
                return Err(GenerateError::ContextFull { context });
            }
            self.pending = None;
            self.run(&[token]);
        }
        Ok(())
    }

    /// Runs tokens that are known to fit; leaves the logits after the last.
    fn run(&mut self, tokens: &[u32]) {
        let model = Arc::clone(&self.model);
        let (config, parameters) = (&model.config, model.parameters.as_slice());
        let (hidden, vocabulary, count) = (config.hidden_size, config.vocab_size, tokens.len());
        self.buffers.fit(config, count);
        let table = &parameters[..vocabulary * hidden];
        embedding::forward(
            table,
            hidden,
            tokens.iter().copied(),
            &mut self.buffers.stream,
        );
        for (index, offsets) in model.offsets.layers.iter().enumerate() {
            self.run_layer(&model, offsets, index, count);
        }
        self.position += count;
        self.norm(&model, model.offsets.final_norm);
        let weights = &parameters[model.offsets.output..][..vocabulary * hidden];
        let last = &self.buffers.normed[(count - 1) * hidden..];
        linear(
            &self.threads,
            1,
            weights,
            hidden,
            last,
            &mut self.logits,
            Write::Replace,
        );
    }

    fn norm(&mut self, model: &Shared, offset: usize) {
        let buffers = &mut self.buffers;
        let kept = norm::Kept {
            normalised: &mut buffers.normalised,
            reciprocal: &mut buffers.reciprocal,
        };
        let gains = &model.parameters[offset..][..model.config.hidden_size];
        norm::forward(
            &self.threads,
            &buffers.stream,
            gains,
            model.config.rms_norm_eps,
            kept,
            &mut buffers.normed,
        );
    }

    fn run_layer(&mut self, model: &Shared, offsets: &LayerOffsets, index: usize, count: usize) {
        let (config, parameters) = (&model.config, model.parameters.as_slice());
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let stride = hidden + 2 * config.key_value_size();
        self.norm(model, offsets.attention_norm);
        let weights = &parameters[offsets.query_key_value..][..stride * hidden];
        let buffers = &mut self.buffers;
        linear(
            &self.threads,
            count,
            weights,
            hidden,
            &buffers.normed,
            &mut buffers.qkv,
            Write::Replace,
        );
        self.attend(model, index, count);
        let buffers = &mut self.buffers;
        let weights = &parameters[offsets.attention_output..][..hidden * hidden];
        linear(
            &self.threads,
            count,
            weights,
            hidden,
            &buffers.attended,
            &mut buffers.stream,
            Write::Accumulate,
        );
        self.norm(model, offsets.mlp_norm);
        let buffers = &mut self.buffers;
        let weights = &parameters[offsets.gate_up..][..2 * intermediate * hidden];
        linear(
            &self.threads,
            count,
            weights,
            hidden,
            &buffers.normed,
            &mut buffers.gate_up,
            Write::Replace,
        );
        swiglu::forward(
            &self.threads,
            intermediate,
            &buffers.gate_up,
            &mut buffers.activation,
        );
        let weights = &parameters[offsets.down..][..hidden * intermediate];
        linear(
            &self.threads,
            count,
            weights,
            intermediate,
            &buffers.activation,
            &mut buffers.stream,
            Write::Accumulate,
        );
    }

    /// Rotates, appends to the cache, and attends each new position to all up to itself.
    fn attend(&mut self, model: &Shared, index: usize, count: usize) {
        let config = &model.config;
        let (size, width) = (config.head_size(), config.key_value_size());
        let (hidden, group) = (
            config.hidden_size,
            config.num_attention_heads / config.num_key_value_heads,
        );
        let (buffers, cache) = (&mut self.buffers, &mut self.cache[index]);
        for (offset, row) in buffers
            .qkv
            .chunks_exact_mut(hidden + 2 * width)
            .enumerate()
            .take(count)
        {
            let position = self.position + offset;
            for head in row[..hidden + width].chunks_exact_mut(size) {
                model.rotary.turn(head, position);
            }
            cache.keys.extend_from_slice(&row[hidden..hidden + width]);
            cache.values.extend_from_slice(&row[hidden + width..]);
            for head in 0..config.num_attention_heads {
                let column = head / group * size;
                let visible = (position + 1) * width;
                let past = attention::Past {
                    keys: &cache.keys[column..visible],
                    values: &cache.values[column..visible],
                    stride: width,
                };
                let query = &row[head * size..(head + 1) * size];
                let out = &mut buffers.attended[offset * hidden + head * size..][..size];
                buffers.scores.resize(position + 1, 0.0);
                attention::attend_one(past, query, &mut buffers.scores, out);
            }
        }
    }

    fn draw(&mut self, settings: &SamplingSettings) -> u32 {
        if settings.temperature == 0.0 {
            return likeliest(&self.logits);
        }
        let largest = self
            .logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        self.candidates.clear();
        let weighed = self.logits.iter().zip(0u32..);
        self.candidates.extend(
            weighed.map(|(&logit, token)| (exp((logit - largest) / settings.temperature), token)),
        );
        let mut total: f64 = self
            .candidates
            .iter()
            .map(|&(weight, _)| f64::from(weight))
            .sum();
        if settings.top_p < 1.0 {
            self.candidates.sort_unstable_by(|left, right| {
                right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
            });
            let (mut kept, mut sum) = (0, 0.0);
            while kept < self.candidates.len() && sum < f64::from(settings.top_p) * total {
                sum += f64::from(self.candidates[kept].0);
                kept += 1;
            }
            self.candidates.truncate(kept);
            total = sum;
        }
        let mut random =
            SplitMix::new(settings.seed ^ self.drawn.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        let mut left = f64::from(random.uniform()) * total;
        for &(weight, token) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return token;
            }
        }
        // Rounding can leave a sliver beyond the last weight: the last candidate with any weight takes it.
        let last = self
            .candidates
            .iter()
            .rev()
            .find(|&&(weight, _)| weight > 0.0);
        last.map_or(0, |&(_, token)| token)
    }
}

/// The first of the largest logits.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn check_settings(settings: &SamplingSettings) -> Result<(), GenerateError> {
    let temperature = settings.temperature >= 0.0 && settings.temperature.is_finite();
    if temperature && settings.top_p > 0.0 && settings.top_p <= 1.0 {
        return Ok(());
    }
    Err(GenerateError::Settings {
        temperature: settings.temperature.to_string(),
        top_p: settings.top_p.to_string(),
    })
}
