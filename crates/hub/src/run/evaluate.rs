//! Held-out loss and sampled texts: what a run shows of its model's quality.

use anyhow::{Context, Result};
use data::{held_out, shard, tokenizer::Tokenizer};
use engine::{
    ModelConfig,
    evaluate::Evaluator,
    generate::{Generator, SamplingSettings},
};
use protocol::{event::Evaluation, state::State};

use crate::{blobs::Blobs, model::Model};

/// Rows evaluated at once: bounds the memory.
const BATCH_ROWS: usize = 8;
/// Sampling temperature in hundredths: enough to show the model's taste without its wildest guesses.
const SAMPLE_TEMPERATURE: f32 = 0.8;
/// Probability mass that sampled tokens are drawn from.
const SAMPLE_TOP_P: f32 = 0.95;

/// The held-out tokens of a run, cut into rows once.
pub(crate) struct HeldOut {
    rows: Vec<u32>,
    sequence: usize,
    /// Bytes of text per token, over the whole held-out text.
    bytes_per_token: f64,
    tokenizer: Tokenizer,
}

impl HeldOut {
    /// Reads and checks the run's held-out shards and tokenizer.
    pub(crate) async fn read(state: &State, blobs: &Blobs) -> Result<Self> {
        let data = &state.charter.data;
        let tokenizer = blobs
            .read(&data.tokenizer)
            .await?
            .context("the run's tokenizer is missing")?;
        let tokenizer = Tokenizer::from_bytes(&tokenizer)?;
        let mut tokens = Vec::new();
        let mut text_bytes = 0;
        for reference in &data.held_out {
            let bytes = blobs.read(&reference.blob).await?.with_context(|| {
                format!("the held-out shard {} is missing", reference.blob.hash)
            })?;
            let shard = shard::decode(&bytes)?;
            text_bytes += shard
                .header
                .documents
                .iter()
                .map(|it| it.text_bytes)
                .sum::<u64>();
            tokens.extend_from_slice(&shard.tokens);
        }
        let sequence = state.charter.inner.sequence as usize;
        let windows = held_out::windows(&tokens, sequence, data.held_out_tokens_max as usize);
        anyhow::ensure!(
            !windows.is_empty(),
            "the held-out text is shorter than one sequence"
        );
        Ok(Self {
            rows: windows.concat(),
            sequence,
            bytes_per_token: text_bytes as f64 / tokens.len() as f64,
            tokenizer,
        })
    }

    /// The mean loss of a model.
    pub(crate) fn evaluate(
        &self,
        config: &ModelConfig,
        model: &Model,
        threads: usize,
    ) -> Result<Evaluation> {
        let mut evaluator = Evaluator::new(config, BATCH_ROWS, self.sequence, threads);
        let sum = evaluator.loss_sum(&model.parameters, &self.rows)?;
        let nats = sum.mean();
        anyhow::ensure!(nats.is_finite(), "the model's loss is not a number");
        let bits_per_byte = nats / std::f64::consts::LN_2 / self.bytes_per_token;
        Ok(Evaluation {
            loss_micronats: (nats * 1e6).round() as u64,
            tokens: sum.tokens,
            microbits_per_byte: (bits_per_byte * 1e6).round() as u64,
        })
    }

    /// A text that the model writes after `prompt`.
    pub(crate) fn sample(
        &self,
        config: &ModelConfig,
        model: &Model,
        prompt: &str,
        tokens_max: usize,
    ) -> Result<String> {
        let generator = Generator::new(config, model.parameters.clone())?;
        let mut session = generator.session();
        session.prefill(&self.tokenizer.encode(prompt))?;
        let settings = SamplingSettings {
            temperature: SAMPLE_TEMPERATURE,
            top_p: SAMPLE_TOP_P,
            seed: model.state.round,
        };
        let completion =
            session.complete(&settings, tokens_max, &[self.tokenizer.end_of_text()])?;
        let mut text = self.tokenizer.decode(&completion.tokens);
        let limit = protocol::event::SAMPLE_BYTES_MAX;
        while text.len() > limit {
            text.pop();
        }
        Ok(text)
    }
}
