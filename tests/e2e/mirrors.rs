//! Hubs that are replaced: a mirror takes a run over in mid-round, after a partition one of two logs counts, and what a key
//! says twice is proven. Workers and gateway find the run's hub by themselves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protocol::{
    api::mirrors::RunHead,
    command::{Command, Device, SignedCommand},
    log::Entry,
    units::RunId,
};
use tests::{
    charters,
    network::{Network, Start, goes_on, last_commitment},
    relay::Relay,
};

/// Longest wait for a mirror to have what its hub has, and for hubs to find out about each other.
const SETTLED_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at heads.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a mirror waits for a silent hub; it looks every second.
const PATIENCE: Duration = Duration::from_secs(10);
const MIRROR: &str = "mirror";

/// The small charter, in a run that is looked for at these addresses and may be taken over with this key.
fn charter(addresses: &[String], succession: &str) -> Result<String> {
    let listed: Vec<String> = addresses.iter().map(|it| format!("{it:?}")).collect();
    Ok(format!(
        "addresses = [{}]\nsuccession = [{succession:?}]\n{}",
        listed.join(", "),
        charters::small()?
    ))
}

/// Makes a succession key; its file and its public part.
async fn succession_key(network: &Network) -> Result<(String, String)> {
    let file = network.folder.join("succession.key");
    let file = file.to_string_lossy().into_owned();
    let made = network
        .athome(&["run", "succession-key", &file, "--json"])
        .await?;
    let made: serde_json::Value = serde_json::from_str(&made)?;
    let public = made["public_key"].as_str().context("no public key")?;
    Ok((file, public.to_owned()))
}

