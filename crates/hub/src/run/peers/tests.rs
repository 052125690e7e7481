//! The trees that come of asking.

use std::collections::HashSet;

use protocol::units::RunId;

use super::*;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn worker(number: u32) -> WorkerId {
    WorkerId(key(number, 1))
}

fn endpoint(number: u32) -> PublicKey {
    key(number, 2)
}

fn key(number: u32, kind: u8) -> PublicKey {
    let mut bytes = *blake3::hash(&number.to_le_bytes()).as_bytes();
    bytes[31] = kind;
    PublicKey(bytes)
}

fn question(number: u32, blob: u8) -> PeersQuestion {
    PeersQuestion {
        run: RunId::default(),
        worker: worker(number),
        blob: Hash([blob; 32]),
        address: Some(PeerAddress {
            endpoint: endpoint(number),
            addresses: vec!["127.0.0.1:4433".parse().unwrap()],
            relay: None,
        }),
        served: vec![],
        failed: vec![],
    }
}

/// Endpoints named to a worker when everyone is there.
fn ask(book: &PeerBook, question: &PeersQuestion, now_ms: u64) -> Vec<PublicKey> {
    let named = book.ask(question, HERE, true, now_ms, |_| true);
    named.iter().map(|it| it.endpoint).collect()
}

#[test]
fn the_hub_is_asked_twice_however_many_there_are() {
    for workers in [3, 8, 100, 5_000] {
        let book = PeerBook::default();
        let mut depth: HashMap<PublicKey, u32> = HashMap::new();
        let mut children: HashMap<PublicKey, u32> = HashMap::new();
        let mut from_hub = 0;
        for number in 0..workers {
            let named = ask(&book, &question(number, 1), 1_000);
            let parent = named.first();
            from_hub += u32::from(parent.is_none());
            // Whoever is named asked before.
            assert!(named.iter().all(|it| depth.contains_key(it)));
            assert_eq!(named.iter().collect::<HashSet<_>>().len(), named.len());
            assert!(named.len() <= NAMED_MAX);
            depth.insert(endpoint(number), parent.map_or(0, |it| depth[it] + 1));
            if let Some(it) = parent {
                *children.entry(*it).or_default() += 1;
            }
        }
        assert_eq!(from_hub, 2);
        assert!(children.values().all(|it| *it <= CHILDREN_MAX));
        // Twice three, and threefold again: 2 · (3^8 - 1) / 2 is more than 5,000.
        assert!(
            depth.values().max() <= Some(&7),
            "{:?}",
            depth.values().max()
        );
    }
}

#[test]
fn each_blob_has_its_own_order() {
    let book = PeerBook::default();
    for number in 0..3 {
        ask(&book, &question(number, 1), 1_000);
    }
    assert_eq!(ask(&book, &question(2, 2), 1_000), []);
    assert_eq!(ask(&book, &question(1, 2), 1_000), []);
    let named = ask(&book, &question(0, 2), 1_000);
    assert_eq!(named[0], endpoint(2));
}

#[test]
fn whoever_asks_again_is_sent_to_nobody_behind_it() {
    let book = PeerBook::default();
    for number in 0..20 {
        ask(&book, &question(number, 1), 1_000);
    }
    assert_eq!(ask(&book, &question(1, 1), 1_001), []);
    let before: Vec<PublicKey> = (0..5).map(endpoint).collect();
    let named = ask(&book, &question(5, 1), 1_002);
    assert!(!named.is_empty() && named.iter().all(|it| before.contains(it)));
}

#[test]
fn those_who_left_serve_nobody() {
    let book = PeerBook::default();
    for number in 0..10 {
        ask(&book, &question(number, 1), 1_000);
    }
    // The first eight are gone.
    let present = |it: &WorkerId| ![0, 1, 2, 3, 4, 5, 6, 7].map(worker).contains(it);
    let named = book.ask(&question(10, 1), HERE, true, 1_001, present);
    let named: HashSet<PublicKey> = named.iter().map(|it| it.endpoint).collect();
    assert!(!named.is_empty() && named.is_subset(&HashSet::from([8, 9].map(endpoint))));
    // With all of them gone, the hub is first again, and they are forgotten.
    let only = |it: &WorkerId| *it == worker(11);
    assert_eq!(
        book.ask(&question(11, 1), HERE, true, 1_000 + 2 * AGAIN_MS, only),
        []
    );
    assert_eq!(book.lock().workers.len(), 1);
    assert_eq!(book.lock().places, 1);
}

