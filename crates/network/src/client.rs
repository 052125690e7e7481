//! Typed calls of the hub's HTTP API (`protocol::api`).

mod error;
mod request;
mod transport;

use std::{sync::Arc, time::Duration};

use protocol::{
    api::{
        ApiError, CheckpointSummary, CommandReply, CreateRun, CreatedRun, HubInfo, LogPage,
        LossPoint, ROUNDS_PAGE_MAX, RoundSummary, RunSummary, Work, WorkerSummary,
    },
    charter::{CHARTER_BYTES_MAX, Charter},
    command::SignedCommand,
    units::{RunId, WorkerId},
};
use reqwest::Method;

pub use error::ClientError;
use request::{Call, JSON_BYTES_MAX};
use transport::Way;
pub use transport::{Transport, TransportError};

use crate::retry::RetryPolicy;

/// Longest time that [`HubClient::work`] lets the hub wait for news.
pub const WAIT_MS_MAX: u64 = 25_000;
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of an answer; the event stream's keep-alive comments come more often.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a call that the hub answers at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Added to a long poll's wait before it counts as lost.
const POLL_SLACK: Duration = Duration::from_secs(15);

/// A hub, or a mirror of one, at an address.
///
/// Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct HubClient {
    way: Way,
    /// Without a slash at its end.
    address: String,
    retry: RetryPolicy,
}

impl HubClient {
    /// A client of the hub at `address` (`http://host:port` or `https://…`; without a scheme, `http://` is meant).
    ///
    /// # Errors
    /// [`ClientError::Address`] for anything that is no such address.
    pub fn new(address: &str) -> Result<Self, ClientError> {
        let bad = |problem: String| ClientError::Address {
            address: address.to_owned(),
            problem,
        };
        let with_scheme = if address.contains("://") {
            address.to_owned()
        } else {
            format!("http://{address}")
        };
        let url = reqwest::Url::parse(&with_scheme).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(bad("it is not http://HOST:PORT or https://HOST".into()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("it has a query or a fragment".into()));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(4))
            .user_agent(concat!("athome/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            way: Way::Http(http),
            address: url.as_str().trim_end_matches('/').to_owned(),
            retry: RetryPolicy::default(),
        })
    }

    /// A client whose calls another network than the machine's carries.
    #[must_use]
    pub fn over(transport: Arc<dyn Transport>, address: &str) -> Self {
        Self {
            way: Way::Simulated(transport),
            address: address.trim_end_matches('/').to_owned(),
            retry: RetryPolicy::default(),
        }
    }