/// Waits until a process's head is as it should be.
async fn head_is(
    network: &mut Network,
    url: &str,
    run: RunId,
    what: &str,
    is_it: impl Fn(&RunHead) -> bool,
) -> Result<RunHead> {
    let begin = Instant::now();
    loop {
        let head = network.head_at(url, run).await;
        if let Ok(head) = &head
            && is_it(head)
        {
            return Ok(head.clone());
        }
        network.must_run()?;
        ensure!(begin.elapsed() < SETTLED_MAX, "{what}: not so: {head:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The hub is killed in mid-round, right after it acknowledged a commitment, and stays away; the mirror is told to take over.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_takes_over_in_mid_round() -> Result<()> {
    let mut network = Network::start("mirrors-takeover").await?;
    let mirror_url = network.plan_mirror(MIRROR)?;
    let hub_url = network.hub_url();
    let (key, public) = succession_key(&network).await?;
    let charter = charter(&[hub_url.clone(), mirror_url.clone()], &public)?;
    let run = network.open_small_run_of(&charter).await?;
    network
        .start_mirror(MIRROR, &["--follow", &hub_url, "--succession-key", &key])
        .await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.start_worker_as(run, "second", &Start::default())?;
    network.start_gateway().await?;
    network.joined(run, 2).await?;
    network.merged(run, 3).await?;
    head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror has it all",
        |it| it.role == "mirror" && it.blobs_missing == 0 && it.current_ms > 0,
    )
    .await?;
    nobody_works_at_a_mirror(&network, run, &mirror_url).await?;

    let told = network
        .athome(&["run", "take-over", &run.to_string(), "--hub", &mirror_url])
        .await;
    ensure!(told.is_err(), "a mirror took over although the hub answers");
    let refusal = format!("{:#}", told.expect_err("checked above"));
    ensure!(refusal.contains("--force"), "{refusal}");

    let first = network.worker_id(run, "first").await?;
    network
        .watch(run, SETTLED_MAX, "commitment", |entry| {
            (entry.kind == "update_committed").then_some(())
        })
        .await?;
    let before = killed_after_acknowledging(&mut network, run, &mirror_url).await?;
    network.ask(Some(MIRROR));
    network
        .athome(&["run", "take-over", &run.to_string(), "--hub", &mirror_url])
        .await?;
    goes_on_after(&network, run, &before).await?;
    let head = network.head_at(&mirror_url, run).await?;
    ensure!(
        head.role == "hub" && head.generation == 1,
        "the mirror is not the hub: {head:?}"
    );
    // What was committed to before counts, although its bytes went to the hub that is gone or were on their way.
    if let Some(update) = last_commitment(&before, first) {
        network.merged_update(run, update).await?;
    }
    network.merged_of(run, first).await?;
    network.merged(run, 4).await?;
    let round = network
        .client()?
        .run(&run.to_string())
        .await?
        .checkpoint_round;
    network.gateway_serves(round).await?;

    // The old hub comes back: it mirrors, and its log is the new one's.
    network.start_hub().await?;
    head_is(&mut network, &hub_url, run, "the old hub mirrors", |it| {
        it.role == "mirror" && it.generation == 1 && it.length > head.length
    })
    .await?;
    network.merged(run, 1).await?;
    let old = tests::audit::log(&network::HubClient::new(&hub_url)?, run).await?;
    goes_on(&old, &network.log(run).await?)?;
    network.is_sound(run).await?;
    network.finish().await
}

/// Kills the hub right after it has acknowledged a command, and gives the log before that: the mirror has it all. What else
/// stood on the hub's disk was promised to nobody. A mirror that the hub had to go on without is waited for.
async fn killed_after_acknowledging(
    network: &mut Network,
    run: RunId,
    mirror: &str,
) -> Result<Vec<Entry>> {
    for seed in 1..=5 {
        let before = network.log(run).await?;
        let reply = network
            .client()?
            .command(&a_strangers_join(run, seed))
            .await?;
        network.kill_hub()?;
        let mirrored = network.head_at(mirror, run).await?.length;
        if reply.log_length <= mirrored {
            return Ok(before);
        }
        ensure!(
            has_gone_on_alone(network)?,
            "{} entries were acknowledged, and the mirror has {mirrored}",
            reply.log_length
        );
        network.start_hub().await?;
        head_is(network, mirror, run, "the mirror has it all", has_all).await?;
    }
    bail!("the mirror does not keep up")
}

/// Whether the hub has said that it goes on without its mirror.
fn has_gone_on_alone(network: &Network) -> Result<bool> {
    let log = std::fs::read_to_string(network.folder.join("hub.log"))?;
    Ok(log.contains("no mirror confirms new entries"))
}

/// What the hub acknowledged is in the new hub's log: nothing but the takeover came in between.
async fn goes_on_after(network: &Network, run: RunId, before: &[Entry]) -> Result<()> {
    let after = network.log(run).await?;
    goes_on(before, &after)
}

/// A mirror refuses what only a hub does, and says where that is.
async fn nobody_works_at_a_mirror(network: &Network, run: RunId, mirror: &str) -> Result<()> {
    let answer = reqwest::get(format!(
        "{mirror}/api/v1/runs/{run}/work?worker={}",
        protocol::SecretKey::from_entropy([9; 32]).public()
    ))
    .await?;
    ensure!(answer.status().as_u16() == 421, "{}", answer.status());
    let named = answer.headers().get("x-athome-hub");
    ensure!(
        named.is_some_and(|it| *it == network.hub_url().as_str()),
        "the mirror does not name its hub"
    );
    let body: serde_json::Value = answer.json().await?;
    ensure!(body["code"] == "mirror", "{body}");
    Ok(())
}

/// Hub and mirror lose sight of each other, with a worker each. Both go on; afterwards one log counts, for everyone.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_partition_one_log_counts() -> Result<()> {
    let mut network = Network::start("mirrors-partition").await?;
    network.plan_mirror(MIRROR)?;
    let to_hub = Relay::start(network.hub_address()).await?;
    let to_mirror = Relay::start(network.mirror_address(MIRROR)?).await?;
    let (hub_url, mirror_url) = (network.hub_url(), network.mirror_url(MIRROR)?);
    let (key, public) = succession_key(&network).await?;
    let charter = charter(&[to_hub.url(), to_mirror.url()], &public)?;
    let run = network.open_small_run_of(&charter).await?;
    let address = to_mirror.url();
    let follow = to_hub.url();
    let mut flags = vec!["--follow", &follow, "--address", &address];
    flags.extend(["--succession-key", &key, "--take-over-after", "5"]);
    network.start_mirror(MIRROR, &flags).await?;
    network.start_worker_as(run, "of-hub", &Start::default())?;
    network.start_worker_as(run, "of-mirror", &Start::with_hub(to_hub.url()))?;
    network.joined(run, 2).await?;
    network.merged(run, 2).await?;
    head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror has it all",
        |it| it.role == "mirror" && it.blobs_missing == 0 && it.current_ms > 0,
    )
    .await?;

    to_hub.part();
    to_mirror.part();
    head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror takes over",
        |it| it.role == "hub" && it.generation == 1,
    )
    .await?;
    let at_hub = network.head_at(&hub_url, run).await?;
    ensure!(at_hub.role == "hub" && at_hub.generation == 0, "{at_hub:?}");
    // The old hub goes on with its own worker and knows of nothing.
    network.merged(run, 2).await?;
    to_mirror.heal();
    to_hub.heal();
    to_hub.cut();
    to_mirror.cut();

    // What it sealed alone is set aside.
    head_is(&mut network, &hub_url, run, "the old hub gives up", |it| {
        it.role == "mirror" && it.generation == 1 && it.entries_set_aside > 0
    })
    .await?;
    network.ask(Some(MIRROR));
    for name in ["of-hub", "of-mirror"] {
        let worker = network.has_joined(run, name).await?;
        network.merged_of(run, worker).await?;
    }
    let new = network.log(run).await?;
    head_is(&mut network, &hub_url, run, "the old hub has all", |it| {
        it.length >= new.len() as u64
    })
    .await?;
    let old = tests::audit::log(&network::HubClient::new(&hub_url)?, run).await?;
    goes_on(&new, &old)?;
    network.is_sound(run).await?;
    network.finish().await
}

