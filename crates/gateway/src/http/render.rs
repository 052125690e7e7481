//! Answers as OpenAI's JSON, whole or as a stream of chunks. Both are made of the same pieces, so they say the same.

use axum::response::sse::Event;
use serde_json::{Value, json};

use super::{error::ApiError, request::Endpoint};
use crate::answer::{FinishReason, Piece};

/// What stands in every object of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) endpoint: Endpoint,
    pub(crate) id: String,
    pub(crate) created_s: u64,
    /// The name that was asked for.
    pub(crate) model: String,
    /// The checkpoint's hash, short.
    pub(crate) fingerprint: String,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

/// Collects pieces into a whole answer.
#[derive(Debug)]
pub(crate) struct Whole {
    frame: Frame,
    usage: Usage,
    choices: Vec<(String, Option<FinishReason>)>,
}

/// Turns pieces into chunks.
#[derive(Debug)]
pub(crate) struct Chunks {
    frame: Frame,
    usage: Usage,
    choices: u32,
    finished: u32,
    include_usage: bool,
    ended: bool,
}

impl FinishReason {
    fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Usage {
    fn count(&mut self, piece: &Piece) {
        match piece {
            Piece::Started { prompt_tokens } => self.prompt_tokens = *prompt_tokens,
            Piece::Text { .. } => {}
            Piece::Finished { tokens, .. } => self.completion_tokens += tokens,
        }
    }

    fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }
}

impl Frame {
    fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

impl Whole {
    pub(crate) fn new(frame: Frame, choices: u32) -> Self {
        Self {
            frame,
            usage: Usage::default(),
            choices: vec![(String::new(), None); choices as usize],
        }
    }

    pub(crate) fn push(&mut self, piece: Piece) {
        self.usage.count(&piece);
        match piece {
            Piece::Started { .. } => {}
            Piece::Text { choice, text } => self.choices[choice as usize].0.push_str(&text),
            Piece::Finished { choice, reason, .. } => {
                self.choices[choice as usize].1 = Some(reason)
            }
        }
    }

    /// The answer, if every choice has come to its end.
    pub(crate) fn finish(self) -> Option<Value> {
        let mut choices = Vec::with_capacity(self.choices.len());
        for (index, (text, reason)) in self.choices.into_iter().enumerate() {
            let reason = reason?.name();
            choices.push(match self.frame.endpoint {
                Endpoint::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": null},
                    "logprobs": null,
                    "finish_reason": reason,
                }),
                Endpoint::Completions => json!({
                    "index": index,
                    "text": text,
                    "logprobs": null,
                    "finish_reason": reason,
                }),
            });
        }
        let kind = match self.frame.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completions => "text_completion",
        };
        let mut answer = self.frame.object(kind, choices);
        answer["usage"] = self.usage.to_json();
        Some(answer)
    }
}

impl Chunks {
    pub(crate) fn new(frame: Frame, choices: u32, include_usage: bool) -> Self {
        Self {
            frame,
            usage: Usage::default(),
            choices,
            finished: 0,
            include_usage,
            ended: false,
        }
    }

    /// The events that this piece becomes; an error ends the stream.
    pub(crate) fn push(&mut self, piece: Result<Piece, ApiError>) -> Vec<Event> {
        if self.ended {
            return Vec::new();
        }
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                self.ended = true;
                return vec![event(&error.to_json())];
            }
        };
        self.usage.count(&piece);
        match piece {
            Piece::Started { .. } if self.frame.endpoint == Endpoint::Chat => {
                let role = json!({"role": "assistant", "content": ""});
                (0..self.choices)
                    .map(|choice| self.chunk(choice, &role, None))
                    .collect()
            }
            Piece::Started { .. } => Vec::new(),
            Piece::Text { choice, text } => vec![self.text(choice, &text, None)],
            Piece::Finished { choice, reason, .. } => {
                self.finished += 1;
                vec![self.text(choice, "", Some(reason))]
            }
        }
    }

    /// The events after the last piece: the count of tokens if asked for, and the end's mark.
    pub(crate) fn finish(&mut self) -> Vec<Event> {
        if self.ended {
            return Vec::new();
        }
        if self.finished < self.choices {
            return self.push(Err(ApiError::internal()));
        }
        self.ended = true;
        let mut events = Vec::new();
        if self.include_usage {
            let mut chunk = self.frame.object(self.kind(), Vec::new());
            chunk["usage"] = self.usage.to_json();
            events.push(event(&chunk));
        }
        events.push(Event::default().data("[DONE]"));
        events
    }

    fn text(&self, choice: u32, text: &str, reason: Option<FinishReason>) -> Event {
        match self.frame.endpoint {
            Endpoint::Chat if text.is_empty() => self.chunk(choice, &json!({}), reason),
            Endpoint::Chat => self.chunk(choice, &json!({"content": text}), reason),
            Endpoint::Completions => self.chunk(choice, &Value::from(text), reason),
        }
    }

    fn chunk(&self, choice: u32, content: &Value, reason: Option<FinishReason>) -> Event {
        let field = match self.frame.endpoint {
            Endpoint::Chat => "delta",
            Endpoint::Completions => "text",
        };
        let reason = reason.map(FinishReason::name);
        let choice =
            json!({"index": choice, field: content, "logprobs": null, "finish_reason": reason});
        let mut chunk = self.frame.object(self.kind(), vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }

    fn kind(&self) -> &'static str {
        match self.frame.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completions => "text_completion",
        }
    }
}

/// JSON on one line, as server-sent events want it.
fn event(value: &Value) -> Event {
    Event::default().data(value.to_string())
}
