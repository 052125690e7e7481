//! A run is computed again from its hub's folder: it holds, and each flipped byte is found and named. One update is done
//! again: an honest one comes out the same, a made-up one does not.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use engine::update::codec;
use network::UploadAuthorisation;
use protocol::{
    Hash, SecretKey,
    api::WorkAssignment,
    charter::Charter,
    command::{Command, Commitment, Device, SignedCommand},
    event::Event,
    log::Entry,
    units::{BlobReference, RunId, WorkerId},
    update::UpdateHeader,
};
use tests::{
    network::{Network, Start},
    places, process, stranger,
};

/// Longest wait for the cheat to be given a slot and to commit.
const CHEAT_MAX: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_computed_again_and_a_cheat_is_found() -> Result<()> {
    let mut network = Network::start("verifies").await?;
    let run = network.open_small_run().await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.start_worker_as(run, "second", &Start::default())?;
    network.joined(run, 2).await?;
    network.merged(run, 5).await?;
    let cheat = tokio::time::timeout(CHEAT_MAX, cheat(&network, run)).await??;
    network.merged_update(run, cheat).await?;
    network.merged(run, 2).await?;
    let first = network.worker_id(run, "first").await?;
    for name in ["first", "second"] {
        network.stop_worker(name).await?;
    }

    let hub = network.folder.join("hub");
    let refused = verify(&network, &hub.to_string_lossy()).await?;
    ensure!(
        !refused.success && refused.stderr.contains("a hub works in"),
        "the folder of a hub at work was read: {}",
        refused.stderr
    );
    holds(&network, &network.hub_url()).await?;
    let log = network.log(run).await?;
    network.stop_hub().await?;
    holds(&network, &hub.to_string_lossy()).await?;

    every_flipped_byte_is_named(&network, &hub, &log).await?;
    holds(&network, &hub.to_string_lossy()).await?;

    let honest = merged_of(&log, first).context("no update of the first worker is merged")?;
    let audited = audit(&network, &hub, honest).await?;
    ensure!(
        audited["equal"] == true && audited["payload_compared"] == true,
        "an honest update does not come out the same: {audited:#}"
    );
    ensure!(
        audited["round"].as_u64() > Some(1) && audited["repeated"].as_u64() > Some(1),
        "it was not a later update: {audited:#}"
    );
    let audited = audit(&network, &hub, cheat).await?;
    let differences = audited["differences"].to_string();
    ensure!(
        audited["equal"] == false
            && differences.contains("inner steps")
            && differences.contains("what it sent"),
        "a made-up update passes: {audited:#}"
    );
    network.finish().await
}

async fn verify(network: &Network, place: &str) -> Result<process::Output> {
    let home = network.folder.join("home");
    let arguments = ["--home", &home.to_string_lossy(), "run", "verify", place];
    process::run(&places::athome()?, &arguments).await
}

async fn holds(network: &Network, place: &str) -> Result<()> {
    let verified = verify(network, place).await?;
    ensure!(
        verified.success && verified.stdout.contains("Everything holds."),
        "{place} does not hold:\n{}{}",
        verified.stdout,
        verified.stderr
    );
    Ok(())
}

/// One bit in the middle of each kind of file, one after the other.
async fn every_flipped_byte_is_named(network: &Network, hub: &Path, log: &[Entry]) -> Result<()> {
    let (mut blobs, mut closed) = (Vec::new(), None);
    for entry in log {
        match &entry.event {
            Event::RunCreated { charter, .. } => {
                blobs.push(("tokenizer", charter.data.tokenizer));
                blobs.push(("training data shard", charter.data.training[0].blob));
            }
            Event::UpdateCommitted { command } => {
                if let Command::Commit(commitment) = &command.command
                    && let Some(inner_state) = commitment.header.inner_state
                {
                    blobs.push(("inner state", inner_state));
                }
            }
            Event::RoundMerged { updates, delta, .. } => {
                blobs.push(("update of worker", updates[0].update));
                blobs.push(("delta", *delta));
            }
            Event::CheckpointPublished { checkpoint, .. } => {
                blobs.push(("checkpoint", checkpoint.parameters));
                blobs.push(("outer state", checkpoint.outer));
            }
            Event::CommitmentsClosed { .. } => closed = Some(entry),
            _ => {}
        }
    }
    // The first of each kind.
    blobs.sort_by_key(|(kind, _)| *kind);
    blobs.dedup_by_key(|(kind, _)| *kind);
    ensure!(
        blobs.len() == 7,
        "not every kind of blob is there: {blobs:?}"
    );
    for (kind, blob) in blobs {
        let hash = blob.hash.to_string();
        let path = hub.join("blobs").join(&hash);
        flipped(
            network,
            hub,
            &path,
            &[blob.bytes as usize / 2],
            &[kind, &hash],
        )
        .await?;
    }
    // The end of an entry's bytes is its signature.
    let entry = closed.context("no round was closed")?;
    let (bytes, path) = (entry.to_bytes(), hub.join("hub.sqlite"));
    let database = fs::read(&path)?;
    // The database keeps dead copies of what moved to another page: all of them are flipped.
    let windows = database.windows(bytes.len()).enumerate();
    let places: Vec<usize> = windows
        .filter(|(_, it)| *it == bytes)
        .map(|(place, _)| place + bytes.len() - 5)
        .collect();
    ensure!(!places.is_empty(), "the entry is not in the database");
    let named = format!("log entry {}", entry.index);
    flipped(network, hub, &path, &places, &[&named, "hub.sqlite"]).await
}