/// A hub that has no time for its mirror, for longer than the mirror waits for one that is silent, is not taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_without_time_is_not_taken_over() -> Result<()> {
    let mut network = Network::start("mirrors-busy").await?;
    let mirror_url = network.plan_mirror(MIRROR)?;
    let to_hub = Relay::start(network.hub_address()).await?;
    let (key, public) = succession_key(&network).await?;
    let charter = charter(&[to_hub.url(), mirror_url.clone()], &public)?;
    let run = network.open_small_run_of(&charter).await?;
    let follow = to_hub.url();
    let mut flags = vec!["--follow", &follow, "--succession-key", &key];
    let patience = PATIENCE.as_secs().to_string();
    flags.extend(["--take-over-after", &patience]);
    network.start_mirror(MIRROR, &flags).await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.joined(run, 1).await?;
    network.merged(run, 2).await?;
    head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror has it all",
        has_all,
    )
    .await?;

    to_hub.refuse();
    let begun = Instant::now();
    while begun.elapsed() < 3 * PATIENCE {
        network.merged(run, 1).await?;
        let head = network.head_at(&mirror_url, run).await?;
        ensure!(
            head.generation == 0,
            "a living hub was taken over: {head:?}"
        );
    }
    let told = network
        .athome(&["run", "take-over", &run.to_string(), "--hub", &mirror_url])
        .await;
    let refusal = told.err().map_or_else(String::new, |it| format!("{it:#}"));
    ensure!(refusal.contains("has no time"), "{refusal}");
    let before = network.log(run).await?;
    to_hub.admit();
    let head = head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror has all again",
        |it| it.length >= before.len() as u64,
    )
    .await?;
    ensure!(
        head.generation == 0 && head.role == "mirror" && head.entries_set_aside == 0,
        "{head:?}"
    );
    goes_on_after(&network, run, &before).await?;
    network.is_sound(run).await?;
    network.finish().await
}

