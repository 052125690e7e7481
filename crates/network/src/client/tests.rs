//! Calls against a small real server on loopback.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use protocol::{
    Hash, SecretKey,
    command::{Command, SignedCommand},
    event::Event,
    log::{Entry, Head},
    succession::{Chain, Sealing},
    units::{RunId, WorkerId},
};

use protocol::api::mirrors::{HUB_ADDRESS, RunHead};

use super::*;
use crate::log::{LogError, LogReader};

/// Serves `router` on a free port and gives a client of it that does not wait long.
pub(crate) async fn serve(router: Router) -> HubClient {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    HubClient::new(&address.to_string())
        .unwrap()
        .with_retry(RetryPolicy {
            attempts: 4,
            first_wait: Duration::from_millis(1),
            wait_max: Duration::from_millis(4),
        })
}

fn info() -> HubInfo {
    HubInfo {
        version: "0".into(),
        key: "00".into(),
        runs: 1,
        gateway: None,
    }
}

#[test]
fn addresses_are_checked() {
    for (address, expected) in [
        ("127.0.0.1:7700", "http://127.0.0.1:7700"),
        ("http://hub.example/", "http://hub.example"),
        ("https://hub.example/athome/", "https://hub.example/athome"),
    ] {
        assert_eq!(HubClient::new(address).unwrap().address(), expected);
    }
    for address in ["", "ftp://hub", "http://", "http://hub?x=1", "not a url"] {
        let error = HubClient::new(address).unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{address}");
    }
}

#[tokio::test]
async fn an_overloaded_hub_is_asked_again() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let answer = move || {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            if call < 2 {
                StatusCode::SERVICE_UNAVAILABLE.into_response()
            } else {
                Json(info()).into_response()
            }
        }
    };
    let client = serve(Router::new().route("/api/v1/hub", get(answer))).await;
    assert_eq!(client.hub_info().await.unwrap().runs, 1);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_refusal_is_not_repeated_and_keeps_its_words() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let answer = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        let error = ApiError {
            code: "late".into(),
            message: "too late".into(),
        };
        async move { (StatusCode::CONFLICT, Json(error)) }
    };
    let router = Router::new().route("/api/v1/runs/{run}/commands", axum::routing::post(answer));
    let client = serve(router).await;
    let leave = Command::Leave {
        reason: "test".into(),
    };
    let key = SecretKey::from_entropy([1; 32]);
    let command = SignedCommand::sign(&key, RunId::default(), 1, leave);
    let error = client.command(&command).await.unwrap_err();
    assert_eq!(error.refusal_code(), Some("late"));
    assert_eq!(error.to_string(), "too late (late)");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = HubClient::new(&address)
        .unwrap()
        .with_retry(RetryPolicy::once());
    let error = client.hub_info().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.is_temporary());
    let worker = WorkerId(SecretKey::from_entropy([1; 32]).public());
    let error = client
        .work(RunId::default(), worker, None, 0, None, 0)
        .await;
    assert!(error.unwrap_err().is_temporary());
}

#[tokio::test]
async fn nonsense_and_endless_bodies_are_refused() {
    async fn endless() -> Response {
        let zeros = futures_util::stream::repeat_with(|| {
            std::io::Result::Ok(bytes::Bytes::from_static(&[b'0'; 1 << 16]))
        });
        Body::from_stream(zeros).into_response()
    }
    let run = RunId(Hash([1; 32]));
    let router = Router::new()
        .route("/api/v1/hub", get(async || "{ nonsense"))
        .route("/api/v1/runs/{run}/charter", get(endless))
        .route(
            "/api/v1/runs/{run}/losses",
            get(async || (StatusCode::BAD_GATEWAY, "<html>")),
        );
    let client = serve(router).await;
    let malformed = client.hub_info().await.unwrap_err();
    assert!(matches!(malformed, ClientError::Malformed { .. }));
    let endless = client.charter(run).await.unwrap_err();
    assert!(matches!(endless, ClientError::TooLong { .. }), "{endless}");
    let proxy = client.losses(run).await.unwrap_err();
    assert_eq!(proxy.refusal_code(), Some("http"));
}

#[tokio::test]
async fn names_of_runs_stay_one_segment() {
    let path = async |uri: axum::http::Uri| {
        let error = ApiError {
            code: "not_found".into(),
            message: uri.to_string(),
        };
        (StatusCode::NOT_FOUND, Json(error))
    };
    let client = serve(Router::new().fallback(path)).await;
    let error = client.run("a b/../c?d").await.unwrap_err().to_string();
    assert!(error.contains("/api/v1/runs/a%20b%2F..%2Fc%3Fd"), "{error}");
}

fn chain(run: RunId, key: &SecretKey) -> Chain {
    Chain::at(Head::empty(), Sealing::new(run, key.public(), Vec::new()))
}

