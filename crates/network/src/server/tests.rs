//! Over real sockets and with the clock paused: it jumps to the next timer whenever everyone waits.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use futures_util::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use super::*;

/// A server with `limits`; its address, and what stops it.
async fn start(router: Router, limits: Limits) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        serve(listener, router, limits, stop, Duration::from_secs(5)).await;
    });
    (address, shutdown)
}

fn router() -> Router {
    Router::new()
        .route("/", get(async || "here"))
        .route("/echo", post(async |body: String| body))
}

/// Sends bytes, then nothing; what comes back, and after how many seconds the connection ends.
async fn send_and_stall(address: SocketAddr, bytes: &str) -> (String, u64) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset ends a connection too.
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8(answer).unwrap();
    (text, begun.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_let_go() {
    let (address, _stop) = start(router(), Limits::default()).await;
    assert_eq!(send_and_stall(address, "").await, (String::new(), 10));
}

#[tokio::test(start_paused = true)]
async fn headers_that_do_not_end_are_not_waited_for() {
    let (address, _stop) = start(router(), Limits::default()).await;
    let (_, seconds) = send_and_stall(address, "GET / HTTP/1.1\r\nhost: x\r\n").await;
    assert_eq!(seconds, 10);
}

#[tokio::test(start_paused = true)]
async fn headers_in_drops_do_not_win_time() {
    let (address, _stop) = start(router(), Limits::default()).await;
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let begun = Instant::now();
    let dripping = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(3));
        writer.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        while writer.write_all(b"x: y\r\n").await.is_ok() {
            every.tick().await;
        }
    });
    let _ = reader.read_to_end(&mut Vec::new()).await;
    assert_eq!(begun.elapsed().as_secs(), 10);
    dripping.abort();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_a_while() {
    let (address, _stop) = start(router(), Limits::default()).await;
    let (answer, seconds) = send_and_stall(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.ends_with("here"), "{answer}");
    assert_eq!(seconds, 75);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_refused() {
    let (address, _stop) = start(router(), Limits::default()).await;
    let request = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nonly this";
    let (answer, seconds) = send_and_stall(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("too slow"), "{answer}");
    assert_eq!(seconds, 20);
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_no_answer_is_let_go() {
    // Dropped when the connection is.
    let (sender, dropped) = tokio::sync::oneshot::channel::<()>();
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let endless = get(move || {
        let held = sender.lock().unwrap().take();
        async move {
            Body::from_stream(stream::unfold(held, async |held| {
                Some((Ok::<_, Infallible>(Bytes::from(vec![0; 65_536])), held))
            }))
        }
    });
    let (address, _stop) = start(Router::new().route("/", endless), Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    dropped.await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), 20);
}

#[tokio::test(start_paused = true)]
async fn an_address_has_its_share_of_connections() {
    let limits = Limits {
        connections_per_address_max: 2,
        ..Limits::default()
    };
    let (address, _stop) = start(router(), limits).await;
    let ask = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let first = TcpStream::connect(address).await.unwrap();
    let _second = TcpStream::connect(address).await.unwrap();
    let (refusal, _) = send_and_stall(address, ask).await;
    assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
    assert!(refusal.contains("\"code\":\"too_many\""), "{refusal}");
    // The first two say nothing and are let go; then there is room again.
    drop(first);
    tokio::time::advance(Duration::from_secs(11)).await;
    let (answer, _) = send_and_stall(address, ask).await;
    assert!(answer.ends_with("here"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_trusted_proxy_has_no_share() {
    let limits = Limits {
        connections_per_address_max: 0,
        trusted_proxies: vec!["127.0.0.1".parse().unwrap()],
        ..Limits::default()
    };
    let (address, _stop) = start(router(), limits).await;
    let ask = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (answer, _) = send_and_stall(address, ask).await;
    assert!(answer.ends_with("here"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn heads_are_bounded() {
    let (address, _stop) = start(router(), Limits::default()).await;
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let (answer, _) = send_and_stall(address, &long).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_in_progress_is_answered_at_shutdown() {
    let (begun, mut has_begun) = tokio::sync::mpsc::channel::<()>(1);
    let slow = get(async move || {
        begun.send(()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        "done"
    });
    let (address, stop) = start(Router::new().route("/", slow), Limits::default()).await;
    let ask = send_and_stall(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    let stopping = async {
        has_begun.recv().await.unwrap();
        stop.cancel();
    };
    let ((answer, seconds), ()) = tokio::join!(ask, stopping);
    assert!(answer.ends_with("done"), "{answer}");
    assert_eq!(seconds, 3);
    assert!(TcpStream::connect(address).await.is_err());
}
