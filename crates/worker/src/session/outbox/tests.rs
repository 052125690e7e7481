//! What is kept, for how long, and what is missing in a log.

use std::collections::BTreeMap;

use futures_util::{FutureExt, future::BoxFuture};
use network::{
    client::{Transport, TransportError},
    disk::RealDisk,
    retry::RetryPolicy,
};
use protocol::{
    api::UPLOAD_OFFSET,
    units::{BlobReference, RunId, WorkerId},
    update::UpdateHeader,
};

use super::*;
use crate::testing::{Hosts, key, work};

const WINDOW: Duration = Duration::from_secs(10);

fn hash(kind: u8, round: u64) -> Hash {
    Hash::of_blob(&[kind, round as u8])
}

fn sealed(round: u64, bytes: usize) -> Sealed {
    let file = Bytes::from(vec![round as u8; bytes]);
    Sealed {
        header: UpdateHeader {
            run: RunId(Hash([1; 32])),
            worker: WorkerId(key(1).public()),
            round,
            slot: 0,
            base_round: round - 1,
            base: hash(1, round - 1),
            steps: 3,
            head_start_steps: 0,
            tokens: 10,
            loss_micronats: 5,
            carried_before: hash(2, round - 1),
            carried_after: hash(2, round),
            carried_if_refused: hash(3, round),
            steps_root: hash(4, round),
            payload: hash(5, round),
            inner_state: None,
        },
        reference: BlobReference::of(&file),
        file,
        inner_state: None,
    }
}

fn assignment(round: u64) -> WorkAssignment {
    WorkAssignment {
        round,
        slot: 0,
        seed: String::new(),
        slots: 1,
        tokens_before: 0,
        base_round: round - 1,
        base_hash: hash(1, round - 1).to_string(),
        deadline_ms: 0,
        committed: false,
        publish_inner_state: false,
    }
}

struct Stage {
    place: tempfile::TempDir,
    hosts: Hosts,
    outbox: Outbox,
}

impl Stage {
    fn new() -> Self {
        let (place, hosts) = (tempfile::tempdir().unwrap(), Hosts::default());
        let outbox = open(&place, &hosts);
        Self {
            place,
            hosts,
            outbox,
        }
    }

    fn rounds(&self) -> Vec<u64> {
        self.outbox.kept.iter().map(Kept::round).collect()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.place.path().join("outbox"))
            .unwrap()
            .count()
    }
}

fn open(place: &tempfile::TempDir, hosts: &Hosts) -> Outbox {
    let folder = place.path().join("outbox");
    let client = hosts.client("http://a");
    Outbox::open(Arc::new(RealDisk), folder, client, key(1), WINDOW).unwrap()
}

#[tokio::test]
async fn updates_stay_until_no_log_can_ask_for_them() {
    let mut stage = Stage::new();
    for round in [4, 5, 6] {
        stage.outbox.keep(&sealed(round, 100)).unwrap();
    }
    let states = stage.outbox.states();
    assert_eq!(states[..3], [hash(2, 6), hash(2, 5), hash(3, 6)]);
    assert_eq!(states.len(), 9);
    // A restart knows them, and what it does not know goes.
    let folder = stage.place.path().join("outbox");
    let commitment = |round| folder.join(Kept::new(sealed(round, 100).commitment()).name());
    std::fs::write(folder.join(hash(9, 9).to_string()), "an orphan").unwrap();
    std::fs::write(commitment(5), "damaged").unwrap();
    stage.outbox = open(&stage.place, &stage.hosts);
    assert_eq!((stage.rounds(), stage.files()), (vec![4, 6], 4));
    stage.outbox.come_to(4 + ROUNDS_KEPT, 6);
    assert_eq!(stage.rounds(), [4, 6]);
    stage.outbox.come_to(5 + ROUNDS_KEPT, 6);
    assert_eq!((stage.rounds(), stage.files()), (vec![6], 2));
    // Done again, with another result.
    stage.outbox.keep(&sealed(6, 101)).unwrap();
    assert_eq!((stage.rounds(), stage.files()), (vec![6], 2));
    stage.outbox.forget(sealed(6, 101).reference.hash);
    assert_eq!((stage.rounds(), stage.files()), (vec![], 0));
}

