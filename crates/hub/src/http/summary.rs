//! The head of a run's page, put together from state, store and presence.

use anyhow::Result;
use protocol::{
    api::{BaselineLosses, RunSummary, WorkerSummary},
    state::State,
};

use crate::{Hub, run::Run};

/// Sums up a run.
pub(super) async fn run_summary(hub: &Hub, run: &Run) -> Result<RunSummary> {
    let evaluation = hub.store.newest_evaluation(run.id).await?;
    let tokens_per_s = hub
        .store
        .tokens_per_second(run.id, hub.clock.now_ms())
        .await?;
    let created_ms = hub.store.created_ms(run.id).await?;
    let state = run.state.read().await;
    let charter = &state.charter;
    let census = run
        .census
        .counted(&run.presence, &state, hub.clock.now_ms());
    let nats = |micronats: u64| micronats as f64 / 1e6;
    Ok(RunSummary {
        id: run.id.to_string(),
        name: charter.name.clone(),
        description: charter.description.clone(),
        phase: phase_name(&state).to_owned(),
        created_ms,
        log_length: state.head.length,
        round: state.round,
        deadline_ms: state.current_round().map(|it| it.deadline_ms),
        rounds_merged: state.rounds_merged,
        tokens: state.tokens,
        tokens_max: charter.inner.tokens_max,
        tokens_per_s,
        parameters: charter.model.parameter_count(),
        workers_present: census.workers_present,
        workers: state.workers.len() as u64,
        evaluation,
        baselines: BaselineLosses {
            unigram: nats(charter.data.baselines.unigram_micronats),
            bigram: nats(charter.data.baselines.bigram_micronats),
            trigram: nats(charter.data.baselines.trigram_micronats),
        },
        checkpoint_round: state.checkpoint.0,
        credits_micro: census.credits_micro,
    })
}

/// Adds to the stored workers what only the running hub knows.
pub(super) async fn workers(
    hub: &Hub,
    run: &Run,
    offset: u64,
    limit: u64,
) -> Result<Vec<WorkerSummary>> {
    let mut workers = hub.store.workers(run.id, offset, limit).await?;
    let now = hub.clock.now_ms();
    for worker in &mut workers {
        let seen = worker
            .id
            .parse()
            .ok()
            .and_then(|id| run.presence.of(&id, now));
        worker.present &= seen.is_some_and(|(_, is_present)| is_present);
        if let Some((seen, _)) = seen {
            worker.last_seen_ms = Some(seen.last_ms);
            worker.bytes_down = seen.bytes_down;
        }
    }
    Ok(workers)
}

fn phase_name(state: &State) -> &'static str {
    match (&state.training, &state.revealing) {
        (Some(_), _) => "training",
        (None, Some(_)) => "revealing",
        (None, None) if state.finished => "finished",
        (None, None) => "idle",
    }
}
