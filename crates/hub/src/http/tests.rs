//! The API document stays what the committed copy says, from which the web client is generated; and what all answers have
//! in common.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
    routing::get,
};
use protocol::{
    SecretKey,
    command::{Command, Device, SignedCommand},
    event::Event,
    units::RunId,
};
use tower::ServiceExt;
use tower_http::compression::CompressionLayer;

use crate::{
    boinc::testing::{CLIENT, Fixture},
    store::Projected,
};

#[test]
fn the_committed_document_is_the_apis() {
    expect_test::expect_file!["../../../../docs/openapi.json"].assert_eq(&super::openapi());
}

#[tokio::test]
async fn bytes_and_short_texts_go_as_they_are_and_long_texts_compressed() {
    let check = async |content_type: &'static str, bytes: u16, encoding: Option<&str>| {
        let bytes = vec![7; bytes.into()];
        let answer = move || async move { ([(header::CONTENT_TYPE, content_type)], bytes) };
        let router: Router = Router::new()
            .route("/", get(answer))
            .layer(CompressionLayer::new().compress_when(super::compressible()));
        let request = Request::get("/").header(header::ACCEPT_ENCODING, "gzip");
        let response = router
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let found = response.headers().get(header::CONTENT_ENCODING);
        assert_eq!(
            found.map(|it| it.to_str().unwrap()),
            encoding,
            "{content_type}"
        );
    };
    let long = super::COMPRESSED_BYTES_MIN;
    check("application/octet-stream", long, None).await;
    check("application/json", long, Some("gzip")).await;
    check("application/json", long - 1, None).await;
}

fn join(seed: u8, run: RunId) -> SignedCommand {
    let key = SecretKey::from_entropy([seed; 32]);
    let join = Command::Join {
        name: "one of many".into(),
        device: Device {
            arithmetic: "x86-64 fma".into(),
            threads: 1,
            memory_mib: 1,
            tokens_per_s: 1,
        },
    };
    SignedCommand::sign(&key, run, 1, join)
}

#[tokio::test]
async fn an_entry_that_the_state_lacks_is_shown_to_nobody() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(60_000).await;
    let run = fixture.run(id).await;
    // The evaluation of the first model would find the log longer than it knows, and read the entry back.
    fixture.service.stop_runs().await;
    let (hub, head) = (fixture.hub(), run.state.read().await.head);
    let command = join(7, id);
    let joined = Event::WorkerJoined { command };
    let entry = head.next(&hub.key, id, head.time_ms, joined);
    let entries = [(entry, Projected::default())];
    hub.store.append(&entries).await.unwrap();
    let shown = async |from: u64| {
        let log = format!("/api/v1/runs/{id}/log");
        let page = fixture.get(&format!("{log}?from={from}")).await.json();
        let binary = fixture.get(&format!("{log}.bin?from={from}")).await.body;
        (page["entries"].as_array().unwrap().len(), binary.len())
    };
    let before = head.length - 1;
    assert_eq!(shown(before).await.0, 1);
    assert_eq!(shown(head.length).await, (0, 0));
    assert_eq!(hub.store.length(id).await.unwrap(), head.length + 1);
}

#[tokio::test]
async fn a_stream_of_what_is_in_the_log_counts_as_pages_of_it_do() {
    let fixture = Fixture::new().await;
    let id = fixture.create_run(60_000).await;
    let events = format!("/api/v1/runs/{id}/events");
    let run = fixture.run(id).await;
    for seed in 0..=200_u8 {
        run.command(join(seed, id).checked().unwrap())
            .await
            .unwrap();
    }
    // What an address may be told comes back with time, so one try can be too slow on a busy machine.
    let mut refused = None;
    for _ in 0..50 {
        let admission = &fixture.hub().admission;
        while admission.check_page(CLIENT, 100).is_ok() {}
        let all = format!("{events}?after=0");
        let asked = tokio::time::timeout(Duration::from_millis(100), fixture.get(&all));
        refused = asked.await.ok();
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("it is refused, not told everything");
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    // What is new costs nothing: the stream is open and silent.
    let news = tokio::time::timeout(Duration::from_millis(200), fixture.get(&events));
    assert!(news.await.is_err());
}
