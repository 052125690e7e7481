//! A stranger with a key who speaks the protocol to a hub, well or badly, as a test wants it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::update::{codec, settings::UpdateSettings};
use network::{ClientError, HubClient, UploadAuthorisation};
use protocol::{
    Hash, SecretKey,
    api::{CommandReply, Work, WorkAssignment},
    charter::Charter,
    command::{Command, Commitment, Device, SignedCommand},
    state::decide::fresh,
    units::{BlobReference, RunId, WorkerId},
    update::{self, UpdateHeader},
};

use crate::network::Network;

/// Longest wait for a slot or a verdict.
const ROUND_MAX: Duration = Duration::from_secs(90);

/// Least time between two polls.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A stranger with a key, and what the hub gave it.
pub struct Stranger {
    /// Its key.
    pub key: SecretKey,
    /// How it reaches the hub.
    pub client: HubClient,
    /// The run.
    pub run: RunId,
    /// What the hub gave for its join.
    pub token: Option<String>,
    sequence: u64,
}

impl Stranger {
    /// A stranger that nobody has heard of yet; the seed makes its key.
    ///
    /// # Errors
    /// The hub's address is none.
    pub fn new(network: &Network, run: RunId, seed: u8) -> Result<Self> {
        Ok(Self {
            key: SecretKey::from_entropy([seed; 32]),
            client: network.client()?,
            run,
            sequence: 0,
            token: None,
        })
    }

    /// Its name in the log.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        WorkerId(self.key.public())
    }

    /// Signs its next command.
    pub fn sign(&mut self, command: Command) -> SignedCommand {
        self.sequence += 1;
        SignedCommand::sign(&self.key, self.run, self.sequence, command)
    }

    /// Its next command, a join.
    pub fn join(&mut self) -> SignedCommand {
        self.sign(Command::Join {
            name: "stranger".into(),
            device: Device {
                arithmetic: "none".into(),
                threads: 1,
                memory_mib: 1,
                tokens_per_s: 100_000,
            },
        })
    }

    /// Joins.
    ///
    /// # Errors
    /// The hub refuses it.
    pub async fn send_join(&mut self) -> Result<CommandReply> {
        let command = self.join();
        let reply = self.client.command(&command).await?;
        self.token.clone_from(&reply.token);
        Ok(reply)
    }

    /// Leaves.
    ///
    /// # Errors
    /// The hub refuses it.
    pub async fn leave(&mut self) -> Result<()> {
        let reason = "done".to_owned();
        let command = self.sign(Command::Leave { reason });
        self.client.command(&command).await?;
        Ok(())
    }

    /// Asks for work and does not wait.
    ///
    /// # Errors
    /// The hub does not answer.
    pub async fn poll(&self, token: Option<&str>) -> Result<Work> {
        Ok(self
            .client
            .work(self.run, self.id(), token, 0, None, 0)
            .await?)
    }

    /// Whether the hub counts it as present.
    ///
    /// # Errors
    /// It is not listed.
    pub async fn is_present(&self) -> Result<bool> {
        let (workers, id) = (self.client.workers(self.run).await?, self.id().to_string());
        let found = workers.into_iter().find(|it| it.id == id);
        Ok(found.context("the stranger is not listed")?.present)
    }

    /// Waits for a slot that is not used yet, of the warm start or after it.
    ///
    /// # Errors
    /// There is none for a long time.
    pub async fn assigned(&self, warms_up: bool) -> Result<(Work, WorkAssignment)> {
        self.ask_until("no slot", |work| {
            let open = work.assignment.clone()?;
            let fits = !open.committed && open.publish_inner_state == warms_up;
            fits.then(|| (work.clone(), open))
        })
        .await
    }

    /// Why the hub refused its update.
    ///
    /// # Errors
    /// It was not refused for a long time.
    pub async fn reason(&self) -> Result<String> {
        let reason = |work: &Work| work.worker.last_refusal.clone();
        self.ask_until("the update was not refused", reason).await
    }

    async fn ask_until<T>(&self, what: &str, done: impl Fn(&Work) -> Option<T>) -> Result<T> {
        let (begun, mut after) = (Instant::now(), 0);
        // Entries of others' rounds answer a poll too, and the hub counts what an address asks in a second.
        let mut pace = tokio::time::interval(ASK_EVERY);
        while begun.elapsed() < ROUND_MAX {
            pace.tick().await;
            let token = self.token.as_deref();
            let work = self
                .client
                .work(self.run, self.id(), token, after, None, 5_000)
                .await?;
            after = work.log_length;
            if let Some(result) = done(&work) {
                return Ok(result);
            }
        }
        anyhow::bail!("{what} within {ROUND_MAX:?}")
    }

    /// A header that fits an assignment.
    ///
    /// # Errors
    /// The hub's hashes do not read.
    pub fn header(
        &self,
        charter: &Charter,
        work: &Work,
        assignment: &WorkAssignment,
    ) -> Result<UpdateHeader> {
        header(self.run, self.id(), charter, work, assignment)
    }

    /// Commits to an update.
    ///
    /// # Errors
    /// The hub refuses it.
    pub async fn commit(
        &mut self,
        update: BlobReference,
        header: UpdateHeader,
    ) -> Result<CommandReply, ClientError> {
        let command = self.sign(Command::Commit(Box::new(Commitment { update, header })));
        self.client.command(&command).await
    }

    /// Sends a file that it committed to.
    ///
    /// # Errors
    /// The hub refuses it.
    pub async fn upload(&self, file: &[u8]) -> Result<()> {
        let authorisation = UploadAuthorisation::Worker(self.key.clone());
        let (hash, bytes) = (Hash::of_blob(file), file.to_vec().into());
        self.client
            .upload(hash, bytes, &authorisation, |_| {})
            .await?;
        Ok(())
    }
}

