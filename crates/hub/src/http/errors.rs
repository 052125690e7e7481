//! The one type of error that leaves the hub: a stable code, a safe sentence. Causes go to the log only.

use axum::{
    Json, body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{
    api::{
        ApiError,
        mirrors::{HUB_ADDRESS, MIRROR_CODE},
    },
    state::decide::RefusalCode,
};

use crate::{create::CreateError, metrics::refusal_code, run::RunError};

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    code: String,
    message: String,
    retry_after_s: Option<u32>,
    /// Where a mirror sends those who want the run's hub.
    hub_address: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            retry_after_s: None,
            hub_address: None,
        }
    }

    pub(crate) fn code(&self) -> &str {
        &self.code
    }

    /// The sentence for whoever asked.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", what)
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        Self {
            retry_after_s: Some(1),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message)
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = Json(ApiError {
            code: self.code,
            message: self.message,
        });
        let mut response = (self.status, body).into_response();
        if let Some(address) = self
            .hub_address
            .and_then(|it| HeaderValue::from_str(&it).ok())
        {
            response.headers_mut().insert(HUB_ADDRESS, address);
        }
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Longest sentence taken over from a refusal of axum's own.
const SENTENCE_BYTES_MAX: usize = 1024;

/// What axum refuses by itself (a body too long, a query that does not read, a method that is not there), as one of ours.
pub(super) async fn in_our_form(response: Response) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|it| it.as_bytes().starts_with(b"application/json"));
    // 416 has headers that say what range there is.
    if !status.is_client_error() || is_json || status == StatusCode::RANGE_NOT_SATISFIABLE {
        return response;
    }
    let text = body::to_bytes(response.into_body(), SENTENCE_BYTES_MAX)
        .await
        .unwrap_or_default();
    let (code, otherwise) = match status {
        StatusCode::PAYLOAD_TOO_LARGE => ("too_long", "the body is too long"),
        StatusCode::METHOD_NOT_ALLOWED => ("method", "this address does not take that method"),
        _ => ("bad_request", "the request does not read"),
    };
    let message = match std::str::from_utf8(&text) {
        Ok(text) if !text.is_empty() => text,
        _ => otherwise,
    };
    Failure::new(status, code, message).into_response()
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!("a request failed: {error:#}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the hub failed to answer; its operator finds the cause in the hub's log",
        )
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Refused(refusal) => {
                let status = match refusal.code {
                    RefusalCode::Signature => StatusCode::FORBIDDEN,
                    _ => StatusCode::CONFLICT,
                };
                Self::new(status, &refusal_code(refusal.code), refusal.sentence)
            }
            RunError::Mirror(ref hub_address) => Self {
                hub_address: hub_address.clone(),
                ..Self::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    MIRROR_CODE,
                    error.to_string(),
                )
            },
            // As of a mirror: whoever has the run's successor is asked next.
            RunError::Stopped(_) => Self::new(
                StatusCode::MISDIRECTED_REQUEST,
                MIRROR_CODE,
                error.to_string(),
            ),
            RunError::CannotTakeOver(why) => {
                Self::new(StatusCode::CONFLICT, "cannot_take_over", why)
            }
            RunError::Unavailable => Self {
                retry_after_s: Some(5),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "unavailable",
                    error.to_string(),
                )
            },
        }
    }
}

impl From<CreateError> for Failure {
    fn from(error: CreateError) -> Self {
        let message = error.to_string();
        match error {
            CreateError::Charter(error) => {
                let message = format!("{:#}", anyhow::Error::from(error));
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "charter", message)
            }
            CreateError::Wrong(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "charter", message)
            }
            CreateError::NameTaken(_) => Self::new(StatusCode::CONFLICT, "name_taken", message),
            CreateError::Missing(_) => Self::new(StatusCode::CONFLICT, "missing_blobs", message),
            CreateError::Inside(inside) => inside.into(),
        }
    }
}
