//! One HTTP/1.1 connection that a load keeps open, as an operator's proxy does: requests are bytes made in advance, answers
//! come as clients want them, whole or in chunks, packed or not.

use std::{io::Read, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest answer that is expected, unpacked.
const BODY_BYTES_MAX: u64 = 4 << 20;

/// A connection that is kept open.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub struct Answer {
    /// The body, unpacked.
    pub body: Vec<u8>,
    /// Bytes that travelled, head and packing included.
    pub bytes: usize,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn open(hub: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(hub).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
        })
    }

    /// Sends a request and reads the answer, which must be a good one.
    ///
    /// # Errors
    /// It is not, or no HTTP.
    pub async fn ask(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let start = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(self.buffer.len() < HEAD_BYTES_MAX, "a head without end");
            self.more().await?;
        };
        let head = std::str::from_utf8(&self.buffer[..start])?.to_ascii_lowercase();
        let field = |name: &str| {
            let mut lines = head.lines();
            lines.find_map(|it| it.strip_prefix(name)?.strip_prefix(": "))
        };
        let body = match field("content-length") {
            Some(length) => {
                let length: usize = length.trim().parse()?;
                while self.buffer.len() < start + length {
                    self.more().await?;
                }
                self.buffer[start..start + length].to_vec()
            }
            None => self.chunks(start).await?,
        };
        let is_packed = field("content-encoding") == Some("gzip");
        let body = if is_packed { unpacked(&body)? } else { body };
        let status = head.get(9..12).context("an answer without a status")?;
        let is_well = status.starts_with('2');
        let said = String::from_utf8_lossy(&body);
        ensure!(is_well, "status {status}: {said}");
        Ok(Answer {
            body,
            bytes: self.buffer.len(),
        })
    }

    /// The same, of which only the body is wanted.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn must(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        Ok(self.ask(request).await?.body)
    }

    async fn chunks(&mut self, start: usize) -> Result<Vec<u8>> {
        let (mut at, mut body) = (start, Vec::new());
        loop {
            let Some(end) = find(&self.buffer[at..], b"\r\n") else {
                self.more().await?;
                continue;
            };
            let length = std::str::from_utf8(&self.buffer[at..at + end])?;
            let length = usize::from_str_radix(length, 16).context("a chunk without a length")?;
            let first = at + end + 2;
            while self.buffer.len() < first + length + 2 {
                self.more().await?;
            }
            if length == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&self.buffer[first..first + length]);
            at = first + length + 2;
        }
    }

    async fn more(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the hub closed the connection");
        Ok(())
    }
}

fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    GzDecoder::new(bytes)
        .take(BODY_BYTES_MAX)
        .read_to_end(&mut out)?;
    Ok(out)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|it| it == what)
}
