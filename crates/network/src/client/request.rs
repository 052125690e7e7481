//! One HTTP call: limits, repetition, and what its failure is called.

use std::time::Duration;

use bytes::Bytes;
use protocol::api::mirrors::HUB_ADDRESS;
use reqwest::{Method, Response, StatusCode, header::HeaderMap};
use serde::de::DeserializeOwned;

use super::{ClientError, HubClient, TransportError, refusal, transport::Outgoing};
use crate::retry::RetryPolicy;

/// Longest JSON answer read: 500 rounds of a thousand contributions stay below it.
pub(crate) const JSON_BYTES_MAX: usize = 64 << 20;
/// Longest error body read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// A call before it is made.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    /// Path and query, after the hub's address.
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<(&'static str, Bytes)>,
    timeout: Option<Duration>,
    body_max: usize,
    retry: RetryPolicy,
    /// Whether the hub is looked for elsewhere if there is no answer.
    is_trial: bool,
}

impl Call {
    pub(crate) fn new(method: Method, path: String) -> Self {
        Self {
            method,
            path,
            headers: Vec::new(),
            body: None,
            timeout: None,
            body_max: JSON_BYTES_MAX,
            retry: RetryPolicy::once(),
            is_trial: true,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn bytes(mut self, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.body = Some((media_type, body.into()));
        self
    }

    /// For the whole call, the body included.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// For the connection and each silence, not for the whole.
    pub(crate) fn without_timeout(mut self) -> Self {
        self.timeout = None;
        self
    }

    pub(crate) fn body_max(mut self, bytes: usize) -> Self {
        self.body_max = bytes;
        self
    }

    pub(crate) fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// No answer within the short time of this call says nothing of the hub.
    pub(crate) fn without_trial(mut self) -> Self {
        self.is_trial = false;
        self
    }

    pub(crate) fn once(self) -> Self {
        self.retry(RetryPolicy::once())
    }
}

impl HubClient {
    /// The answer's JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let body = self.bytes(call).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Malformed {
            what: "an answer",
            problem: error.to_string(),
        })
    }

    /// The answer's bytes.
    pub(crate) async fn bytes(&self, call: Call) -> Result<Vec<u8>, ClientError> {
        Ok(self.headers_and_bytes(call).await?.1)
    }

    /// The answer's headers and bytes, after as many attempts as the call allows.
    pub(crate) async fn headers_and_bytes(
        &self,
        call: Call,
    ) -> Result<(HeaderMap, Vec<u8>), ClientError> {
        let (_, headers, bytes) = self.answer(call).await?;
        Ok((headers, bytes))
    }

    /// The answer's status, a success, and its bytes, after as many attempts as the call allows.
    pub(crate) async fn status_and_bytes(
        &self,
        call: Call,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let (status, _, bytes) = self.answer(call).await?;
        Ok((status, bytes))
    }

    async fn answer(&self, call: Call) -> Result<(StatusCode, HeaderMap, Vec<u8>), ClientError> {
        let mut failures = 0;
        loop {
            let error = match self.attempt(&call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            if failures >= call.retry.attempts || !error.is_temporary() {
                return Err(error);
            }
            let wait = call.retry.wait_after(failures);
            tracing::debug!(
                path = call.path,
                wait_ms = wait.as_millis() as u64,
                "repeating: {error}"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, call: &Call) -> Result<(StatusCode, HeaderMap, Vec<u8>), ClientError> {
        let response = self.send(call).await?;
        let status = response.status();
        let headers = response.headers().clone();
        if !status.is_success() {
            return Err(self.refused(response).await);
        }
        Ok((
            status,
            headers,
            self.read_body(response, call.body_max).await?,
        ))
    }

    /// Sends a call once; any status is an answer. Whoever does not answer, or is not the hub, is left for the next address.
    pub(crate) async fn send(&self, call: &Call) -> Result<Response, ClientError> {
        let address = self.current_address();
        let url = format!("{address}{}", call.path);
        let mut headers: Vec<_> = call
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        headers.extend(call.body.iter().map(|(kind, _)| ("content-type", *kind)));
        let outgoing = Outgoing {
            method: call.method.clone(),
            url: &url,
            headers,
            body: call.body.as_ref().map(|(_, body)| body.clone()),
            timeout: call.timeout,
        };
        let response = self.way.send(outgoing).await.map_err(|source| {
            if call.is_trial {
                self.leave_address(&address);
            }
            ClientError::Unreachable {
                address: address.to_string(),
                source,
            }
        })?;
        self.look_elsewhere(&address, &response);
        Ok(response)
    }

    /// A mirror names its hub; a proxy without its hub behind it names nobody. An address that is not known from elsewhere is
    /// not followed: a mirror is no guide to whom else this machine should believe.
    fn look_elsewhere(&self, address: &str, response: &Response) {
        match response.status() {
            StatusCode::MISDIRECTED_REQUEST => {
                let named = response.headers().get(HUB_ADDRESS);
                let named = named.and_then(|it| it.to_str().ok());
                let is_known = named.is_some_and(|it| self.addresses.go_to_known(it));
                // Who names itself sends in circles.
                if !is_known || *self.current_address() == *address {
                    self.leave_address(address);
                }
            }
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
                self.leave_address(address);
            }
            _ => {}
        }
    }

    /// What an answer that is no success says.
    pub(crate) async fn refused(&self, response: Response) -> ClientError {
        let status: StatusCode = response.status();
        match self.read_body(response, ERROR_BYTES_MAX).await {
            Ok(body) => refusal(status, &body),
            Err(ClientError::TooLong { .. }) => refusal(status, &[]),
            Err(error) => error,
        }
    }

    async fn read_body(
        &self,
        mut response: Response,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ClientError> {
        let too_long = || ClientError::TooLong {
            bytes_max: bytes_max as u64,
        };
        let announced = response.content_length().unwrap_or(0);
        if announced > bytes_max as u64 {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.unreachable(error.without_url().into()))?
        {
            if body.len() + chunk.len() > bytes_max {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) fn unreachable(&self, source: TransportError) -> ClientError {
        ClientError::Unreachable {
            address: self.current_address().to_string(),
            source,
        }
    }
}
