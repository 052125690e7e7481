//! Requests of `/v1/chat/completions` and `/v1/completions`: what is understood, what is refused by name.
//!
//! Fields and limits after the OpenAI API reference (chat completions and legacy completions), May 2026.
//! Beyond it: `truncation` (`"disabled"`, the default, or `"auto"`), with the meaning that it has in OpenAI's responses
//! API: a prompt too long for the context is refused, or loses its oldest tokens.

use engine::generate::SamplingSettings;
use serde_json::Value;

use super::{error::ApiError, fields::Fields};
use crate::{
    answer::{Ask, Prompt},
    chat::{self, Message, Role},
};

/// Most answers to one request.
const CHOICES_MAX: u64 = 4;
/// Most stop sequences of one request.
const STOPS_MAX: usize = 4;
/// Longest stop sequence.
const STOP_BYTES_MAX: usize = 256;
/// Most messages of one conversation.
const MESSAGES_MAX: usize = 256;
/// Most tokens of a prompt given as tokens.
const PROMPT_TOKENS_MAX: usize = 1 << 17;
/// Tokens of a completion that doesn't say how many.
const COMPLETION_TOKENS_DEFAULT: u64 = 16;

/// Which of the two ways to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
}

/// A whole request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) endpoint: Endpoint,
    pub(crate) model: String,
    pub(crate) ask: Ask,
    pub(crate) stream: bool,
    /// Whether a stream ends with a count of tokens.
    pub(crate) include_usage: bool,
}

impl Endpoint {
    /// The field that the prompt is in.
    pub(crate) fn prompt_param(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completions => "prompt",
        }
    }
}

impl Request {
    /// Reads a body; `seed` is used if it names none.
    pub(crate) fn from_body(endpoint: Endpoint, body: &[u8], seed: u64) -> Result<Self, ApiError> {
        let fields = Fields::from_body(body)?;
        let model = fields
            .text("model")?
            .ok_or(ApiError::missing("model"))?
            .to_owned();
        refuse_unsupported(&fields)?;
        let prompt = match endpoint {
            Endpoint::Chat => Prompt::Text(chat::prompt(&messages(&fields)?)),
            Endpoint::Completions => prompt(&fields)?,
        };
        let mut stops = stops(&fields)?;
        if endpoint == Endpoint::Chat {
            stops.extend(chat::stops());
        }
        let stream = fields.flag("stream")?;
        Ok(Self {
            endpoint,
            model,
            ask: Ask {
                prompt,
                choices: fields.integer("n", 1..=CHOICES_MAX)?.unwrap_or(1) as u32,
                tokens_max: tokens_max(endpoint, &fields)?,
                sampling: sampling(&fields, seed)?,
                stops,
                truncate: truncate(&fields)?,
                trim_start: endpoint == Endpoint::Chat,
            },
            stream,
            include_usage: include_usage(&fields, stream)?,
        })
    }
}

fn messages(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let list = fields
        .get("messages")
        .ok_or(ApiError::missing("messages"))?;
    let list = list
        .as_array()
        .ok_or_else(|| ApiError::invalid("messages", "'messages' must be a list"))?;
    if list.is_empty() || list.len() > MESSAGES_MAX {
        let found = list.len();
        let message = format!("'messages' has {found} messages; it must have 1 to {MESSAGES_MAX}");
        return Err(ApiError::invalid("messages", message));
    }
    list.iter()
        .enumerate()
        .map(|(index, value)| message(index, value))
        .collect()
}

fn message(index: usize, value: &Value) -> Result<Message, ApiError> {
    let refuse = |problem: &str| {
        Err(ApiError::invalid(
            "messages",
            format!("messages[{index}]{problem}"),
        ))
    };
    let Some(role) = value["role"].as_str() else {
        return refuse(" has no role");
    };
    let Some(role) = Role::from_name(role) else {
        return refuse(".role must be system, developer, user or assistant");
    };
    let text = match &value["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| match part["type"].as_str() {
                Some("text") => part["text"].as_str(),
                _ => None,
            });
            match texts.collect::<Option<Vec<_>>>() {
                Some(texts) => texts.join("\n"),
                None => {
                    return refuse(
                        ".content has a part that is not text; these models read text alone",
                    );
                }
            }
        }
        _ => return refuse(".content must be a string or a list of text parts"),
    };
    Ok(Message { role, text })
}

