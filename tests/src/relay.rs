//! A TCP relay between workers and their hub that a test holds in its hand: it counts, slows, holds back, cuts.
//!
//! It knows one thing about what it passes on: where an HTTP/1.1 request begins (connections carry one request at a time),
//! so that a test can stop the world right before a request reaches the hub, in the middle of it, or before its answer
//! reaches the worker.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use protocol::command::{Command, SignedCommand};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Bytes passed on at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Bytes of an answer after which it is held, if none is to be.
const NEVER: u64 = u64::MAX;
/// A slowed direction passes on so many chunks a second.
const SLOW_CHUNKS_PER_S: u64 = 20;

/// Which requests a trap is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A worker's commitment.
    Commitment,
    /// A piece of an update.
    Upload,
    /// A worker's first command.
    Join,
    /// A worker's last command.
    Leave,
    /// The creation of a run.
    NewRun,
    /// A BOINC client's question to the scheduler.
    BoincScheduler,
    /// A BOINC client's request for a file.
    BoincDownload,
    /// Bytes of a BOINC client's output.
    BoincUpload,
}

/// Where a trap stops the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The hub gets nothing of it.
    BeforeRequest,
    /// The hub gets this many bytes of it.
    Within(usize),
    /// The hub has answered, and nobody gets the answer.
    BeforeAnswer,
    /// This many bytes of the answer arrive.
    WithinAnswer(usize),
}

/// A running relay; it ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    control: Arc<Control>,
    accepting: JoinHandle<()>,
}

/// What all connections of a relay obey.
#[derive(Debug)]
struct Control {
    target: SocketAddr,
    /// Whether bytes pass.
    is_open: watch::Sender<bool>,
    /// Whether requests are refused instead of passed on.
    refuses: AtomicBool,
    /// Grows when all connections are to end.
    cuts: watch::Sender<u64>,
    /// Bytes a second from workers to the hub; 0 for as fast as it goes.
    up_bytes_per_s: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    trap: Mutex<Option<(Wanted, Moment)>>,
    /// Whether a request stands in the trap, and whether it may go on.
    caught: watch::Sender<Caught>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caught {
    Nothing,
    Held,
    Released,
}

impl Relay {
    /// Passes on everything that comes to a free port of loopback.
    ///
    /// # Errors
    /// If there is no free port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Self::serve(listener, target)
    }

