//! One HTTP/1.1 connection of the load: requests are bytes made in advance, of answers only status and length are read.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A connection that is kept open.
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(hub: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(hub).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn ask(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(self.buffer.len() < HEAD_BYTES_MAX, "a head without end");
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the hub closed the connection");
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text
            .get(9..12)
            .and_then(|it| it.parse().ok())
            .context("an answer without a status")?;
        let length: usize = text
            .lines()
            .find_map(|it| {
                it.to_ascii_lowercase()
                    .strip_prefix("content-length:")?
                    .trim()
                    .parse()
                    .ok()
            })
            .with_context(|| format!("an answer without a length: {text}"))?;
        while self.buffer.len() < head + length {
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the hub closed the connection in an answer");
        }
        Ok(Answer {
            status,
            body: self.buffer[head..head + length].to_vec(),
        })
    }

    /// The same, which must succeed.
    pub(super) async fn must(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        let answer = self.ask(request).await?;
        ensure!(
            (200..300).contains(&answer.status),
            "status {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok(answer.body)
    }
}

/// A request without a body.
pub(super) fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET /api/v1/{path} HTTP/1.1\r\nhost: hub\r\n{headers}\r\n").into_bytes()
}

/// A request with one.
pub(super) fn with_body(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} /api/v1/{path} HTTP/1.1\r\nhost: hub\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|it| it == what)
}