    /// The same client with another patience for calls that can be repeated.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The hub's address, without a slash at its end.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The hub's introduction.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hub_info(&self) -> Result<HubInfo, ClientError> {
        self.json(self.get("hub")).await
    }

    /// All runs of the hub.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn runs(&self) -> Result<Vec<RunSummary>, ClientError> {
        self.json(self.get("runs")).await
    }

    /// A run by id or name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn run(&self, run: &str) -> Result<RunSummary, ClientError> {
        self.json(self.get(&format!("runs/{}", segment(run)))).await
    }

    /// A run's charter, checked to hash to the id asked for.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Malformed`] for a charter of another run.
    pub async fn charter(&self, run: RunId) -> Result<Charter, ClientError> {
        let call = self.get(&format!("runs/{run}/charter"));
        let body = self.bytes(call.body_max(CHARTER_BYTES_MAX)).await?;
        let malformed = |problem: String| ClientError::Malformed {
            what: "the charter",
            problem,
        };
        let text = String::from_utf8(body).map_err(|error| malformed(error.to_string()))?;
        let charter = Charter::from_toml(&text).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            malformed(cause.unwrap_or_else(|| error.to_string()))
        })?;
        if charter.id() != run {
            return Err(malformed(format!(
                "it is that of run {}, not of {}",
                charter.id().short(),
                run.short()
            )));
        }
        Ok(charter)
    }

    /// Rounds below `before` (the newest ones without it), newest first, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn rounds(
        &self,
        run: RunId,
        before: Option<u64>,
        limit: u64,
    ) -> Result<Vec<RoundSummary>, ClientError> {
        let mut path = format!("runs/{run}/rounds?limit={}", limit.min(ROUNDS_PAGE_MAX));
        if let Some(before) = before {
            path.push_str(&format!("&before={before}"));
        }
        self.json(self.get(&path)).await
    }

    /// One round.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn round(&self, run: RunId, round: u64) -> Result<RoundSummary, ClientError> {
        self.json(self.get(&format!("runs/{run}/rounds/{round}")))
            .await
    }

    /// Everyone who joined the run.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn workers(&self, run: RunId) -> Result<Vec<WorkerSummary>, ClientError> {
        self.json(self.get(&format!("runs/{run}/workers"))).await
    }

    /// The loss curves, oldest point first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn losses(&self, run: RunId) -> Result<Vec<LossPoint>, ClientError> {
        self.json(self.get(&format!("runs/{run}/losses"))).await
    }

    /// Checkpoints that are kept whole, newest first, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn checkpoints(
        &self,
        run: RunId,
        limit: u64,
    ) -> Result<Vec<CheckpointSummary>, ClientError> {
        self.json(self.get(&format!("runs/{run}/checkpoints?limit={limit}")))
            .await
    }

    /// A page of the log as JSON, for people; [`crate::log::LogReader`] gives entries that are checked.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn log_page(
        &self,
        run: RunId,
        from: u64,
        limit: u64,
    ) -> Result<LogPage, ClientError> {
        self.json(self.get(&format!("runs/{run}/log?from={from}&limit={limit}")))
            .await
    }

    /// What a worker is to do; answers at once if the log is longer than `after`, else within `wait_ms`
    /// (at most [`WAIT_MS_MAX`]). Counts as a sign of life.
    ///
    /// One attempt: the caller polls anyway.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn work(
        &self,
        run: RunId,
        worker: WorkerId,
        after: u64,
        wait_ms: u64,
    ) -> Result<Work, ClientError> {
        let wait_ms = wait_ms.min(WAIT_MS_MAX);
        let path = format!("runs/{run}/work?worker={worker}&after={after}&wait_ms={wait_ms}");
        let call = self
            .get(&path)
            .once()
            .timeout(Duration::from_millis(wait_ms) + POLL_SLACK);
        self.json(call).await
    }

    /// Sends a signed command. Safe to repeat: the same command again is answered as the first time.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the protocol's refusal code, or any other [`ClientError`].
    pub async fn command(&self, command: &SignedCommand) -> Result<CommandReply, ClientError> {
        let path = format!("runs/{}/commands", command.run);
        let call = self
            .call(Method::POST, &path)
            .bytes("application/octet-stream", command.to_bytes());
        self.json(call).await
    }

    /// Opens a run. Loopback peers need no token; others need the operator's.
    ///
    /// One attempt: repeating it is safe only for a person who looks first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_run(
        &self,
        request: &CreateRun,
        operator_token: Option<&str>,
    ) -> Result<CreatedRun, ClientError> {
        let body = serde_json::to_vec(request).expect("a request of texts has a JSON form");
        let mut call = self
            .call(Method::POST, "runs")
            .once()
            .bytes("application/json", body);
        if let Some(token) = operator_token {
            call = call.header("authorization", format!("Bearer {token}"));
        }
        self.json(call).await
    }

    fn get(&self, path: &str) -> Call {
        self.call(Method::GET, path)
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, format!("{}/api/v1/{path}", self.address))
            .timeout(CALL_TIMEOUT)
            .body_max(JSON_BYTES_MAX)
            .retry(self.retry)
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        self.retry
    }
}

/// A run's name as one segment of a path: everything but letters, digits and `-_.` as `%XX`.
fn segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

/// The refusal that an error body tells of, or what can be said without one.
pub(crate) fn refusal(status: reqwest::StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => ClientError::Refused {
            status: status.as_u16(),
            code: error.code,
            message: error.message,
        },
        Err(_) => ClientError::Refused {
            status: status.as_u16(),
            code: "http".to_owned(),
            message: format!("the hub answered {status}"),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests;
