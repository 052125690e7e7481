//! One answer: from a prompt to pieces of text. Synchronous and deterministic for a seed; knows nothing of HTTP.

use std::ops::ControlFlow;

use engine::generate::{GenerateError, SamplingSettings};

use crate::{model::Model, stop::StopFilter};

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A request, checked and free of any wire format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    /// Independent answers to the one prompt.
    pub(crate) choices: u32,
    /// Most tokens of one answer; none for as many as fit the context.
    pub(crate) tokens_max: Option<usize>,
    /// Temperature, top-p and the first answer's seed.
    pub(crate) sampling: SamplingSettings,
    pub(crate) stops: Vec<String>,
    /// Whether a prompt too long for the context keeps its newest tokens, instead of being refused.
    pub(crate) truncate: bool,
    /// Whether white space before the answer is left out.
    pub(crate) trim_start: bool,
}

/// What happens to an answer, in this order: one start, then per choice any texts and one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Started {
        prompt_tokens: usize,
    },
    Text {
        choice: u32,
        text: String,
    },
    Finished {
        choice: u32,
        reason: FinishReason,
        tokens: usize,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishReason {
    /// A stop sequence, or the end of the text.
    Stop,
    /// As many tokens as asked for, or as fit.
    Length,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AnswerError {
    /// The prompt fills the context.
    ContextExceeded {
        context: usize,
        prompt_tokens: usize,
    },
    /// A token that the model doesn't have.
    Token { token: u32, vocabulary: usize },
    /// The model is damaged, or we are.
    Engine(GenerateError),
}

/// Distance between the seeds of two choices (2^64 divided by the golden ratio).
const SEED_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Computes an answer and hands over each piece as soon as it is certain; stops early when told to break.
pub(crate) fn answer(
    model: &Model,
    ask: &Ask,
    emit: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    gone: &dyn Fn() -> bool,
) -> Result<(), AnswerError> {
    let prompt = prompt_tokens(model, ask)?;
    if emit(Piece::Started {
        prompt_tokens: prompt.len(),
    })
    .is_break()
    {
        return Ok(());
    }
    for choice in 0..ask.choices {
        if continue_prompt(model, ask, &prompt, choice, emit, gone)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The prompt's tokens, fewer than the context; an empty prompt is the beginning of a document.
fn prompt_tokens(model: &Model, ask: &Ask) -> Result<Vec<u32>, AnswerError> {
    let vocabulary = model.generator.config().vocab_size;
    let mut tokens = match &ask.prompt {
        Prompt::Text(text) => model.tokenizer.encode(text),
        Prompt::Tokens(tokens) => tokens.clone(),
    };
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(AnswerError::Token { token, vocabulary });
    }
    if tokens.is_empty() {
        tokens.push(model.tokenizer.end_of_text());
    }
    let context = model.context();
    if tokens.len() >= context {
        if !ask.truncate || context < 2 {
            return Err(AnswerError::ContextExceeded {
                context,
                prompt_tokens: tokens.len(),
            });
        }
        let room = ask.tokens_max.unwrap_or(context).clamp(1, context / 2);
        tokens.drain(..tokens.len() - (context - room));
    }
    Ok(tokens)
}

fn continue_prompt(
    model: &Model,
    ask: &Ask,
    prompt: &[u32],
    choice: u32,
    emit: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    gone: &dyn Fn() -> bool,
) -> Result<ControlFlow<()>, AnswerError> {
    let seed = ask
        .sampling
        .seed
        .wrapping_add(u64::from(choice).wrapping_mul(SEED_STEP));
    let sampling = SamplingSettings {
        seed,
        ..ask.sampling
    };
    let room = model.context() - prompt.len();
    let tokens_max = ask.tokens_max.map_or(room, |asked| asked.min(room));
    let mut session = model.generator.session();
    session.prefill(prompt).map_err(AnswerError::Engine)?;
    let mut decoder = model.tokenizer.decode_stream();
    let mut text = AnswerText::new(ask);
    let mut tokens = 0;
    let mut reason = FinishReason::Length;
    while tokens < tokens_max {
        if gone() {
            return Ok(ControlFlow::Break(()));
        }
        let token = session.next_token(&sampling).map_err(AnswerError::Engine)?;
        if token == model.tokenizer.end_of_text() {
            reason = FinishReason::Stop;
            break;
        }
        tokens += 1;
        let safe = text.push(&decoder.push(token));
        if !safe.is_empty() && emit(Piece::Text { choice, text: safe }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if text.filter.stopped() {
            break;
        }
    }
    let mut rest = text.push(&decoder.finish());
    if text.filter.stopped() {
        reason = FinishReason::Stop;
    } else {
        rest.push_str(&text.finish());
    }
    if !rest.is_empty() && emit(Piece::Text { choice, text: rest }).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    Ok(emit(Piece::Finished {
        choice,
        reason,
        tokens,
    }))
}

/// The stop filter, and behind it the trimming of white space before the answer.
struct AnswerText {
    filter: StopFilter,
    trimming: bool,
}

impl AnswerText {
    fn new(ask: &Ask) -> Self {
        Self {
            filter: StopFilter::new(ask.stops.clone()),
            trimming: ask.trim_start,
        }
    }

    fn push(&mut self, text: &str) -> String {
        let safe = self.filter.push(text);
        self.trim(safe)
    }

    fn finish(mut self) -> String {
        let filter = std::mem::replace(&mut self.filter, StopFilter::new(Vec::new()));
        let rest = filter.finish();
        self.trim(rest)
    }

    fn trim(&mut self, text: String) -> String {
        if !self.trimming {
            return text;
        }
        let trimmed = text.trim_start();
        self.trimming = trimmed.is_empty();
        trimmed.to_owned()
    }
}

#[cfg(test)]
mod tests;