#[test]
fn two_complaints_are_enough_and_one_success_mends() {
    let book = PeerBook::default();
    for number in 0..3 {
        ask(&book, &question(number, 1), 1_000);
    }
    let complaint = |number: u32| PeersQuestion {
        failed: vec![endpoint(0)],
        ..question(number, 2)
    };
    let is_named = |number: u32| {
        let named = ask(&book, &question(number, 1), 1_000);
        named.contains(&endpoint(0))
    };
    // Its own word counts for nothing, nor does that of whoever it was never named to, or who has done nothing yet.
    ask(&book, &complaint(0), 1_000);
    ask(&book, &complaint(30), 1_000);
    ask(&book, &complaint(31), 1_000);
    for number in [32, 33] {
        let unproven = |it: &PeersQuestion| book.ask(it, HERE, false, 1_000, |_| true);
        unproven(&question(number, 1));
        unproven(&complaint(number));
    }
    let told: Vec<u32> = (10..20).filter(|it| is_named(*it)).collect();
    let [one, other, third, ..] = told[..] else {
        panic!("it is named to {told:?} only");
    };
    ask(&book, &complaint(one), 1_000);
    ask(&book, &complaint(one), 1_000);
    assert!((40..50).any(is_named));
    ask(&book, &complaint(other), 1_000);
    assert!(!(50..60).any(is_named));
    let thanks = |number: u32| PeersQuestion {
        served: vec![endpoint(0)],
        ..question(number, 3)
    };
    // A stranger's thanks are as cheap as its complaints.
    ask(&book, &thanks(34), 1_000);
    assert!(!(60..70).any(is_named));
    ask(&book, &thanks(third), 1_000);
    // Once those before it are no longer taken to be busy.
    let later = 1_000 + 2 * AGAIN_MS;
    let named = (70..90).flat_map(|it| ask(&book, &question(it, 1), later));
    assert!(named.collect::<Vec<_>>().contains(&endpoint(0)));
}

#[test]
fn nobody_speaks_for_anothers_endpoint() {
    let book = PeerBook::default();
    ask(&book, &question(0, 1), 1_000);
    let thief = PeersQuestion {
        address: question(0, 1).address,
        ..question(1, 1)
    };
    ask(&book, &thief, 1_000);
    assert_eq!(book.lock().endpoints[&endpoint(0)], worker(0));
    assert!(!book.lock().workers.contains_key(&worker(1)));
}

#[test]
fn whoever_serves_nobody_is_served_all_the_same() {
    let book = PeerBook::default();
    let mute = |number: u32| PeersQuestion {
        address: None,
        ..question(number, 1)
    };
    assert_eq!(ask(&book, &mute(100), 1_000), []);
    for number in 0..2 {
        assert_eq!(ask(&book, &question(number, 1), 1_000), []);
    }
    for number in 101..130 {
        assert!(!ask(&book, &mute(number), 1_000).is_empty());
    }
    assert_eq!(book.lock().places, 2);
}

#[test]
fn nobody_is_sent_where_it_cannot_go() {
    let book = PeerBook::default();
    for number in 0..5 {
        ask(&book, &question(number, 1), 1_000);
    }
    let elsewhere = IpAddr::from([198, 51, 100, 1]);
    // All of them are on loopback.
    assert_eq!(
        book.ask(&question(5, 1), elsewhere, true, 1_000, |_| true),
        []
    );
    assert!(!ask(&book, &question(6, 1), 1_000).is_empty());
}

#[test]
fn memory_is_bounded() {
    let book = PeerBook::default();
    let mut many = question(0, 0);
    for blob in 0..BLOBS_MAX as u32 + 100 {
        many.blob = Hash(*blake3::hash(&blob.to_le_bytes()).as_bytes());
        ask(&book, &many, 1_000 + u64::from(blob));
    }
    let inner = book.lock();
    assert_eq!((inner.blobs.len(), inner.places), (BLOBS_MAX, BLOBS_MAX));
    assert!(inner.blobs.contains_key(&many.blob));
}
