//! Two unmodified BOINC clients under two accounts and a native worker train one model: everyone's work is in it, credit
//! follows the formula, and who owns the machines sees it.

#![cfg(target_os = "linux")]

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use protocol::{
    event::Event,
    log::Entry,
    units::{AccountId, RunId, WorkerId},
};
use serde_json::Value;
use tests::{
    audit,
    boinc::BoincClient,
    charters,
    network::Network,
    places,
    process::{self, run_well},
};

/// Time that a unit trains; volunteers' take 15 to 60 minutes.
const UNIT_MS: u64 = 10_000;
/// A round waits so long for those who are there; it ends as soon as all of them have committed.
const WINDOW_MS: u64 = 60_000;
/// The native worker has no unit to end it: it would train for all of the window.
const STEPS_MAX: u64 = 2_000;
/// Merged rounds that native worker and both hosts must be part of.
const ROUNDS_TOGETHER: usize = 3;
/// Longest wait for those, from the clients' start on: they measure their machine first.
const TOGETHER_MAX: Duration = Duration::from_secs(330);
/// Longest wait for a client to have told its user of credit.
const TOLD_MAX: Duration = Duration::from_secs(90);
/// Cobblestones in a credit.
const COBBLESTONES: f64 = 2_315.0;
const PASSWORD: &str = "correct horse battery";

#[tokio::test(flavor = "multi_thread")]
async fn two_boinc_clients_and_a_worker_make_one_model() -> Result<()> {
    let mut network = Network::start_with_boinc("boinc").await?;
    let run = network
        .open_small_run_of(&charters::boinc(UNIT_MS, WINDOW_MS, STEPS_MAX)?)
        .await?;
    network.start_worker(run, "native", "0.5")?;
    network.joined(run, 1).await?;
    let mut hosts = Vec::new();
    for name in ["alice", "bob"] {
        let (url, email) = (network.project_url(), format!("{name}@example.org"));
        let mut host = BoincClient::start(&network.folder.join(name)).await?;
        let key = host.create_account(&url, &email, PASSWORD).await?;
        ensure!(key.starts_with("d_"), "a client was given the key {key:?}");
        host.attach(&url, &key).await?;
        hosts.push(host);
    }

    let mut together = 0;
    let watched = network
        .watch(run, TOGETHER_MAX, "rounds of all three", |entry| {
            let updates = entry.body["updates"].as_array().into_iter().flatten();
            let workers: BTreeSet<_> = updates.map(|it| it["worker"].to_string()).collect();
            together += usize::from(entry.kind == "round_merged" && workers.len() == 3);
            (together == ROUNDS_TOGETHER).then_some(())
        })
        .await;
    for host in &mut hosts {
        host.must_run()?;
    }
    watched.with_context(|| format!("{together} rounds so far"))?;

    let bindings = two_accounts_have_a_machine_each(&network, run).await?;
    everyone_is_in_it(&network, run, &bindings)
        .await
        .context("merges")?;
    credit_follows_the_formula(&network, run, &bindings, &hosts)
        .await
        .context("credit")?;
    the_loss_fell(&network, run).await?;
    owners_see_it(&network, run).await.context("pages")?;
    for host in &mut hosts {
        host.quit().await?;
    }
    drop(hosts);
    // What is still private is public to nobody: at rest, all of the log can be computed again.
    network.stop_worker("native").await?;
    network.stop_hub().await?;
    let hub = network.folder.join("hub");
    let said = network
        .athome(&["run", "verify", &hub.to_string_lossy()])
        .await?;
    ensure!(said.contains("Everything holds."), "{said}");
    network.finish().await
}

/// Each account is another key, and each has one of the workers.
async fn two_accounts_have_a_machine_each(
    network: &Network,
    run: RunId,
) -> Result<Vec<(AccountId, WorkerId)>> {
    let bindings = bindings(&network.log(run).await?);
    let accounts: BTreeSet<_> = bindings.iter().map(|it| it.0).collect();
    ensure!(
        bindings.len() == 2 && accounts.len() == 2,
        "the log binds {bindings:?}"
    );
    let native = network.worker_id(run, "native").await?;
    ensure!(bindings.iter().all(|it| it.1 != native));
    Ok(bindings)
}

fn bindings(log: &[Entry]) -> Vec<(AccountId, WorkerId)> {
    log.iter()
        .filter_map(|entry| match &entry.event {
            Event::IdentityBound { binding } => Some((binding.account, WorkerId(binding.key))),
            _ => None,
        })
        .collect()
}

/// Merges come out the same when done again from the log; without either host's update the checkpoint would be another.
async fn everyone_is_in_it(
    network: &Network,
    run: RunId,
    bindings: &[(AccountId, WorkerId)],
) -> Result<()> {
    let audit = audit::audit(&network.client()?, run, &network.folder.join("audit")).await?;
    let mut together = 0;
    for merge in &audit.merges {
        let is_in = |worker: &WorkerId| merge.updates.iter().any(|it| it.0 == *worker);
        if !bindings.iter().all(|(_, worker)| is_in(worker)) {
            continue;
        }
        together += 1;
        for (_, host) in bindings {
            let without = merge.without.iter().find(|(worker, _)| worker == host);
            let (_, without) = without.context("a host's update was not left out in a trial")?;
            ensure!(
                *without != merge.parameters,
                "round {}: the model is the same without {}",
                merge.round,
                host.short()
            );
        }
    }
    ensure!(
        ROUNDS_TOGETHER <= together,
        "only {together} merges have both hosts"
    );
    Ok(())
}