/// A header that fits an assignment of this worker, for one step of which nothing is true.
///
/// # Errors
/// The hub's hashes do not read.
pub fn header(
    run: RunId,
    worker: WorkerId,
    charter: &Charter,
    work: &Work,
    assignment: &WorkAssignment,
) -> Result<UpdateHeader> {
    Ok(UpdateHeader {
        run,
        worker,
        round: assignment.round,
        slot: assignment.slot,
        base_round: work.model.round,
        base: work.model.parameters_hash.parse()?,
        steps: 1,
        head_start_steps: 0,
        tokens: charter.tokens_per_step(),
        loss_micronats: 3_000_000,
        carried_before: fresh(),
        carried_after: Hash([1; 32]),
        carried_if_refused: Hash([2; 32]),
        steps_root: Hash([3; 32]),
        payload: Hash::of_blob(&worker.0.0),
        inner_state: None,
    })
}

/// The payload of an update that changes every parameter by as much, in this model's shape.
///
/// # Errors
/// The codec's.
pub fn even_payload(charter: &Charter, change: f32) -> Result<Vec<u8>> {
    let lengths = engine::charter::model_config(&charter.model)
        .layout()
        .lengths();
    let settings: UpdateSettings = engine::charter::update_settings(&charter.outer);
    let values = vec![change; lengths.iter().sum()];
    Ok(codec::encode(&lengths, &settings, &values)?)
}

/// The file of an update with this payload, which its header names.
#[must_use]
pub fn sealed(mut header: UpdateHeader, payload: &[u8]) -> (UpdateHeader, Vec<u8>) {
    header.payload = Hash::of_blob(payload);
    let file = update::seal(&header, payload);
    (header, file)
}

/// That an answer is a refusal with this code.
///
/// # Errors
/// It is not.
pub fn refused<T>(answer: Result<T, ClientError>, code: &str) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("what is to be refused with {code} was granted"),
        Err(error) if error.refusal_code() == Some(code) => Ok(()),
        Err(error) => Err(anyhow::Error::from(error).context(format!("instead of {code}"))),
    }
}
