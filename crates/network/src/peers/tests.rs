//! Real endpoints on loopback: whole blobs, cuts, liars, limits.

use std::{net::Ipv4Addr, path::PathBuf};

use iroh::endpoint::SendStream;
use protocol::units::BlobReference;
use tempfile::TempDir;

use super::{
    tree::{Tree, WINDOW_BYTES},
    wire::Question,
    *,
};

/// Patience of tests that expect an answer.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(20),
    wait: Duration::from_secs(20),
    stall: Duration::from_secs(20),
};

/// An endpoint and its folder.
pub(crate) struct Place {
    pub(crate) peers: Peers,
    pub(crate) cache: BlobCache,
    folder: TempDir,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(folder.path(), 1 << 30).unwrap();
        let mut settings = Settings::new((Ipv4Addr::LOCALHOST, 0).into());
        change(&mut settings);
        let peers = Peers::start(cache.clone(), &settings).await.unwrap();
        Self {
            peers,
            cache,
            folder,
        }
    }

    /// Has the blob and lets others have it.
    pub(crate) fn share(&self, blob: &[u8]) {
        let hash = Hash::of_blob(blob);
        self.cache.insert(&hash, blob).unwrap();
        self.peers.publish(hash);
    }

    fn part(&self, reference: BlobReference) -> PathBuf {
        self.folder.path().join(format!("{}.test", reference.hash))
    }

    async fn fetch(
        &self,
        reference: BlobReference,
        from: &PeerAddress,
    ) -> Result<Vec<u8>, FetchError> {
        self.fetch_within(PATIENCE, reference, from).await
    }

    async fn fetch_within(
        &self,
        patience: Patience,
        reference: BlobReference,
        from: &PeerAddress,
    ) -> Result<Vec<u8>, FetchError> {
        let (part, mut told) = (self.part(reference), 0);
        self.peers
            .fetch(&part, reference, from, patience, &mut |bytes| told = bytes)
            .await?;
        assert_eq!(told, reference.bytes);
        Ok(std::fs::read(part).unwrap())
    }
}

pub(crate) fn blob(bytes: usize) -> (Vec<u8>, BlobReference) {
    let content: Vec<u8> = (0..bytes).map(|it| (it * 31 + it / 255) as u8).collect();
    let reference = BlobReference {
        hash: Hash::of_blob(&content),
        bytes: bytes as u64,
    };
    (content, reference)
}

/// A peer that answers each question in its own way.
async fn strange_peer<F: Future<Output = ()> + Send>(
    answer: impl Fn(Question, SendStream) -> F + Send + Sync + 'static,
) -> PeerAddress {
    let endpoint = Endpoint::builder(presets::Minimal)
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .alpns(vec![ALPN.to_vec()])
        .bind()
        .await
        .unwrap();
    let address = endpoint.addr();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await.unwrap();
            let (send, mut receive) = connection.accept_bi().await.unwrap();
            let question = receive.read_to_end(64).await.unwrap();
            answer(Question::from_bytes(&question).unwrap(), send).await;
            connection.closed().await;
        }
    });
    PeerAddress {
        endpoint: PublicKey(*address.id.as_bytes()),
        addresses: address.ip_addrs().copied().collect(),
        relay: None,
    }
}

/// A peer whose answers begin with these bytes and do not end.
pub(crate) async fn says(bytes: Vec<u8>) -> PeerAddress {
    strange_peer(move |_, mut send| {
        let bytes = bytes.clone();
        async move {
            send.write_all(&bytes).await.unwrap();
            // Dropping it would reset what has not been read yet.
            send.stopped().await.ok();
        }
    })
    .await
}

#[tokio::test]
async fn a_blob_comes_whole() {
    let (giver, taker) = (Place::new().await, Place::new().await);
    for bytes in [1, 16_384, 1_000_003] {
        let (content, reference) = blob(bytes);
        giver.share(&content);
        let before = giver.peers.bytes_sent();
        let fetched = taker
            .fetch(reference, &giver.peers.address())
            .await
            .unwrap();
        assert!(fetched == content);
        assert_eq!(giver.peers.bytes_sent() - before, bytes as u64);
    }
}

