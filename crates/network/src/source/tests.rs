//! A source between real peers and a small hub that counts what it gives.

use std::collections::HashMap;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use protocol::api::Peer;

use super::*;
use crate::{
    client::tests::serve,
    peers::{
        Settings,
        tests::{Place, blob, says},
    },
};

/// What the hub has, names and was asked.
#[derive(Default)]
struct Hub {
    blobs: HashMap<String, Vec<u8>>,
    /// The peers of the next answers, the last first.
    named: Vec<Vec<PeerAddress>>,
    questions: Vec<PeersQuestion>,
    /// Where each download began.
    downloads: Vec<usize>,
}

type Shared = Arc<Mutex<Hub>>;

async fn peers(State(hub): State<Shared>, body: Bytes) -> Response {
    let mut hub = hub.lock().unwrap();
    let Ok(signed) = SignedPeersQuestion::from_bytes(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    hub.questions.push(signed.question);
    match hub.named.pop() {
        Some(named) => Json(protocol::api::Peers {
            peers: named.iter().map(Peer::from).collect(),
        })
        .into_response(),
        // A hub that knows nothing of peers.
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn read(State(hub): State<Shared>, Path(hash): Path<String>, headers: HeaderMap) -> Response {
    let mut hub = hub.lock().unwrap();
    let start: usize = headers.get("range").map_or(0, |it| {
        let text = it.to_str().unwrap().strip_prefix("bytes=").unwrap();
        text.strip_suffix('-').unwrap().parse().unwrap()
    });
    hub.downloads.push(start);
    let Some(blob) = hub.blobs.get(&hash).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
    let status = if start == 0 { 200 } else { 206 };
    let headers = [("content-range", range)];
    (
        StatusCode::from_u16(status).unwrap(),
        headers,
        blob[start..].to_vec(),
    )
        .into_response()
}

/// A hub with one blob, and a worker's source.
struct Scene {
    hub: Shared,
    source: Source,
    own: PeerAddress,
    content: Vec<u8>,
    reference: BlobReference,
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let (content, reference) = blob(700_000);
        let hub = Shared::default();
        hub.lock()
            .unwrap()
            .blobs
            .insert(reference.hash.to_string(), content.clone());
        let router = Router::new()
            .route("/api/v1/runs/{run}/peers", post(peers))
            .route("/api/v1/blobs/{hash}", get(read))
            .with_state(Arc::clone(&hub));
        let client = serve(router).await;
        let folder = tempfile::tempdir().unwrap();
        let cache = BlobCache::open(folder.path(), 1 << 30).unwrap();
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let peers = Peers::start(cache.clone(), &Settings::new(loopback))
            .await
            .unwrap();
        let own = peers.address();
        let patience = Patience {
            connect: Duration::from_secs(20),
            wait: Duration::from_secs(20),
            stall: Duration::from_secs(20),
        };
        let key = SecretKey::from_entropy([7; 32]);
        let source = Source::new(
            client,
            cache,
            key,
            RunId::default(),
            Some((peers, patience)),
        );
        Self {
            hub,
            source,
            own,
            content,
            reference,
            _folder: folder,
        }
    }

    /// Downloads when the hub names these peers, question after question.
    async fn download(&self, mut named: Vec<Vec<PeerAddress>>) {
        named.reverse();
        self.hub.lock().unwrap().named = named;
        self.source.download(self.reference, |_| {}).await.unwrap();
        let got = self.source.cache().get(&self.reference.hash).unwrap();
        assert!(got.as_ref() == Some(&self.content));
    }

    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap()
    }
}

#[tokio::test]
async fn peers_spare_the_hub() {
    let (scene, giver) = (Scene::new().await, Place::new().await);
    giver.share(&scene.content);
    scene.download(vec![vec![giver.peers.address()]]).await;
    assert_eq!(scene.hub().downloads, Vec::<usize>::new());
    let question = scene.hub().questions[0].clone();
    assert_eq!(question.address, Some(scene.own.clone()));
    assert_eq!(question.blob, scene.reference.hash);
    let traffic = scene.source.traffic();
    assert_eq!(
        (traffic.from_peers, traffic.from_hub),
        (scene.reference.bytes, 0)
    );
    // And now it is one itself.
    let third = Scene::new().await;
    third.download(vec![vec![scene.own.clone()]]).await;
    assert_eq!(third.hub().downloads, Vec::<usize>::new());
    assert_eq!(scene.source.traffic().to_peers, scene.reference.bytes);
}

#[tokio::test]
async fn whoever_is_first_asks_the_hub() {
    let scene = Scene::new().await;
    scene.download(vec![vec![]]).await;
    assert_eq!(scene.hub().downloads, [0]);
    assert_eq!(scene.hub().questions.len(), 1);
    assert_eq!(scene.source.traffic().from_hub, scene.reference.bytes);
    // What is there is not asked for again.
    scene.download(vec![]).await;
    let hub = scene.hub();
    assert_eq!((hub.downloads.len(), hub.questions.len()), (1, 1));
}

#[tokio::test]
async fn a_hub_that_knows_no_peers_gives_the_blob_itself() {
    let scene = Scene::new().await;
    scene.download(vec![]).await;
    assert_eq!(scene.hub().downloads, [0]);
}

#[tokio::test]
async fn liars_cost_a_try_and_are_reported() {
    let (scene, empty) = (Scene::new().await, Place::new().await);
    let liar = says(vec![9]).await;
    let gone = {
        let place = Place::new().await;
        let address = place.peers.address();
        place.peers.shutdown().await;
        // Nobody there can answer at once: an address without a listener is found out when the connection times out.
        PeerAddress {
            addresses: vec![],
            ..address
        }
    };
    let named = vec![empty.peers.address(), liar.clone(), gone.clone()];
    // The second answer still names the liar; it is not asked again.
    scene.download(vec![named, vec![liar.clone()]]).await;
    assert_eq!(scene.hub().downloads, [0]);
    let questions = scene.hub().questions.clone();
    assert_eq!(questions.len(), 2);
    // Not having a blob is no fault.
    assert_eq!(questions[1].failed, [liar.endpoint, gone.endpoint]);
    assert_eq!(scene.source.traffic().from_peers, 0);
}

#[tokio::test]
async fn the_hub_completes_what_a_peer_began() {
    let scene = Scene::new().await;
    // The part file holds what a cut left.
    let part = scene.source.cache().part_path(&scene.reference.hash);
    std::fs::write(part, &scene.content[..300_000]).unwrap();
    scene
        .download(vec![vec![says(vec![1]).await], vec![]])
        .await;
    assert_eq!(scene.hub().downloads, [300_000]);
    assert_eq!(
        scene.source.traffic().from_hub,
        scene.reference.bytes - 300_000
    );
}

#[tokio::test]
async fn a_bad_beginning_is_not_kept() {
    let (scene, giver) = (Scene::new().await, Place::new().await);
    giver.share(&scene.content);
    let part = scene.source.cache().part_path(&scene.reference.hash);
    std::fs::write(part, vec![1; 300_000]).unwrap();
    scene
        .download(vec![
            vec![giver.peers.address()],
            vec![giver.peers.address()],
        ])
        .await;
    // 300,000 wrong bytes were there; the rest came from the peer, and then all of it.
    assert_eq!(scene.hub().downloads, Vec::<usize>::new());
}

#[tokio::test]
async fn a_blob_that_did_not_come_is_not_offered() {
    let (scene, taker) = (Scene::new().await, Scene::new().await);
    let (_, other) = blob(50_000);
    scene.hub().named = vec![vec![]];
    let failed = scene.source.download(other, |_| {}).await;
    assert!(failed.is_err());
    // Nobody is kept waiting for it.
    taker.hub().named = vec![vec![scene.own.clone()]];
    assert!(taker.source.download(other, |_| {}).await.is_err());
}
