//! The network between workers and hubs: seeded delay, loss before and after the effect, cut bodies, repeated requests,
//! partitions.
//!
//! What is carried is what the production client sends and the production router answers. Everything that arrives goes
//! through one queue, ordered by time, sender and number, so that the order of events depends on the seed alone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture, stream};
use http::{Method, Request, Response};
use network::client::{Transport, TransportError};
use protocol::{
    Hash,
    command::{Command, SignedCommand},
    units::WorkerId,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{chance::Chance, disk::SimDisk};

/// Longest body of an answer.
const BODY_BYTES_MAX: usize = 256 << 20;
/// After this long without an answer a client's connection is given up.
const SILENCE_MS_MAX: u64 = 20_000;

/// How a link behaves. Rates are in millionths of the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Weather {
    /// One way, shortest and longest, milliseconds.
    pub latency_ms: (u64, u64),
    /// Bytes a second to the hub.
    pub up_bytes_per_s: u64,
    /// Bytes a second from the hub.
    pub down_bytes_per_s: u64,
    /// Requests that never arrive.
    pub lost: u32,
    /// Requests that arrive and whose answer never does.
    pub answer_lost: u32,
    /// Answers whose body breaks off.
    pub body_cut: u32,
    /// Requests that change something and arrive twice.
    pub twice: u32,
}

impl Weather {
    /// A link that loses nothing and takes no time.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            latency_ms: (0, 0),
            up_bytes_per_s: u64::MAX,
            down_bytes_per_s: u64::MAX,
            lost: 0,
            answer_lost: 0,
            body_cut: 0,
            twice: 0,
        }
    }
}

/// The network of one simulation. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// By time, sender and the sender's number.
    arrivals: Mutex<BTreeMap<(Instant, u64, u64), oneshot::Sender<()>>>,
    changed: Notify,
    hosts: Mutex<BTreeMap<String, Host>>,
    promises: Mutex<Promises>,
}

/// What hubs have acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// Workers whose join was.
    pub joined: Vec<WorkerId>,
    /// Updates that were committed to.
    pub committed: Vec<Hash>,
    /// Blobs that were taken whole.
    pub uploaded: Vec<Hash>,
    /// Requests answered, with whatever status.
    pub answers: u64,
}

/// A hub that answers.
#[derive(Clone, Debug)]
struct Host {
    router: Router,
    disk: SimDisk,
    gone: CancellationToken,
}

impl Network {
    /// Lets everything arrive in its time; never ends.
    pub async fn carry(&self) {
        loop {
            let next = lock(&self.shared.arrivals).keys().next().map(|it| it.0);
            let changed = self.shared.changed.notified();
            match next {
                None => changed.await,
                Some(next) => {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(next) => {}
                        () = changed => {}
                    }
                }
            }
            self.let_arrive(Instant::now());
        }
    }

    fn let_arrive(&self, now: Instant) {
        let mut arrivals = lock(&self.shared.arrivals);
        while let Some(first) = arrivals.first_entry()
            && first.key().0 <= now
        {
            // Whoever waited for it may be gone.
            let _ = first.remove().send(());
        }
    }

    /// A hub answers under this name from now on, until `gone`.
    pub fn connect(&self, name: &str, router: Router, disk: SimDisk, gone: CancellationToken) {
        let host = Host { router, disk, gone };
        lock(&self.shared.hosts).insert(name.to_owned(), host);
    }

    /// Nobody answers under this name any more.
    pub fn disconnect(&self, name: &str) {
        lock(&self.shared.hosts).remove(name);
    }

    /// What hubs have acknowledged so far.
    #[must_use]
    pub fn promises(&self) -> Promises {
        lock(&self.shared.promises).clone()
    }

    /// Requests answered so far, with whatever status.
    #[must_use]
    pub fn answers(&self) -> u64 {
        lock(&self.shared.promises).answers
    }

    fn host(&self, name: &str) -> Option<Host> {
        let host = lock(&self.shared.hosts).get(name).cloned()?;
        (!host.disk.is_dead() && !host.gone.is_cancelled()).then_some(host)
    }

    async fn arrive_after(&self, wait: Duration, node: u64, number: u64) {
        let (sender, receiver) = oneshot::channel();
        let at = Instant::now() + wait;
        let is_first = {
            let mut arrivals = lock(&self.shared.arrivals);
            arrivals.insert((at, node, number), sender);
            arrivals.keys().next().map(|it| it.0) == Some(at)
        };
        if is_first {
            self.shared.changed.notify_one();
        }
        // The network outlives its users.
        let _ = receiver.await;
    }

    fn note(&self, noted: Option<Noted>, is_success: bool) {
        let mut promises = lock(&self.shared.promises);
        promises.answers += 1;
        match noted.filter(|_| is_success) {
            Some(Noted::Joined(worker)) => promises.joined.push(worker),
            Some(Noted::Committed(update)) => promises.committed.push(update),
            Some(Noted::Upload(blob)) => promises.uploaded.push(blob),
            None => {}
        }
    }
}

