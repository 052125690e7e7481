//! An account's machines with what they did: states and refusals of tasks from the door, credit from the log.

use axum::{Json, extract::State, http::HeaderMap};
use protocol::{
    api::{
        ApiError, Contribution,
        accounts::{HostSummary, TASKS_SHOWN_MAX, TaskSummary},
    },
    units::{RunId, WorkerId},
};

use super::signed_in;
use crate::{
    Hub,
    boinc::{Door, Host, Unit, cobblestones},
    http::{Shared, boinc::door, errors::Failure},
};

/// Machines in an answer, those heard of last.
const HOSTS_SHOWN_MAX: u64 = 256;

/// The account's machines, those heard of last first, each with its newest tasks.
#[utoipa::path(get, path = "/api/v1/account/hosts", tag = "accounts", responses((status = 200, body = [HostSummary]), (status = 401, body = ApiError)))]
pub(in crate::http) async fn list_hosts(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Json<Vec<HostSummary>>, Failure> {
    let account = signed_in(&hub, &headers).await?;
    let door = door(&hub)?;
    let mut hosts = Vec::new();
    for host in door.store.hosts_of(account.id, HOSTS_SHOWN_MAX).await? {
        hosts.push(summary(&hub, door, host).await?);
    }
    Ok(Json(hosts))
}

async fn summary(hub: &Hub, door: &Door, host: Host) -> Result<HostSummary, Failure> {
    let workers = door.store.workers_of(host.id).await?;
    let mut parts = Vec::new();
    for (run, worker) in &workers {
        let limit = TASKS_SHOWN_MAX as u64 * 2;
        let found = hub.store.contributions_of(*run, worker, limit).await?;
        parts.extend(
            found
                .into_iter()
                .map(|(round, it)| (*run, *worker, round, it)),
        );
    }
    let units = door.store.units_of(host.id, TASKS_SHOWN_MAX as u64).await?;
    let newest = workers.last().copied();
    let worker_name = match newest {
        Some((run, worker)) => name(hub, run, worker).await,
        None => None,
    };
    let machine = &host.machine;
    Ok(HostSummary {
        id: host.id,
        created_ms: host.created_ms,
        seen_ms: host.seen_ms,
        platform: host.platform.clone(),
        processor: machine.model.clone(),
        processors: machine.processors,
        memory_bytes: machine.memory_bytes,
        operating_system: format!("{} {}", machine.os_name, machine.os_version)
            .trim()
            .to_owned(),
        client_version: host.client_version.clone(),
        worker: newest.map(|(_, worker)| worker.to_string()),
        worker_name,
        earned: door.earned_by_host(hub, host.id).await?.shown(),
        failures: host.failures,
        checks_agreed: host.valid_in_row,
        tasks: units.into_iter().map(|it| task(it, &parts)).collect(),
    })
}

async fn name(hub: &Hub, run: RunId, worker: WorkerId) -> Option<String> {
    let run = hub.find(&run.to_string()).await?;
    let state = run.state.read().await;
    state.workers.get(&worker).map(|it| it.name.clone())
}

/// A worker's part in a round that merged, or would have merged, it.
type Part = (RunId, WorkerId, u64, Contribution);

fn task(unit: Unit, parts: &[Part]) -> TaskSummary {
    // What went on to a later round stands there as well: the last word is the newest entry's.
    let is_of = |(run, worker, round, part): &&Part| {
        let of_round = part.of_round.unwrap_or(*round);
        unit.kind == "train"
            && *run == unit.run
            && Some(*worker) == unit.worker
            && Some(of_round) == unit.round
    };
    let is_granted = unit.state.name() == "granted";
    let part = parts.iter().filter(is_of).max_by_key(|it| it.3.event);
    let part = part.map(|it| &it.3).filter(|_| is_granted);
    let state = part.map_or(unit.state.name(), |it| match it.state.as_str() {
        "accepted" | "merged" | "refused" | "lost" => &it.state,
        _ => unit.state.name(),
    });
    let micro = part.and_then(|it| it.credits_micro);
    let nats = |it: u64| it as f64 / 1e6;
    TaskSummary {
        state: state.to_owned(),
        refusal: part.and_then(|it| it.refusal.clone()).or(unit.refusal),
        name: unit.name,
        kind: unit.kind,
        run: unit.run.to_string(),
        round: unit.round,
        sent_ms: unit.sent_ms,
        deadline_ms: unit.deadline_ms,
        progress_ppm: unit.progress_ppm,
        steps_told: unit.steps_told,
        loss_told: unit.loss_told.map(nats),
        uploaded_ms: unit.uploaded_ms,
        reported_ms: unit.reported_ms,
        tokens: part.and_then(|it| it.tokens),
        credits_micro: micro,
        cobblestones: micro.map(|it| cobblestones(it as f64)),
        measured_loss: unit.loss_measured.map(nats),
        hub_loss: unit.loss_of_hub.map(nats),
        check: unit.check,
    }
}
