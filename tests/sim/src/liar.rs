//! A participant that keeps to the protocol's forms and to nothing else: it joins, takes its slots, and claims work that it
//! never did.
//!
//! It tells lies that a hub can see through by itself. Well-formed work that was made up is a matter of audits, and not
//! among them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use network::{ClientError, HubClient, UploadAuthorisation, retry::RetryPolicy};
use protocol::{
    Hash, SecretKey,
    api::{Work, WorkAssignment},
    charter::Charter,
    command::{Command, Commitment, Device, SignedCommand},
    event::Event,
    state::decide::fresh,
    units::{BlobReference, RunId, WorkerId},
    update::{self, UpdateHeader},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    chance::Chance,
    network::Link,
    nodes::{BEGIN_MS, Surroundings},
};

/// Wait after a call that failed.
const AGAIN: Duration = Duration::from_secs(3);
/// Longest wait for news in one call.
const WAIT_MS: u64 = 20_000;
/// Entries of the log in which it looks for what others did.
const LOOKED_AT: u64 = 60;
/// Bytes of an invented payload, at most.
const PAYLOAD_BYTES_MAX: u64 = 3_000;

/// What it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// Bytes that are no update.
    Garbage,
    /// An update whose header is not the one that was committed to.
    OtherHeader,
    /// A right header before bytes that are no payload.
    NoPayload,
    /// Bytes that never come.
    Silence,
    /// Bytes that are not those that were committed to.
    OtherBytes,
    /// More steps than the charter takes.
    TooManySteps,
    /// More tokens than its steps have.
    TooManyTokens,
    /// More tokens than its machine does in the time.
    TooSoon,
    /// A base that never was.
    NoBase,
    /// A carried state that it does not carry.
    NoState,
    /// The slot of somebody else.
    OthersSlot,
    /// The very bytes that somebody else committed to.
    OthersBytes,
    /// Somebody else's command, as it stands in the log.
    OthersCommand,
}

const LIES: [Lie; 13] = [
    Lie::Garbage,
    Lie::OtherHeader,
    Lie::NoPayload,
    Lie::Silence,
    Lie::OtherBytes,
    Lie::TooManySteps,
    Lie::TooManyTokens,
    Lie::TooSoon,
    Lie::NoBase,
    Lie::NoState,
    Lie::OthersSlot,
    Lie::OthersBytes,
    Lie::OthersCommand,
];

impl Lie {
    /// Whether the hub refuses it at once; the others it finds out when bytes come or do not come.
    fn is_refused_at_once(self) -> bool {
        match self {
            Self::Garbage
            | Self::OtherHeader
            | Self::NoPayload
            | Self::Silence
            | Self::OtherBytes
            // A hub whose clock leaps forward believes it, and then misses the work.
            | Self::TooSoon
            // Bytes that never came are nobody's yet; their header names their maker.
            | Self::OthersBytes
            | Self::OthersCommand => false,
            Self::TooManySteps
            | Self::TooManyTokens
            | Self::NoBase
            | Self::NoState
            | Self::OthersSlot => true,
        }
    }
}

/// Lies told so far.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// How often each was told and answered.
    pub times: BTreeMap<Lie, u64>,
    /// What was granted and must not have been.
    pub granted: Vec<(Lie, WorkerId)>,
}

/// A liar at work, until it is dropped.
#[derive(Debug)]
pub struct LiarNode {
    /// Who it says it is.
    pub id: WorkerId,
    task: JoinHandle<()>,
    told: Arc<Mutex<Told>>,
}

impl LiarNode {
    /// Begins to lie after a while.
    #[must_use]
    pub fn start(
        around: &Surroundings,
        number: u64,
        run: RunId,
        charter: Arc<Charter>,
        after: Duration,
    ) -> Self {
        let key = SecretKey::from_entropy(Chance::of(around.seed, "liar key", number).key());
        let link = Link::new(
            around.network.clone(),
            number,
            around.weather.clone(),
            Chance::of(around.seed, "liar link", number),
            Arc::default(),
            CancellationToken::new(),
        );
        let client = HubClient::over(Arc::new(link), &around.hub).with_retry(RetryPolicy::once());
        let told = Arc::<Mutex<Told>>::default();
        let id = WorkerId(key.public());
        let liar = Liar {
            key,
            id,
            run,
            charter,
            client,
            chance: Chance::of(around.seed, "lies", number),
            sequence: BEGIN_MS,
            token: None,
            known: 0,
            told: Arc::clone(&told),
        };
        let task = tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            liar.live().await;
        });
        Self { id, task, told }
    }

    /// What it told.
    #[must_use]
    pub fn told(&self) -> Told {
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends it.
    pub async fn stop(&mut self) {
        self.task.abort();
        // Aborted, or panicked, which the driver's checks would show.
        let _ = (&mut self.task).await;
    }
}