/// What an answer may acknowledge.
enum Noted {
    Joined(WorkerId),
    Committed(Hash),
    Upload(Hash),
}

impl Noted {
    fn of(request: &Request<Bytes>) -> Option<Self> {
        let path = request.uri().path();
        if request.method() == Method::PATCH {
            let (_, hash) = path.rsplit_once('/')?;
            return Some(Self::Upload(hash.parse().ok()?));
        }
        if request.method() != Method::POST || !path.ends_with("/commands") {
            return None;
        }
        let command = protocol::canonical::decode::<SignedCommand>(
            request.body(),
            protocol::command::COMMAND_BYTES_MAX,
        );
        match command.ok()? {
            SignedCommand {
                command: Command::Commit(commitment),
                ..
            } => Some(Self::Committed(commitment.update.hash)),
            SignedCommand {
                command: Command::Join { .. },
                worker,
                ..
            } => Some(Self::Joined(worker)),
            SignedCommand {
                command: Command::Leave { .. },
                ..
            } => None,
        }
    }
}

/// One node's way into the network, for one life of its process.
#[derive(Debug)]
pub struct Link {
    network: Network,
    node: u64,
    weather: Weather,
    inner: Mutex<LinkInner>,
    is_down: Arc<AtomicBool>,
    dead: CancellationToken,
}

#[derive(Debug)]
struct LinkInner {
    chance: Chance,
    number: u64,
}

/// What becomes of one request.
struct Fate {
    up: Duration,
    down: Duration,
    silence: Duration,
    is_lost: bool,
    is_answer_lost: bool,
    is_twice: bool,
    /// Share of the body that comes, in millionths, if not all.
    cut: Option<u64>,
}

impl Link {
    /// A link for node number `node`, which is `is_down` while that is set and gone when the process is `dead`.
    #[must_use]
    pub fn new(
        network: Network,
        node: u64,
        weather: Weather,
        chance: Chance,
        is_down: Arc<AtomicBool>,
        dead: CancellationToken,
    ) -> Self {
        Self {
            network,
            node,
            weather,
            inner: Mutex::new(LinkInner { chance, number: 0 }),
            is_down,
            dead,
        }
    }

    /// The address that a hub sees.
    fn address(&self) -> SocketAddr {
        let number = u32::try_from(self.node).unwrap_or(u32::MAX);
        let address = match number {
            0 => Ipv4Addr::LOCALHOST,
            // Within 10.0.0.0/8.
            _ => Ipv4Addr::from(0x0a00_0000 | (number & 0x00ff_ffff)),
        };
        SocketAddr::new(IpAddr::V4(address), 40_000)
    }

    fn fate(&self) -> Fate {
        let mut inner = lock(&self.inner);
        let weather = &self.weather;
        let chance = &mut inner.chance;
        let (shortest, longest) = weather.latency_ms;
        let mut trip = || Duration::from_micros(chance.between(shortest * 1_000, longest * 1_000));
        let (up, down) = (trip(), trip());
        Fate {
            up,
            down,
            silence: Duration::from_millis(chance.between(0, SILENCE_MS_MAX)),
            is_lost: chance.happens(weather.lost),
            is_answer_lost: chance.happens(weather.answer_lost),
            is_twice: chance.happens(weather.twice),
            cut: chance
                .happens(weather.body_cut)
                .then(|| chance.below(1_000_000)),
        }
    }

