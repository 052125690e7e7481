//! What proves a lie, and what does not.

use super::*;
use crate::{
    SecretKey,
    charter::tests::sample_charter,
    log::Head,
    succession::{Sealing, Succession},
    units::RunId,
};

fn key(number: u8) -> SecretKey {
    SecretKey::from_entropy([number; 32])
}

fn entry(hub: &SecretKey, run: RunId, round: u64) -> Entry {
    Head::empty().next(hub, run, 1_000, Event::RoundEmpty { round })
}

fn run() -> RunId {
    sample_charter().id()
}

#[test]
fn two_entries_at_one_place_prove_it() {
    let (one, other) = (entry(&key(1), run(), 1), entry(&key(1), run(), 2));
    let proof = Equivocation::find(key(1).public(), &one, &other).unwrap();
    assert_eq!(proof.check(), Ok(Kind::TwoEntries { index: 0 }));
    // One spelling, whoever found it.
    assert_eq!(
        Equivocation::find(key(1).public(), &other, &one)
            .unwrap()
            .id(),
        proof.id()
    );
    let bytes = proof.to_bytes();
    assert_eq!(Equivocation::from_bytes(&bytes).unwrap(), proof);
    expect_test::expect!["298 7d7fdcb91b2ec51fc949223b0f1bc0f23123efc93b262fdee1bffee8ad33df8f"]
        .assert_eq(&format!("{} {}", bytes.len(), proof.id()));
}

#[test]
fn what_both_can_be_true_proves_nothing() {
    let hub = key(1);
    let one = entry(&hub, run(), 1);
    let mut head = Head::empty();
    head.advance(run(), &hub.public(), &one).unwrap();
    let next = head.next(&hub, run(), 1_000, Event::RoundEmpty { round: 2 });
    for other in [
        one.clone(),
        next,
        entry(&key(2), run(), 2),
        entry(&hub, RunId::default(), 2),
    ] {
        assert_eq!(Equivocation::find(hub.public(), &one, &other), None);
    }
    // A forged signature accuses nobody.
    let mut forged = entry(&key(2), run(), 2);
    forged.signature = one.signature;
    assert_eq!(Equivocation::find(hub.public(), &one, &forged), None);
}

#[test]
fn a_key_that_names_two_hubs_is_proven_wherever_they_stand() {
    let mut charter = sample_charter();
    charter.succession = vec![key(50).public()];
    let sealing = Sealing::of(&charter);
    let run = charter.id();
    let takeover = |head: &Head, hub: &SecretKey| {
        let succession = Succession::sign(&key(50), &sealing, head, hub.public(), "http://b");
        head.next(hub, run, 1_000, Event::HubReplaced { succession })
    };
    let mut later = Head::empty();
    later
        .advance(run, &key(1).public(), &entry(&key(1), run, 1))
        .unwrap();
    let (one, other) = (takeover(&Head::empty(), &key(2)), takeover(&later, &key(3)));
    let proof = Equivocation::find(key(50).public(), &one, &other).unwrap();
    assert_eq!(proof.check(), Ok(Kind::TwoHubs { generation: 1 }));
    assert_eq!(Equivocation::find(key(2).public(), &one, &other), None);
    // The same statement in two entries is the new hub's fault, not the key's.
    let same = Head::empty().next(&key(2), run, 2_000, one.event.clone());
    assert_eq!(Equivocation::find(key(50).public(), &one, &same), None);
    assert!(Equivocation::find(key(2).public(), &one, &same).is_some());
}

#[test]
fn bytes_are_read_with_care() {
    let (one, other) = (entry(&key(1), run(), 1), entry(&key(1), run(), 2));
    let proof = Equivocation::find(key(1).public(), &one, &other).unwrap();
    let bytes = proof.to_bytes();
    for length in 0..bytes.len() {
        assert!(Equivocation::from_bytes(&bytes[..length]).is_err());
    }
    let swapped = Equivocation {
        key: proof.key,
        first: proof.second.clone(),
        second: proof.first.clone(),
    };
    assert_eq!(
        Equivocation::from_bytes(&swapped.to_bytes()),
        Err(EquivocationError::Order)
    );
}

#[test]
fn a_hub_is_stopped_by_what_its_key_sealed_since_it_took_over() {
    let (first, second) = (key(1), key(2));
    let named = vec![key(50).public()];
    let mut sealing = Sealing::new(run(), first.public(), named);
    let proof = |key: &SecretKey, length| {
        let head = Head {
            length,
            ..Head::empty()
        };
        let empty = |round| head.next(key, run(), 1_000, Event::RoundEmpty { round });
        Equivocation::find(key.public(), &empty(1), &empty(2)).unwrap()
    };
    assert!(sealing.is_stopped_by(&proof(&first, 3)));
    assert!(!sealing.is_stopped_by(&proof(&second, 3)));
    let other = Sealing::new(RunId::default(), first.public(), Vec::new());
    assert!(!other.is_stopped_by(&proof(&first, 3)));
    let broken = Equivocation {
        key: second.public(),
        ..proof(&first, 3)
    };
    assert!(!sealing.is_stopped_by(&broken));

    let mut take_over = |length, hub: &SecretKey| {
        let head = Head {
            length,
            ..Head::empty()
        };
        let statement = Succession::sign(&key(50), &sealing, &head, hub.public(), "http://b");
        sealing.replace(&statement).unwrap();
        sealing.clone()
    };
    let later = take_over(10, &second);
    assert!(!later.is_stopped_by(&proof(&first, 3)));
    assert!(!later.is_stopped_by(&proof(&first, 12)));
    assert!(later.is_stopped_by(&proof(&second, 10)));
    // Named again, the first hub is not stopped by what was settled.
    let again = take_over(20, &first);
    assert!(!again.is_stopped_by(&proof(&first, 3)));
    assert!(!again.is_stopped_by(&proof(&first, 19)));
    assert!(again.is_stopped_by(&proof(&first, 20)));
}