struct Liar {
    key: SecretKey,
    id: WorkerId,
    run: RunId,
    charter: Arc<Charter>,
    client: HubClient,
    chance: Chance,
    sequence: u64,
    token: Option<String>,
    known: u64,
    told: Arc<Mutex<Told>>,
}

impl Liar {
    async fn live(mut self) {
        let mut lied_in = 0;
        loop {
            match self.look(&mut lied_in).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!("a liar is told: {error}");
                    self.known = 0;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn look(&mut self, lied_in: &mut u64) -> Result<(), ClientError> {
        let token = self.token.clone();
        let asked = self.client.work(
            self.run,
            self.id,
            token.as_deref(),
            self.known,
            None,
            WAIT_MS,
        );
        let work = asked.await?;
        self.known = work.log_length;
        self.sequence = self.sequence.max(work.worker.sequence);
        if !work.worker.joined {
            return self.join().await;
        }
        let Some(slot) = work.assignment.clone() else {
            return Ok(());
        };
        if slot.round <= *lied_in || slot.committed {
            return Ok(());
        }
        *lied_in = slot.round;
        let mut lie = LIES[self.chance.below(LIES.len() as u64) as usize];
        if lie == Lie::NoState && work.worker.carried.is_none() {
            // Nobody knows what a newcomer carries.
            lie = Lie::Garbage;
        }
        // Some lies are the worse for coming in time, so it takes the time that honest work would.
        if lie != Lie::TooSoon {
            let most = self.charter.round.window_ms * 3 / 4;
            let pause = self.chance.between(most / 2, most);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.tell(lie, &work, &slot).await
    }

    async fn join(&mut self) -> Result<(), ClientError> {
        let command = self.sign(Command::Join {
            name: "honest".to_owned(),
            device: Device {
                arithmetic: "simulated".to_owned(),
                threads: 1,
                memory_mib: 1,
                tokens_per_s: 1,
            },
        });
        let reply = self.client.command(&command).await?;
        self.token = reply.token;
        self.known = 0;
        Ok(())
    }

    async fn tell(
        &mut self,
        lie: Lie,
        work: &Work,
        slot: &WorkAssignment,
    ) -> Result<(), ClientError> {
        if lie == Lie::OthersCommand {
            return self.repeat_another().await;
        }
        let mut header = self.header(work, slot);
        let payload = self.bytes();
        header.payload = Hash::of_blob(&payload);
        match lie {
            Lie::TooManySteps => {
                header.steps = self.charter.round.steps_max + 1;
                header.tokens = u64::from(header.steps) * self.charter.tokens_per_step();
            }
            Lie::TooManyTokens => header.tokens *= 2,
            Lie::TooSoon => {
                header.steps = self.charter.round.steps_max;
                header.tokens = u64::from(header.steps) * self.charter.tokens_per_step();
            }
            Lie::NoBase => header.base = Hash(self.chance.key()),
            Lie::NoState => header.carried_before = Hash(self.chance.key()),
            Lie::OthersSlot => header.slot = if slot.slot == 0 { 1 } else { slot.slot - 1 },
            Lie::Garbage
            | Lie::OtherHeader
            | Lie::NoPayload
            | Lie::Silence
            | Lie::OtherBytes
            | Lie::OthersBytes
            | Lie::OthersCommand => {}
        }
        let file = match lie {
            Lie::Garbage => payload.clone(),
            Lie::OtherHeader => {
                let mut other = header.clone();
                other.loss_micronats += 1;
                update::seal(&other, &payload)
            }
            _ => update::seal(&header, &payload),
        };
        let update = match lie {
            Lie::OthersBytes => match self.others_update().await? {
                Some(update) => update,
                None => return Ok(()),
            },
            _ => BlobReference::of(&file),
        };
        let command = self.sign(Command::Commit(Box::new(Commitment { update, header })));
        let answer = self.client.command(&command).await;
        let is_granted = match &answer {
            Ok(_) => true,
            Err(ClientError::Refused { status, .. }) if *status < 500 => false,
            // Nobody knows what became of it.
            Err(_) => return answer.map(|_| ()),
        };
        self.note(lie, is_granted && lie.is_refused_at_once());
        if !is_granted || lie == Lie::Silence {
            return Ok(());
        }
        let sent: Bytes = match lie {
            Lie::OtherBytes => vec![7; file.len()].into(),
            _ => file.into(),
        };
        let authorisation = UploadAuthorisation::Worker(self.key.clone());
        let uploaded = self
            .client
            .upload(update.hash, sent, &authorisation, |_| {})
            .await;
        if let Err(error) = uploaded {
            tracing::debug!("a liar's upload: {:#}", anyhow::Error::from(error));
        }
        Ok(())
    }

    /// What an honest update would say, of work that was never done.
    fn header(&mut self, work: &Work, slot: &WorkAssignment) -> UpdateHeader {
        let steps = self.charter.round.steps_min;
        let carried = work.worker.carried.as_deref();
        let hash = |text: &str| text.parse().unwrap_or_default();
        UpdateHeader {
            run: self.run,
            worker: self.id,
            round: slot.round,
            slot: slot.slot,
            base_round: slot.base_round,
            base: hash(&slot.base_hash),
            steps,
            head_start_steps: 0,
            tokens: u64::from(steps) * self.charter.tokens_per_step(),
            loss_micronats: 1_000_000,
            carried_before: carried.map_or_else(fresh, hash),
            carried_after: Hash(self.chance.key()),
            carried_if_refused: Hash(self.chance.key()),
            steps_root: Hash(self.chance.key()),
            payload: Hash::default(),
            inner_state: None,
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let bytes = self.chance.between(1, PAYLOAD_BYTES_MAX) as usize;
        (0..bytes).map(|_| self.chance.bits() as u8).collect()
    }

    /// The newest commands of others in the log.
    async fn others_commands(&self) -> Result<Vec<SignedCommand>, ClientError> {
        let from = self.known.saturating_sub(LOOKED_AT);
        let page = self.client.log_entries(self.run, from, LOOKED_AT).await?;
        let commands = page.entries.into_iter().filter_map(|it| match it.event {
            Event::WorkerJoined { command }
            | Event::WorkerLeft { command }
            | Event::UpdateCommitted { command } => Some(command),
            _ => None,
        });
        Ok(commands.filter(|it| it.worker != self.id).collect())
    }

    async fn others_update(&mut self) -> Result<Option<BlobReference>, ClientError> {
        let commands = self.others_commands().await?;
        let updates: Vec<BlobReference> = commands
            .iter()
            .filter_map(|it| match &it.command {
                Command::Commit(commitment) => Some(commitment.update),
                _ => None,
            })
            .collect();
        let drawn = self.chance.below(updates.len().max(1) as u64) as usize;
        Ok(updates.get(drawn).copied())
    }

    /// Sends what somebody else signed once more: whatever the answer, the log must not have it twice.
    async fn repeat_another(&mut self) -> Result<(), ClientError> {
        let commands = self.others_commands().await?;
        let drawn = self.chance.below(commands.len().max(1) as u64) as usize;
        let Some(command) = commands.get(drawn) else {
            return Ok(());
        };
        let answer = self.client.command(command).await;
        let token = answer.as_ref().ok().and_then(|it| it.token.as_ref());
        // A token for another's join would let it speak for that worker.
        self.note(Lie::OthersCommand, token.is_some());
        Ok(())
    }

    fn note(&self, lie: Lie, is_granted: bool) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told.times.entry(lie).or_default() += 1;
        if is_granted {
            told.granted.push((lie, self.id));
        }
    }

    fn sign(&mut self, command: Command) -> SignedCommand {
        self.sequence += 1;
        SignedCommand::sign(&self.key, self.run, self.sequence, command)
    }
}
