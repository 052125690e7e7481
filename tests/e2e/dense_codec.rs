//! Dense DiLoCo, the charter's other codec: whole updates, outer Nesterov momentum, the same log and the same checks.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{audit, network::Network, places};

/// Merges to wait for.
const MERGES: usize = 6;
/// Longest wait for them.
const WAIT_MAX: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_train_with_whole_updates() -> Result<()> {
    let mut network = Network::start("dense-codec").await?;
    let run = network
        .open_run_of(&dense(&places::demo_charter()?)?)
        .await?;
    network.start_worker(run, "one", "1.0")?;
    network.start_worker(run, "two", "0.5")?;
    let mut merges = 0;
    network
        .watch(run, WAIT_MAX, "merges of whole updates", |entry| {
            merges += usize::from(entry.kind == "round_merged");
            (merges == MERGES).then_some(())
        })
        .await?;

    let client = network.client()?;
    let audit = audit::audit(&client, run, &network.folder.join("audit")).await?;
    ensure!(
        MERGES <= audit.merges.len(),
        "the log has only {} merges",
        audit.merges.len()
    );
    let losses = client.losses(run).await?;
    let training: Vec<f64> = losses.iter().filter_map(|it| it.training_loss).collect();
    let (first, last) = (training.first(), training.last());
    let (first, last) = first.zip(last).context("no training loss is on record")?;
    ensure!(
        *last < *first,
        "the training loss went from {first} to {last}"
    );
    network.finish().await
}

/// The demo's charter with the dense codec, outer momentum and no warm start.
fn dense(charter: &str) -> Result<String> {
    let sparse = charter
        .find("[outer.codec.sparse]")
        .context("the demo's charter has no sparse codec")?;
    let end = charter[sparse + 1..]
        .find("\n[")
        .map_or(charter.len(), |it| sparse + 2 + it);
    let mut changed = charter.to_owned();
    changed.replace_range(
        sparse..end,
        "[outer.codec.dense]\nchunk = 4096\nbits = 8\n\n",
    );
    for (field, value) in [
        // Nesterov momentum 0.9 with an outer rate of 0.5.
        ("momentum_q16", "58982"),
        ("rate_q16", "32768"),
        ("warm_start_tokens", "0"),
    ] {
        let line = changed
            .lines()
            .find(|it| it.starts_with(&format!("{field} =")))
            .with_context(|| format!("the demo's charter has no {field}"))?
            .to_owned();
        changed = changed.replacen(&line, &format!("{field} = {value}"), 1);
    }
    Ok(changed)
}