/// The verification names what was flipped; the file is as before afterwards.
async fn flipped(
    network: &Network,
    hub: &Path,
    path: &Path,
    places: &[usize],
    named: &[&str],
) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let flip = |bytes: &mut Vec<u8>| places.iter().for_each(|at| bytes[*at] ^= 1);
    flip(&mut bytes);
    fs::write(path, &bytes)?;
    let verified = verify(network, &hub.to_string_lossy()).await?;
    flip(&mut bytes);
    fs::write(path, &bytes)?;
    let wrong = verified.stdout.split("WRONG").nth(1).unwrap_or_default();
    ensure!(
        !verified.success && named.iter().all(|it| wrong.contains(it)),
        "{named:?} was flipped and is not named:\n{}{}",
        verified.stdout,
        verified.stderr
    );
    Ok(())
}

/// The last merged update of a worker.
fn merged_of(log: &[Entry], worker: WorkerId) -> Option<Hash> {
    log.iter().rev().find_map(|entry| match &entry.event {
        Event::RoundMerged { updates, .. } => {
            let update = updates.iter().find(|it| it.worker == worker)?;
            Some(update.update.hash)
        }
        _ => None,
    })
}

async fn audit(network: &Network, hub: &Path, update: Hash) -> Result<serde_json::Value> {
    let home = network.folder.join("home").to_string_lossy().into_owned();
    let (update, hub) = (update.to_string(), hub.to_string_lossy());
    let arguments = [
        "--home", &home, "audit", &update, "--folder", &hub, "--json",
    ];
    let output = process::run(&places::athome()?, &arguments).await?;
    let audited: serde_json::Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("the audit printed no JSON: {}", output.stderr))?;
    ensure!(
        output.success == (audited["equal"] == true),
        "the audit's exit status does not say what it found: {audited:#}"
    );
    Ok(audited)
}

/// A worker that takes part without training: it signs an update that it made up, sends it, and leaves.
async fn cheat(network: &Network, run: RunId) -> Result<Hash> {
    let client = network.client()?;
    let key = SecretKey::from_entropy([77; 32]);
    let worker = WorkerId(key.public());
    let command = |sequence, command| SignedCommand::sign(&key, run, sequence, command);
    let join = Command::Join {
        name: "cheat".to_owned(),
        device: Device {
            arithmetic: engine::arithmetic::class(),
            threads: 1,
            memory_mib: 1,
            tokens_per_s: 1_000,
        },
    };
    let token = client.command(&command(1, join)).await?.token;
    let mut after = 0;
    for sequence in 2.. {
        let (work, assignment) = loop {
            let work = client
                .work(run, worker, token.as_deref(), after, None, 1_000)
                .await?;
            after = work.log_length;
            match work.assignment.clone() {
                Some(it) if !it.committed && !it.publish_inner_state => break (work, it),
                Some(_) | None => {}
            }
        };
        let charter = client.charter(run).await?;
        let header = stranger::header(run, worker, &charter, &work, &assignment)?;
        let (header, file) = made_up(&charter, header, &assignment)?;
        let update = BlobReference::of(&file);
        let commitment = Command::Commit(Box::new(Commitment { update, header }));
        // The round may have closed meanwhile: then another one.
        if client
            .command(&command(sequence, commitment))
            .await
            .is_err()
        {
            continue;
        }
        let authorisation = UploadAuthorisation::Worker(key.clone());
        client
            .upload(update.hash, file.into(), &authorisation, |_| {})
            .await?;
        let leave = Command::Leave {
            reason: "done".to_owned(),
        };
        client.command(&command(sequence + 1, leave)).await?;
        return Ok(update.hash);
    }
    bail!("sequence numbers are spent")
}

/// An update that fits its assignment, of values that nobody trained.
fn made_up(
    charter: &Charter,
    header: UpdateHeader,
    assignment: &WorkAssignment,
) -> Result<(UpdateHeader, Vec<u8>)> {
    let lengths = engine::charter::model_config(&charter.model)
        .layout()
        .lengths();
    let values: Vec<f32> = (0..lengths.iter().sum())
        .map(|at: usize| 1e-5 * ((at * 37 % 101) as f32 - 50.0))
        .collect();
    let settings = engine::charter::update_settings(&charter.outer);
    let payload = codec::encode(&lengths, &settings, &values)?;
    let header = UpdateHeader {
        base_round: assignment.base_round,
        base: assignment.base_hash.parse()?,
        ..header
    };
    Ok(stranger::sealed(header, &payload))
}
