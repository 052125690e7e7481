//! Transfers against a small server that cuts, lies and stalls; the cache's limits.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use protocol::{
    api::{UPLOAD_AUTHORISATION, UPLOAD_DOMAIN, UPLOAD_OFFSET},
    units::BlobReference,
};

use super::*;
use crate::client::{HubClient, tests::serve};

/// What the server does wrong, once for each entry; then it behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// 503.
    Busy,
    /// Ranges are ignored: the whole comes.
    NoRange,
    /// An upload's offset is refused though it was right.
    Conflict,
    /// The part is taken, but the answer is lost.
    LostAnswer,
}

#[derive(Default)]
struct Inner {
    blobs: HashMap<String, Vec<u8>>,
    parts: HashMap<String, Vec<u8>>,
    faults: Vec<Fault>,
    /// Bytes of bodies that the server was about to send.
    offered: usize,
    requests: usize,
}

type Server = Arc<Mutex<Inner>>;

async fn read_blob(
    State(server): State<Server>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Response {
    let mut inner = server.lock().unwrap();
    inner.requests += 1;
    let fault = inner.faults.pop();
    let Some(blob) = inner.blobs.get(&hash).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if fault == Some(Fault::Busy) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let range = headers
        .get("range")
        .filter(|_| fault != Some(Fault::NoRange));
    let start: usize = range.map_or(0, |it| {
        let text = it.to_str().unwrap().strip_prefix("bytes=").unwrap();
        text.strip_suffix('-').unwrap().parse().unwrap()
    });
    let body = blob[start..].to_vec();
    inner.offered += body.len();
    let mut response = Response::builder().header("content-length", body.len());
    if start > 0 {
        let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
        response = response.status(206).header("content-range", range);
    }
    let body = match fault {
        Some(Fault::Cut(bytes)) => {
            let first = Ok(Bytes::from(body[..bytes].to_vec()));
            let cut = Err(std::io::Error::other("cut"));
            Body::from_stream(futures_util::stream::iter([first, cut]))
        }
        _ => Body::from(body),
    };
    response.body(body).unwrap()
}

async fn upload_offset(State(server): State<Server>, Path(hash): Path<String>) -> Response {
    let inner = server.lock().unwrap();
    if let Some(blob) = inner.blobs.get(&hash) {
        let length = blob.len().to_string();
        return [
            (UPLOAD_OFFSET, length.as_str()),
            ("x-athome-complete", "true"),
        ]
        .into_response();
    }
    match inner.parts.get(&hash) {
        Some(part) => [(UPLOAD_OFFSET, part.len().to_string())].into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The blob's total length is what the test announced as `total:HASH`.
async fn upload_part(
    State(server): State<Server>,
    Path(hash): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut inner = server.lock().unwrap();
    inner.requests += 1;
    let fault = inner.faults.pop();
    assert!(is_authorised(&hash, &headers), "{headers:?}");
    let Some(total) = inner.blobs.get(&format!("total:{hash}")).map(Vec::len) else {
        return StatusCode::FORBIDDEN.into_response();
    };
    let offset: usize = headers[UPLOAD_OFFSET].to_str().unwrap().parse().unwrap();
    let part = inner.parts.entry(hash.clone()).or_default();
    if fault == Some(Fault::Busy) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if offset != part.len() || fault == Some(Fault::Conflict) {
        return (
            StatusCode::CONFLICT,
            [(UPLOAD_OFFSET, part.len().to_string())],
        )
            .into_response();
    }
    part.extend_from_slice(&body);
    let length = part.len();
    if length < total {
        if fault == Some(Fault::LostAnswer) {
            return StatusCode::GATEWAY_TIMEOUT.into_response();
        }
        return [(UPLOAD_OFFSET, length.to_string())].into_response();
    }
    let whole = inner.parts.remove(&hash).unwrap();
    if Hash::of_blob(&whole).to_string() != hash {
        let body = r#"{"code":"wrong_hash","message":"wrong"}"#;
        return (StatusCode::UNPROCESSABLE_ENTITY, body).into_response();
    }
    inner.blobs.insert(hash, whole);
    (StatusCode::CREATED, [(UPLOAD_OFFSET, length.to_string())]).into_response()
}

fn is_authorised(hash: &str, headers: &HeaderMap) -> bool {
    let Some(header) = headers.get(UPLOAD_AUTHORISATION) else {
        return headers.contains_key("x-athome-bytes");
    };
    let (key, signature) = header.to_str().unwrap().split_once(':').unwrap();
    let key: protocol::PublicKey = key.parse().unwrap();
    let signature = data_encoding::HEXLOWER
        .decode(signature.as_bytes())
        .unwrap();
    let signature = protocol::Signature(signature.try_into().unwrap());
    let hash: Hash = hash.parse().unwrap();
    key.verify(UPLOAD_DOMAIN, &hash.0, &signature).is_ok()
}

async fn start(faults: &[Fault]) -> (Server, HubClient) {
    let server: Server = Arc::default();
    server.lock().unwrap().faults = faults.iter().rev().copied().collect();
    let router = Router::new()
        .route("/api/v1/blobs/{hash}", get(read_blob))
        .route(
            "/api/v1/uploads/{hash}",
            get(upload_offset).patch(upload_part),
        )
        .layer(axum::extract::DefaultBodyLimit::max(5 << 20))
        .with_state(Arc::clone(&server));
    let client = serve(router).await;
    (server, client)
}

fn blob(bytes: usize) -> (Vec<u8>, BlobReference) {
    let mut state = 1_u32;
    let bytes: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let reference = BlobReference::of(&bytes);
    (bytes, reference)
}

fn cache(bytes_max: u64) -> (tempfile::TempDir, BlobCache) {
    let place = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(&place.path().join("cache"), bytes_max).unwrap();
    (place, cache)
}

/// Downloads through the given faults; gives the requests made and the bytes that the server was about to send.
async fn downloads_through(faults: &[Fault]) -> (usize, usize) {
    let (server, client) = start(faults).await;
    let (_place, cache) = cache(1 << 20);
    let (bytes, reference) = blob(100_000);
    let offer = |server: &Server| {
        let mut inner = server.lock().unwrap();
        inner
            .blobs
            .insert(reference.hash.to_string(), bytes.clone());
    };
    offer(&server);
    let mut last = 0;
    let result = client.download(&cache, reference, None, |present| last = present);
    result.await.unwrap();
    assert_eq!(last, 100_000);
    assert_eq!(cache.get(&reference.hash).unwrap(), Some(bytes.clone()));
    let inner = server.lock().unwrap();
    (inner.requests, inner.offered)
}

#[tokio::test]
async fn a_download_goes_on_where_it_was_cut() {
    let faults = [Fault::Cut(40_000), Fault::Busy, Fault::Cut(10_000)];
    let (requests, offered) = downloads_through(&faults).await;
    assert_eq!(requests, 4);
    // 100,000, then what is left after at most 40,000 and 50,000: a cut may lose bytes in flight, never add any.
    assert!((210_000..=300_000).contains(&offered), "{offered}");
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    let faults = [Fault::Cut(40_000), Fault::NoRange];
    assert_eq!(downloads_through(&faults).await.0, 2);
}

#[tokio::test]
async fn a_download_is_not_repeated_once_it_is_there() {
    let (server, client) = start(&[]).await;
    let (_place, cache) = cache(1 << 20);
    let (bytes, reference) = blob(1_000);
    let name = reference.hash.to_string();
    server.lock().unwrap().blobs.insert(name, bytes);
    // Two at once, and one later: one request.
    let (first, second) = tokio::join!(
        client.download(&cache, reference, None, |_| {}),
        client.download(&cache, reference, None, |_| {}),
    );
    first.unwrap();
    second.unwrap();
    client
        .download(&cache, reference, None, |_| {})
        .await
        .unwrap();
    assert_eq!(server.lock().unwrap().requests, 1);
}

#[tokio::test]
async fn a_part_that_went_bad_is_fetched_anew() {
    let (server, client) = start(&[]).await;
    let (_place, cache) = cache(1 << 20);
    let (bytes, reference) = blob(10_000);
    std::fs::write(cache.part_path(&reference.hash), [7; 4_000]).unwrap();
    let name = reference.hash.to_string();
    server.lock().unwrap().blobs.insert(name, bytes.clone());
    client
        .download(&cache, reference, None, |_| {})
        .await
        .unwrap();
    assert_eq!(cache.get(&reference.hash).unwrap(), Some(bytes));
    assert_eq!(server.lock().unwrap().requests, 2);
}

#[tokio::test]
async fn other_bytes_than_promised_never_arrive() {
    let (server, client) = start(&[]).await;
    let (_place, cache) = cache(1 << 20);
    let (mut bytes, reference) = blob(10_000);
    bytes[5_000] ^= 1;
    let name = reference.hash.to_string();
    server
        .lock()
        .unwrap()
        .blobs
        .insert(name.clone(), bytes.clone());
    let wrong = client.download(&cache, reference, None, |_| {}).await;
    assert!(matches!(wrong, Err(TransferError::WrongHash { .. })));
    bytes.push(0);
    server.lock().unwrap().blobs.insert(name.clone(), bytes);
    let long = client.download(&cache, reference, None, |_| {}).await;
    assert!(matches!(
        long,
        Err(TransferError::WrongLength { found: 10_001, .. })
    ));
    server
        .lock()
        .unwrap()
        .blobs
        .insert(name.clone(), vec![1; 9]);
    let short = client.download(&cache, reference, None, |_| {}).await;
    assert!(matches!(
        short,
        Err(TransferError::WrongLength { found: 9, .. })
    ));
    server.lock().unwrap().blobs.remove(&name);
    let missing = client.download(&cache, reference, None, |_| {}).await;
    assert!(matches!(&missing, Err(TransferError::Client { .. })));
    assert!(!missing.unwrap_err().is_temporary());
    assert!(!cache.contains(&reference));
    assert_eq!(cache.get(&reference.hash).unwrap(), None);
}

#[tokio::test]
async fn an_endless_body_is_cut_off() {
    let endless = async || {
        let zeros = futures_util::stream::repeat_with(|| {
            std::io::Result::Ok(Bytes::from_static(&[0; 1 << 16]))
        });
        Body::from_stream(zeros)
    };
    let client = serve(Router::new().route("/api/v1/blobs/{hash}", get(endless))).await;
    let (_place, cache) = cache(1 << 20);
    let (_, reference) = blob(1_000);
    let result = client.download(&cache, reference, None, |_| {}).await;
    assert!(matches!(result, Err(TransferError::WrongLength { .. })));
}

/// Uploads through the given faults; gives the requests made.
async fn uploads_through(faults: &[Fault], bytes: usize) -> usize {
    let (server, client) = start(faults).await;
    let (bytes, reference) = blob(bytes);
    let name = reference.hash.to_string();
    {
        let mut inner = server.lock().unwrap();
        inner.blobs.insert(format!("total:{name}"), bytes.clone());
        inner.parts.insert(name.clone(), vec![]);
    }
    let authorisation = UploadAuthorisation::Worker(SecretKey::from_entropy([1; 32]));
    let upload = client.upload(reference.hash, bytes.clone().into(), &authorisation, |_| {});
    upload.await.unwrap();
    assert_eq!(server.lock().unwrap().blobs[&name], bytes);
    // What is there is not sent again, unless it is about as short as the question whether it is.
    let requests = server.lock().unwrap().requests;
    let in_one_piece = usize::from(bytes.len() <= super::upload::PIECE_BYTES_FIRST);
    let upload = client.upload(reference.hash, bytes.into(), &authorisation, |_| {});
    upload.await.unwrap();
    assert_eq!(server.lock().unwrap().requests, requests + in_one_piece);
    requests
}

#[tokio::test]
async fn an_upload_grows_its_pieces() {
    // 256 KiB, 512 KiB, the rest.
    assert_eq!(uploads_through(&[], 1_500_000).await, 3);
    assert_eq!(uploads_through(&[], 10).await, 1);
}

#[tokio::test]
async fn an_upload_goes_on_where_the_hub_says() {
    let faults = [Fault::LostAnswer, Fault::Busy, Fault::Conflict];
    uploads_through(&faults, 1_500_000).await;
}

#[tokio::test]
async fn an_operators_upload_needs_no_announcement() {
    let (server, client) = start(&[]).await;
    let (bytes, reference) = blob(300_000);
    let name = reference.hash.to_string();
    let total = format!("total:{name}");
    server.lock().unwrap().blobs.insert(total, bytes.clone());
    let operator = UploadAuthorisation::Operator { token: None };
    let upload = client.upload(reference.hash, bytes.clone().into(), &operator, |_| {});
    upload.await.unwrap();
    assert_eq!(server.lock().unwrap().blobs[&name], bytes);
}

#[tokio::test]
async fn uploads_that_nobody_wants_or_that_lie_fail_with_words() {
    let (server, client) = start(&[]).await;
    let (bytes, reference) = blob(1_000);
    let authorisation = UploadAuthorisation::Worker(SecretKey::from_entropy([1; 32]));
    let refused = client.upload(reference.hash, bytes.clone().into(), &authorisation, |_| {});
    let refused = refused.await.unwrap_err();
    assert!(matches!(&refused, TransferError::Client { .. }) && !refused.is_temporary());
    let name = reference.hash.to_string();
    {
        let mut inner = server.lock().unwrap();
        inner.blobs.insert(format!("total:{name}"), bytes);
        inner.parts.insert(name, vec![]);
    }
    let lie = client.upload(
        reference.hash,
        vec![0; 1_000].into(),
        &authorisation,
        |_| {},
    );
    let wrong = lie.await.unwrap_err();
    assert!(matches!(wrong, TransferError::WrongHash { .. }), "{wrong}");
}

#[test]
fn the_cache_drops_what_was_used_longest_ago() {
    let (place, cache) = cache(2_500);
    let blobs: Vec<Vec<u8>> = (0..4).map(|number| vec![number; 1_000]).collect();
    let name = |number: usize| Hash::of_blob(&blobs[number]);
    cache.insert(&name(0), &blobs[0]).unwrap();
    cache.insert(&name(1), &blobs[1]).unwrap();
    assert!(cache.get(&name(0)).unwrap().is_some());
    cache.insert(&name(2), &blobs[2]).unwrap();
    assert_eq!(cache.get(&name(1)).unwrap(), None);
    assert_eq!(cache.bytes(), 2_000);
    let too_large = cache.insert(&Hash::of_blob(&[9; 3_000]), &[9; 3_000]);
    assert!(matches!(too_large, Err(CacheError::TooLarge { .. })));
    let other = cache.insert(&name(3), &blobs[2]);
    assert!(matches!(other, Err(CacheError::WrongHash { .. })));

    // Another process with less room: again the oldest goes.
    assert!(cache.get(&name(0)).unwrap().is_some());
    drop(cache);
    let smaller = BlobCache::open(&place.path().join("cache"), 1_500).unwrap();
    assert_eq!(smaller.bytes(), 1_000);
    assert_eq!(smaller.get(&name(0)).unwrap().as_ref(), Some(&blobs[0]));
    assert_eq!(smaller.bytes_max(), 1_500);
}

#[test]
fn a_blob_that_went_bad_on_disk_is_not_there() {
    let (place, cache) = cache(10_000);
    let (bytes, reference) = blob(1_000);
    cache.insert(&reference.hash, &bytes).unwrap();
    let path = place.path().join("cache").join(reference.hash.to_string());
    std::fs::write(&path, vec![0; 1_000]).unwrap();
    assert_eq!(cache.get(&reference.hash).unwrap(), None);
    assert!(!cache.contains(&reference) && !path.exists());
    assert_eq!(cache.bytes(), 0);
}
