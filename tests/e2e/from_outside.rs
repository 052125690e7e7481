//! What people who are no part of the network see: an exported model, the OpenAI client, the pages, and refusals for who misbehaves.
//!
//! One network serves all of these; each check is a function of its own.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use engine::{checkpoint::read_folder, generate::Generator};
use protocol::{
    Hash, SecretKey,
    api::ApiError,
    command::{Command, SignedCommand},
    units::RunId,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tests::{
    network::Network,
    places,
    process::{self, run_well},
};

/// Longest wait for the first checkpoint with a sample.
const SAMPLED_MAX: Duration = Duration::from_secs(240);
/// Token ids that every vocabulary of the tests has.
const PROMPT: [u32; 12] = [3, 100, 7, 42, 42, 255, 9, 61, 130, 5, 77, 300];

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_served_and_refused() -> Result<()> {
    let mut network = Network::start("from-outside").await?;
    let run = network.open_run().await?;
    network.start_worker(run, "first", "1.0")?;
    network.joined(run, 1).await?;
    network.start_worker(run, "second", "0.5")?;
    network.start_gateway().await?;
    network
        .watch(run, SAMPLED_MAX, "sample of a trained model", |entry| {
            let round = entry.body["round"].as_u64()?;
            (entry.kind == "sample_drawn" && 2 <= round).then_some(())
        })
        .await?;

    hostile_data_is_refused(&network)
        .await
        .context("hostile data")?;
    the_openai_client_works(&network)
        .await
        .context("openai client")?;
    an_export_opens_in_transformers(&network, run)
        .await
        .context("export")?;
    the_pages_work_in_a_browser(&network)
        .await
        .context("browser")?;
    hostile_requests_are_refused(&network, run)
        .await
        .context("hostile requests")?;
    network.must_run()?;
    network.finish().await
}

/// The exported folder gives the same logits in transformers as here.
async fn an_export_opens_in_transformers(network: &Network, run: RunId) -> Result<()> {
    let folder = network.folder.join("export");
    let (run, hub) = (run.to_string(), network.hub_url());
    let out = folder.to_string_lossy();
    network
        .athome(&["run", "export", &run, "--hub", &hub, "--out", &out])
        .await?;
    let (config, parameters) = read_folder(&folder)?;
    let mut session = Generator::new(&config, Arc::new(parameters))?.session();
    let mut logits = Vec::new();
    for token in PROMPT {
        session.prefill(&[token])?;
        logits.push(session.logits()?.to_vec());
    }
    let ours = network.folder.join("logits.json");
    fs::write(
        &ours,
        json!({"tokens": PROMPT, "logits": logits}).to_string(),
    )?;
    let script = places::root().join("crates/engine/fixtures/check_export.py");
    let said = run_well(
        &places::python("python-transformers")?,
        &[&script, &folder, &ours],
    )
    .await?;
    fs::write(places::kept().join("export.txt"), said)?;
    Ok(())
}

/// OpenAI's own Python client lists, asks and streams.
async fn the_openai_client_works(network: &Network) -> Result<()> {
    let script = places::root().join("tests/e2e/openai_client.py");
    let address = format!("{}/v1", network.gateway_url());
    let known = newest_checkpoint(network).await?;
    network.gateway_serves(known).await?;
    let said = run_well(
        &places::python("python-openai")?,
        &[script.as_os_str(), address.as_ref()],
    )
    .await?;
    let report: Value = serde_json::from_str(said.lines().last().unwrap_or_default())?;
    let round = report["round"].as_u64().context("no round in /v1/models")?;
    let newest = newest_checkpoint(network).await?;
    ensure!(
        known <= round && round <= newest,
        "the gateway answers from round {round}, the newest checkpoint was of round {known} before and {newest} after"
    );
    Ok(())
}

async fn newest_checkpoint(network: &Network) -> Result<u64> {
    let runs = network.client()?.runs().await?;
    Ok(runs.first().context("the run is gone")?.checkpoint_round)
}

/// Both pages in headless Chromium; the pictures stay where people can look at them.
async fn the_pages_work_in_a_browser(network: &Network) -> Result<()> {
    let script = places::root().join("web/tests/browser.mjs");
    let pictures = places::kept().join("pictures");
    fs::create_dir_all(&pictures)?;
    let arguments = [
        script.to_string_lossy().into_owned(),
        network.hub_url(),
        pictures.to_string_lossy().into_owned(),
    ];
    let said = run_well(Path::new("node"), &arguments).await?;
    ensure!(said.contains(" passed, 0 failed"), "{said}");
    fs::write(pictures.join("checks.txt"), said)?;
    Ok(())
}

/// Wrong bytes, wrong signatures, wrong places: each is refused with a code, and the hub goes on.
async fn hostile_requests_are_refused(network: &Network, run: RunId) -> Result<()> {
    let api = format!("{}/api/v1", network.hub_url());
    let commands = format!("{api}/runs/{run}/commands");
    let http = reqwest::Client::new();
    let key = SecretKey::from_entropy([7; 32]);
    let leave = |run: RunId| {
        let reason = "never joined".to_owned();
        SignedCommand::sign(&key, run, 1, Command::Leave { reason })
    };
    let mut forged = leave(run).to_bytes();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let bodies = [
        ("nothing", Vec::new()),
        ("noise", vec![0xA5; 300]),
        ("too much", vec![0; 16 << 10]),
        ("a forged signature", forged),
        (
            "a command of somebody who never joined",
            leave(run).to_bytes(),
        ),
        (
            "a command for another run",
            leave(RunId(Hash([9; 32]))).to_bytes(),
        ),
    ];
    for (what, body) in bodies {
        let answer = http.post(&commands).body(body).send().await?;
        refused(answer, what).await?;
    }
    // Whoever sends far too much may find the line cut instead of an answer; what counts is that the hub goes on.
    if let Ok(answer) = http.post(&commands).body(vec![0; 32 << 20]).send().await {
        refused(answer, "far too much").await?;
    }
    let blob = "0".repeat(64);
    for (what, path) in [
        ("an unknown run", "runs/nobody".to_owned()),
        ("an unknown blob", format!("blobs/{blob}")),
        ("no hash", "blobs/..%2F..%2Fetc%2Fpasswd".to_owned()),
        (
            "a page before the first",
            format!("runs/{run}/rounds?limit=minus"),
        ),
        (
            "a round that never was",
            format!("runs/{run}/rounds/999999999"),
        ),
    ] {
        let answer = http.get(format!("{api}/{path}")).send().await?;
        refused(answer, what).await?;
    }
    let upload = http
        .patch(format!("{api}/uploads/{blob}"))
        .header("x-athome-offset", "0")
        .header("x-athome-upload", "00:00")
        .body(vec![1; 64]);
    refused(upload.send().await?, "an upload that nobody promised").await?;
    let charter = http
        .post(format!("{api}/runs"))
        .json(&json!({"charter": "name = 3", "parameters": null}));
    refused(charter.send().await?, "a charter that is none").await?;
    let chat = http
        .post(format!("{}/v1/chat/completions", network.gateway_url()))
        .json(&json!({"model": "demo", "messages": "hello", "max_tokens": -1}));
    let answer = chat.send().await?;
    ensure!(
        answer.status() == StatusCode::BAD_REQUEST,
        "the gateway took a broken request"
    );
    network.client()?.run(&run.to_string()).await?;
    Ok(())
}

async fn refused(answer: reqwest::Response, what: &str) -> Result<()> {
    let status = answer.status();
    ensure!(
        status.is_client_error(),
        "{what} was answered with {status}"
    );
    let text = answer.text().await?;
    let error: ApiError = serde_json::from_str(&text)
        .with_context(|| format!("{what} ({status}) was refused without a reason: {text:?}"))?;
    ensure!(
        !error.code.is_empty() && error.message.contains(' '),
        "{what}: {error:?}"
    );
    Ok(())
}

/// Files that are no text, and folders that are no corpus, are refused by name.
async fn hostile_data_is_refused(network: &Network) -> Result<()> {
    let folder = network.folder.join("hostile-data");
    fs::create_dir_all(&folder)?;
    let noise = folder.join("noise.txt");
    fs::write(&noise, [0xFF_u8, 0xFE, 0x00, 0x80].repeat(1000))?;
    let broken = folder.join("broken.jsonl");
    fs::write(&broken, "{\"text\": \"fine\"}\n{\"text\": 3}\n")?;
    let files = [
        ("text", &noise),
        ("jsonl", &broken),
        ("text", &folder.join("missing.txt")),
        ("sotu", &folder),
    ];
    for (kind, file) in files {
        let (path, out) = (file.to_string_lossy(), folder.join("output"));
        let out = out.to_string_lossy();
        let licence = ["--licence", "CC0-1.0", "--owner", "nobody"];
        let arguments = [
            &["data", "import", kind, &path, "--out", &out],
            &licence[..],
        ]
        .concat();
        let said = process::run(&places::athome()?, &arguments).await?;
        let name = file
            .file_name()
            .context("a file has a name")?
            .to_string_lossy();
        ensure!(!said.success, "{name} was imported");
        ensure!(
            said.stderr.contains(&*name),
            "{name} is not named in: {}",
            said.stderr
        );
        ensure!(!said.stderr.contains("panicked"), "{}", said.stderr);
    }
    Ok(())
}