#[tokio::test]
async fn what_came_before_a_cut_is_not_fetched_again() {
    let (content, reference) = blob(1_000_003);
    let held = content.clone();
    let cutter = strange_peer(move |_, mut send| {
        let content = held.clone();
        async move {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &content).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            let tree = Tree::of_file(&file, reference).unwrap().unwrap();
            send.write_all(&[0]).await.unwrap();
            for offset in [0, WINDOW_BYTES] {
                let window = tree.encode(&file, offset).unwrap();
                send.write_all(&(window.len() as u32).to_le_bytes())
                    .await
                    .unwrap();
                send.write_all(&window).await.unwrap();
            }
            // And some bytes of a third.
            send.write_all(&[0; 100]).await.unwrap();
            send.finish().unwrap();
        }
    })
    .await;
    let (giver, taker) = (Place::new().await, Place::new().await);
    let cut = taker.fetch(reference, &cutter).await.unwrap_err();
    assert!(
        matches!(cut, FetchError::Cut | FetchError::WrongBytes),
        "{cut}"
    );
    let part = taker.part(reference);
    assert_eq!(std::fs::metadata(&part).unwrap().len(), 2 * WINDOW_BYTES);
    // Half a group more, as a hub's cut may leave it: it is taken from its last whole group on.
    std::fs::write(&part, &content[..2 * WINDOW_BYTES as usize + 1_000]).unwrap();
    giver.share(&content);
    assert!(
        taker
            .fetch(reference, &giver.peers.address())
            .await
            .unwrap()
            == content
    );
    assert_eq!(giver.peers.bytes_sent(), reference.bytes - 2 * WINDOW_BYTES);
}

#[tokio::test]
async fn a_lying_peers_bytes_are_not_kept() {
    let (content, reference) = blob(300_000);
    let mut changed = content.clone();
    changed[5] ^= 1;
    let taker = Place::new().await;
    let liar = strange_peer(move |_, mut send| {
        let changed = changed.clone();
        async move {
            // The right shape, of other bytes.
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &changed).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            let other = BlobReference {
                hash: Hash::of_blob(&changed),
                ..reference
            };
            let window = Tree::of_file(&file, other)
                .unwrap()
                .unwrap()
                .encode(&file, 0)
                .unwrap();
            send.write_all(&[0]).await.unwrap();
            send.write_all(&(window.len() as u32).to_le_bytes())
                .await
                .unwrap();
            send.write_all(&window).await.unwrap();
            send.stopped().await.ok();
        }
    })
    .await;
    for peer in [
        liar,
        says(vec![9]).await,
        says([&[0, 16, 0, 0, 0][..], &[7; 16]].concat()).await,
    ] {
        let error = taker.fetch(reference, &peer).await.unwrap_err();
        assert!(matches!(error, FetchError::WrongBytes), "{error}");
        assert!(error.is_peers_fault());
        let kept = std::fs::metadata(taker.part(reference)).map_or(0, |it| it.len());
        assert_eq!(kept, 0);
    }
}

