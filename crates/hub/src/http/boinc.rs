//! What BOINC's clients call. They know no statuses but three: 200, what is worth another try (5xx) and what is not (4xx);
//! errors with a reason are inside a 200.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, HttpBody},
    extract::{Path, Query, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use network::server::Share;
use protocol::{Hash, api::accounts::PASSWORD_BYTES_MIN};
use serde::Deserialize;
use tokio::sync::SemaphorePermit;

use super::{
    Shared,
    blobs::{PART_TOO_LONG, Ranged, read_part, requested},
    errors::Failure,
    limits::Client,
    live::StreamGuard,
    web,
};
use crate::{
    Hub,
    boinc::{
        self, AccountError, Door, PROJECT, SCHEDULER_PATH, SchedulerRequest, Source, XmlError,
        answer, escaped,
    },
};

/// A request that names no more than usual; longer ones need a place of their own.
const SHORT_REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Longest time for a request's bytes to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Begins every answer about accounts.
const PROLOG: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n";
/// The name of the key that a sign-in of a client makes.
const DEVICE_NAME: &str = "BOINC client";

/// The door, if the operator opened it.
pub(super) fn door(hub: &Hub) -> Result<&Arc<Door>, Failure> {
    hub.door.as_ref().ok_or_else(|| {
        Failure::not_found("this hub takes no BOINC clients: its operator gave it no release")
    })
}

/// The project's address as clients are to know it, with `/` at its end: the one that the operator named, or the one that
/// was asked.
pub(super) fn master_url(hub: &Hub, headers: &HeaderMap) -> String {
    if let Some(address) = &hub.config.address {
        return format!("{}/", address.trim_end_matches('/'));
    }
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let is_host = |it: &&str| {
        let is_plain = |it: u8| it.is_ascii_alphanumeric() || b".-:[]_".contains(&it);
        (1..=200).contains(&it.len()) && it.bytes().all(is_plain)
    };
    match host.filter(is_host) {
        Some(host) => format!("http://{host}/"),
        None => format!("http://{}/", hub.config.listen),
    }
}

/// The first page: to BOINC's clients the one by which they find the scheduler, to everyone else the web app.
pub(super) async fn front(State(hub): Shared, headers: HeaderMap, uri: Uri) -> Response {
    let agent = headers.get(header::USER_AGENT);
    let is_client = boinc::is_client(agent.and_then(|it| it.to_str().ok()));
    if !is_client || hub.door.is_none() {
        return web::file(State(hub), uri).await;
    }
    let scheduler = master_url(&hub, &headers);
    let scheduler = format!(
        "{}{}",
        scheduler.trim_end_matches('/'),
        escaped(SCHEDULER_PATH)
    );
    let page = format!(
        "<html><head>\n<title>{PROJECT}</title>\n<link rel=\"boinc_scheduler\" href=\"{scheduler}\">\n</head><body>\n\
         <!-- <scheduler>{scheduler}</scheduler> -->\n{PROJECT}</body></html>\n"
    );
    ([(header::CONTENT_TYPE, "text/html")], page).into_response()
}

/// What the Manager asks before it attaches.
pub(super) async fn project_config(
    State(hub): Shared,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    let url = master_url(&hub, &headers);
    let mut platforms: Vec<&str> = door.platforms().collect();
    platforms.dedup();
    let platforms: String = platforms
        .iter()
        .map(|it| {
            let name = escaped(it);
            format!(
                "        <platform>\n            <platform_name>{name}</platform_name>\n            \
                 <user_friendly_name>{name}</user_friendly_name>\n        </platform>\n"
            )
        })
        .collect();
    Ok(xml(format!(
        "{PROLOG}<project_config>\n    <name>{PROJECT}</name>\n    <master_url>{url}</master_url>\n    \
         <web_rpc_url_base>{url}</web_rpc_url_base>\n    <server_version>716</server_version>\n    \
         <web_stopped>0</web_stopped>\n    <min_passwd_length>{PASSWORD_BYTES_MIN}</min_passwd_length>\n    \
         <sched_stopped>0</sched_stopped>\n    <platforms>\n{platforms}    </platforms>\n</project_config>\n"
    )))
}

/// A client's question for an account.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct AccountQuery {
    email_addr: String,
    passwd_hash: String,
    user_name: String,
}

/// Makes an account and a key for the device that asks.
pub(super) async fn create_account(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    Query(query): Query<AccountQuery>,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    let now_ms = hub.clock.now_ms();
    let asked = (
        query.email_addr.as_str(),
        query.passwd_hash.as_str(),
        query.user_name.as_str(),
    );
    let making = async {
        let account = door.create_account(asked, client, now_ms).await?;
        let made = door
            .make_device_key(account.id, DEVICE_NAME, true, now_ms)
            .await;
        Ok(made?.1.text)
    };
    Ok(account_reply(making.await))
}

/// Gives a device that knows an account's password a key of its own.
pub(super) async fn look_up_account(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    Query(query): Query<AccountQuery>,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    if query.passwd_hash.is_empty() {
        // The question whether an address has an account is answered to nobody.
        return Ok(account_error(-136, "not found in database"));
    }
    let now_ms = hub.clock.now_ms();
    let looking = async {
        let account = door
            .sign_in(&query.email_addr, &query.passwd_hash, client)
            .await?;
        let made = door
            .make_device_key(account.id, DEVICE_NAME, true, now_ms)
            .await;
        Ok(made?.1.text)
    };
    Ok(account_reply(looking.await))
}

