//! What is kept, for how long, and what is missing in a log.

use network::disk::RealDisk;
use protocol::{
    units::{BlobReference, RunId, WorkerId},
    update::UpdateHeader,
};

use super::*;
use crate::testing::{Hosts, key, work};

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
    Outbox::open(Arc::new(RealDisk), folder, hosts.client("http://a"), key(1)).unwrap()
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
    stage.outbox.come_to(4 + ROUNDS_KEPT);
    assert_eq!(stage.rounds(), [4, 6]);
    stage.outbox.come_to(5 + ROUNDS_KEPT);
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
    assert!(!stage.outbox.shared.again().is_running);
    // What is being sent anyway is looked after when it is there.
    let before = stage.hosts.lock().asked.len();
    let under_way = UnderWay::new(&stage.outbox.shared, sealed(6, 100).reference.hash);
    stage.outbox.send_again(5);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.hosts.lock().asked.len(), before);
    drop(under_way);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.hosts.lock().asked.len(), before + 1);
}
