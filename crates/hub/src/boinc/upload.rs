//! Results on their way in: BOINC's upload protocol, resumable, streamed to the disk; short ones are settled in memory.
//!
//! A head of tags ends with the line `<data>`; raw bytes follow it, and nothing closes it. An answer of status 0 means that
//! the file is whole and durable here, or settled.

mod folder;
mod head;

use std::{
    convert::Infallible,
    fs,
    io::{self, Seek, SeekFrom},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use futures_util::{Stream, StreamExt, TryStreamExt};
use md5::{Digest, Md5};
use tokio::io::AsyncWriteExt;

use self::head::{DONE, HEAD_BYTES_MAX, UploadReply, later, never};
pub(super) use self::{folder::Uploads, head::UploadHead};
use super::{
    Door,
    reply::unit_of_output,
    settle::{self, Step},
    store::{Unit, UnitState},
};
use crate::Hub;

/// What is said of a result that comes too late.
const OVER: UploadReply = never("the task is over: nobody waits for its result");
/// Bytes of a result that is kept in memory until it is settled, if it comes in one piece: most need no file then.
const SHORT_BYTES_MAX: u64 = 256 << 10;
/// Longest time for an upload's head to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for what follows from a whole result, before the client is answered; it goes on without the client.
const SETTLE_WAIT: Duration = Duration::from_secs(20);

/// Takes an upload request.
pub(crate) async fn receive<E>(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    body: impl Stream<Item = Result<Bytes, E>>,
    client: IpAddr,
) -> UploadReply {
    let mut body = std::pin::pin!(body);
    let mut start = BytesMut::new();
    let read = tokio::time::timeout(HEAD_TIMEOUT, read_head(&mut start, &mut body));
    let end = match read.await {
        Ok(Ok(end)) => end,
        Ok(Err(refusal)) => return refusal,
        Err(_) => return later("the upload came too slowly"),
    };
    let head = UploadHead::read(&start[..end.unwrap_or(start.len())]);
    let answer = match (head, end) {
        (Some(UploadHead::Size { file }), _) => size(door, &file).await,
        (Some(head @ UploadHead::Data { .. }), Some(end)) => {
            let first = start.split_off(end).freeze();
            let bytes = futures_util::stream::iter([Ok(first)]).chain(body);
            take(hub, door, head, std::pin::pin!(bytes), client).await
        }
        _ => Ok(never("the upload does not read")),
    };
    answer.unwrap_or_else(|error| {
        tracing::error!("an upload of a BOINC client failed: {error:#}");
        later("the hub failed; try again later")
    })
}

/// Reads until the head is there, whose end it gives, or the body ends.
async fn read_head<E>(
    start: &mut BytesMut,
    body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
) -> Result<Option<usize>, UploadReply> {
    loop {
        if let Some(end) = UploadHead::end(start) {
            return Ok(Some(end));
        }
        if start.len() > HEAD_BYTES_MAX {
            return Err(never("the upload's head is too long"));
        }
        match body.next().await {
            Some(Ok(part)) => start.extend_from_slice(&part),
            Some(Err(_)) => return Err(later("the upload was cut")),
            None => return Ok(None),
        }
    }
}

async fn size(door: &Door, file: &str) -> Result<UploadReply> {
    let Some(unit) = unit_of(door, file).await? else {
        return Ok(never("there is no such task"));
    };
    let size = match unit.uploaded_bytes {
        Some(bytes) => bytes,
        None if unit.state != UnitState::Sent => return Ok(OVER),
        // A client that hears of all its bytes sends nothing more, and takes the file for taken: until it is, the last
        // byte is asked for again.
        None => door.uploads.length(&unit.name).await?.saturating_sub(1),
    };
    Ok(UploadReply {
        file_size: Some(size),
        ..DONE
    })
}

async fn unit_of(door: &Door, file: &str) -> Result<Option<Unit>> {
    match unit_of_output(file) {
        Some(name) => door.store.unit(name).await,
        None => Ok(None),
    }
}

async fn take<E>(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    head: UploadHead,
    body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    client: IpAddr,
) -> Result<UploadReply> {
    let UploadHead::Data {
        file,
        token,
        bytes_max,
        bytes,
        md5,
        offset,
    } = head
    else {
        return Ok(never("the upload does not read"));
    };
    let Some(name) = unit_of_output(&file) else {
        return Ok(never("there is no such task"));
    };
    let now_s = hub.clock.now_ms() / 1_000;
    if !door.token_key.holds(&token, &file, bytes_max, now_s) {
        return Ok(never("the upload's token is not this file's, or too old"));
    }
    if bytes > bytes_max {
        return Ok(never("the file is longer than the task allows"));
    }
    let Ok(place) = Arc::clone(&door.results).try_acquire_owned() else {
        return Ok(later("the hub takes as many results at once as it may"));
    };
    let Some(turn) = door.uploads.begin(name) else {
        return Ok(later("another upload of the file is in progress"));
    };
    let mut body = body.inspect_ok(|part| {
        hub.metrics.bytes_received.inc_by(part.len() as u64);
    });
    let here = match offset == 0 && bytes <= SHORT_BYTES_MAX {
        true => Some(gather(&mut body, bytes).await),
        false => None,
    };
    // Before the state is read: from then on it stays what it is.
    let claim = here
        .is_some()
        .then(|| door.store.settling.begin(name.to_owned()));
    if let Some(None) = claim {
        return Ok(later("the result is being looked at; try again later"));
    }
    let Some(unit) = door.store.unit(name).await? else {
        return Ok(never("there is no such task"));
    };
    match unit.state {
        UnitState::Sent => {}
        // The answer to the whole file was lost.
        UnitState::Uploaded | UnitState::Granted | UnitState::Refused => return Ok(DONE),
        UnitState::Failed | UnitState::Aborted | UnitState::Lost => return Ok(OVER),
    }
    let announced = Announced {
        unit,
        bytes,
        md5,
        offset,
    };
    if let Some(here) = here {
        if announced.is(&here) {
            let rights = (place, turn, claim);
            return settle_now(hub, door, announced, here, client, rights).await;
        }
        let refusal = keep(hub, door, &announced, one(here)).await?;
        return Ok(refusal.unwrap_or(DONE));
    }
    if let Some(refusal) = keep(hub, door, &announced, body).await? {
        return Ok(refusal);
    }
    settle_soon(hub, door, &announced.unit, client).await;
    Ok(DONE)
}

/// A result on its way in, as its client announces it.
struct Announced {
    unit: Unit,
    /// Of the whole.
    bytes: u64,
    md5: String,
    /// Where what comes now begins.
    offset: u64,
}

impl Announced {
    /// Whether these bytes are all of it.
    fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.bytes && HEXLOWER.encode(&Md5::digest(bytes)) == self.md5
    }
}

