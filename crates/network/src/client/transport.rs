//! How a call reaches a hub: over HTTP, or, in the simulator, over its network.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::Response;

/// Why a call got no answer.
pub type TransportError = Box<dyn std::error::Error + Send + Sync>;

/// A network that is not the machine's: the simulator's.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Carries one request and brings its answer, whole or with a body that breaks off.
    ///
    /// # Errors
    /// No answer came.
    fn carry(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'_, Result<http::Response<reqwest::Body>, TransportError>>;
}

/// The way to a hub.
#[derive(Clone, Debug)]
pub(super) enum Way {
    Http(reqwest::Client),
    Simulated(Arc<dyn Transport>),
}

/// A call as it is sent.
pub(super) struct Outgoing<'a> {
    pub(super) method: reqwest::Method,
    pub(super) url: &'a str,
    pub(super) headers: Vec<(&'static str, &'a str)>,
    pub(super) body: Option<Bytes>,
    pub(super) timeout: Option<Duration>,
}

impl Way {
    /// Sends a call once; any status is an answer.
    pub(super) async fn send(&self, call: Outgoing<'_>) -> Result<Response, TransportError> {
        match self {
            Self::Http(client) => {
                let mut request = client.request(call.method, call.url);
                for (name, value) in call.headers {
                    request = request.header(name, value);
                }
                if let Some(body) = call.body {
                    request = request.body(body);
                }
                if let Some(timeout) = call.timeout {
                    request = request.timeout(timeout);
                }
                Ok(request.send().await.map_err(reqwest::Error::without_url)?)
            }
            Self::Simulated(transport) => {
                let mut request = http::Request::builder().method(call.method).uri(call.url);
                for (name, value) in call.headers {
                    request = request.header(name, value);
                }
                let answer = transport.carry(request.body(call.body.unwrap_or_default())?);
                let answer = match call.timeout {
                    Some(timeout) => tokio::time::timeout(timeout, answer).await??,
                    None => answer.await?,
                };
                Ok(answer.into())
            }
        }
    }
}
