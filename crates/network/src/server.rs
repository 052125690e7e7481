//! HTTP connections that strangers may open: how many, how long, how slow.
//!
//! A hub or gateway hands its router to [`serve`] and gets HTTP/1.1 with limits around it: connections in all and of
//! one address, time for the headers of a request, time without a request, and a least speed for bodies in both
//! directions, so that whoever opens many connections and says little (slow loris) holds few of them, and not for long.
//! What a request may ask is the router's to limit. No HTTP/2: one request at a time is what workers, browsers and
//! proxies need, and streams within a connection would have to be counted again.

mod body;
mod limits;
mod pace;
mod share;
mod stream;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::Service;

pub use body::Paced;
pub use limits::{Limits, raise_open_files};
pub use pace::TooSlow;
pub use share::{Share, Shares, share_of};

use body::Answer;
use stream::{Phase, Watched};

/// Longest head of a request.
const HEADERS_BYTES_MAX: usize = 32 << 10;
/// Bytes of a connection read ahead or waiting to be sent.
const BUFFER_BYTES_MAX: usize = 128 << 10;
/// Refused connections that are told why at the same time; further ones are closed without a word.
const REFUSING_MAX: usize = 64;
/// Time for a refused connection to hear why.
const REFUSING_TIME: Duration = Duration::from_secs(1);
/// Wait after the system refused to hand out a connection: it lacks files or memory, and asking again at once frees none.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Who is at the other end of a request's connection; every request carries it as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves until `shutdown` is cancelled; requests in progress then get `grace` to end.
///
/// Each request carries its [`Peer`]. A body that comes slower than [`Limits::bytes_per_s_min`] ends with [`TooSlow`].
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    limits: Limits,
    shutdown: CancellationToken,
    grace: Duration,
) where
    S: Service<Request<Paced<Incoming>>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let shares = Shares::new(limits.connections_per_address_max);
    let refusing = Arc::new(Semaphore::new(REFUSING_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection was not accepted: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let is_proxy = limits.trusted_proxies.contains(&peer.ip().to_canonical());
        let share = (!is_proxy).then(|| shares.begin(peer.ip()));
        let place = Arc::clone(&places).try_acquire_owned();
        let (Ok(place), None | Some(Some(_))) = (place, &share) else {
            if let Ok(permit) = Arc::clone(&refusing).try_acquire_owned() {
                connections.spawn(async move {
                    refuse(stream).await;
                    drop(permit);
                });
            }
            continue;
        };
        let connection = connection(
            stream,
            peer,
            service.clone(),
            limits.clone(),
            shutdown.clone(),
        );
        connections.spawn(async move {
            connection.await;
            drop((place, share));
        });
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // Streams end by themselves at shutdown; whoever does not is not waited for.
    if tokio::time::timeout(grace, all).await.is_err() {
        tracing::debug!("connections are cut off after {grace:?}");
    }
}

async fn connection<S, B>(
    stream: TcpStream,
    peer: SocketAddr,
    service: S,
    limits: Limits,
    shutdown: CancellationToken,
) where
    S: Service<Request<Paced<Incoming>>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    // Answers are written whole; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let phase = Phase::default();
    let io = TokioIo::new(Watched::new(stream, phase.clone(), &limits));
    let pace = limits.pace();
    let answering = service_fn(move |request: Request<Incoming>| {
        phase.begin_request();
        let mut request = request.map(|body| Paced::new(body, pace));
        request.extensions_mut().insert(Peer(peer));
        let mut service = service.clone();
        let phase = phase.clone();
        async move {
            std::future::poll_fn(|context| service.poll_ready(context)).await?;
            let response = service.call(request).await?;
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, phase)))
        }
    });
    let mut serving = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // Runs while a connection is idle too; a request that has begun has the shorter time of `Watched`.
            .header_read_timeout(limits.idle_timeout.max(limits.header_timeout))
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_header_size(HEADERS_BYTES_MAX)
            .serve_connection(io, answering)
    );
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%peer, "a connection ended: {error}");
    }
}

/// Says that there are too many connections, in the form of every other refusal, and closes.
async fn refuse(mut stream: TcpStream) {
    const BODY: &str = r#"{"code":"too_many","message":"this address, or all together, have as many connections open as are allowed here; close some or try again later"}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let telling = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would take the answer back before it is read.
        let mut unread = [0; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(REFUSING_TIME, telling).await;
}

#[cfg(test)]
mod tests;
