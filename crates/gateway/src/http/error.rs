//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::answer::AnswerError;

/// Seconds after which a refused client may try again.
const RETRY_AFTER_S: u32 = 2;
const INVALID: &str = "invalid_request_error";

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    pub(crate) message: String,
    retry: bool,
}

impl ApiError {
    /// A parameter whose value makes no sense.
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::of(StatusCode::BAD_REQUEST, INVALID, message)
            .param(param)
            .code("invalid_value")
    }

    /// A parameter that OpenAI has and this API doesn't.
    pub(crate) fn unsupported(param: &'static str, message: impl Into<String>) -> Self {
        Self::of(StatusCode::BAD_REQUEST, INVALID, message)
            .param(param)
            .code("unsupported_parameter")
    }

    /// A parameter that is missing.
    pub(crate) fn missing(param: &'static str) -> Self {
        let message = format!("you must provide the parameter '{param}'");
        Self::of(StatusCode::BAD_REQUEST, INVALID, message)
            .param(param)
            .code("missing_required_parameter")
    }

    /// A body that is no JSON object.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::of(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// A body that is too large.
    pub(crate) fn too_large(bytes_max: usize) -> Self {
        let message = format!("the request's body is larger than {bytes_max} bytes");
        Self::of(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message)
    }

    /// No model of this name.
    pub(crate) fn model_not_found(name: &str) -> Self {
        let name: String = name.chars().take(128).collect();
        let message =
            format!("the model '{name}' does not exist here; GET /v1/models lists those that do");
        Self::of(StatusCode::NOT_FOUND, INVALID, message)
            .param("model")
            .code("model_not_found")
    }

    /// No such address.
    pub(crate) fn unknown_url(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(256).collect();
        let message = format!("unknown request URL: {method} {path}");
        Self::of(StatusCode::NOT_FOUND, INVALID, message).code("unknown_url")
    }

    /// A known address, another method.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(256).collect();
        let message = format!("{method} is not supported by {path}");
        Self::of(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).code("method_not_supported")
    }

    /// All places are taken.
    pub(crate) fn busy() -> Self {
        let message =
            "all places are taken: too many answers are being written; try again in a moment";
        let mut error = Self::of(StatusCode::TOO_MANY_REQUESTS, "requests", message);
        error.retry = true;
        error.code("rate_limit_exceeded")
    }

    /// The gateway is stopping.
    pub(crate) fn stopping() -> Self {
        let message = "the gateway is stopping; try again in a moment";
        let mut error = Self::of(StatusCode::SERVICE_UNAVAILABLE, "server_error", message);
        error.retry = true;
        error.code("service_unavailable")
    }

    /// Our fault; the cause stands in the log.
    pub(crate) fn internal() -> Self {
        let message = "the answer failed on the server's side; nothing is wrong with the request";
        Self::of(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What the engine said, for a prompt given in `param`.
    pub(crate) fn from_answer(error: AnswerError, param: &'static str) -> Self {
        match error {
            AnswerError::ContextExceeded {
                context,
                prompt_tokens,
            } => {
                let message = format!(
                    "this model's maximum context length is {context} tokens, and the {param} came to {prompt_tokens}, which leaves \
                     no room for an answer; shorten the {param}, or set \"truncation\": \"auto\" to keep its newest tokens"
                );
                Self::of(StatusCode::BAD_REQUEST, INVALID, message)
                    .param(param)
                    .code("context_length_exceeded")
            }
            AnswerError::Token { token, vocabulary } => Self::invalid(
                param,
                format!("token {token} is not below the vocabulary's size {vocabulary}"),
            ),
            AnswerError::Engine(error) => {
                tracing::error!(error = format!("{error:#}"), "the engine failed to answer");
                Self::internal()
            }
        }
    }

    /// The body.
    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    fn of(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            param: None,
            code: None,
            message: message.into(),
            retry: false,
        }
    }

    fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        if self.retry {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}
