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
        37fa16d1ecfe28b4442ee5ced4e5c1336e56876eda1054f7c08322ab03bb32a2
        020202020202020202020202020202020202020202020202020202020202020201160e4b08da1a08f5c925e325d38de9b2024d7cdec9ac066944342bbd53dc0ae3e9070b0161f896bb4b3b7168a54ac60f474468bccbca890a29250e1fc5c8cd50a6a762dcf57cd6a7555bbc5ec9a538796944e41197d4a9edb093a60647e9d7163e88ca00"#]].assert_eq(&format!(
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
