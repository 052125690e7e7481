//! A small HTTP/1.1 client for loopback: GET, whole body, a time limit.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Longest answer read.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest wait for any one read or write.
const WAIT: Duration = Duration::from_secs(5);

/// An answer.
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Fetches `path` from `address`.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, WAIT)
        .with_context(|| format!("nobody answers at {address}"))?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.take(BODY_BYTES_MAX).read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// Fetches JSON; a status other than 200 is an error.
pub(crate) fn get_json<T: serde::de::DeserializeOwned>(
    address: SocketAddr,
    path: &str,
) -> Result<T> {
    let answer = get(address, path)?;
    if answer.status != 200 {
        bail!("{address}{path} answered {}", answer.status);
    }
    serde_json::from_slice(&answer.body)
        .with_context(|| format!("{address}{path} did not answer with the JSON expected"))
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes
        .windows(4)
        .position(|it| it == b"\r\n\r\n")
        .context("the answer has no end of headers")?;
    let head = std::str::from_utf8(&bytes[..end]).context("the answer's headers are no text")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|it| it.parse().ok())
        .context("the answer has no status")?;
    if head.to_ascii_lowercase().contains("transfer-encoding:") {
        bail!("the answer came in chunks, which HTTP/1.0 does not have");
    }
    Ok(Answer {
        status,
        body: bytes[end + 4..].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_told_apart() {
        let answer = parse(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (404, &b"{}"[..]));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"\r\n\r\n",
            b"SSH-2.0 x\r\n\r\n",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
