//! Accounts, to the web app: signing in, machines, keys of devices, teams. Passwords and sessions stay at the door; what is
//! shown as earned is folded from the log.

pub(super) mod devices;
pub(super) mod hosts;
pub(super) mod keys;
pub(super) mod sessions;
pub(super) mod teams;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
};
use protocol::{
    api::{
        ApiError,
        accounts::{
            AccountIdentity, AccountSummary, BoincProject, SESSION_COOKIE, StatisticsConsent,
        },
    },
    units::WorkerId,
};

use super::{
    Shared,
    boinc::{door, master_url},
    errors::Failure,
};
use crate::{
    Hub,
    boinc::{Account, AccountError, Door, Secret, run_for_hosts},
};

/// Workers of an account in an answer.
const WORKERS_SHOWN_MAX: usize = 1_000;

impl From<AccountError> for Failure {
    fn from(error: AccountError) -> Self {
        let message = error.to_string();
        let unreadable = StatusCode::UNPROCESSABLE_ENTITY;
        let (status, code) = match error {
            AccountError::BadEmail => (unreadable, "bad_email"),
            AccountError::BadName => (unreadable, "bad_name"),
            AccountError::BadPassword => (unreadable, "bad_password"),
            AccountError::Wrong => (StatusCode::FORBIDDEN, "wrong_password"),
            AccountError::Taken => (StatusCode::CONFLICT, "taken"),
            AccountError::TooManyKeys => (StatusCode::CONFLICT, "too_many_keys"),
            AccountError::TooMany => return Self::too_many(message),
            AccountError::Inside(inside) => return inside.into(),
        };
        Self::new(status, code, message)
    }
}

/// The token of the session that a request shows.
fn session_of(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter();
    let pairs = cookies
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(';'));
    let mut values = pairs.filter_map(|it| it.trim().split_once('='));
    values.find_map(|(name, value)| (name == SESSION_COOKIE).then_some(value))
}

/// The account that a request is signed in to. A page of another site is in no one's name.
pub(super) async fn signed_in(hub: &Hub, headers: &HeaderMap) -> Result<Account, Failure> {
    let refuse = || {
        Failure::new(
            StatusCode::UNAUTHORIZED,
            "not_signed_in",
            "sign in to your account first",
        )
    };
    let door = door(hub)?;
    let origin = headers.get(header::ORIGIN).and_then(|it| it.to_str().ok());
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let of_origin = origin.map(|it| it.split_once("://").map_or(it, |(_, host)| host));
    if of_origin.is_some_and(|it| Some(it) != host) {
        return Err(refuse());
    }
    let token = session_of(headers).ok_or_else(refuse)?;
    let hash = Secret::hash_of(token);
    let id = door.store.session(hash, hub.clock.now_ms()).await?;
    let account = match id {
        Some(id) => door.store.account(id).await?,
        None => None,
    };
    account.ok_or_else(refuse)
}

/// The account that a request computes for: by the key of a device (`Authorization: Bearer …`), or signed in.
async fn computing_for(hub: &Hub, headers: &HeaderMap) -> Result<Account, Failure> {
    let shown = headers.get(header::AUTHORIZATION);
    let Some(shown) = shown.and_then(|it| it.to_str().ok()?.strip_prefix("Bearer ")) else {
        return signed_in(hub, headers).await;
    };
    let found = door(hub)?
        .account_of_device(shown, hub.clock.now_ms())
        .await?;
    found.ok_or_else(|| {
        Failure::new(
            StatusCode::UNAUTHORIZED,
            "bad_key",
            "that is no device's key, or it was revoked",
        )
    })
}

/// What BOINC clients are told of this hub; not found where it takes none.
#[utoipa::path(get, path = "/api/v1/boinc", tag = "accounts", responses((status = 200, body = BoincProject), (status = 404, body = ApiError)))]
pub(super) async fn show_project(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Json<BoincProject>, Failure> {
    let door = door(&hub)?;
    let run = match run_for_hosts(&hub).await? {
        Some(run) => Some(run.charter.name.clone()),
        None => None,
    };
    Ok(Json(BoincProject {
        url: master_url(&hub, &headers),
        version: door.release.version_num,
        platforms: door.platforms().map(str::to_owned).collect(),
        run,
    }))
}

/// The account that one is signed in to.
#[utoipa::path(get, path = "/api/v1/account", tag = "accounts", responses((status = 200, body = AccountSummary), (status = 401, body = ApiError)))]
pub(super) async fn show_account(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Json<AccountSummary>, Failure> {
    let account = signed_in(&hub, &headers).await?;
    Ok(Json(summary(&hub, door(&hub)?, account).await?))
}

/// The account that a device's key computes for, or that one is signed in to: what a worker signs that is to be attached.
#[utoipa::path(get, path = "/api/v1/account/identity", tag = "accounts", responses((status = 200, body = AccountIdentity), (status = 401, body = ApiError)))]
pub(super) async fn show_identity(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Json<AccountIdentity>, Failure> {
    let account = computing_for(&hub, &headers).await?;
    Ok(Json(AccountIdentity {
        key: account.key.to_string(),
        name: account.name,
    }))
}

/// Says whether the account may be shown in statistics that other sites collect.
#[utoipa::path(put, path = "/api/v1/account/statistics", tag = "accounts", request_body = StatisticsConsent, responses((status = 204), (status = 401, body = ApiError)))]
pub(super) async fn set_consent(
    State(hub): Shared,
    headers: HeaderMap,
    Json(consent): Json<StatisticsConsent>,
) -> Result<StatusCode, Failure> {
    let account = signed_in(&hub, &headers).await?;
    let (door, shows) = (door(&hub)?, consent.shows_statistics);
    door.store.set_consent(account.id, shows).await?;
    door.note_founder(account.id, shows.then_some(&account.name));
    if let Some(team) = account.team {
        door.note_members(&hub, team).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn summary(hub: &Hub, door: &Door, account: Account) -> Result<AccountSummary, Failure> {
    let (earned, rank, ranked) = door.standing(hub, account.key).await?;
    let team = match account.team {
        Some(id) => door.team_summary(hub, id).await?,
        None => None,
    };
    let machines = door.store.workers_of_account(account.id).await?;
    let mut workers = Vec::new();
    for run in hub.all().await {
        let state = run.state.read().await;
        let bound = state.bindings.iter().filter(|it| *it.1 == account.key);
        let others = bound.filter(|(key, _)| !machines.contains(&(run.id, WorkerId(**key))));
        workers.extend(others.map(|(key, _)| key.to_string()));
    }
    workers.truncate(WORKERS_SHOWN_MAX);
    Ok(AccountSummary {
        name: account.name,
        email: account.email,
        key: account.own_key.unwrap_or(account.key).to_string(),
        hub_key: account.key.to_string(),
        is_key_held_by_hub: account.own_key.is_none(),
        created_ms: account.created_ms,
        earned: earned.shown(),
        rank,
        ranked,
        team,
        shows_statistics: account.shows_statistics,
        cross_project_id: account.cross_id,
        hosts: door.store.host_count(account.id).await?,
        workers,
    })
}

#[cfg(test)]
mod tests;