/// A hub that is restored from an older copy takes what its mirror has of its log before it seals anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_hub_from_an_older_copy_takes_what_its_mirror_has() -> Result<()> {
    let mut network = Network::start("mirrors-older-copy").await?;
    let mirror_url = network.plan_mirror(MIRROR)?;
    let hub_url = network.hub_url();
    let (key, public) = succession_key(&network).await?;
    let charter = charter(&[hub_url.clone(), mirror_url.clone()], &public)?;
    let run = network.open_small_run_of(&charter).await?;
    network
        .start_mirror(MIRROR, &["--follow", &hub_url, "--succession-key", &key])
        .await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.joined(run, 1).await?;
    network.merged(run, 1).await?;
    let [folder, older] = ["hub", "older"].map(|it| network.folder.join(it));
    network.stop_hub().await?;
    copy_folder(&folder, &older)?;
    network.start_hub().await?;
    network.merged(run, 3).await?;
    network.stop_worker("first").await?;
    let before = network.log(run).await?;
    let is_whole = |it: &RunHead| has_all(it) && it.length >= before.len() as u64;
    head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror has it all",
        is_whole,
    )
    .await?;

    network.kill_hub()?;
    std::fs::remove_dir_all(&folder)?;
    std::fs::rename(&older, &folder)?;
    network.start_hub().await?;
    head_is(
        &mut network,
        &hub_url,
        run,
        "the hub has its log again",
        |it| it.role == "hub" && it.length >= before.len() as u64,
    )
    .await?;
    network.start_worker_as(run, "first", &Start::default())?;
    network.merged(run, 1).await?;
    goes_on_after(&network, run, &before).await?;
    let after = network.log(run).await?;
    let head = head_is(&mut network, &mirror_url, run, "the mirror follows", |it| {
        it.length >= after.len() as u64
    })
    .await?;
    ensure!(
        head.equivocations.is_empty() && head.entries_set_aside == 0,
        "the hub sealed twice: {head:?}"
    );
    let mirrored = tests::audit::log(&network::HubClient::new(&mirror_url)?, run).await?;
    goes_on(&after, &mirrored)?;
    network.is_sound(run).await?;
    network.finish().await
}

/// A copy of a hub's folder is started elsewhere, where nobody looks for it: it seals what the hub does not, shows the hub the
/// proof, and both seal nothing more, until a mirror takes over.
#[tokio::test(flavor = "multi_thread")]
async fn hubs_that_seal_twice_stop_until_a_takeover() -> Result<()> {
    let mut network = Network::start("mirrors-equivocation").await?;
    let copy_url = network.plan_mirror("copy")?;
    let mirror_url = network.plan_mirror(MIRROR)?;
    let hub_url = network.hub_url();
    let (key, public) = succession_key(&network).await?;
    let charter = charter(&[hub_url.clone(), mirror_url.clone()], &public)?;
    let run = network.open_small_run_of(&charter).await?;
    begins_and_rests(&mut network, run).await?;
    network.stop_hub().await?;
    copy_folder(&network.folder.join("hub"), &network.folder.join("copy"))?;
    network.start_hub().await?;
    network
        .start_mirror(MIRROR, &["--follow", &hub_url, "--succession-key", &key])
        .await?;
    head_is(
        &mut network,
        &mirror_url,
        run,
        "the mirror has it all",
        has_all,
    )
    .await?;
    network.start_mirror("copy", &[]).await?;
    // The copy first: one that finds that the hub has more takes it over instead.
    for (url, seed) in [(&copy_url, 1), (&hub_url, 2)] {
        let client = network::HubClient::new(url)?;
        client.command(&a_strangers_join(run, seed)).await?;
    }
    let mut ids = Vec::new();
    let mut lengths = Vec::new();
    for url in [&hub_url, &copy_url] {
        let head = head_is(&mut network, url, run, "it has stopped", |it| {
            it.stopped.is_some() && !it.equivocations.is_empty()
        })
        .await?;
        let found = head.equivocations.first().context("checked above")?;
        ensure!(found.kind == "two_entries", "{found:?}");
        let client = network::HubClient::new(url)?;
        let proof = client.equivocation(run, found.id.parse()?).await?;
        ensure!(proof.key.to_string() == head.key, "another key's");
        ids.push(found.id.clone());
        lengths.push(head.length);
    }
    ensure!(ids[0] == ids[1], "one fact has two proofs: {ids:?}");
    for (url, length) in [&hub_url, &copy_url].into_iter().zip(lengths) {
        let client = network::HubClient::new(url)?;
        let client = client.with_retry(network::retry::RetryPolicy::once());
        let refused = client.command(&a_strangers_join(run, 3)).await;
        let refusal = refused.err().map_or_else(String::new, |it| it.to_string());
        ensure!(refusal.contains("seals nothing more"), "{refusal}");
        let head = network.head_at(url, run).await?;
        ensure!(head.length == length, "it goes on sealing: {head:?}");
    }
    let shown = network
        .athome(&["run", "show", &run.to_string(), "--hub", &hub_url])
        .await?;
    ensure!(shown.contains("sealed two different entries"), "{shown}");
    ensure!(shown.contains("stopped"), "{shown}");

    // A hub that says that it has stopped is taken over without --force.
    network
        .athome(&["run", "take-over", &run.to_string(), "--hub", &mirror_url])
        .await?;
    for url in [&hub_url, &copy_url] {
        head_is(&mut network, url, run, "it mirrors", |it| {
            it.role == "mirror" && it.generation == 1 && it.stopped.is_none()
        })
        .await?;
    }
    let client = network::HubClient::new(&mirror_url)?;
    client.command(&a_strangers_join(run, 4)).await?;
    network.kill_mirror("copy")?;
    what_is_beside_the_log_is_checked(&network).await?;
    network.finish().await
}