    /// Passes on everything that comes to `listener`.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn serve(listener: TcpListener, target: SocketAddr) -> Result<Self> {
        let address = listener.local_addr()?;
        let control = Arc::new(Control {
            target,
            is_open: watch::Sender::new(true),
            refuses: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
            up_bytes_per_s: AtomicU64::new(0),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            trap: Mutex::new(None),
            caught: watch::Sender::new(Caught::Nothing),
        });
        let shared = Arc::clone(&control);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            control,
            accepting,
        })
    }

    /// What workers are told is the hub.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bytes passed on so far: (to the hub, from the hub), without what TCP and IP add.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
        (
            count(&self.control.up_bytes),
            count(&self.control.down_bytes),
        )
    }

    /// A partition: connections stay, nothing passes until [`Self::heal`].
    pub fn part(&self) {
        self.control.is_open.send_replace(false);
    }

    /// From now on the hub has no time: the relay answers every request as a hub does that is asked too much, until
    /// [`Self::admit`]. Connections that were there end.
    pub fn refuse(&self) {
        self.control.refuses.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// The hub has time again.
    pub fn admit(&self) {
        self.control.refuses.store(false, Ordering::Relaxed);
        self.cut();
    }

    /// Ends a partition. What was sent meanwhile arrives.
    pub fn heal(&self) {
        self.control.is_open.send_replace(true);
    }

    /// Ends all connections; what is on its way is lost. New ones are welcome.
    pub fn cut(&self) {
        self.control.cuts.send_modify(|it| *it += 1);
        self.control.caught.send_replace(Caught::Nothing);
    }

    /// Lets so many bytes a second pass to the hub; 0 lifts the limit.
    pub fn slow_up(&self, bytes_per_s: u64) {
        self.control
            .up_bytes_per_s
            .store(bytes_per_s, Ordering::Relaxed);
    }

    /// Stops the next such request at this moment; [`Self::caught`] waits for it.
    pub fn set_trap(&self, wanted: Wanted, moment: Moment) {
        self.control.caught.send_replace(Caught::Nothing);
        *self.control.trap() = Some((wanted, moment));
    }

    /// Waits until a request stands in the trap.
    ///
    /// # Errors
    /// If none came within `wait`.
    pub async fn caught(&self, wait: Duration) -> Result<()> {
        let mut caught = self.control.caught.subscribe();
        let held = caught.wait_for(|it| *it == Caught::Held);
        tokio::time::timeout(wait, held)
            .await
            .with_context(|| format!("no such request came within {wait:?}"))?
            .context("the relay has ended")?;
        Ok(())
    }

    /// Lets the request in the trap go on.
    pub fn release(&self) {
        self.control.caught.send_replace(Caught::Released);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Control {
    fn trap(&self) -> std::sync::MutexGuard<'_, Option<(Wanted, Moment)>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment at which this chunk is to be stopped, if it begins a request that the trap is for.
    fn spring(&self, chunk: &[u8]) -> Option<Moment> {
        let mut trap = self.trap();
        let (wanted, moment) = (*trap)?;
        wanted.begins(chunk).then(|| {
            *trap = None;
            moment
        })
    }

    async fn hold(&self) {
        let mut caught = self.caught.subscribe();
        self.caught.send_replace(Caught::Held);
        // An error would mean that the relay is gone, and the connection goes with it.
        let _ = caught.wait_for(|it| *it == Caught::Released).await;
    }

    async fn open(&self) {
        let _ = self.is_open.subscribe().wait_for(|it| *it).await;
    }

    /// Waits as long as so many bytes take at the limit.
    async fn pace(&self, bytes: usize) {
        let per_s = self.up_bytes_per_s.load(Ordering::Relaxed);
        let micros = (bytes as u64).saturating_mul(1_000_000);
        if let Some(micros) = micros.checked_div(per_s) {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }

    /// A slowed direction passes on small pieces, so that it can be stopped within a request.
    fn chunk_bytes(&self) -> usize {
        match self.up_bytes_per_s.load(Ordering::Relaxed) {
            0 => CHUNK_BYTES,
            per_s => (per_s / SLOW_CHUNKS_PER_S).clamp(1, CHUNK_BYTES as u64) as usize,
        }
    }
}

impl Wanted {
    fn begins(self, chunk: &[u8]) -> bool {
        match self {
            Self::Upload => chunk.starts_with(b"PATCH /api/v1/uploads/"),
            Self::BoincScheduler => chunk.starts_with(b"POST /boinc/scheduler"),
            Self::BoincDownload => chunk.starts_with(b"GET /boinc/files/"),
            // The client sends a request's head alone; and questions how far an upload is go to the same address.
            Self::BoincUpload => {
                let tag = b"<file_upload>";
                chunk.windows(tag.len()).any(|it| it == tag)
            }
            Self::NewRun => chunk.starts_with(b"POST /api/v1/runs HTTP"),
            Self::Commitment => is_command(chunk, |it| matches!(it, Command::Commit(_))),
            Self::Join => is_command(chunk, |it| matches!(it, Command::Join { .. })),
            Self::Leave => is_command(chunk, |it| matches!(it, Command::Leave { .. })),
        }
    }
}

fn is_command(chunk: &[u8], is_wanted: impl Fn(&Command) -> bool) -> bool {
    let Some(end) = chunk.windows(4).position(|it| it == b"\r\n\r\n") else {
        return false;
    };
    chunk.starts_with(b"POST /api/v1/runs/")
        && SignedCommand::from_bytes(&chunk[end + 4..]).is_ok_and(|it| is_wanted(&it.get().command))
}

async fn connection(worker: TcpStream, control: Arc<Control>) {
    let mut cuts = control.cuts.subscribe();
    cuts.mark_unchanged();
    control.open().await;
    if control.refuses.load(Ordering::Relaxed) {
        let _ = refuse(worker).await;
        return;
    }
    // A hub that is down refuses; the worker sees its connection end.
    let Ok(hub) = TcpStream::connect(control.target).await else {
        return;
    };
    // Pieces are passed on as they come: waiting for more would change what is measured.
    if worker.set_nodelay(true).is_err() || hub.set_nodelay(true).is_err() {
        return;
    }
    let (from_worker, to_worker) = worker.into_split();
    let (from_hub, to_hub) = hub.into_split();
    let holds_answer = AtomicU64::new(NEVER);
    let both = async {
        tokio::join!(
            up(from_worker, to_hub, &control, &holds_answer),
            down(from_hub, to_worker, &control, &holds_answer)
        )
    };
    tokio::select! {
        _ = both => {}
        _ = cuts.changed() => {}
    }
}

/// Answers one request with the refusal of a hub that is asked too much.
async fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; CHUNK_BYTES];
    if stream.read(&mut buffer).await? == 0 {
        return Ok(());
    }
    let body = r#"{"code":"too_many","message":"the hub is busy; try again in a second"}"#;
    let head = "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nconnection: close\r\nretry-after: 1";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What else was sent is read: unread bytes would take the answer back.
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn up(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    control: &Control,
    holds_answer: &AtomicU64,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut buffer[..]).await {
        let mut chunk = &buffer[..bytes];
        match control.spring(chunk) {
            None => {}
            Some(Moment::BeforeRequest) => control.hold().await,
            Some(Moment::Within(first)) => {
                let (before, after) = chunk.split_at(first.min(chunk.len()));
                if to.write_all(before).await.is_err() {
                    return;
                }
                let bytes = before.len() as u64;
                control.up_bytes.fetch_add(bytes, Ordering::Relaxed);
                chunk = after;
                control.hold().await;
            }
            Some(Moment::BeforeAnswer) => holds_answer.store(0, Ordering::Relaxed),
            Some(Moment::WithinAnswer(first)) => {
                holds_answer.store(first as u64, Ordering::Relaxed);
            }
        }
        for piece in chunk.chunks(control.chunk_bytes()) {
            control.pace(piece.len()).await;
            control.open().await;
            if to.write_all(piece).await.is_err() {
                return;
            }
            control
                .up_bytes
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }
}

async fn down(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    control: &Control,
    holds_answer: &AtomicU64,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        let mut chunk = &buffer[..bytes];
        let first = holds_answer.load(Ordering::Relaxed);
        if first != NEVER {
            let (before, after) = chunk.split_at(chunk.len().min(first as usize));
            if to.write_all(before).await.is_err() {
                return;
            }
            chunk = after;
            holds_answer.store(first - before.len() as u64, Ordering::Relaxed);
            if !chunk.is_empty() {
                holds_answer.store(NEVER, Ordering::Relaxed);
                control.hold().await;
            }
        }
        control.open().await;
        if to.write_all(chunk).await.is_err() {
            return;
        }
        control
            .down_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each piece with `ok`.
    async fn echo() -> Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(1..) = stream.read(&mut buffer).await {
                        if stream.write_all(b"ok").await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(address)
    }

    async fn ask(stream: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>> {
        stream.write_all(request).await?;
        let mut answer = vec![0; 2];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn passes_on_and_counts() -> Result<()> {
        let relay = Relay::start(echo().await?).await?;
        let mut stream = TcpStream::connect(relay.address).await?;
        assert_eq!(ask(&mut stream, b"hello").await?, b"ok");
        assert_eq!(relay.bytes(), (5, 2));
        Ok(())
    }

    #[tokio::test]
    async fn an_answer_stands_in_the_trap_until_it_is_released_or_cut() -> Result<()> {
        let relay = Relay::start(echo().await?).await?;
        for is_cut in [false, true] {
            relay.set_trap(Wanted::Upload, Moment::BeforeAnswer);
            let mut stream = TcpStream::connect(relay.address).await?;
            assert_eq!(ask(&mut stream, b"GET /").await?, b"ok");
            let asked = ask(&mut stream, b"PATCH /api/v1/uploads/00");
            let caught = async {
                relay.caught(Duration::from_secs(10)).await?;
                if is_cut {
                    relay.cut();
                } else {
                    relay.release();
                }
                anyhow::Ok(())
            };
            let (asked, caught) = tokio::join!(asked, caught);
            caught?;
            assert_eq!(asked.is_err(), is_cut);
        }
        Ok(())
    }

    #[tokio::test]
    async fn nothing_passes_a_partition() -> Result<()> {
        let relay = Relay::start(echo().await?).await?;
        let mut stream = TcpStream::connect(relay.address).await?;
        assert_eq!(ask(&mut stream, b"hello").await?, b"ok");
        relay.part();
        stream.write_all(b"hello").await?;
        let mut answer = [0; 2];
        let wait = Duration::from_millis(100);
        let early = tokio::time::timeout(wait, stream.read_exact(&mut answer)).await;
        assert!(early.is_err());
        relay.heal();
        stream.read_exact(&mut answer).await?;
        assert_eq!(relay.bytes(), (10, 4));
        Ok(())
    }
}
