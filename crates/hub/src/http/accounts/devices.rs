//! Keys of devices: each computes for the account and can do nothing else.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use protocol::api::{
    ApiError,
    accounts::{DeviceKeySummary, MadeDeviceKey, NewDeviceKey},
};

use super::signed_in;
use crate::http::{Shared, boinc::door, errors::Failure};

/// The account's keys of devices, newest first.
#[utoipa::path(get, path = "/api/v1/account/devices", tag = "accounts", responses((status = 200, body = [DeviceKeySummary]), (status = 401, body = ApiError)))]
pub(in crate::http) async fn list_devices(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Json<Vec<DeviceKeySummary>>, Failure> {
    let account = signed_in(&hub, &headers).await?;
    Ok(Json(door(&hub)?.store.device_keys(account.id).await?))
}

/// Makes a key for a device; the answer is the only one that shows it.
#[utoipa::path(post, path = "/api/v1/account/devices", tag = "accounts", request_body = NewDeviceKey, responses((status = 201, body = MadeDeviceKey), (status = 401, body = ApiError), (status = 409, body = ApiError), (status = 422, body = ApiError)))]
pub(in crate::http) async fn make_device(
    State(hub): Shared,
    headers: HeaderMap,
    Json(new): Json<NewDeviceKey>,
) -> Result<(StatusCode, Json<MadeDeviceKey>), Failure> {
    let account = signed_in(&hub, &headers).await?;
    let now_ms = hub.clock.now_ms();
    let made = door(&hub)?.make_device_key(account.id, &new.name, false, now_ms);
    let (id, secret) = made.await?;
    let key = secret.text;
    Ok((StatusCode::CREATED, Json(MadeDeviceKey { id, key })))
}

/// Revokes a key of a device.
#[utoipa::path(delete, path = "/api/v1/account/devices/{id}", tag = "accounts", params(("id" = u64, Path, description = "Number of the key")), responses((status = 204), (status = 401, body = ApiError), (status = 404, body = ApiError)))]
pub(in crate::http) async fn revoke_device(
    State(hub): Shared,
    Path(id): Path<u64>,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    let account = signed_in(&hub, &headers).await?;
    let store = &door(&hub)?.store;
    let now_ms = hub.clock.now_ms();
    match store.revoke_device_key(account.id, id, now_ms).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Failure::not_found("the account has no such key")),
    }
}