#[tokio::test]
async fn no_more_is_read_than_a_window_may_have() {
    let (_, reference) = blob(300_000);
    let taker = Place::new().await;
    // A window of 4 GiB is announced, and bytes follow as long as they are taken.
    let peer = strange_peer(|_, mut send| async move {
        send.write_all(&[0, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        while send.write_all(&[0; 1 << 16]).await.is_ok() {}
    })
    .await;
    let error = taker.fetch(reference, &peer).await.unwrap_err();
    assert!(matches!(error, FetchError::WrongBytes), "{error}");
}

#[tokio::test]
async fn only_what_is_public_and_here_is_given() {
    let (giver, taker) = (Place::new().await, Place::new().await);
    let address = giver.peers.address();
    let (content, reference) = blob(50_000);
    // Nobody has it.
    assert!(matches!(
        taker.fetch(reference, &address).await,
        Err(FetchError::NotHere)
    ));
    // It is here, and nobody's business.
    giver.cache.insert(&reference.hash, &content).unwrap();
    assert!(matches!(
        taker.fetch(reference, &address).await,
        Err(FetchError::NotHere)
    ));
    giver.peers.publish(reference.hash);
    assert!(taker.fetch(reference, &address).await.unwrap() == content);
    // Not any more.
    giver.peers.withdraw(&reference.hash);
    assert!(matches!(
        taker.fetch(reference, &address).await,
        Err(FetchError::NotHere)
    ));
    // A size that is not the blob's is no way around.
    giver.peers.publish(reference.hash);
    let other = BlobReference {
        bytes: 50_001,
        ..reference
    };
    let patience = Patience {
        wait: Duration::ZERO,
        ..PATIENCE
    };
    let fetched = taker.fetch_within(patience, other, &address);
    assert!(matches!(fetched.await, Err(FetchError::NotHere)));
}

#[tokio::test]
async fn a_blob_on_its_way_is_waited_for() {
    let (giver, taker) = (Place::new().await, Place::new().await);
    let (content, reference) = blob(50_000);
    let address = giver.peers.address();
    giver.peers.publish(reference.hash);
    let (fetched, ()) = tokio::join!(taker.fetch(reference, &address), async {
        // The other side waits once its question has arrived.
        while giver.peers.inner.cache.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        giver.cache.insert(&reference.hash, &content).unwrap();
    });
    assert!(fetched.unwrap() == content);
    // One that does not come after all.
    let (_, other) = blob(60_000);
    giver.peers.publish(other.hash);
    let (fetched, ()) = tokio::join!(taker.fetch(other, &address), async {
        while giver.peers.inner.cache.listeners() == 0 {
            tokio::task::yield_now().await;
        }
        giver.peers.withdraw(&other.hash);
    });
    assert!(matches!(fetched, Err(FetchError::NotHere)));
}

#[tokio::test]
async fn nobody_is_where_nobody_is() {
    let (giver, taker) = (Place::new().await, Place::new().await);
    let (content, reference) = blob(50_000);
    giver.share(&content);
    let patience = Patience {
        connect: Duration::from_millis(500),
        ..PATIENCE
    };
    let fetch = async |from: PeerAddress| taker.fetch_within(patience, reference, &from).await;
    // Somebody else's key at the giver's address.
    let impostor = PeerAddress {
        endpoint: taker_key().await,
        ..giver.peers.address()
    };
    assert!(matches!(
        fetch(impostor).await,
        Err(FetchError::Unreachable)
    ));
    // No address, no key, oneself.
    let nowhere = PeerAddress {
        addresses: vec![],
        ..giver.peers.address()
    };
    assert!(matches!(fetch(nowhere).await, Err(FetchError::Unreachable)));
    assert!(matches!(
        fetch(taker.peers.address()).await,
        Err(FetchError::Unreachable)
    ));
    // Gone.
    let address = giver.peers.address();
    giver.peers.shutdown().await;
    assert!(matches!(fetch(address).await, Err(FetchError::Unreachable)));
}

async fn taker_key() -> PublicKey {
    Place::new().await.peers.address().endpoint
}

#[tokio::test]
async fn places_are_limited() {
    let (content, reference) = blob(50_000);
    let taker = Place::new().await;
    let crowded = Place::with(|it| it.connections_max = 0).await;
    crowded.share(&content);
    let fetched = taker.fetch(reference, &crowded.peers.address()).await;
    assert!(matches!(fetched, Err(FetchError::Unreachable)));
    let busy = Place::with(|it| it.transfers_max = 0).await;
    busy.share(&content);
    let patience = Patience {
        wait: Duration::from_millis(10),
        ..PATIENCE
    };
    let address = busy.peers.address();
    let fetched = taker.fetch_within(patience, reference, &address);
    assert!(matches!(fetched.await, Err(FetchError::Busy)));
}

#[tokio::test]
async fn the_owners_rate_is_kept() {
    let (content, reference) = blob(700_000);
    let slow = Place::with(|it| it.upload_bytes_per_s_max = Some(2_000_000)).await;
    slow.share(&content);
    let taker = Place::new().await;
    let begin = std::time::Instant::now();
    assert!(taker.fetch(reference, &slow.peers.address()).await.unwrap() == content);
    // Two windows of the three must have been paid for before the last one goes.
    let least = 2.0 * WINDOW_BYTES as f64 / 2_000_000.0;
    assert!(begin.elapsed().as_secs_f64() >= least);
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(folder.path(), 1 << 20).unwrap();
    let mut settings = Settings::new((Ipv4Addr::LOCALHOST, 0).into());
    settings.relays = vec!["not a relay".to_owned()];
    let refused = Peers::start(cache.clone(), &settings).await.unwrap_err();
    assert!(matches!(refused, PeersError::Relay { .. }), "{refused}");
    // 192.0.2.0/24 is nobody's (RFC 5737).
    let elsewhere = Settings::new(([192, 0, 2, 1], 0).into());
    let refused = Peers::start(cache, &elsewhere).await.unwrap_err();
    assert!(matches!(refused, PeersError::Listen { .. }), "{refused}");
}