/// `athome run verify` looks at what the copy set aside, at the proof, and at its key.
async fn what_is_beside_the_log_is_checked(network: &Network) -> Result<()> {
    let folder = network.folder.join("copy");
    let place = folder.to_string_lossy();
    let verify = ["run", "verify", &place, "--allow-missing", "--json"];
    let verified: serde_json::Value = serde_json::from_str(&network.athome(&verify).await?)?;
    for counted in ["set_aside_checked", "proofs_checked"] {
        ensure!(verified[counted].as_u64() >= Some(1), "{verified}");
    }
    let key = verified["key"].as_str().unwrap_or_default();
    ensure!(key.contains("sealed this run once"), "{verified}");
    std::fs::write(folder.join("hub.key"), "no key")?;
    let damaged = network.athome(&verify).await;
    let found = damaged
        .err()
        .map_or_else(String::new, |it| format!("{it:#}"));
    ensure!(found.contains("hub.key"), "{found}");
    Ok(())
}

/// Waits until the hub has sealed what it seals of a new run without workers.
async fn begins_and_rests(network: &mut Network, run: RunId) -> Result<()> {
    let begun = Instant::now();
    loop {
        let log = network.log(run).await?;
        let has = |kind| log.iter().any(|it| it.event.name() == kind);
        if has("model_evaluated") && has("sample_drawn") {
            return Ok(());
        }
        network.must_run()?;
        ensure!(begun.elapsed() < SETTLED_MAX, "the first model is not seen");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn has_all(head: &RunHead) -> bool {
    head.role == "mirror" && head.blobs_missing == 0 && head.current_ms > 0
}

fn a_strangers_join(run: RunId, seed: u8) -> SignedCommand {
    let key = protocol::SecretKey::from_entropy([seed; 32]);
    let join = Command::Join {
        name: format!("stranger-{seed}"),
        device: Device {
            arithmetic: "none".to_owned(),
            threads: 1,
            memory_mib: 1,
            tokens_per_s: 1,
        },
    };
    SignedCommand::sign(&key, run, 1, join)
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let item = item?;
        let place = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            copy_folder(&item.path(), &place)?;
        } else {
            std::fs::copy(item.path(), &place)?;
        }
    }
    Ok(())
}
