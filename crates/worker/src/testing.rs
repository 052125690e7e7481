//! Hubs and mirrors that say what a test wants, without a socket.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use network::{
    HubClient,
    client::{Transport, TransportError},
    retry::RetryPolicy,
};
use protocol::{
    Hash, PublicKey, SecretKey,
    api::{
        ApiError, Work, WorkModel, WorkWorker,
        mirrors::{HUB_ADDRESS, RunHead},
    },
    charter::Charter,
    log::Head,
    succession::{Sealing, Succession},
};
use serde::Serialize;

use crate::machine::tests::{charter, sparse};

/// A network of a few hosts; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
pub(crate) struct Inner {
    /// What answers by host name; who is not here does not answer.
    pub(crate) hosts: BTreeMap<&'static str, Host>,
    /// What was asked, oldest first.
    pub(crate) asked: Vec<Asked>,
}

/// What a host says.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// The answer to polls; a mirror has none.
    pub(crate) work: Option<Work>,
    /// Whom a mirror names.
    pub(crate) named: Option<&'static str>,
    /// Takeovers that it shows.
    pub(crate) statements: Vec<Succession>,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) host: String,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) headers: http::HeaderMap,
}

impl Hosts {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics in here")
    }

    pub(crate) fn set(&self, name: &'static str, host: Host) {
        self.lock().hosts.insert(name, host);
    }

    pub(crate) fn client(&self, address: &str) -> HubClient {
        HubClient::over(Arc::new(self.clone()), address).with_retry(RetryPolicy::once())
    }

    /// Requests of this method whose path contains `part`, by host.
    pub(crate) fn asked(&self, host: &str, method: &http::Method, part: &str) -> Vec<Asked> {
        let is_it = |it: &&Asked| it.host == host && it.method == method && it.path.contains(part);
        self.lock().asked.iter().filter(is_it).cloned().collect()
    }
}

impl Host {
    /// A hub with these takeovers in its log.
    pub(crate) fn hub(statements: &[Succession]) -> Self {
        Self {
            work: Some(Work {
                generation: statements.len() as u64,
                ..work()
            }),
            named: None,
            statements: statements.to_vec(),
        }
    }

    pub(crate) fn mirror(named: &'static str, statements: &[Succession]) -> Self {
        Self {
            work: None,
            named: Some(named),
            ..Self::hub(statements)
        }
    }

    fn answer(&self, asked: &Asked) -> http::Response<reqwest::Body> {
        let path = asked.path.split('?').next().unwrap_or_default();
        if path.ends_with("/head") {
            return json(200, None, &self.head());
        }
        if path.contains("/uploads/") {
            let answer = http::Response::builder().header("x-athome-complete", "1");
            return answer.body(Bytes::new().into()).unwrap();
        }
        let Some(work) = &self.work else {
            let error = ApiError {
                code: "mirror".into(),
                message: "this is a copy".into(),
            };
            return json(421, self.named, &error);
        };
        json(200, None, work)
    }

    fn head(&self) -> RunHead {
        RunHead {
            run: String::new(),
            role: String::new(),
            key: String::new(),
            process: String::new(),
            hub: String::new(),
            hub_address: None,
            generation: self.statements.len() as u64,
            successions: self
                .statements
                .iter()
                .map(|it| data_encoding::HEXLOWER.encode(&it.to_bytes()))
                .collect(),
            length: 40,
            hash: String::new(),
            current_ms: 0,
            blobs_missing: 0,
            entries_set_aside: 0,
            equivocations: vec![],
            stopped: None,
        }
    }
}

fn json(status: u16, named: Option<&str>, value: &impl Serialize) -> http::Response<reqwest::Body> {
    let mut answer = http::Response::builder().status(status);
    if let Some(named) = named {
        answer = answer.header(HUB_ADDRESS, named);
    }
    let body = serde_json::to_vec(value).unwrap();
    answer.body(Bytes::from(body).into()).unwrap()
}

impl Transport for Hosts {
    fn carry(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'_, Result<http::Response<reqwest::Body>, TransportError>> {
        let (parts, _) = request.into_parts();
        let asked = Asked {
            host: parts.uri.host().unwrap_or_default().to_owned(),
            method: parts.method,
            path: parts.uri.to_string(),
            headers: parts.headers,
        };
        let mut inner = self.lock();
        let host = inner.hosts.get(asked.host.as_str()).cloned();
        inner.asked.push(asked.clone());
        async move {
            // A network takes its time: others get their turn.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            host.map(|it| it.answer(&asked))
                .ok_or_else(|| "nobody listens there".into())
        }
        .boxed()
    }
}

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_entropy([byte; 32])
}

/// A run that `key(10)` and, after it, `key(11)` may give to another hub.
pub(crate) fn replaceable() -> Charter {
    let mut charter = (*charter(sparse(), false)).clone();
    charter.succession = vec![key(10).public(), key(11).public()];
    charter
}

/// The takeovers of a run by these hubs, each with the key that names it and its address.
pub(crate) fn takeovers(hubs: &[(u8, &str)]) -> Vec<Succession> {
    let begun = Sealing::of(&replaceable());
    let mut statements = Vec::new();
    for (by, address) in hubs {
        let sealing = begun.with(&statements).unwrap();
        let head = Head {
            length: 50 + statements.len() as u64,
            ..Head::empty()
        };
        let hub: PublicKey = key(20 + statements.len() as u8).public();
        statements.push(Succession::sign(&key(*by), &sealing, &head, hub, address));
    }
    statements
}

/// The answer to a joined worker between rounds; the newest model is that of round 3.
pub(crate) fn work() -> Work {
    Work {
        now_ms: 1_000,
        log_length: 40,
        generation: 0,
        finished: false,
        model: WorkModel {
            round: 3,
            parameters_hash: Hash([3; 32]).to_string(),
            checkpoint_round: 0,
            checkpoint_blob: Hash([8; 32]).to_string(),
            checkpoint_bytes: 100,
            deltas: vec![],
        },
        assignment: None,
        late_rounds: vec![],
        ahead: vec![],
        worker: WorkWorker {
            joined: true,
            sequence: 5,
            carried: None,
            updates_accepted: 0,
            updates_refused: 0,
            last_refusal: None,
            last_round: None,
            tokens: 0,
            credits_micro: 0,
        },
        inner_start: None,
    }
}
