//! Keys that act for an account, by statements in a run's log that both sides sign: workers, and the person's own key.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use data_encoding::HEXLOWER;
use protocol::{
    Signature,
    api::{
        ApiError, CommandReply,
        accounts::{AttachWorker, LinkKey},
    },
    identity::{self, Binding, KeyRole},
    units::{AccountId, WorkerId},
};

use super::{computing_for, signed_in};
use crate::http::{
    Shared, boinc::door, errors::Failure, limits::Client, runs::find, work::both_signed,
};

/// Binds a worker that has joined a run to the account, by the worker's signature and the account's key that the hub holds.
/// With the key of a device (`Authorization: Bearer …`), or signed in.
#[utoipa::path(post, path = "/api/v1/account/workers", tag = "accounts", request_body = AttachWorker, responses((status = 200, body = CommandReply), (status = 400, body = ApiError), (status = 401, body = ApiError), (status = 403, body = ApiError), (status = 409, body = ApiError)))]
pub(in crate::http) async fn attach_worker(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    Json(given): Json<AttachWorker>,
) -> Result<Json<CommandReply>, Failure> {
    let account = computing_for(&hub, &headers).await?;
    let run = find(&hub, &given.run).await?;
    run.must_be_hub()?;
    let worker: WorkerId = given
        .worker
        .parse()
        .map_err(|_| Failure::bad("worker is not a public key"))?;
    let signature = read_signature(&given.signature)
        .ok_or_else(|| Failure::bad("signature is not one in hexadecimal"))?;
    let door = door(&hub)?;
    let binding = door.complete_binding(run.id, &account, worker, signature);
    let binding = binding.await?.ok_or_else(|| {
        Failure::new(
            StatusCode::CONFLICT,
            "own_key",
            "the hub does not hold this account's key: sign the binding with it",
        )
    })?;
    let binding = both_signed(binding)?;
    let asker = &mut client.into();
    hub.admission.check_binding(&run, &binding, asker).await?;
    let log_length = run.bind(binding).await?;
    Ok(Json(CommandReply {
        log_length,
        token: None,
    }))
}

/// Links the account with its person's own key, by both signatures, in the log of a run: from then on that key signs in too.
#[utoipa::path(post, path = "/api/v1/account/key", tag = "accounts", request_body = LinkKey, responses((status = 200, body = CommandReply), (status = 400, body = ApiError), (status = 401, body = ApiError), (status = 403, body = ApiError), (status = 409, body = ApiError)))]
pub(in crate::http) async fn link_key(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    Json(given): Json<LinkKey>,
) -> Result<Json<CommandReply>, Failure> {
    let account = signed_in(&hub, &headers).await?;
    let run = find(&hub, &given.run).await?;
    run.must_be_hub()?;
    let key = given.key.parse();
    let own = AccountId(key.map_err(|_| Failure::bad("key is not a public key"))?);
    let signature = read_signature(&given.signature)
        .ok_or_else(|| Failure::bad("signature is not one in hexadecimal"))?;
    let door = door(&hub)?;
    let Some(held) = door.store.held_key(account.id).await? else {
        return Err(Failure::bad("the hub holds no key of this account"));
    };
    let taken = || {
        Failure::new(
            StatusCode::CONFLICT,
            "taken",
            "another account here is linked with that key",
        )
    };
    let linked = door.store.account_by_own_key(own).await?;
    if linked.is_some_and(|it| it.id != account.id) {
        return Err(taken());
    }
    let (role, held_key) = (KeyRole::Session, held.public());
    let binding = Binding {
        run: run.id,
        account: own,
        key: held_key,
        role,
        account_signature: signature,
        key_signature: identity::sign_half(&held, run.id, own, held_key, role),
    };
    let binding = both_signed(binding)?;
    let asker = &mut client.into();
    hub.admission.check_link(&run, &binding, asker).await?;
    let log_length = run.bind(binding).await?;
    if !door.store.set_own_key(account.id, own).await? {
        return Err(taken());
    }
    Ok(Json(CommandReply {
        log_length,
        token: None,
    }))
}

/// A signature from its text.
pub(super) fn read_signature(text: &str) -> Option<Signature> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
    Some(Signature(bytes.try_into().ok()?))
}