#[tokio::test]
async fn the_newest_stays_however_large() {
    let mut stage = Stage::new();
    for (round, bytes) in [(4, 10), (5, BYTES_KEPT_MAX + 1), (6, 10)] {
        let mut sealed = sealed(round, 10);
        // Its commitment says how long it is.
        sealed.reference.bytes = bytes;
        stage.outbox.keep(&sealed).unwrap();
        assert_eq!(stage.rounds().last(), Some(&round));
    }
    assert_eq!(stage.rounds(), [6]);
}

#[tokio::test]
async fn a_log_lacks_what_its_round_still_takes() {
    let mut stage = Stage::new();
    for round in [4, 5] {
        stage.outbox.keep(&sealed(round, 100)).unwrap();
    }
    let later = Instant::now() + Duration::from_secs(1);
    let check = |outbox: &Outbox, change: &dyn Fn(&mut Work), expected: Option<u64>| {
        let mut work = work();
        change(&mut work);
        let missing = outbox.missing(&work, later).map(|it| it.header.round);
        assert_eq!(missing, expected);
        assert_eq!(
            outbox.missing(&work, Instant::now() - Duration::from_secs(1)),
            None
        );
    };
    let open = |change: fn(&mut WorkAssignment)| {
        move |work: &mut Work| {
            let mut open = assignment(5);
            change(&mut open);
            work.assignment = Some(open);
        }
    };
    check(&stage.outbox, &|_| {}, None);
    check(&stage.outbox, &open(|_| {}), Some(5));
    check(&stage.outbox, &open(|it| it.committed = true), None);
    check(&stage.outbox, &open(|it| it.slot = 1), None);
    check(
        &stage.outbox,
        &open(|it| it.base_hash = String::new()),
        None,
    );
    check(&stage.outbox, &|it| it.late_rounds = vec![5, 4], Some(4));
    assert!(stage.outbox.holds(&assignment(5)));
    assert!(!stage.outbox.holds(&assignment(6)));
    // An answer to a question of before the hub was told says nothing.
    let mut late = work();
    late.late_rounds = vec![4];
    let asked = Instant::now();
    stage.outbox.touch(sealed(4, 100).reference.hash);
    assert_eq!(stage.outbox.missing(&late, asked), None);
}

#[tokio::test(start_paused = true)]
async fn another_hub_is_asked_for_what_is_not_merged() {
    let mut stage = Stage::new();
    for round in [4, 5, 6] {
        stage.outbox.keep(&sealed(round, 100)).unwrap();
    }
    // Nobody answers yet; it is found that something was lost, more than once.
    for _ in 0..3 {
        stage.outbox.send_again(4);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    stage.hosts.set("a", crate::testing::Host::hub(&[]));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let asked = |round| {
        let path = format!("/uploads/{}", sealed(round, 100).reference.hash);
        !stage.hosts.asked("a", &http::Method::GET, &path).is_empty()
    };
    assert_eq!([4, 5, 6].map(asked), [false, true, true]);
    assert!(stage.hosts.asked("a", &http::Method::PATCH, "").is_empty());
    // Nothing more is done, and a further loss is looked after as well.
    let before = stage.hosts.lock().asked.len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.hosts.lock().asked.len(), before);
    stage.outbox.send_again(5);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.hosts.lock().asked.len(), before + 1);
}

/// A hub behind a line of so many bytes a second, which uploads share.
#[derive(Clone, Debug)]
struct SlowHub {
    bytes_per_s: u64,
    bytes: usize,
    line: Arc<tokio::sync::Mutex<()>>,
    /// Bytes by path, and when the last came.
    parts: Arc<Mutex<BTreeMap<String, (usize, Instant)>>>,
}

