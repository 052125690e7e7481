//! Typed calls of the hub's HTTP API (`protocol::api`).

pub mod accounts;
mod addresses;
mod error;
mod mirrors;
mod request;
mod transport;

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use protocol::{
    api::{
        ApiError, CheckpointSummary, CommandReply, CreateRun, CreatedRun, HubInfo, LogPage,
        LossPoint, Peers, ROUNDS_PAGE_MAX, RoundSummary, RunSummary, Work, WorkerSummary,
        mirrors::SUCCESSION,
    },
    charter::{CHARTER_BYTES_MAX, Charter},
    command::SignedCommand,
    peers::SignedPeersQuestion,
    succession::Succession,
    units::{RunId, WorkerId},
};
use reqwest::Method;

use addresses::Addresses;
pub use addresses::{ADDRESSES_MAX, checked as checked_address};
pub use error::ClientError;
pub(crate) use mirrors::sealing_of;
use request::{Call, JSON_BYTES_MAX};
use transport::Way;
pub use transport::{Transport, TransportError};

use crate::{disk::Disk, retry::RetryPolicy, text::printable};

/// Longest code or sentence taken over from a hub's refusal.
const SENTENCE_CHARS_MAX: usize = 1_000;
/// Redirections followed at most, all to the host that was asked.
const REDIRECTIONS_MAX: usize = 4;
/// Longest answer to a poll: as many deltas as there may be.
const WORK_BYTES_MAX: usize = 16 << 20;
/// Longest time that [`HubClient::work`] lets the hub wait for news.
pub const WAIT_MS_MAX: u64 = 25_000;
/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence in the middle of an answer; the event stream's keep-alive comments come more often.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a call that the hub answers at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the question who has a blob.
const PEERS_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer to it.
const PEERS_BYTES_MAX: usize = 64 << 10;
/// Added to a long poll's wait before it counts as lost.
const POLL_SLACK: Duration = Duration::from_secs(15);

/// A hub, or a mirror of one, at an address, and at the others where it is looked for when that one does not answer.
///
/// Cheap to clone; clones share connections and addresses.
#[derive(Clone, Debug)]
pub struct HubClient {
    way: Way,
    /// As it was given, without a slash at its end.
    address: Arc<str>,
    addresses: Addresses,
    /// The newest succession that this client saw proof of, as a poll shows it.
    shown: Arc<Mutex<Option<String>>>,
    retry: RetryPolicy,
}

