//! Harm at a run's beginning, and what its owner reads of a refusal: parameters and optimiser's moments that are no numbers,
//! and a real worker whose update never comes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use engine::update::inner_start;
use protocol::{
    units::{BlobReference, RunId},
    update::UpdateHeader,
};
use tests::{
    charters,
    network::{Network, Start},
    relay::{Moment, Relay, Wanted},
    stranger::{Stranger, even_payload, sealed},
};

/// Longest wait for a request to stand in the trap.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest wait for a worker to be told of a verdict.
const VERDICT_MAX: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_number_starts_nothing() -> Result<()> {
    let mut network = Network::start("hostile-start").await?;
    // A warm start takes no late updates, and the strangers' are made step by step.
    let charter = charters::small()?.replace("window_ms = 1500", "window_ms = 15000");
    ensure!(charter.contains("window_ms = 15000"));
    let run = network.open_small_run_of(&charter).await?;
    parameters_are_refused(&network, run)
        .await
        .context("parameters")?;
    let numbers: [(u8, &str, f32, f32); 4] = [
        (71, "finite", f32::NAN, 0.1),
        (72, "finite", 0.1, f32::INFINITY),
        (73, "finite", 0.1, f32::NAN),
        (74, "negative", 0.1, -0.1),
    ];
    for (seed, expected, first, second) in numbers {
        let reason = moments(&network, run, seed, first, second)
            .await
            .with_context(|| format!("m of {first}, v of {second}"))?;
        ensure!(
            reason.contains(expected),
            "{expected:?} is not in {reason:?}"
        );
    }
    // Whoever comes then begins the run as if nobody had been there.
    network.start_worker(run, "honest", "1.0")?;
    let honest = network.has_joined(run, "honest").await?;
    network.merged_of(run, honest).await?;
    network.merged(run, 6).await?;
    network.is_sound(run).await?;
    network.finish().await
}

/// A run can't begin with parameters of which one is no number.
async fn parameters_are_refused(network: &Network, run: RunId) -> Result<()> {
    let client = network.client()?;
    let checkpoints = client.checkpoints(run, 1).await?;
    let first = checkpoints
        .first()
        .context("a run has a first checkpoint")?;
    let url = format!("{}/api/v1/blobs/{}", network.hub_url(), first.blob);
    let mut bytes = reqwest::get(url).await?.bytes().await?.to_vec();
    let header = u64::from_le_bytes(*bytes.first_chunk().context("a safetensors file")?);
    let values = 8 + usize::try_from(header)?;
    bytes[values..values + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let parameters = network.folder.join("nan.safetensors");
    std::fs::write(&parameters, bytes)?;
    let (charter, data) = (
        network.folder.join("charter.toml"),
        network.folder.join("small"),
    );
    let text = std::fs::read_to_string(&charter)?.replace("name = \"demo\"", "name = \"second\"");
    let second = network.folder.join("second.toml");
    std::fs::write(&second, text)?;
    let [second, data, parameters] =
        [second, data, parameters].map(|it| it.to_string_lossy().into_owned());
    let create = [
        "run",
        "create",
        &second,
        "--data",
        &data,
        "--hub",
        &network.hub_url(),
        "--parameters",
        &parameters,
    ];
    let Err(error) = network.athome(&create).await else {
        anyhow::bail!("the run was opened");
    };
    let error = format!("{error:#}");
    ensure!(error.contains("finite"), "{error}");
    ensure!(client.runs().await?.len() == 1, "there is a second run");
    Ok(())
}

/// An update of the warm start whose moments begin with these numbers; gives why it was refused.
async fn moments(
    network: &Network,
    run: RunId,
    seed: u8,
    first: f32,
    second: f32,
) -> Result<String> {
    let mut stranger = Stranger::new(network, run, seed)?;
    let charter = stranger.client.charter(run).await?;
    stranger.send_join().await?;
    let (work, assignment) = stranger.assigned(true).await?;
    let parameters = usize::try_from(charter.model.parameter_count())?;
    let (mut m, mut v) = (vec![0.0; parameters], vec![0.0; parameters]);
    (m[0], v[0]) = (first, second);
    let inner_state = inner_start::to_bytes(1, &m, &v);
    let header = UpdateHeader {
        inner_state: Some(BlobReference::of(&inner_state)),
        ..stranger.header(&charter, &work, &assignment)?
    };
    let (header, file) = sealed(header, &even_payload(&charter, 0.001 * f32::from(seed))?);
    stranger.commit(BlobReference::of(&file), header).await?;
    stranger.upload(&file).await?;
    stranger.upload(&inner_state).await?;
    let reason = stranger.reason().await?;
    stranger.leave().await?;
    Ok(reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_says_why_its_update_was_refused() -> Result<()> {
    let mut network = Network::start("hostile-told").await?;
    let charter = charters::small()?.replace("reveal_ms = 10000", "reveal_ms = 1500");
    ensure!(charter.contains("reveal_ms = 1500"));
    let run = network.open_small_run_of(&charter).await?;
    let relay = Relay::start(network.hub_address()).await?;
    let careless = Start::with_hub(relay.url());
    network.start_worker_as(run, "honest", &Start::default())?;
    network.joined(run, 1).await?;
    // After the warm start: there everyone waits for the one that has the slot.
    network.merged(run, 2).await?;
    network.start_worker_as(run, "careless", &careless)?;
    let worker = network.has_joined(run, "careless").await?;
    network.merged_of(run, worker).await?;
    relay.set_trap(Wanted::Upload, Moment::BeforeRequest);
    relay.caught(WAIT_MAX).await?;
    network.kill_worker("careless")?;
    relay.cut();
    // It committed, and its owner throws away what it committed to.
    let folder = network.folder.join("worker-careless");
    let outbox = folder.join("runs").join(run.to_string()).join("outbox");
    std::fs::remove_dir_all(&outbox).with_context(|| format!("removing {}", outbox.display()))?;
    network.start_worker_as(run, "careless", &careless)?;
    let log = network.worker_log("careless");
    let sentence = "An update was refused: the update's bytes did not arrive in time";
    let begun = std::time::Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(100));
    while !std::fs::read_to_string(&log)?.contains(sentence) {
        ensure!(begun.elapsed() < VERDICT_MAX, "nobody told its owner");
        look.tick().await;
    }
    network.merged_of(run, worker).await?;
    network.finish().await
}