/// Credit is accepted tokens times what the charter says a token costs, and the clients show it in BOINC's figure.
async fn credit_follows_the_formula(
    network: &Network,
    run: RunId,
    bindings: &[(AccountId, WorkerId)],
    hosts: &[BoincClient],
) -> Result<()> {
    let client = network.client()?;
    let charter = client.charter(run).await?;
    let (model, sequence) = (&charter.model, u64::from(charter.inner.sequence));
    let (width, layers) = (
        u64::from(model.hidden_size),
        u64::from(model.num_hidden_layers),
    );
    // As docs/protocol.md tells it; as many heads of keys and values as of queries, embeddings tied.
    let layer = 4 * width * width + 3 * width * u64::from(model.intermediate_size) + 2 * width;
    let parameters = u64::from(model.vocab_size) * width + layers * layer + width;
    let flop_per_token = 6 * parameters + 12 * layers * width * sequence;

    let mut shown = Vec::new();
    for host in hosts {
        // Whatever is on its way is reported: credit of rounds from now on must not be in the way.
        host.project_order("nomorework").await?;
    }
    for (_, worker) in bindings {
        let log = network.log(run).await?;
        let merged = log.iter().filter_map(|entry| match &entry.event {
            Event::RoundMerged { updates, .. } => Some(updates),
            _ => None,
        });
        let (mut tokens, mut logged) = (0, 0);
        for update in merged.flatten().filter(|it| it.worker == *worker) {
            tokens += update.tokens;
            logged += update.credits.0;
        }
        let by_formula = tokens as f64 * flop_per_token as f64 / 1e9;
        ensure!(
            0 < logged && (logged as f64 - by_formula).abs() <= 1.0 + log.len() as f64,
            "{tokens} tokens of {flop_per_token} FLOP make {by_formula} millionths of a credit, the log says {logged}"
        );
        shown.push(logged as f64 / 1e6 * COBBLESTONES);
    }
    // The log's order of machines is not the clients'.
    for host in hosts {
        let begin = std::time::Instant::now();
        loop {
            host.update().await?;
            let told = host.project().await?.host_credit;
            // What a client shows may be of a round more.
            if shown.iter().any(|it| *it <= told + 0.01) && told > 0.0 {
                break;
            }
            ensure!(
                begin.elapsed() < TOLD_MAX,
                "the client shows {told} of {shown:?}"
            );
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
    Ok(())
}

async fn the_loss_fell(network: &Network, run: RunId) -> Result<()> {
    let losses = network.client()?.losses(run).await?;
    let held_out: Vec<f64> = losses.iter().filter_map(|it| it.held_out_loss).collect();
    let (first, last) = (held_out.first(), held_out.last());
    ensure!(
        last < first,
        "the loss on held-out text went from {first:?} to {last:?}"
    );
    Ok(())
}

/// The account commands, and the pages Join and Machines in a browser that their link signs in.
async fn owners_see_it(network: &Network, run: RunId) -> Result<()> {
    let hub = network.hub_url();
    let made: Value =
        serde_json::from_str(&network.athome(&["account", "create", "--json"]).await?)?;
    let words = made["words"].as_str().context("no words")?;
    let account = made["account"].as_str().context("no account")?;
    // The words alone bring the same key back, on a machine that never saw it.
    let elsewhere = network.folder.join("elsewhere");
    let recovered = told(&elsewhere, &["account", "recover", "--json"], words).await?;
    ensure!(recovered["account"] == made["account"], "{recovered}");

    let email = ["--email", "alice@example.org"];
    let worker = network.folder.join("worker-native");
    let worker = ["--worker", "--worker-folder", &worker.to_string_lossy()];
    let link = [&["account", "link", &hub, "--json"], &email[..], &worker].concat();
    let linked = told(&network.folder.join("home"), &link, PASSWORD).await?;
    ensure!(
        linked["runs"].as_array().is_some_and(|it| it.len() == 1),
        "{linked}"
    );
    // The hub's key acts for the own one, by both signatures: the log's reader has checked them.
    let bound = bindings(&network.log(run).await?);
    let hub_key = linked["hub_key"].as_str().context("no key of the hub")?;
    let is_bound =
        |it: &(AccountId, WorkerId)| it.0.0.to_string() == account && it.1.to_string() == hub_key;
    ensure!(bound.iter().any(is_bound), "{bound:?}");
    let native = network.worker_id(run, "native").await?;
    ensure!(
        bound
            .iter()
            .any(|it| it.0.0.to_string() == hub_key && it.1 == native),
        "the native worker is not bound"
    );

    let login = network
        .athome(&["account", "login", &hub, "--json"])
        .await?;
    let login: Value = serde_json::from_str(&login)?;
    let login = login["url"].as_str().context("no link")?;
    let pictures = places::kept().join("pictures");
    fs::create_dir_all(&pictures)?;
    let script = places::root().join("web/tests/account.mjs");
    let (script, out) = (script.to_string_lossy(), pictures.to_string_lossy());
    let arguments = [&*script, &hub, login, "bob@example.org", PASSWORD, &out];
    let said = run_well(Path::new("node"), &arguments).await?;
    ensure!(said.contains(" passed, 0 failed"), "{said}");
    fs::write(pictures.join("account-checks.txt"), said)?;
    Ok(())
}

/// An `athome` command that reads `words` from standard input, with this home folder; what it printed, as JSON.
async fn told(home: &Path, arguments: &[&str], words: &str) -> Result<Value> {
    let home = home.to_string_lossy();
    let arguments = [&["--home", &*home], arguments].concat();
    let said = process::run_told(&places::athome()?, &arguments, words).await?;
    ensure!(
        said.success,
        "{arguments:?}: {}{}",
        said.stdout,
        said.stderr
    );
    Ok(serde_json::from_str(&said.stdout)?)
}