impl HubClient {
    /// A client of the hub at `address` (`http://host:port` or `https://…`; without a scheme, `http://` is meant).
    ///
    /// # Errors
    /// [`ClientError::Address`] for anything that is no such address.
    pub fn new(address: &str) -> Result<Self, ClientError> {
        let address: Arc<str> = addresses::checked(address)?.into();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::custom(redirected))
            .user_agent(concat!("athome/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClientError::Address {
                address: address.to_string(),
                problem: error.to_string(),
            })?;
        Ok(Self {
            way: Way::Http(http),
            addresses: Addresses::new(Arc::clone(&address)),
            address,
            shown: Arc::default(),
            retry: RetryPolicy::default(),
        })
    }

    /// A client whose calls another network than the machine's carries.
    #[must_use]
    pub fn over(transport: Arc<dyn Transport>, address: &str) -> Self {
        let address: Arc<str> = address.trim_end_matches('/').into();
        Self {
            way: Way::Simulated(transport),
            addresses: Addresses::new(Arc::clone(&address)),
            address,
            shown: Arc::default(),
            retry: RetryPolicy::default(),
        }
    }

    /// The same client with another patience for calls that can be repeated.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// The hub's address as it was given, without a slash at its end.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address that the next call goes to.
    #[must_use]
    pub fn current_address(&self) -> Arc<str> {
        self.addresses.current()
    }

    /// All addresses where the hub is looked for, the given one first.
    #[must_use]
    pub fn addresses(&self) -> Vec<Arc<str>> {
        self.addresses.all()
    }

    /// Looks for the hub at these addresses too when it does not answer; what is no address is left out, what goes beyond
    /// [`ADDRESSES_MAX`], and this machine's own ones if the given one is another machine's. Only addresses that a charter or a verified succession names belong here: who answers there
    /// is believed as much as the hub.
    pub fn add_addresses<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        for address in addresses {
            self.addresses.add(address);
        }
    }

    /// Asks at this address from now on.
    pub fn prefer_address(&self, address: &str) {
        self.addresses.prefer(address);
    }

    /// Asks at the next address from now on, because the one at `failed` is of no use; false if there is no other.
    pub fn leave_address(&self, failed: &str) -> bool {
        self.addresses.leave(failed)
    }

    /// Keeps the addresses in this file from one start to the next, for the same given address.
    pub fn keep_addresses_in(&self, disk: Arc<dyn Disk>, file: &Path) {
        self.addresses.keep_in(disk, file);
    }

    /// The same client for this address alone: what it answers is that one's answer.
    ///
    /// # Errors
    /// [`ClientError::Address`] for anything that is no address.
    pub fn at(&self, address: &str) -> Result<Self, ClientError> {
        let address: Arc<str> = addresses::checked(address)?.into();
        Ok(Self {
            addresses: Addresses::new(Arc::clone(&address)),
            address,
            ..self.clone()
        })
    }

    /// Shows this succession to whoever is asked for work, so that a hub that was replaced learns of it.
    pub fn show_succession(&self, succession: &Succession) {
        let shown = data_encoding::HEXLOWER.encode(&succession.to_bytes());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
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

    /// Workers that joined the run, those with most accepted tokens first, at most a page (`WORKERS_PAGE_MAX`).
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

    /// What a worker is to do; answers at once if the log has an entry after the first `after` that concerns it, else within
    /// `wait_ms` (at most [`WAIT_MS_MAX`]). Counts as a sign of life if `token` is what the worker's join was answered with.
    /// Deltas before the model of round `held` are left out.
    ///
    /// One attempt: the caller polls anyway.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn work(
        &self,
        run: RunId,
        worker: WorkerId,
        token: Option<&str>,
        after: u64,
        held: Option<u64>,
        wait_ms: u64,
    ) -> Result<Work, ClientError> {
        let wait_ms = wait_ms.min(WAIT_MS_MAX);
        let mut path = format!("runs/{run}/work?worker={worker}&after={after}&wait_ms={wait_ms}");
        if let Some(held) = held {
            path.push_str(&format!("&held={held}"));
        }
        let mut call = self
            .get(&path)
            .once()
            .body_max(WORK_BYTES_MAX)
            .timeout(Duration::from_millis(wait_ms) + POLL_SLACK);
        if let Some(shown) = self.shown_succession() {
            call = call.header(SUCCESSION, shown);
        }
        if let Some(token) = token {
            call = call.header("authorization", format!("Bearer {token}"));
        }
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

    /// Asks who else has a blob, and says where this worker is reached. One short attempt: the hub has the blob too.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn peers(&self, question: &SignedPeersQuestion) -> Result<Peers, ClientError> {
        let path = format!("runs/{}/peers", question.question.run);
        let call = self
            .call(Method::POST, &path)
            .once()
            .without_trial()
            .timeout(PEERS_TIMEOUT)
            .body_max(PEERS_BYTES_MAX)
            .bytes("application/octet-stream", question.to_bytes());
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

    fn shown_succession(&self) -> Option<String> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone()
    }

    fn get(&self, path: &str) -> Call {
        self.call(Method::GET, path)
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, format!("/api/v1/{path}"))
            .timeout(CALL_TIMEOUT)
            .body_max(JSON_BYTES_MAX)
            .retry(self.retry)
    }

    pub(crate) fn retry_policy(&self) -> RetryPolicy {
        self.retry
    }
}

/// Follows a hub to another path, port or to HTTPS, and never to another host: a hub is no guide to what else this machine
/// can reach.
fn redirected(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let asked = attempt.previous().first();
    let is_same_host = asked.is_some_and(|it| it.host_str() == attempt.url().host_str());
    let is_weaker =
        asked.is_some_and(|it| it.scheme() == "https") && attempt.url().scheme() != "https";
    if !is_same_host || is_weaker {
        return attempt.error("it redirects to another host");
    }
    if attempt.previous().len() > REDIRECTIONS_MAX {
        return attempt.error("it redirects in circles");
    }
    attempt.follow()
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
            code: printable(&error.code, SENTENCE_CHARS_MAX),
            message: printable(&error.message, SENTENCE_CHARS_MAX),
        },
        Err(_) => ClientError::Refused {
            status: status.as_u16(),
            code: error::NOT_THE_API.to_owned(),
            message: format!("the hub answered {status}"),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests;