    async fn wait(&self, time: Duration) {
        let number = {
            let mut inner = lock(&self.inner);
            inner.number += 1;
            inner.number
        };
        if !time.is_zero() {
            self.network.arrive_after(time, self.node, number).await;
        }
    }

    fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    async fn travel(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<reqwest::Body>, TransportError> {
        let fate = self.fate();
        let bytes = request.body().len() as u64;
        if fate.is_lost || self.is_down() {
            self.wait(fate.silence).await;
            return Err("the request was lost".into());
        }
        self.wait(fate.up + time_of(bytes, self.weather.up_bytes_per_s))
            .await;
        let name = request.uri().host().unwrap_or_default().to_owned();
        let Some(host) = self.network.host(&name).filter(|_| !self.is_down()) else {
            self.wait(fate.down).await;
            return Err("nobody listens there".into());
        };
        let noted = Noted::of(&request);
        let (parts, body) = request.into_parts();
        if fate.is_twice && parts.method != Method::GET {
            let copy = Request::from_parts(parts.clone(), body.clone());
            host.answer(copy, self.address()).await;
        }
        let answer = host
            .answer(Request::from_parts(parts, body), self.address())
            .await;
        let Some(answer) = answer else {
            self.wait(fate.down).await;
            return Err("the hub is gone".into());
        };
        let is_success = match noted {
            Some(Noted::Upload(_)) => answer.status() == http::StatusCode::CREATED,
            _ => answer.status().is_success(),
        };
        self.network.note(noted, is_success);
        if fate.is_answer_lost || self.is_down() {
            self.wait(fate.silence).await;
            return Err("the answer was lost".into());
        }
        let bytes = answer.body().len() as u64;
        self.wait(fate.down + time_of(bytes, self.weather.down_bytes_per_s))
            .await;
        Ok(answer.map(|body| match fate.cut {
            Some(share) if !body.is_empty() => cut(&body, share),
            _ => body.into(),
        }))
    }
}

impl Transport for Link {
    fn carry(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'_, Result<Response<reqwest::Body>, TransportError>> {
        async move {
            tokio::select! {
                biased;
                () = self.dead.cancelled() => Err("the process is gone".into()),
                answer = self.travel(request) => answer,
            }
        }
        .boxed()
    }
}

impl Host {
    /// The hub's answer; `None` if it dies before.
    async fn answer(&self, request: Request<Bytes>, from: SocketAddr) -> Option<Response<Bytes>> {
        let mut request = request.map(Body::from);
        request.extensions_mut().insert(ConnectInfo(from));
        let authority = request.uri().authority().map(ToString::to_string);
        if let Some(value) = authority.and_then(|it| it.parse().ok()) {
            request.headers_mut().insert(http::header::HOST, value);
        }
        let answering = async {
            let answer = self.router.clone().oneshot(request).await;
            let (parts, body) = answer.unwrap_or_else(|never| match never {}).into_parts();
            let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.ok()?;
            Some(Response::from_parts(parts, body))
        };
        let answer = tokio::select! {
            biased;
            () = self.gone.cancelled() => None,
            answer = answering => answer,
        };
        // What a machine without power says nobody hears.
        answer.filter(|_| !self.disk.is_dead())
    }
}

fn time_of(bytes: u64, bytes_per_s: u64) -> Duration {
    let micros = u128::from(bytes) * 1_000_000 / u128::from(bytes_per_s.max(1));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// The first part of a body, and then an error.
fn cut(body: &Bytes, share: u64) -> reqwest::Body {
    let bytes = (body.len() as u128 * u128::from(share) / 1_000_000) as usize;
    let parts: [Result<Bytes, TransportError>; 2] = [
        Ok(body.slice(..bytes)),
        Err("the connection was cut".into()),
    ];
    reqwest::Body::wrap_stream(stream::iter(parts))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
