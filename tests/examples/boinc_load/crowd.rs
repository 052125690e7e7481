//! The hosts of the load, by what they do next, and the four things that a host does.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use protocol::charter::Charter;
use tests::connection::Connection;

use super::{
    host::{Account, Host, md5},
    wire::{self, Reply, Says},
};

const SCHEDULER: &str = "/boinc/scheduler";
const UPLOAD: &str = "/boinc/file_upload_handler";

/// What is asked of the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A host that nobody has seen: it is given the task to enrol.
    First,
    /// The result of that task: two signatures, a join and a binding in the run's log.
    Enrolment,
    /// The report of it; a round to train is given.
    Next,
    /// The result of a round: a commitment in the run's log, and the update's bytes.
    Round,
    /// The report of it. Nobody has a round to give before the open one ends: the hub holds the request for a while and
    /// gives a model to measure, or an update of another account to make again.
    Held,
    /// What a running application told, on its way.
    Trickle,
    /// A client that asks by itself while it computes.
    Update,
}

pub(super) const KINDS: [(Kind, &str); 7] = [
    (Kind::First, "first contacts"),
    (Kind::Enrolment, "enrolments uploaded"),
    (Kind::Next, "reports with a round to train"),
    (Kind::Round, "rounds uploaded"),
    (Kind::Held, "reports held and given a gap to fill"),
    (Kind::Trickle, "trickles"),
    (Kind::Update, "updates"),
];

/// One request that was answered as it should be.
pub(super) struct Answered {
    pub(super) kind: Kind,
    pub(super) seconds: f64,
    /// Both ways, heads included.
    pub(super) bytes: usize,
}

pub(super) struct Crowd {
    hub: SocketAddr,
    charter: Charter,
    accounts: Vec<Rc<Account>>,
    made: Cell<usize>,
    /// Hosts by the kind of what they do next; those that compute a round are in `Trickle`.
    queues: [RefCell<VecDeque<Host>>; KINDS.len()],
    answered: RefCell<Option<Vec<Answered>>>,
    idle: RefCell<Vec<Connection>>,
}

impl Crowd {
    pub(super) fn new(hub: SocketAddr, charter: Charter) -> Self {
        Self {
            hub,
            charter,
            accounts: Vec::new(),
            made: Cell::new(0),
            queues: Default::default(),
            answered: RefCell::new(None),
            idle: RefCell::default(),
        }
    }

    /// Makes accounts, each from an address of its own, as a proxy tells it.
    pub(super) async fn create_accounts(&mut self, count: usize) -> Result<()> {
        let mut connection = self.connection().await?;
        for number in 0..count {
            let email = format!("host-{number}@example.org");
            let password = md5(format!("password {number}{email}").as_bytes());
            let path = format!(
                "/create_account.php?email_addr={}&passwd_hash={password}&user_name=Host%20{number}",
                email.replace('@', "%40")
            );
            let client = format!("172.16.{}.{}", number / 250, number % 250);
            let answer = connection.ask(&wire::get(&path, &client)).await?;
            self.accounts.push(Rc::new(Account {
                authenticator: wire::authenticator(&answer.body)?,
            }));
        }
        self.idle.borrow_mut().push(connection);
        Ok(())
    }

    /// Counts what is answered from now on.
    pub(super) fn begin(&self) {
        *self.answered.borrow_mut() = Some(Vec::new());
    }

    /// What was answered since.
    pub(super) fn end(&self) -> Vec<Answered> {
        self.answered.take().unwrap_or_default()
    }

    /// Hosts that this kind of request would be of.
    pub(super) fn ready(&self, kind: Kind) -> usize {
        self.queue(kind).borrow().len()
    }

    fn queue(&self, kind: Kind) -> &RefCell<VecDeque<Host>> {
        // What computes is where both its trickles and its updates come from.
        let kind = match kind {
            Kind::Update => Kind::Trickle,
            kind => kind,
        };
        let index = KINDS.iter().position(|it| it.0 == kind);
        &self.queues[index.expect("every kind is in the list")]
    }

    /// A host for a request of this kind; another kind if there is none.
    pub(super) fn choose(&self, kind: Kind) -> (Kind, Host) {
        let take = |kind| self.queue(kind).borrow_mut().pop_front();
        match kind {
            Kind::First => (kind, self.newcomer()),
            // The result is of the host that computed longest.
            Kind::Round => match take(Kind::Trickle) {
                Some(host) => (kind, host),
                None => (Kind::First, self.newcomer()),
            },
            _ => match (take(kind), kind) {
                (Some(host), _) => (kind, host),
                (None, Kind::Trickle | Kind::Update) => (Kind::First, self.newcomer()),
                (None, _) => match take(Kind::Trickle) {
                    Some(host) => (Kind::Update, host),
                    None => (Kind::First, self.newcomer()),
                },
            },
        }
    }

    fn newcomer(&self) -> Host {
        let number = self.made.get();
        self.made.set(number + 1);
        Host::new(
            number,
            Rc::clone(&self.accounts[number % self.accounts.len()]),
        )
    }

    pub(super) async fn connection(&self) -> Result<Connection> {
        let idle = self.idle.borrow_mut().pop();
        match idle {
            Some(connection) => Ok(connection),
            None => Connection::open(self.hub).await,
        }
    }

