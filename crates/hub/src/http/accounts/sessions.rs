//! Signing in and out. A session is a random token in a cookie that scripts can't read and other sites' pages don't send.

use std::net::IpAddr;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{
    api::{
        ApiError,
        accounts::{
            AccountSummary, NewAccount, PASSWORD_BYTES_MIN, SESSION_COOKIE, SignIn, SignInLink,
        },
    },
    identity,
    units::AccountId,
};

use super::{keys::read_signature, session_of, signed_in, summary};
use crate::{
    Hub,
    boinc::{Account, AccountError, Door, SESSION_MS, Secret, password_hash},
    http::{
        Shared,
        boinc::{door, master_url},
        errors::Failure,
        limits::Client,
    },
};

/// How far the moment of a signature may be from now, in milliseconds.
const SIGN_IN_MS_MAX: u64 = 5 * 60_000;

/// Makes an account and signs in to it.
#[utoipa::path(post, path = "/api/v1/accounts", tag = "accounts", request_body = NewAccount, responses((status = 201, body = AccountSummary), (status = 409, body = ApiError), (status = 422, body = ApiError), (status = 429, body = ApiError)))]
pub(in crate::http) async fn create_account(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    Json(new): Json<NewAccount>,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    if new.password.len() < PASSWORD_BYTES_MIN {
        return Err(AccountError::BadPassword.into());
    }
    let passwd_hash = password_hash(&new.email, &new.password);
    let asked = (new.email.as_str(), passwd_hash.as_str(), new.name.as_str());
    let now_ms = hub.clock.now_ms();
    let account = door.create_account(asked, client, now_ms).await?;
    open(&hub, door, &headers, account, StatusCode::CREATED).await
}

/// Signs in: the answer sets a cookie that scripts can't read.
#[utoipa::path(post, path = "/api/v1/sessions", tag = "accounts", request_body = SignIn, responses((status = 200, body = AccountSummary), (status = 403, body = ApiError), (status = 429, body = ApiError)))]
pub(in crate::http) async fn sign_in(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    Json(given): Json<SignIn>,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    let account = match given {
        SignIn::Password { email, password } => {
            by_password(door, &email, &password, client).await?
        }
        SignIn::Key {
            key,
            time_ms,
            signature,
        } => by_key(&hub, door, &key, time_ms, &signature).await?,
        SignIn::Link { token } => by_link(&hub, door, &token).await?,
    };
    open(&hub, door, &headers, account, StatusCode::OK).await
}

async fn by_password(
    door: &Door,
    email: &str,
    password: &str,
    client: IpAddr,
) -> Result<Account, Failure> {
    let hash = password_hash(email, password);
    Ok(door.sign_in(email, &hash, client).await?)
}

/// By the person's own key, which the account is linked with.
async fn by_key(
    hub: &Hub,
    door: &Door,
    key: &str,
    time_ms: u64,
    signature: &str,
) -> Result<Account, Failure> {
    let refuse = || {
        Failure::new(
            StatusCode::FORBIDDEN,
            "wrong_key",
            "no account here is linked with that key, or its signature is not of now and for this hub",
        )
    };
    let key = AccountId(key.parse().map_err(|_| refuse())?);
    let signature = read_signature(signature).ok_or_else(refuse)?;
    let is_now = hub.clock.now_ms().abs_diff(time_ms) <= SIGN_IN_MS_MAX;
    let is_signed = identity::check_sign_in(key, hub.key.public(), time_ms, &signature).is_ok();
    if !is_now || !is_signed {
        return Err(refuse());
    }
    let account = door.store.account_by_own_key(key).await?;
    account.ok_or_else(refuse)
}

async fn by_link(hub: &Hub, door: &Door, token: &str) -> Result<Account, Failure> {
    let hash = Secret::hash_of(token);
    let account = match door.store.use_link(hash, hub.clock.now_ms()).await? {
        Some(id) => door.store.account(id).await?,
        None => None,
    };
    account.ok_or_else(|| {
        Failure::new(
            StatusCode::FORBIDDEN,
            "bad_link",
            "that link was used already or is too old; make another",
        )
    })
}

async fn open(
    hub: &Hub,
    door: &Door,
    headers: &HeaderMap,
    account: Account,
    status: StatusCode,
) -> Result<Response, Failure> {
    let secret = door.open_session(account.id, hub.clock.now_ms()).await?;
    let cookie = cookie(hub, headers, &secret.text, SESSION_MS / 1_000);
    let summary = summary(hub, door, account).await?;
    Ok((status, [(header::SET_COOKIE, cookie)], Json(summary)).into_response())
}

fn cookie(hub: &Hub, headers: &HeaderMap, value: &str, seconds: u64) -> String {
    let is_encrypted = master_url(hub, headers).starts_with("https://");
    let secure = if is_encrypted { "; Secure" } else { "" };
    format!(
        "{SESSION_COOKIE}={value}; Path=/api; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    )
}

/// Signs out.
#[utoipa::path(delete, path = "/api/v1/sessions", tag = "accounts", responses((status = 204)))]
pub(in crate::http) async fn sign_out(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    if let Some(token) = session_of(&headers) {
        door.store.end_session(Secret::hash_of(token)).await?;
    }
    let cookie = cookie(&hub, &headers, "", 0);
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Makes a link for signing in elsewhere; it works once.
#[utoipa::path(post, path = "/api/v1/account/links", tag = "accounts", responses((status = 201, body = SignInLink), (status = 401, body = ApiError)))]
pub(in crate::http) async fn make_link(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<SignInLink>), Failure> {
    let account = signed_in(&hub, &headers).await?;
    let made = door(&hub)?.make_link(account.id, hub.clock.now_ms());
    let (secret, expires_ms) = made.await?;
    let link = SignInLink {
        token: secret.text,
        expires_ms,
    };
    Ok((StatusCode::CREATED, Json(link)))
}