fn entries(run: RunId, key: &SecretKey) -> Vec<Entry> {
    let mut head = Head::empty();
    (1..=5)
        .map(|round| {
            let entry = head.next(key, run, round, Event::RoundEmpty { round });
            head.advance(run, &key.public(), &entry).unwrap();
            entry
        })
        .collect()
}

/// Serves entries two at a time.
fn log_router(entries: Vec<Entry>) -> Router {
    let answer = async move |uri: axum::http::Uri| {
        let query = uri.query().unwrap_or_default().to_owned();
        let from = query.strip_prefix("from=").unwrap();
        let from: usize = from.split_once('&').unwrap().0.parse().unwrap();
        let mut body = Vec::new();
        for entry in entries.iter().skip(from).take(2) {
            let bytes = entry.to_bytes();
            body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            body.extend_from_slice(&bytes);
        }
        ([("x-athome-log-length", entries.len().to_string())], body)
    };
    Router::new().route("/api/v1/runs/{run}/log.bin", get(answer))
}

#[tokio::test]
async fn a_redirection_leads_to_no_other_host() {
    let reached = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&reached);
    let other = serve(Router::new().fallback(get(async move || {
        counter.fetch_add(1, Ordering::SeqCst);
        "{}"
    })))
    .await;
    // The same machine under another name is another host.
    let elsewhere = other.address().replace("127.0.0.1", "localhost");
    let here = Router::new()
        .route("/api/v1/hub", get(async || Redirect::temporary("/moved")))
        .route(
            "/moved",
            get(async || r#"{"version":"1","key":"k","runs":0,"gateway":null}"#),
        )
        .route(
            "/api/v1/runs",
            get(async move || Redirect::temporary(&elsewhere)),
        )
        .route(
            "/api/v1/runs/circle",
            get(async || Redirect::temporary("/api/v1/runs/circle")),
        );
    let client = serve(here).await.with_retry(RetryPolicy::once());
    assert_eq!(client.hub_info().await.unwrap().version, "1");
    for error in [
        client.runs().await.map(drop),
        client.run("circle").await.map(drop),
    ] {
        assert!(matches!(
            error.unwrap_err(),
            ClientError::Unreachable { .. }
        ));
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn nothing_is_decompressed() {
    // A bomb needs somebody who inflates it: the client asks for no encoding and takes bytes as they are.
    let answer = async |headers: axum::http::HeaderMap| {
        assert!(!headers.contains_key("accept-encoding"));
        ([("content-encoding", "gzip")], vec![0x1f, 0x8b, 8, 0, 0, 0])
    };
    let client = serve(Router::new().route("/api/v1/hub", get(answer))).await;
    let error = client.hub_info().await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_is_fit_to_be_shown() {
    let answer = async || {
        let message = format!("no\u{1b}[2J{}", "x".repeat(60_000));
        let error = ApiError {
            code: "c\n".into(),
            message,
        };
        (axum::http::StatusCode::CONFLICT, axum::Json(error))
    };
    let client = serve(Router::new().route("/api/v1/hub", get(answer))).await;
    let text = client.hub_info().await.unwrap_err().to_string();
    assert!(text.starts_with("no�[2Jxxx") && text.ends_with("x… (c�)"));
    assert!(text.len() < 1_100);
}

#[tokio::test]
async fn a_log_is_read_page_by_page_and_checked() {
    let (run, key) = (RunId(Hash([1; 32])), SecretKey::from_entropy([1; 32]));
    let sent = entries(run, &key);
    let client = serve(log_router(sent.clone())).await;
    let page = client.log_entries(run, 3, 10).await.unwrap();
    assert_eq!((page.entries.as_slice(), page.length), (&sent[3..5], 5));
    let mut reader = LogReader::new(client, chain(run, &key));
    let mut read = Vec::new();
    loop {
        let page = reader.next_page().await.unwrap();
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    assert_eq!(read, sent);
    assert_eq!(reader.head().length, 5);
}

#[tokio::test]
async fn a_log_that_changed_is_refused() {
    let (run, key) = (RunId(Hash([1; 32])), SecretKey::from_entropy([1; 32]));
    let mut forged = entries(run, &key);
    forged[3].event = Event::RoundEmpty { round: 99 };
    let client = serve(log_router(forged)).await;
    let mut reader = LogReader::new(client, chain(run, &key));
    reader.next_page().await.unwrap();
    let error = reader.next_page().await.unwrap_err();
    assert!(matches!(error, LogError::Chain(_)), "{error}");
    // The reader still stands where the log held.
    assert_eq!(reader.head().length, 2);
}

#[tokio::test]
async fn pages_that_are_cut_or_noise_are_refused() {
    let (run, key) = (RunId(Hash([1; 32])), SecretKey::from_entropy([1; 32]));
    let mut whole = Vec::new();
    for entry in entries(run, &key) {
        let bytes = entry.to_bytes();
        whole.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        whole.extend_from_slice(&bytes);
    }
    let answer = async move |uri: axum::http::Uri| {
        let from = uri.query().unwrap().split(['=', '&']).nth(1).unwrap();
        let length = from.parse::<usize>().unwrap();
        ([("x-athome-log-length", "5")], whole[..length].to_vec())
    };
    let router = Router::new().route("/api/v1/runs/{run}/log.bin", get(answer));
    let client = serve(router).await;
    for cut in [1, 4, 5, 100] {
        let error = client.log_entries(run, cut, 10).await.unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{cut}");
    }
}

/// Answers what only a hub can do as a mirror does.
fn mirror_of(hub: &str) -> Router {
    let named = hub.to_owned();
    let answer = async move || {
        let error = ApiError {
            code: "mirror".into(),
            message: "ask the hub".into(),
        };
        let headers = [(HUB_ADDRESS, named)];
        (StatusCode::MISDIRECTED_REQUEST, headers, Json(error))
    };
    Router::new().route("/api/v1/hub", get(answer))
}

async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn a_mirror_names_the_hub_and_who_does_not_answer_is_left() {
    let hub = serve(Router::new().route("/api/v1/hub", get(async || Json(info())))).await;
    let mirror = serve(mirror_of(hub.address())).await;
    mirror.add_addresses([nobody().await.as_str(), hub.address()]);
    mirror.hub_info().await.unwrap();
    assert_eq!(&*mirror.current_address(), hub.address());

    let nobody = nobody().await;
    let client = HubClient::new(&nobody).unwrap().with_retry(RetryPolicy {
        attempts: 2,
        first_wait: Duration::from_millis(1),
        wait_max: Duration::from_millis(1),
    });
    client.add_addresses([hub.address()]);
    client.hub_info().await.unwrap();
    assert_eq!(&*client.current_address(), hub.address());
    assert_eq!(client.address(), format!("http://{nobody}"));
}

#[tokio::test]
async fn a_mirror_leads_nobody_to_an_address_that_only_it_knows() {
    let reached = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&reached);
    let stranger = serve(Router::new().fallback(get(async move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Json(info())
    })))
    .await;
    let mirror = serve(mirror_of(stranger.address())).await;
    let error = mirror.hub_info().await.unwrap_err();
    assert!(error.is_temporary());
    assert_eq!(error.refusal_code(), Some("mirror"));
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    // One that names itself is left for the next.
    let itself = serve(Router::new()).await;
    let circle = serve(mirror_of(itself.address())).await;
    circle.add_addresses([stranger.address()]);
    circle.hub_info().await.unwrap();
    assert_eq!(&*circle.current_address(), stranger.address());
}

#[tokio::test]
async fn one_address_alone_is_asked() {
    let hub = serve(Router::new().route("/api/v1/hub", get(async || Json(info())))).await;
    let client = HubClient::new(&nobody().await)
        .unwrap()
        .with_retry(RetryPolicy::once());
    client.add_addresses([hub.address()]);
    let alone = client.at(client.address()).unwrap();
    for _ in 0..2 {
        assert!(alone.hub_info().await.is_err());
    }
    assert_eq!(alone.addresses().len(), 1);
    // What happens there moves nobody else.
    assert_eq!(&*client.current_address(), client.address());
    assert!(client.at(hub.address()).unwrap().hub_info().await.is_ok());
}

#[tokio::test]
async fn who_keeps_a_run_is_what_its_keys_signed() {
    let [first, second, key, stranger] =
        [1, 2, 3, 4].map(|byte| SecretKey::from_entropy([byte; 32]));
    let run = RunId(Hash([1; 32]));
    let begun = Sealing::new(run, first.public(), vec![key.public()]);
    let head = Head::empty();
    let say = |by: &SecretKey| Succession::sign(by, &begun, &head, second.public(), "http://b");
    let answer = |statements: &[Succession], generation: u64| RunHead {
        run: run.to_string(),
        role: "hub".into(),
        key: String::new(),
        process: String::new(),
        hub: String::new(),
        hub_address: None,
        generation,
        successions: statements
            .iter()
            .map(|it| data_encoding::HEXLOWER.encode(&it.to_bytes()))
            .collect(),
        length: 1,
        hash: String::new(),
        current_ms: 0,
        blobs_missing: 0,
        entries_set_aside: 0,
        equivocations: vec![],
        stopped: None,
    };
    for (head, generation) in [
        (answer(&[], 0), Some(0)),
        (answer(&[say(&key)], 1), Some(1)),
        (answer(&[say(&key)], 2), None),
        (answer(&[], 1), None),
        (answer(&[say(&stranger)], 1), None),
    ] {
        let router = Router::new().route(
            "/api/v1/runs/{run}/head",
            get(async move || Json(head.clone())),
        );
        let told = serve(router).await.head_and_sealing(&begun).await;
        match generation {
            Some(generation) => assert_eq!(told.unwrap().1.generation(), generation),
            None => assert!(matches!(told, Err(ClientError::Malformed { .. }))),
        }
    }
}
