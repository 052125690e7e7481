//! The live event stream: server-sent events (WHATWG HTML, 9.2) with a parser of our own, because its lines must have limits.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use protocol::{api::LogEntry, units::RunId};
use reqwest::Method;

use crate::client::{ClientError, HubClient};

/// Longest line of a stream; a log entry as JSON is one line.
pub const LINE_BYTES_MAX: usize = 64 << 20;
/// Longest event: its data lines together.
pub const EVENT_BYTES_MAX: usize = LINE_BYTES_MAX;
const ENTRY_EVENT: &str = "entry";

type ByteStream = std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// A run's new log entries as they happen. Dropping it closes the connection.
pub struct Events {
    client: HubClient,
    stream: ByteStream,
    parser: Parser,
    ready: std::collections::VecDeque<StreamEvent>,
}

/// One server-sent event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamEvent {
    /// Its type; `message` if the stream names none.
    pub event: String,
    /// Its data, lines joined by a newline.
    pub data: String,
    /// The last id that the stream named, if any.
    pub id: Option<String>,
}

/// Why a stream is not one of server-sent events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A line or an event beyond the limit.
    #[error("an event has more than {bytes_max} bytes")]
    TooLong {
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// Not UTF-8.
    #[error("a line is not UTF-8")]
    NotText,
}

/// Turns bytes into events, however they are cut.
#[derive(Clone, Debug)]
pub struct Parser {
    bytes_max: usize,
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed now belongs to it.
    after_return: bool,
    at_start: bool,
    event: String,
    data: Option<String>,
    id: Option<String>,
}

impl HubClient {
    /// Follows a run's log: entries after position `after`, or only new ones without it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, run: RunId, after: Option<u64>) -> Result<Events, ClientError> {
        let mut call = self
            .call(Method::GET, &format!("runs/{run}/events"))
            .without_timeout()
            .header("accept", "text/event-stream".to_owned());
        if let Some(after) = after {
            call = call.header("last-event-id", after.to_string());
        }
        let response = self.send(&call).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        Ok(Events {
            client: self.clone(),
            stream: Box::pin(response.bytes_stream()),
            parser: Parser::new(EVENT_BYTES_MAX),
            ready: std::collections::VecDeque::new(),
        })
    }
}

impl Events {
    /// The next entry; `None` when the hub closed the stream. Open it again with the last entry's index.
    ///
    /// # Errors
    /// [`ClientError`]; the stream is then of no further use.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, ClientError> {
        let malformed = |problem: String| ClientError::Malformed {
            what: "the event stream",
            problem,
        };
        loop {
            while let Some(event) = self.ready.pop_front() {
                if event.event == ENTRY_EVENT {
                    let entry = serde_json::from_str(&event.data);
                    return entry
                        .map(Some)
                        .map_err(|error| malformed(error.to_string()));
                }
            }
            let Some(bytes) = self.stream.next().await else {
                return Ok(None);
            };
            let bytes =
                bytes.map_err(|error| self.client.unreachable(error.without_url().into()))?;
            let events = self.parser.push(&bytes);
            self.ready
                .extend(events.map_err(|error| malformed(error.to_string()))?);
        }
    }
}

impl Parser {
    /// A parser that refuses lines and events of more than `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            line: Vec::new(),
            after_return: false,
            at_start: true,
            event: String::new(),
            data: None,
            id: None,
        }
    }

    /// Takes the next bytes and gives the events that they complete.
    ///
    /// # Errors
    /// [`ParseError`]; the parser is then of no further use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<StreamEvent>, ParseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let completes_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if completes_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ if self.line.len() >= self.bytes_max => return Err(self.too_long()),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Result<Option<StreamEvent>, ParseError> {
        let line = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&line).map_err(|_| ParseError::NotText)?;
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                let data = self.data.get_or_insert_default();
                if data.len() + value.len() + 1 > self.bytes_max {
                    return Err(self.too_long());
                }
                data.push_str(value);
                data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // Comments (an empty field), `retry` and unknown fields.
            _ => {}
        }
        Ok(None)
    }

    fn dispatch(&mut self) -> Option<StreamEvent> {
        let event = std::mem::take(&mut self.event);
        let mut data = self.data.take()?;
        data.pop();
        Some(StreamEvent {
            event: if event.is_empty() {
                "message".to_owned()
            } else {
                event
            },
            data,
            id: self.id.clone(),
        })
    }

    fn too_long(&self) -> ParseError {
        ParseError::TooLong {
            bytes_max: self.bytes_max,
        }
    }
}

#[cfg(test)]
mod tests;