impl SlowHub {
    fn new(bytes_per_s: u64, bytes: usize) -> Self {
        Self {
            bytes_per_s,
            bytes,
            line: Arc::default(),
            parts: Arc::default(),
        }
    }

    /// When the update of a round had come.
    fn came(&self, round: u64) -> Option<Instant> {
        let update = sealed(round, self.bytes).reference.hash;
        let parts = self.parts.lock().unwrap();
        let part = parts
            .iter()
            .find(|(path, _)| path.contains(&update.to_string()));
        part.filter(|(_, (bytes, _))| *bytes == self.bytes)
            .map(|(_, (_, when))| *when)
    }

    async fn receive(&self, path: &str, body: Bytes) -> http::Response<reqwest::Body> {
        // In pieces as packets are, so that nobody has the line for long.
        for packet in body.chunks(1 << 14) {
            let _line = self.line.lock().await;
            let millis = packet.len() as u64 * 1_000 / self.bytes_per_s;
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        let mut parts = self.parts.lock().unwrap();
        let part = parts.entry(path.to_owned()).or_insert((0, Instant::now()));
        *part = (part.0 + body.len(), Instant::now());
        let status = if part.0 == self.bytes { 201 } else { 200 };
        http::Response::builder()
            .status(status)
            .header(UPLOAD_OFFSET, part.0.to_string())
            .body(Bytes::new().into())
            .unwrap()
    }
}

impl Transport for SlowHub {
    fn carry(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'_, Result<http::Response<reqwest::Body>, TransportError>> {
        let (parts, body) = request.into_parts();
        async move { Ok(self.receive(parts.uri.path(), body).await) }.boxed()
    }
}

/// A worker trains round after round, each a window long, and its updates take so many windows to upload: how many come
/// while a merge takes them.
async fn in_time(windows: f64, rounds: u64) -> u64 {
    const BYTES: usize = 1 << 20;
    let bytes_per_s = (BYTES as f64 / WINDOW.mul_f64(windows).as_secs_f64()) as u64;
    let hub = SlowHub::new(bytes_per_s, BYTES);
    let place = tempfile::tempdir().unwrap();
    let client = HubClient::over(Arc::new(hub.clone()), "http://a");
    let client = client.with_retry(RetryPolicy::once());
    let folder = place.path().join("outbox");
    let mut outbox =
        Outbox::open(Arc::new(RealDisk), folder.clone(), client, key(1), WINDOW).unwrap();
    let mut due = Vec::new();
    for round in 1..=rounds {
        let sealed = sealed(round, BYTES);
        outbox.keep(&sealed).unwrap();
        outbox.send(sealed.reference.hash);
        // The round closes now; the third after it is merged within its time to reveal.
        due.push((round, Instant::now() + WINDOW * 3 + WINDOW / 10));
        tokio::time::sleep(WINDOW / 10).await;
        outbox.come_to(round + 1, round);
        tokio::time::sleep(WINDOW * 9 / 10).await;
        let files = std::fs::read_dir(&folder).unwrap().count() as u64;
        assert!(files <= 2 * (ROUNDS_KEPT + 2), "{files} files are kept");
    }
    tokio::time::sleep(WINDOW * 4).await;
    let came = due
        .iter()
        .filter(|(round, due)| hub.came(*round).is_some_and(|it| it <= *due));
    came.count() as u64
}

#[tokio::test(start_paused = true)]
async fn a_slow_uplink_brings_what_it_can() {
    // A line that has room for everything brings everything.
    assert_eq!(in_time(0.8, 12).await, 12);
    // Updates that take 2.5 windows come one after the other: four of them take ten.
    let came = in_time(2.5, 12).await;
    assert!((4..=5).contains(&came), "{came} of 12");
    // At 1.6 windows seven could come; an upload that is begun for nothing may cost two.
    let came = in_time(1.6, 12).await;
    assert!(5 <= came, "{came} of 12");
}
