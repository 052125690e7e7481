//! Three machines of different speed train one model: everyone's work is in it, anyone can check it, and it learns.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{audit, network::Network};

/// Merged rounds that all three must be part of.
const ROUNDS_TOGETHER: usize = 5;
/// Longest wait for those.
const TOGETHER_MAX: Duration = Duration::from_secs(240);
/// Longest wait for a model that beats counting pairs of tokens.
const LEARNT_MAX: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn three_machines_make_one_model() -> Result<()> {
    let mut network = Network::start("training-together").await?;
    let run = network.open_run().await?;
    network.start_worker(run, "swift", "1.0")?;
    network.joined(run, 1).await?;
    network.start_worker(run, "steady", "0.5")?;
    network.start_worker(run, "slow", "0.25")?;

    let mut together = 0;
    network
        .watch(run, TOGETHER_MAX, "five rounds of all three", |entry| {
            let updates = entry.body["updates"].as_array().into_iter().flatten();
            let workers: BTreeSet<_> = updates.map(|it| it["worker"].to_string()).collect();
            together += usize::from(entry.kind == "round_merged" && workers.len() == 3);
            (together == ROUNDS_TOGETHER).then_some(())
        })
        .await?;

    let client = network.client()?;
    let baselines = client.run(&run.to_string()).await?.baselines;
    network
        .watch(
            run,
            LEARNT_MAX,
            "held-out loss below the bigram model's",
            |entry| {
                let micronats = entry.body["evaluation"]["loss_micronats"].as_f64()?;
                (micronats / 1e6 < baselines.bigram).then_some(())
            },
        )
        .await?;

    it_was_learnt_and_not_given(&network, run, baselines.bigram).await?;
    everyone_is_in_it(&network, run).await?;
    speeds_differ_and_credit_follows(&network, run).await?;
    network.finish().await
}

/// The random weights at the start do worse than counting, by the same measure.
async fn it_was_learnt_and_not_given(
    network: &Network,
    run: protocol::units::RunId,
    bigram: f64,
) -> Result<()> {
    let losses = network.client()?.losses(run).await?;
    let first = losses
        .iter()
        .find_map(|it| it.held_out_loss)
        .context("no evaluation is on record")?;
    ensure!(
        bigram < first,
        "{first} nats a token before training is no random model"
    );
    Ok(())
}

/// Each merge comes out the same when done again from the log; without any one update it comes out otherwise.
async fn everyone_is_in_it(network: &Network, run: protocol::units::RunId) -> Result<()> {
    let audit = audit::audit(&network.client()?, run, &network.folder.join("audit")).await?;
    let mut together = 0;
    for merge in &audit.merges {
        let distinct: BTreeSet<_> = merge.updates.iter().collect();
        ensure!(
            distinct.len() == merge.updates.len(),
            "a worker's update of one round is merged twice"
        );
        let workers: BTreeSet<_> = merge.updates.iter().map(|(worker, _)| worker).collect();
        together += usize::from(workers.len() == 3);
        for (worker, hash) in &merge.without {
            ensure!(
                *hash != merge.parameters,
                "round {}: the model is the same without {worker}",
                merge.round
            );
        }
    }
    ensure!(
        ROUNDS_TOGETHER <= together,
        "only {together} merges have all three"
    );
    Ok(())
}

/// Nobody waits for the slowest: tokens and credit follow what each machine did.
async fn speeds_differ_and_credit_follows(
    network: &Network,
    run: protocol::units::RunId,
) -> Result<()> {
    let workers = network.client()?.workers(run).await?;
    let tokens = |name: &str| {
        workers
            .iter()
            .find(|it| it.name == name)
            .map(|it| it.tokens)
    };
    let (swift, slow) = (tokens("swift"), tokens("slow"));
    ensure!(slow < swift, "slow did {slow:?} tokens, swift {swift:?}");
    for worker in &workers {
        ensure!(
            0 < worker.credits_micro && 0 < worker.updates_accepted,
            "{} was never credited",
            worker.name
        );
        ensure!(
            worker.updates_refused <= 1,
            "{}: {:?}",
            worker.name,
            worker.last_refusal
        );
    }
    Ok(())
}
