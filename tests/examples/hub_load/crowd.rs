//! Many workers of one run, joined over a few connections.

use anyhow::{Context, Result};
use protocol::{
    SecretKey,
    api::{CommandReply, Work},
    command::{Command, Device, SignedCommand},
    units::{RunId, WorkerId},
};

use tests::connection::Connection;

use super::{
    Target,
    wire::{get, with_body},
};

/// Connections over which a crowd joins.
const DOORS: usize = 64;

/// One of them.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) key: SecretKey,
    pub(super) id: WorkerId,
    pub(super) token: String,
}

impl Worker {
    /// Its poll.
    pub(super) fn poll(&self, run: RunId, after: u64, wait_ms: u64) -> Vec<u8> {
        let path = format!(
            "runs/{run}/work?worker={}&after={after}&wait_ms={wait_ms}",
            self.id
        );
        get(&path, &format!("authorization: Bearer {}\r\n", self.token))
    }

    pub(super) async fn work(&self, connection: &mut Connection, run: RunId) -> Result<Work> {
        let body = connection.must(&self.poll(run, 0, 0)).await?;
        Ok(serde_json::from_slice(&body)?)
    }
}

/// Joins `count` workers and polls once for each, so that all are present.
pub(super) async fn join(target: &Target, count: usize) -> Result<Vec<Worker>> {
    let mut doors = tokio::task::JoinSet::new();
    for door in 0..DOORS {
        let (hub, run) = (target.hub, target.run);
        doors.spawn(async move {
            let mut connection = Connection::open(hub).await?;
            let mut joined = Vec::new();
            for number in (door..count).step_by(DOORS) {
                let worker = join_one(&mut connection, run, number as u64).await?;
                worker.work(&mut connection, run).await?;
                joined.push(worker);
            }
            anyhow::Ok(joined)
        });
    }
    let mut workers = Vec::with_capacity(count);
    while let Some(joined) = doors.join_next().await {
        workers.extend(joined??);
    }
    Ok(workers)
}

async fn join_one(connection: &mut Connection, run: RunId, number: u64) -> Result<Worker> {
    let mut entropy = [0; 32];
    entropy[..8].copy_from_slice(&number.to_le_bytes());
    let key = SecretKey::from_entropy(entropy);
    let join = Command::Join {
        name: format!("worker-{number}"),
        device: Device {
            arithmetic: "none".into(),
            threads: 1,
            memory_mib: 100,
            tokens_per_s: 1_000_000,
        },
    };
    let command = SignedCommand::sign(&key, run, 1, join);
    let path = format!("runs/{run}/commands");
    let body = connection
        .must(&with_body("POST", &path, "", &command.to_bytes()))
        .await
        .context("joining")?;
    let reply: CommandReply = serde_json::from_slice(&body)?;
    Ok(Worker {
        id: WorkerId(key.public()),
        key,
        token: reply.token.context("a join earns a token")?,
    })
}
