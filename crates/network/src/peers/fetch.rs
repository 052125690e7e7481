//! The fetching side: one blob from one peer into a part file, proven window by window, resumed where an earlier transfer
//! stopped.

use std::{fs, io::Write, path::Path, time::Duration};

use iroh::{EndpointAddr, EndpointId, TransportAddr, endpoint::RecvStream};
use protocol::{peers::PeerAddress, units::BlobReference};
use tokio::time::{Instant, timeout};

use super::{
    ALPN, Peers,
    tree::{self, GROUP_BYTES},
    wire::{Answer, Question, WINDOW_ENCODED_MAX},
};

/// Transfers are measured after this long.
const SLOW_AFTER: Duration = Duration::from_secs(10);
/// A peer that sends fewer bytes a second is left for another, or for the hub.
const BYTES_PER_S_MIN: f64 = 16.0 * 1024.0;

/// How long somebody is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For a blob that is on its way to the peer.
    pub wait: Duration,
    /// For the next window.
    pub stall: Duration,
}

impl Patience {
    /// What a run whose rounds take so long can wait: peers never cost more than a small part of a window.
    #[must_use]
    pub fn for_window(window: Duration) -> Self {
        let part = |of: u32, least_ms: u64, most_s: u64| {
            (window / of).clamp(Duration::from_millis(least_ms), Duration::from_secs(most_s))
        };
        Self {
            connect: part(10, 1_000, 3),
            wait: part(8, 1_000, 15),
            stall: part(8, 2_000, 8),
        }
    }
}

/// Why a peer did not give a blob.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody answers at its addresses, or somebody else.
    #[error("the peer can't be reached")]
    Unreachable,
    /// It does not have the blob, or did not get it in time.
    #[error("the peer does not have the blob")]
    NotHere,
    /// It serves enough others.
    #[error("the peer is busy")]
    Busy,
    /// The bytes are not the blob's, or no answer at all.
    #[error("the peer sent something else")]
    WrongBytes,
    /// It stopped in the middle, or was too slow; what came is kept.
    #[error("the peer stopped sending")]
    Cut,
    /// The part file.
    #[error("writing what a peer sent")]
    Disk(#[source] std::io::Error),
}

impl FetchError {
    /// Whether the hub should hear of it, so that others are spared: the peer lies, or can't be reached.
    #[must_use]
    pub fn is_peers_fault(&self) -> bool {
        match self {
            Self::Unreachable | Self::WrongBytes | Self::Cut => true,
            Self::NotHere | Self::Busy | Self::Disk(_) => false,
        }
    }
}

impl Peers {
    /// Fetches a blob from a peer into the file `part`, from the 16 KiB on that its length ends in; `progress` is called
    /// with the bytes that the file has.
    ///
    /// Every byte that this call writes has been proven to be the blob's at its place. An error leaves what had come, for
    /// another peer or the hub to go on from.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(
        &self,
        part: &Path,
        reference: BlobReference,
        from: &PeerAddress,
        patience: Patience,
        progress: &mut (impl FnMut(u64) + Send),
    ) -> Result<(), FetchError> {
        let address = self.reachable(from).ok_or(FetchError::Unreachable)?;
        let connecting = self.inner.endpoint.connect(address, ALPN);
        let connection = match timeout(patience.connect, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!("connecting to a peer: {error:#}");
                return Err(FetchError::Unreachable);
            }
            Err(_) => return Err(FetchError::Unreachable),
        };
        let present = fs::metadata(part).map_or(0, |it| it.len());
        let mut offset = present.min(reference.bytes.saturating_sub(1)) / GROUP_BYTES * GROUP_BYTES;
        let question = Question {
            hash: reference.hash,
            bytes: reference.bytes,
            offset,
            wait_ms: u64::try_from(patience.wait.as_millis()).unwrap_or(u64::MAX),
        };
        let fetched = async {
            let (mut send, mut receive) =
                connection.open_bi().await.map_err(|_| FetchError::Cut)?;
            let asked = send.write_all(&question.to_bytes()).await;
            asked.map_err(|_| FetchError::Cut)?;
            send.finish().map_err(|_| FetchError::Cut)?;
            read_answer(&mut receive, patience.wait + patience.stall).await?;
            let mut file = open_part(part, offset).map_err(FetchError::Disk)?;
            let (begin, first) = (Instant::now(), offset);
            while offset < reference.bytes {
                let window = timeout(patience.stall, read_window(&mut receive, reference, offset));
                let bytes = window.await.map_err(|_| FetchError::Cut)??;
                file.write_all(&bytes).map_err(FetchError::Disk)?;
                offset += bytes.len() as u64;
                progress(offset);
                let seconds = begin.elapsed();
                let rate = (offset - first) as f64 / seconds.as_secs_f64();
                if seconds > SLOW_AFTER && rate < BYTES_PER_S_MIN {
                    return Err(FetchError::Cut);
                }
            }
            Ok(())
        };
        let fetched = fetched.await;
        connection.close(0_u32.into(), b"");
        fetched
    }

    /// The address as iroh knows it: the peer's key, its socket addresses, and its relay if it is one of ours.
    fn reachable(&self, from: &PeerAddress) -> Option<EndpointAddr> {
        let id = EndpointId::from_bytes(&from.endpoint.0).ok()?;
        let relay = from.relay.as_ref().and_then(|it| it.parse().ok());
        let relay = relay.filter(|it| self.inner.relays.contains(it));
        let direct = from.addresses.iter().copied().map(TransportAddr::Ip);
        let address = EndpointAddr::from_parts(id, direct.chain(relay.map(TransportAddr::Relay)));
        (!address.is_empty() && id != self.inner.endpoint.id()).then_some(address)
    }
}

async fn read_answer(receive: &mut RecvStream, wait: Duration) -> Result<(), FetchError> {
    let mut byte = [0];
    match timeout(wait, receive.read_exact(&mut byte)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return Err(FetchError::Cut),
    }
    match Answer::from_byte(byte[0]) {
        Some(Answer::Here) => Ok(()),
        Some(Answer::NotHere) => Err(FetchError::NotHere),
        Some(Answer::Busy) => Err(FetchError::Busy),
        None => Err(FetchError::WrongBytes),
    }
}

/// The bytes of the next window, proven.
async fn read_window(
    receive: &mut RecvStream,
    reference: BlobReference,
    offset: u64,
) -> Result<Vec<u8>, FetchError> {
    let mut length = [0; 4];
    let read = receive.read_exact(&mut length).await;
    read.map_err(|_| FetchError::Cut)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > WINDOW_ENCODED_MAX {
        return Err(FetchError::WrongBytes);
    }
    let mut encoded = vec![0; length];
    let read = receive.read_exact(&mut encoded).await;
    read.map_err(|_| FetchError::Cut)?;
    tree::decode(reference, offset, &encoded).map_err(|_| FetchError::WrongBytes)
}

/// The part file, cut to `offset` and open behind it.
fn open_part(part: &Path, offset: u64) -> std::io::Result<fs::File> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(part)?;
    file.set_len(offset)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))?;
    Ok(file)
}