/// What comes, until there is more than was announced.
async fn gather<E>(
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    announced: u64,
) -> Bytes {
    let mut here = BytesMut::with_capacity(announced as usize);
    while here.len() as u64 <= announced
        && let Some(Ok(part)) = body.next().await
    {
        here.extend_from_slice(&part);
    }
    here.freeze()
}

/// A body of bytes that are here.
fn one(bytes: Bytes) -> impl Stream<Item = Result<Bytes, Infallible>> + Unpin {
    futures_util::stream::iter([Ok(bytes)])
}

/// Settles a result that is in memory, and keeps it on the disk if that has to wait. A client that hangs up stops nothing
/// half-way: `rights`, to a place and to the unit, are held until the end.
async fn settle_now<R: Send + 'static>(
    hub: &Arc<Hub>,
    door: &Arc<Door>,
    announced: Announced,
    here: Bytes,
    client: IpAddr,
    rights: R,
) -> Result<UploadReply> {
    let (hub, door) = (Arc::clone(hub), Arc::clone(door));
    let settling = tokio::spawn(async move {
        let _rights = rights;
        let unit = announced.unit.clone();
        let step = settle::settle_from_memory(&hub, &door, unit, here.clone(), client).await;
        if step == Step::Settled {
            return Ok(DONE);
        }
        match keep(&hub, &door, &announced, one(here)).await {
            Ok(None) => {
                door.wake_settling();
                Ok(DONE)
            }
            other => {
                // These bytes are gone, and what was found out of them.
                door.waiting.take(&announced.unit.name);
                Ok(other?.unwrap_or(DONE))
            }
        }
    });
    match tokio::time::timeout(SETTLE_WAIT, settling).await {
        Ok(settled) => settled?,
        Err(_) => Ok(later("the hub is busy; try again later")),
    }
}