fn prompt(fields: &Fields) -> Result<Prompt, ApiError> {
    let refuse = || {
        let message = "'prompt' must be one string, a list with one string, or a list of tokens";
        Err(ApiError::invalid("prompt", message))
    };
    match fields.get("prompt") {
        None => Ok(Prompt::Text(String::new())),
        Some(Value::String(text)) => Ok(Prompt::Text(text.clone())),
        Some(Value::Array(parts)) => match parts.as_slice() {
            [Value::String(text)] => Ok(Prompt::Text(text.clone())),
            tokens if !tokens.is_empty() && tokens.len() <= PROMPT_TOKENS_MAX => {
                let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
                tokens
                    .iter()
                    .map(token)
                    .collect::<Option<_>>()
                    .map_or_else(refuse, |ids| Ok(Prompt::Tokens(ids)))
            }
            _ => refuse(),
        },
        Some(_) => refuse(),
    }
}

fn stops(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let refuse = || {
        let message = format!(
            "'stop' must be a string or a list of at most {STOPS_MAX}, of 1 to {STOP_BYTES_MAX} bytes each"
        );
        Err(ApiError::invalid("stop", message))
    };
    let stops: Vec<String> = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(list)) => match list
            .iter()
            .map(|stop| stop.as_str().map(str::to_owned))
            .collect()
        {
            Some(stops) => stops,
            None => return refuse(),
        },
        Some(_) => return refuse(),
    };
    if stops.len() > STOPS_MAX
        || stops
            .iter()
            .any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX)
    {
        return refuse();
    }
    Ok(stops)
}

fn tokens_max(endpoint: Endpoint, fields: &Fields) -> Result<Option<usize>, ApiError> {
    let range = || 1..=u64::from(u32::MAX);
    let old = fields.integer("max_tokens", range())?;
    let asked = match endpoint {
        Endpoint::Chat => fields.integer("max_completion_tokens", range())?.or(old),
        Endpoint::Completions => old.or(Some(COMPLETION_TOKENS_DEFAULT)),
    };
    Ok(asked.map(|tokens| tokens as usize))
}

fn sampling(fields: &Fields, seed: u64) -> Result<SamplingSettings, ApiError> {
    let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32;
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
    Ok(SamplingSettings {
        temperature,
        // The engine wants more than 0; the least of that keeps the likeliest token alone, which is what 0 means.
        top_p: top_p.max(f32::MIN_POSITIVE),
        seed: fields.seed("seed")?.unwrap_or(seed),
    })
}

fn truncate(fields: &Fields) -> Result<bool, ApiError> {
    match fields.text("truncation")? {
        None | Some("disabled") => Ok(false),
        Some("auto") => Ok(true),
        Some(_) => Err(ApiError::invalid(
            "truncation",
            "'truncation' must be \"auto\" or \"disabled\"",
        )),
    }
}

fn include_usage(fields: &Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.get("stream_options") else {
        return Ok(false);
    };
    if !stream {
        let message = "'stream_options' is only allowed with \"stream\": true";
        return Err(ApiError::invalid("stream_options", message));
    }
    match &options["include_usage"] {
        Value::Null => Ok(false),
        Value::Bool(include) => Ok(*include),
        _ => Err(ApiError::invalid(
            "stream_options",
            "'stream_options.include_usage' must be true or false",
        )),
    }
}

/// Refuses what would change the answer if it were understood; silence would be a wrong answer.
fn refuse_unsupported(fields: &Fields) -> Result<(), ApiError> {
    for (name, why) in [
        ("tools", "these models call no tools"),
        ("tool_choice", "these models call no tools"),
        ("functions", "these models call no functions"),
        ("function_call", "these models call no functions"),
        ("logit_bias", "it is not supported"),
        ("logprobs", "it is not supported"),
        ("top_logprobs", "it is not supported"),
        ("echo", "the prompt is not repeated"),
        ("suffix", "it is not supported"),
        ("audio", "these models write text alone"),
        ("prediction", "it is not supported"),
        ("web_search_options", "it is not supported"),
        ("frequency_penalty", "it is not supported"),
        ("presence_penalty", "it is not supported"),
    ] {
        let harmless = fields.get(name).is_none_or(|value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0) && name.ends_with("_penalty"),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::String(text) => {
                text.is_empty() || matches!(text.as_str(), "none" | "auto") && name == "tool_choice"
            }
            Value::Bool(true) => false,
        });
        if !harmless {
            return Err(ApiError::unsupported(
                name,
                format!("leave out '{name}': {why}"),
            ));
        }
    }
    if fields
        .get("response_format")
        .is_some_and(|format| format["type"] != "text")
    {
        return Err(ApiError::unsupported(
            "response_format",
            "leave out 'response_format': the answer is plain text",
        ));
    }
    if fields
        .get("best_of")
        .is_some_and(|best| best.as_u64() != Some(1))
    {
        return Err(ApiError::unsupported(
            "best_of",
            "leave out 'best_of': every answer is returned",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
