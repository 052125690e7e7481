//! A run's log from a hub or mirror, entry by entry, each checked to continue the signed chain.

use std::time::Duration;

use protocol::{
    api::{
        LOG_PAGE_MAX,
        mirrors::{MIRROR, MirrorProof},
    },
    log::{ChainError, ENTRY_BYTES_MAX, Entry, Head},
    succession::Chain,
    units::RunId,
};
use reqwest::Method;

use crate::client::{ClientError, HubClient, WAIT_MS_MAX};

/// Header of the binary log: entries in the whole log.
const LOG_LENGTH: &str = "x-athome-log-length";
/// Most bytes read of one page.
const PAGE_BYTES_MAX: usize = 4 * ENTRY_BYTES_MAX;
/// Time for a page on its way to a mirror.
const PAGE_TIME: Duration = Duration::from_secs(30);

/// Why a log could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The call failed.
    #[error("the log could not be fetched")]
    Client(#[from] ClientError),
    /// An entry does not continue the chain: the hub changed its story, or is not this run's.
    #[error("the log does not hold")]
    Chain(#[from] ChainError),
}

/// A page of the log, not yet checked against a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct EntriesPage {
    /// Entries from the position asked for.
    pub entries: Vec<Entry>,
    /// Entries in the whole log, as the hub says.
    pub length: u64,
}

/// Reads a log from some point on and checks every entry, across changes of its hub.
#[derive(Clone, Debug)]
pub struct LogReader {
    client: HubClient,
    chain: Chain,
}

impl HubClient {
    /// At most `limit` entries (and at most [`LOG_PAGE_MAX`]) from position `from`. The entries decode; whether they belong
    /// is [`Head::advance`]'s to say ([`LogReader`] does).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn log_entries(
        &self,
        run: RunId,
        from: u64,
        limit: u64,
    ) -> Result<EntriesPage, ClientError> {
        self.entries_page(run, from, limit, None).await
    }

    /// As [`Self::log_entries`] of the mirror that `proof` speaks of, whose log ends at `from`: once there is something, or after
    /// `wait_ms`. One attempt.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn log_entries_for_mirror(
        &self,
        run: RunId,
        from: u64,
        proof: &MirrorProof,
        wait_ms: u64,
    ) -> Result<EntriesPage, ClientError> {
        let wait_ms = wait_ms.min(WAIT_MS_MAX);
        self.entries_page(run, from, LOG_PAGE_MAX, Some((proof, wait_ms)))
            .await
    }

    async fn entries_page(
        &self,
        run: RunId,
        from: u64,
        limit: u64,
        mirror: Option<(&MirrorProof, u64)>,
    ) -> Result<EntriesPage, ClientError> {
        let limit = limit.min(LOG_PAGE_MAX);
        let mut path = format!("runs/{run}/log.bin?from={from}&limit={limit}");
        if let Some((_, wait_ms)) = mirror {
            path.push_str(&format!("&wait_ms={wait_ms}"));
        }
        let mut call = self
            .call(Method::GET, &path)
            .without_timeout()
            .body_max(PAGE_BYTES_MAX);
        if let Some((proof, wait_ms)) = mirror {
            let longest = Duration::from_millis(wait_ms) + PAGE_TIME;
            call = call.once().timeout(longest).header(MIRROR, proof.to_text());
        }
        let (headers, body) = self.headers_and_bytes(call).await?;
        let length = headers
            .get(LOG_LENGTH)
            .and_then(|it| it.to_str().ok()?.parse().ok())
            .ok_or_else(|| malformed(format!("the header {LOG_LENGTH} is missing")))?;
        Ok(EntriesPage {
            entries: split_entries(&body, limit)?,
            length,
        })
    }
}

impl LogReader {
    /// Reads a log on from where `chain` stands ([`Chain::of`] for all of it).
    #[must_use]
    pub fn new(client: HubClient, chain: Chain) -> Self {
        Self { client, chain }
    }

    /// Where the checked part ends.
    #[must_use]
    pub fn head(&self) -> Head {
        self.chain.head()
    }

    /// The checked part's end and who sealed it.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The next entries, checked; empty at the end of the log. After an error the reader stands where it stood.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn next_page(&mut self) -> Result<Vec<Entry>, LogError> {
        let page = self
            .client
            .log_entries(self.chain.run(), self.chain.head().length, LOG_PAGE_MAX)
            .await?;
        let mut chain = self.chain.clone();
        for entry in &page.entries {
            chain.advance(entry)?;
        }
        self.chain = chain;
        Ok(page.entries)
    }
}

/// Takes a page apart: for each entry its length (32 bits, little-endian) and its canonical bytes; at most `limit` entries.
///
/// # Errors
/// [`ClientError::Malformed`].
pub fn split_entries(mut bytes: &[u8], limit: u64) -> Result<Vec<Entry>, ClientError> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        if entries.len() as u64 >= limit {
            return Err(malformed("it has more entries than were asked for".into()));
        }
        let cut = || malformed("it ends within an entry".to_owned());
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (entry, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        entries.push(Entry::from_bytes(entry).map_err(|error| malformed(error.to_string()))?);
        bytes = rest;
    }
    Ok(entries)
}

fn malformed(problem: String) -> ClientError {
    ClientError::Malformed {
        what: "the log",
        problem,
    }
}
