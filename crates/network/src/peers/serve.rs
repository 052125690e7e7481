//! The serving side: accepts connections up to a limit, answers questions for public blobs, waits a little for those that
//! are on their way.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use iroh::endpoint::{Incoming, RecvStream, SendStream};
use protocol::{Hash, units::BlobReference};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Inner, Settings,
    tree::{Tree, WINDOW_BYTES},
    wire::{Answer, QUESTION_BYTES_MAX, Question},
};

/// Time for a handshake, and for a question once its stream is open.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a connection may be open without a question or an answer in progress.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Longest time that whoever asks is kept waiting for a blob.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A window that is not taken in so long is not sent; the peer is too slow, or gone.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(30);
/// Hashes above blobs that are kept for the next one who asks: 16 MiB, those of 4 GiB of blobs.
const TREES_BYTES_MAX: usize = 16 << 20;

/// What all connections share.
struct Serving {
    inner: Arc<Inner>,
    transfers: Semaphore,
    /// The newest last.
    trees: Mutex<VecDeque<(Hash, Arc<Tree>)>>,
}

/// Serves until the endpoint is closed.
pub(super) async fn serve(inner: Arc<Inner>, settings: Settings) {
    let connections = Arc::new(Semaphore::new(settings.connections_max));
    let serving = Arc::new(Serving {
        inner: Arc::clone(&inner),
        transfers: Semaphore::new(settings.transfers_max),
        trees: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    while let Some(incoming) = inner.endpoint.accept().await {
        while tasks.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&connections).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let serving = Arc::clone(&serving);
        tasks.spawn(async move {
            serving.connection(incoming).await;
            drop(place);
        });
    }
    tasks.shutdown().await;
}

impl Serving {
    async fn connection(self: Arc<Self>, incoming: Incoming) {
        let Ok(Ok(connection)) = timeout(QUESTION_TIMEOUT, incoming).await else {
            return;
        };
        let mut answers = JoinSet::new();
        loop {
            tokio::select! {
                stream = connection.accept_bi() => {
                    let Ok((send, receive)) = stream else { break };
                    let serving = Arc::clone(&self);
                    answers.spawn(async move { serving.stream(send, receive).await });
                }
                Some(_) = answers.join_next() => {}
                () = tokio::time::sleep(IDLE_MAX), if answers.is_empty() => break,
            }
        }
        // Dropping the answers ends them: nobody is there any more.
        connection.close(0_u32.into(), b"");
    }

    async fn stream(&self, mut send: SendStream, mut receive: RecvStream) {
        let read = timeout(QUESTION_TIMEOUT, receive.read_to_end(QUESTION_BYTES_MAX)).await;
        let question = read.ok().and_then(Result::ok);
        let Some(question) = question.and_then(|it| Question::from_bytes(&it)) else {
            // A reset says as much.
            return;
        };
        if let Err(error) = self.answer(question, &mut send).await {
            tracing::debug!(blob = %question.hash.short(), "a peer was not served: {error}");
            let _ = send.reset(0_u32.into());
        }
    }

    async fn answer(&self, question: Question, send: &mut SendStream) -> io::Result<()> {
        let reference = BlobReference {
            hash: question.hash,
            bytes: question.bytes,
        };
        let until = Instant::now() + Duration::from_millis(question.wait_ms).min(WAIT_MAX);
        let answer = if !self.arrives(reference, until).await {
            Answer::NotHere
        } else if let Ok(Ok(_place)) = timeout_at(until, self.transfers.acquire()).await {
            match self.open(reference).await? {
                Some((file, tree)) => return self.send(question, file, tree, send).await,
                None => Answer::NotHere,
            }
        } else {
            Answer::Busy
        };
        send.write_all(&[answer.to_byte()]).await?;
        send.finish().map_err(io::Error::other)
    }

    /// Whether the blob is public and here, or comes in time.
    async fn arrives(&self, reference: BlobReference, until: Instant) -> bool {
        let mut arrivals = self.inner.cache.arrivals();
        loop {
            let given_up = self.inner.given_up.notified();
            tokio::pin!(given_up);
            given_up.as_mut().enable();
            arrivals.mark_unchanged();
            if !self.inner.is_public(&reference.hash) {
                return false;
            }
            if self.inner.cache.contains(&reference) {
                return true;
            }
            tokio::select! {
                _ = arrivals.changed() => {}
                () = given_up => {}
                () = tokio::time::sleep_until(until) => return false,
            }
        }
    }

    /// The blob's file and the hashes above it; `None` if it has gone, or gone bad.
    async fn open(&self, reference: BlobReference) -> io::Result<Option<(Arc<File>, Arc<Tree>)>> {
        let kept = self.kept_tree(&reference.hash);
        let cache = self.inner.cache.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let Some(file) = cache.place_of(&reference).map(File::open) else {
                return Ok(None);
            };
            let file = file?;
            let tree = match kept {
                Some(tree) => Some(tree),
                None => Tree::of_file(&file, reference)?.map(Arc::new),
            };
            if tree.is_none() {
                // Reading it throws it away.
                let _ = cache.get(&reference.hash);
            }
            io::Result::Ok(tree.map(|tree| (Arc::new(file), tree)))
        });
        let opened = opened.await.map_err(io::Error::other)??;
        if let Some((_, tree)) = &opened {
            self.keep_tree(reference.hash, tree);
        }
        Ok(opened)
    }

    async fn send(
        &self,
        question: Question,
        file: Arc<File>,
        tree: Arc<Tree>,
        send: &mut SendStream,
    ) -> io::Result<()> {
        send.write_all(&[Answer::Here.to_byte()]).await?;
        let mut offset = question.offset;
        while offset < question.bytes {
            let (file, tree) = (Arc::clone(&file), Arc::clone(&tree));
            let encoded = tokio::task::spawn_blocking(move || tree.encode(&file, offset));
            let encoded = encoded.await.map_err(io::Error::other)??;
            self.inner.rate.take(encoded.len()).await;
            let length = u32::try_from(encoded.len()).map_err(io::Error::other)?;
            timeout(WINDOW_TIMEOUT, async {
                send.write_all(&length.to_le_bytes()).await?;
                send.write_all(&encoded).await
            })
            .await??;
            let next = offset.saturating_add(WINDOW_BYTES).min(question.bytes);
            self.inner.sent.fetch_add(next - offset, Ordering::Relaxed);
            offset = next;
        }
        send.finish().map_err(io::Error::other)?;
        // The place is given to the next one when the last byte has arrived.
        let _ = timeout(WINDOW_TIMEOUT, send.stopped()).await;
        Ok(())
    }

    fn kept_tree(&self, hash: &Hash) -> Option<Arc<Tree>> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        let at = trees.iter().position(|(it, _)| it == hash)?;
        let found = trees.remove(at)?;
        let tree = Arc::clone(&found.1);
        trees.push_back(found);
        Some(tree)
    }

    fn keep_tree(&self, hash: Hash, tree: &Arc<Tree>) {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        if trees.iter().all(|(it, _)| *it != hash) {
            trees.push_back((hash, Arc::clone(tree)));
        }
        let mut bytes: usize = trees.iter().map(|(_, it)| it.memory_bytes()).sum();
        while bytes > TREES_BYTES_MAX
            && let Some((_, oldest)) = trees.pop_front()
        {
            bytes -= oldest.memory_bytes();
        }
    }
}
