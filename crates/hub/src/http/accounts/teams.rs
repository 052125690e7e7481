//! Teams: people who like to be counted together.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use protocol::api::{
    ApiError,
    accounts::{JoinTeam, NewTeam, TeamSummary},
};

use super::signed_in;
use crate::{
    Hub,
    boinc::{Door, Team, normal_name},
    http::{Shared, boinc::door, errors::Failure},
};

/// A team by number.
pub(super) async fn of(hub: &Hub, door: &Door, id: u64) -> Result<Option<TeamSummary>, Failure> {
    match door.store.team(id).await? {
        Some(team) => Ok(Some(summary(hub, door, team).await?)),
        None => Ok(None),
    }
}

async fn summary(hub: &Hub, door: &Door, team: Team) -> Result<TeamSummary, Failure> {
    let earned = door.earned_together(hub, &team.members).await?;
    Ok(TeamSummary {
        id: team.id,
        name: team.name,
        founder: team.founder_name,
        created_ms: team.created_ms,
        members: team.members.len() as u64,
        earned: earned.shown(),
    })
}

/// Teams, those that earned most first.
#[utoipa::path(get, path = "/api/v1/teams", tag = "accounts", responses((status = 200, body = [TeamSummary]), (status = 404, body = ApiError)))]
pub(in crate::http) async fn list_teams(
    State(hub): Shared,
) -> Result<Json<Vec<TeamSummary>>, Failure> {
    let door = door(&hub)?;
    let mut teams = Vec::new();
    for team in door.store.teams().await? {
        teams.push(summary(&hub, door, team).await?);
    }
    teams.sort_by_key(|it| std::cmp::Reverse(it.earned.credits_micro));
    Ok(Json(teams))
}

/// Makes a team and joins it.
#[utoipa::path(post, path = "/api/v1/teams", tag = "accounts", request_body = NewTeam, responses((status = 201, body = TeamSummary), (status = 401, body = ApiError), (status = 409, body = ApiError), (status = 422, body = ApiError)))]
pub(in crate::http) async fn create_team(
    State(hub): Shared,
    headers: HeaderMap,
    Json(new): Json<NewTeam>,
) -> Result<(StatusCode, Json<TeamSummary>), Failure> {
    let account = signed_in(&hub, &headers).await?;
    let door = door(&hub)?;
    let name = normal_name(&new.name).ok_or_else(|| {
        Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_name",
            "a team's name has 1 to 64 bytes and no control characters",
        )
    })?;
    let now_ms = hub.clock.now_ms();
    let made = door.store.create_team(name, account.id, now_ms).await?;
    let id = made.ok_or_else(|| {
        Failure::new(
            StatusCode::CONFLICT,
            "name_taken",
            "there is a team of that name",
        )
    })?;
    let team = of(&hub, door, id).await?;
    let team = team.ok_or_else(no_team)?;
    Ok((StatusCode::CREATED, Json(team)))
}

/// Joins a team, and leaves the one before.
#[utoipa::path(put, path = "/api/v1/account/team", tag = "accounts", request_body = JoinTeam, responses((status = 204), (status = 401, body = ApiError), (status = 404, body = ApiError)))]
pub(in crate::http) async fn join_team(
    State(hub): Shared,
    headers: HeaderMap,
    Json(team): Json<JoinTeam>,
) -> Result<StatusCode, Failure> {
    let account = signed_in(&hub, &headers).await?;
    match door(&hub)?
        .store
        .set_team(account.id, Some(team.id))
        .await?
    {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(no_team()),
    }
}

/// Leaves the team.
#[utoipa::path(delete, path = "/api/v1/account/team", tag = "accounts", responses((status = 204), (status = 401, body = ApiError)))]
pub(in crate::http) async fn leave_team(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    let account = signed_in(&hub, &headers).await?;
    door(&hub)?.store.set_team(account.id, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn no_team() -> Failure {
    Failure::not_found("there is no such team")
}