/// Puts a result on the disk and notes that it is there; an answer if it is not whole, or nobody waits for it.
async fn keep<E>(
    hub: &Hub,
    door: &Door,
    announced: &Announced,
    body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Option<UploadReply>> {
    let Announced { unit, bytes, .. } = announced;
    if let Some(refusal) = write(hub, door, announced, body).await? {
        let now = door.store.unit(&unit.name).await?;
        if now.is_some_and(|it| it.state == UnitState::Sent) {
            return Ok(Some(refusal));
        }
        door.uploads.remove(&unit.name, unit.account).await?;
        return Ok(Some(OVER));
    }
    let (path, folder) = (door.uploads.path(unit), door.uploads.folder.clone());
    let md5 = announced.md5.clone();
    if !on_disk(move || is_kept(&path, &folder, &md5)).await? {
        door.uploads.remove(&unit.name, unit.account).await?;
        return Ok(Some(later(
            "the bytes are not those that were announced; send them again",
        )));
    }
    let now_ms = hub.clock.now_ms();
    let name = unit.name.clone();
    if !door.store.note_uploaded(name, *bytes, now_ms).await? {
        door.uploads.remove(&unit.name, unit.account).await?;
        return Ok(Some(OVER));
    }
    Ok(None)
}

/// Has done what follows from a whole result, and waits for it for a while: neither the end of that nor a client that hangs up
/// stops it half-way.
async fn settle_soon(hub: &Arc<Hub>, door: &Arc<Door>, unit: &Unit, client: IpAddr) {
    let (hub, door, name) = (Arc::clone(hub), Arc::clone(door), unit.name.clone());
    let settling = tokio::spawn(async move {
        match settle::settle(&hub, &door, &name, Some(client)).await {
            Ok(Step::Settled) => {}
            Ok(Step::Later(_)) => door.wake_settling(),
            Err(error) => {
                tracing::error!(unit = name, "a result is not settled: {error:#}");
                door.wake_settling();
            }
        }
    });
    // Whoever waits no longer is answered that the bytes are here, which they are.
    let _ = tokio::time::timeout(SETTLE_WAIT, settling).await;
}

/// Writes the bytes; an answer if the file is not whole then.
async fn write<E>(
    hub: &Hub,
    door: &Door,
    announced: &Announced,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Option<UploadReply>> {
    let (uploads, unit) = (&door.uploads, &announced.unit);
    let (offset, bytes) = (announced.offset, announced.bytes);
    if offset > bytes || offset > uploads.length(&unit.name).await? {
        return Ok(Some(later("the upload does not begin where the file ends")));
    }
    let path = uploads.path(unit);
    let (mut file, before) = on_disk(move || {
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let mut file = options.open(path)?;
        let before = file.metadata()?.len();
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok((tokio::fs::File::from_std(file), before))
    })
    .await?;
    uploads.free(unit.account, before.saturating_sub(offset));
    let mut at = offset;
    let mut refusal = None;
    while let Some(part) = body.next().await {
        let Ok(part) = part else {
            break;
        };
        let length = part.len() as u64;
        if at + length > bytes {
            refusal = Some(never("these are more bytes than were announced"));
            break;
        }
        if let Err(full) = uploads.take(unit, length, hub.config.unused_bytes_max) {
            refusal = Some(later(full));
            break;
        }
        file.write_all(&part).await?;
        at += length;
    }
    file.flush().await?;
    Ok(refusal.or((at < bytes).then(|| later("the upload was cut"))))
}

/// Whether a file has this MD5; if so, it and its name are safe from a power cut.
fn is_kept(path: &Path, folder: &Path, md5: &str) -> io::Result<bool> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Md5::new();
    io::copy(&mut file, &mut hasher)?;
    if HEXLOWER.encode(&hasher.finalize()) != md5 {
        return Ok(false);
    }
    file.sync_all()?;
    fs::File::open(folder)?.sync_all()?;
    Ok(true)
}

/// Does several steps on the disk on one way there and back.
pub(super) async fn on_disk<T: Send + 'static>(
    steps: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(steps).await?
}
