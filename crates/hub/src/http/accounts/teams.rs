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
    boinc::{Door, normal_name},
    http::{Shared, boinc::door, errors::Failure},
};

/// Teams, those that earned most first.
#[utoipa::path(get, path = "/api/v1/teams", tag = "accounts", responses((status = 200, body = [TeamSummary]), (status = 404, body = ApiError)))]
pub(in crate::http) async fn list_teams(
    State(hub): Shared,
) -> Result<Json<Vec<TeamSummary>>, Failure> {
    let teams = door(&hub)?.teams(&hub).await?;
    Ok(Json(teams.iter().map(|it| it.summary.clone()).collect()))
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
            "a team's name has 1 to 64 bytes, all of them of characters that are seen",
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
    note_members(&hub, door, [Some(id), account.team]).await?;
    let team = door.team_summary(&hub, id).await?;
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
    let door = door(&hub)?;
    if !door.store.set_team(account.id, Some(team.id)).await? {
        return Err(no_team());
    }
    note_members(&hub, door, [Some(team.id), account.team]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Leaves the team.
#[utoipa::path(delete, path = "/api/v1/account/team", tag = "accounts", responses((status = 204), (status = 401, body = ApiError)))]
pub(in crate::http) async fn leave_team(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    let account = signed_in(&hub, &headers).await?;
    let door = door(&hub)?;
    door.store.set_team(account.id, None).await?;
    note_members(&hub, door, [None, account.team]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has the list show who came to a team and left the one before.
async fn note_members(hub: &Hub, door: &Door, teams: [Option<u64>; 2]) -> Result<(), Failure> {
    for id in teams.into_iter().flatten() {
        door.note_members(hub, id).await?;
    }
    Ok(())
}

fn no_team() -> Failure {
    Failure::not_found("there is no such team")
}