    /// Asks on a connection of its own; time counts from `due`.
    pub(super) async fn ask(&self, kind: Kind, host: Host, due: Instant) -> Result<()> {
        let mut connection = self.connection().await?;
        let done = self.ask_on(&mut connection, kind, host, due).await;
        done.with_context(|| format!("in {kind:?}"))?;
        self.idle.borrow_mut().push(connection);
        Ok(())
    }

    async fn ask_on(
        &self,
        connection: &mut Connection,
        kind: Kind,
        mut host: Host,
        due: Instant,
    ) -> Result<()> {
        let next = match kind {
            Kind::First => {
                let reply = self.schedule(connection, kind, &mut host, due).await?;
                let id = reply.field("hostid").context("a new host has no number")?;
                host.id = id.parse()?;
                let key = reply.field("code_sign_key").context("no key to check by")?;
                key.trim().clone_into(&mut host.code_sign_key);
                let cross_id = reply.field("cross_project_id").unwrap_or_default();
                cross_id.clone_into(&mut host.cross_id);
                self.fetch(connection, &mut host, &reply, &["enrol_"])
                    .await?;
                Kind::Enrolment
            }
            Kind::Enrolment => {
                self.upload(connection, kind, &mut host, due).await?;
                Kind::Next
            }
            Kind::Next => {
                let reply = self.report(connection, kind, &mut host, due).await?;
                self.fetch(connection, &mut host, &reply, &["train_"])
                    .await?;
                Kind::Trickle
            }
            Kind::Round => {
                self.upload(connection, kind, &mut host, due).await?;
                Kind::Held
            }
            Kind::Held => {
                let reply = self.report(connection, kind, &mut host, due).await?;
                let kinds = ["evaluate_", "again_", "train_"];
                self.fetch(connection, &mut host, &reply, &kinds).await?;
                // It computes for a day; this load has others.
                return Ok(());
            }
            Kind::Trickle => {
                host.steps += 100;
                let reply = self.schedule(connection, kind, &mut host, due).await?;
                ensure!(
                    reply.has("\n<message_ack/>\n"),
                    "a trickle is not acknowledged"
                );
                Kind::Trickle
            }
            Kind::Update => {
                let reply = self.schedule(connection, kind, &mut host, due).await?;
                ensure!(!reply.has("<workunit>"), "a busy host was given a task");
                Kind::Trickle
            }
        };
        self.queue(next).borrow_mut().push_back(host);
        Ok(())
    }

    async fn report(
        &self,
        connection: &mut Connection,
        kind: Kind,
        host: &mut Host,
        due: Instant,
    ) -> Result<Reply> {
        let reply = self.schedule(connection, kind, host, due).await?;
        let done = host.done.take().context("there is nothing to report")?;
        let acknowledged = format!("<result_ack>\n    <name>{}_0</name>", done.name);
        ensure!(reply.has(&acknowledged), "a report is not acknowledged");
        ensure!(!reply.has("<hostid>"), "the host has another number now");
        Ok(reply)
    }

    async fn schedule(
        &self,
        connection: &mut Connection,
        kind: Kind,
        host: &mut Host,
        due: Instant,
    ) -> Result<Reply> {
        host.sequence += 1;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let says = Says {
            authenticator: &host.account.authenticator,
            host: host.id,
            sequence: host.sequence,
            cpid: &host.cpid,
            code_sign_key: &host.code_sign_key,
            cross_id: &host.cross_id,
            now_s: now.as_secs_f64(),
            wants_work: host.given.is_none(),
            report: host.done.as_ref(),
            held: host.held(),
            trickle: (kind == Kind::Trickle).then_some(host.steps),
            files: &host.files,
        };
        let request = wire::post(SCHEDULER, &host.address, says.text().as_bytes());
        let answer = connection.ask(&request).await?;
        self.note(kind, due, request.len() + answer.bytes);
        Reply::read(answer.body)
    }

    /// Brings the signed file of the task that a reply gives; a client fetches no other twice.
    async fn fetch(
        &self,
        connection: &mut Connection,
        host: &mut Host,
        reply: &Reply,
        kinds: &[&str],
    ) -> Result<()> {
        let given = reply.task(kinds)?;
        let path = format!("/boinc/files/{}", given.file);
        let sealed = connection.ask(&wire::get(&path, &host.address)).await?;
        host.take(given, &sealed.body)
    }

    async fn upload(
        &self,
        connection: &mut Connection,
        kind: Kind,
        host: &mut Host,
        due: Instant,
    ) -> Result<()> {
        let (given, sum, bytes) = host.finish(&self.charter)?;
        let body = wire::upload(&given, &sum, &bytes);
        let request = wire::post(UPLOAD, &host.address, &body);
        let answer = connection.ask(&request).await?;
        self.note(kind, due, request.len() + answer.bytes);
        wire::must_be_taken(&answer.body)
    }

    fn note(&self, kind: Kind, due: Instant, bytes: usize) {
        if let Some(answered) = &mut *self.answered.borrow_mut() {
            answered.push(Answered {
                kind,
                seconds: due.elapsed().as_secs_f64(),
                bytes,
            });
        }
    }
}
