//! The chain refuses everything that is not its next entry.

use super::*;
use crate::{command::Command, command::SignedCommand, units::RunId};

fn event(number: u64) -> Event {
    Event::RoundEmpty { round: number }
}

fn chain(length: u64) -> (SecretKey, RunId, Vec<Entry>) {
    let key = SecretKey::from_entropy([1; 32]);
    let run = RunId(Hash([2; 32]));
    let mut head = Head::empty();
    let mut entries = Vec::new();
    for number in 0..length {
        let entry = head.next(&key, run, 1_000 + number, event(number));
        head.advance(run, &key.public(), &entry).unwrap();
        entries.push(entry);
    }
    (key, run, entries)
}

#[test]
fn golden_entry() {
    let (_, _, entries) = chain(2);
    expect_test::expect![[r#"
        81ec32c3f110fe311512a23c32d33bbe157f3cab8fb77f517f42abf55f28768e
        020202020202020202020202020202020202020202020202020202020202020201bfd7abf69ef29c91198b0393b82293c1e50196d05b8405534d0cd0ccc73ccb9de9070d01892293ed59a42df7af9060cf04ffcb53266a942c9187958483ed39ef1a804e574800585eb1f205d4016890396b85bfa2cd9e8bc129f7c7ba5855f13262e77b0b"#]].assert_eq(&format!(
        "{}\n{}",
        entries[1].hash(),
        data_encoding::HEXLOWER.encode(&entries[1].to_bytes())
    ));
}

#[test]
fn round_trip() {
    let (_, _, entries) = chain(1);
    assert_eq!(
        Entry::from_bytes(&entries[0].to_bytes()).unwrap(),
        entries[0]
    );
}

#[test]
fn each_flipped_bit_breaks_the_chain() {
    let (key, run, entries) = chain(3);
    let mut head = Head::empty();
    head.advance(run, &key.public(), &entries[0]).unwrap();
    let bytes = entries[1].to_bytes();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[index] ^= 1 << bit;
            if let Ok(entry) = Entry::from_bytes(&changed) {
                let mut moved = head;
                assert!(
                    moved.advance(run, &key.public(), &entry).is_err(),
                    "byte {index} bit {bit}"
                );
                assert_eq!(moved, head);
            }
        }
    }
}

#[test]
fn gaps_repeats_and_strangers_are_refused() {
    let (key, run, entries) = chain(3);
    let mut head = Head::empty();
    assert!(head.advance(run, &key.public(), &entries[1]).is_err());
    head.advance(run, &key.public(), &entries[0]).unwrap();
    assert!(head.advance(run, &key.public(), &entries[0]).is_err());
    assert!(head.advance(run, &key.public(), &entries[2]).is_err());
    let stranger = SecretKey::from_entropy([9; 32]);
    let forged = head.next(&stranger, run, 2_000, event(1));
    assert!(matches!(
        head.advance(run, &key.public(), &forged),
        Err(ChainError::Signature { .. })
    ));
    assert!(matches!(
        head.advance(RunId(Hash([3; 32])), &key.public(), &entries[1]),
        Err(ChainError::OtherRun { .. })
    ));
}

#[test]
fn time_never_goes_back() {
    let (key, run, entries) = chain(1);
    let mut head = Head::empty();
    head.advance(run, &key.public(), &entries[0]).unwrap();
    assert_eq!(head.next(&key, run, 5, event(1)).time_ms, 1_000);
}

#[test]
fn json_names_the_event() {
    let command = SignedCommand::sign(
        &SecretKey::from_entropy([3; 32]),
        RunId::default(),
        1,
        Command::Leave {
            reason: String::new(),
        },
    );
    for event in [Event::WorkerLeft { command }, event(1)] {
        let json = serde_json::to_value(&event).unwrap();
        assert!(json.get(event.name()).is_some(), "{json}");
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }
}