fn account_reply(answer: Result<String, AccountError>) -> Response {
    match answer {
        Ok(key) => xml(format!(
            "{PROLOG}<account_out>\n<authenticator>{key}</authenticator>\n</account_out>\n"
        )),
        Err(error) => {
            if let AccountError::Inside(inside) = &error {
                tracing::error!("a client got no account: {inside:#}");
            }
            account_error(error.number(), &error.to_string())
        }
    }
}

fn account_error(number: i32, message: &str) -> Response {
    xml(format!(
        "{PROLOG}<error>\n    <error_num>{number}</error_num>\n    <error_msg>{}</error_msg>\n</error>\n",
        escaped(message)
    ))
}

/// A request of a client to the scheduler.
pub(super) async fn schedule(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    let url = master_url(&hub, &headers);
    let _place = StreamGuard::open(&hub)?;
    let request = match read_request(door, body, client).await {
        Ok(request) => request,
        Err(failure) if failure.code() == PART_TOO_LONG => {
            return Ok(xml(boinc::too_long().render(&door.release)));
        }
        Err(failure) => return Err(failure),
    };
    let reply = answer(&hub, door, request, &url).await?;
    Ok(xml(reply.render(&door.release)))
}

/// Reads a request; its bytes and its place are gone before it waits for anything.
async fn read_request(
    door: &Door,
    body: Body,
    client: IpAddr,
) -> Result<Result<SchedulerRequest, XmlError>, Failure> {
    let is_short = |it: u64| it <= SHORT_REQUEST_BYTES_MAX;
    let _long = match body.size_hint().upper().is_some_and(is_short) {
        true => None,
        false => Some(long_place(door, client).ok_or_else(|| {
            Failure::too_many(
                "the hub reads as many long requests as it may, of this address or of all; try again in a minute",
            )
        })?),
    };
    let read = tokio::time::timeout(REQUEST_TIMEOUT, read_part(&door.memory, body));
    let (bytes, _memory) = read
        .await
        .unwrap_or_else(|_| Err(Failure::too_many("the request came too slowly")))?;
    Ok(SchedulerRequest::read(&bytes))
}

fn long_place(door: &Door, client: IpAddr) -> Option<(Share, SemaphorePermit<'_>)> {
    let share = door.long_requests_of_addresses.begin(client)?;
    Some((share, door.long_requests.try_acquire().ok()?))
}

/// A file that a task names, or a range of it.
pub(super) async fn download(
    State(hub): Shared,
    Path(hash): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    let hash: Hash = hash
        .parse()
        .map_err(|_| Failure::not_found("there is no such file"))?;
    let found = door.source(&hub, &hash).await?;
    let source = found.ok_or_else(|| Failure::not_found("there is no such file"))?;
    let length = match &source {
        Source::Blob(blob) => blob.bytes,
        Source::Bytes(bytes) => bytes.len() as u64,
        Source::File(_, bytes) => *bytes,
    };
    let ranged = Ranged {
        length,
        asked: requested(&headers, length)?,
    };
    let part = ranged.part();
    let body = if method == Method::HEAD || part.is_empty() {
        Body::empty()
    } else {
        hub.metrics.bytes_sent.inc_by(part.end - part.start);
        match source {
            Source::Blob(blob) => Body::from_stream(hub.blobs.stream(&blob.hash, part).await?),
            Source::Bytes(bytes) => Body::from(bytes.slice(part.start as usize..part.end as usize)),
            Source::File(path, _) => Body::from_stream(boinc::read_file(&path, part).await?),
        }
    };
    ranged.response(&hash, body)
}

/// A result of a task, or a question how much of it is here.
pub(super) async fn upload(
    State(hub): Shared,
    Extension(Client(client)): Extension<Client>,
    body: Body,
) -> Result<Response, Failure> {
    let door = door(&hub)?;
    let reply = receive(&hub, door, body, client).await;
    Ok(([(header::CONTENT_TYPE, "text/plain")], reply).into_response())
}

async fn receive(hub: &Arc<Hub>, door: &Arc<Door>, body: Body, client: IpAddr) -> String {
    let reply = boinc::receive(hub, door, body.into_data_stream(), client).await;
    reply.render()
}

/// A file of the statistics.
pub(super) async fn statistics(
    State(hub): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let exported = door(&hub)?.statistics(&hub, &name).await?;
    let exported = exported.ok_or_else(|| Failure::not_found("there are no such statistics"))?;
    let known = headers.get(header::IF_NONE_MATCH);
    if known.is_some_and(|it| it.as_bytes() == exported.tag.as_bytes()) {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let headers = [
        (header::CONTENT_TYPE, exported.content_type.to_owned()),
        (header::ETAG, exported.tag.clone()),
    ];
    Ok((headers, exported.bytes.clone()).into_response())
}

fn xml(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/xml")], text).into_response()
}

/// The status that a client takes for a pause, where ours would be the end of its file.
pub(super) fn for_client(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        other => other,
    }
}
