//! States come back whole or not at all.

use std::fs;

use network::disk::RealDisk;

use super::*;

fn state(error: f32) -> CarriedState {
    CarriedState {
        step: 12,
        error: vec![error, 2.0, -3.5],
        moments: Some(Moments {
            first: vec![0.1, 0.2, 0.3],
            second: vec![0.4, 0.5, 0.6],
        }),
    }
}

fn hash(state: &CarriedState) -> Hash {
    Hash(state.hash())
}

fn store() -> (tempfile::TempDir, CarriedStore) {
    let place = tempfile::tempdir().unwrap();
    let store = CarriedStore::open(Arc::new(RealDisk), place.path().join("carried")).unwrap();
    (place, store)
}

fn files(store: &CarriedStore) -> usize {
    fs::read_dir(&store.folder).unwrap().count()
}

#[test]
fn both_states_of_a_round_share_their_moments() {
    let (_place, store) = store();
    let (refused, after) = (state(1.0), state(0.25));
    let shared = hash(&refused);
    store.write(&shared, &shared, &refused).unwrap();
    store.write(&hash(&after), &shared, &after).unwrap();
    assert_eq!(files(&store), 3);
    for written in [&refused, &after] {
        let read = store.read(&hash(written), 3).unwrap();
        assert_eq!(read.as_ref(), Some(written));
    }
    // Keeping one state keeps the moments it names, though they bear the other's name.
    store.keep_only(&[hash(&after)]).unwrap();
    assert_eq!(files(&store), 2);
    assert_eq!(store.read(&shared, 3).unwrap(), None);
    assert_eq!(store.read(&hash(&after), 3).unwrap(), Some(after));
    store.keep_only(&[]).unwrap();
    assert_eq!(files(&store), 0);
}

#[test]
fn older_states_stay_while_there_is_room() {
    let (_place, store) = store();
    let states: Vec<CarriedState> = (0..4_u8)
        .map(|number| CarriedState {
            step: number.into(),
            ..state(number.into())
        })
        .collect();
    let names: Vec<Hash> = states.iter().map(hash).collect();
    for (name, state) in names.iter().zip(&states) {
        store.write(name, name, state).unwrap();
    }
    assert!(store.share_moments(&names[1], &names[1]).unwrap());
    assert!(!store.share_moments(&names[1], &names[2]).unwrap());
    let bytes_of_one = (STATE_HEADER_BYTES + 12 + MOMENTS_MAGIC.len() + 24) as u64;
    let newest_first = [names[3], names[2], names[1], names[0]];
    store
        .keep_within(names[3], &newest_first, 2 * bytes_of_one)
        .unwrap();
    let is_there = |name| store.read(name, 3).unwrap().is_some();
    assert_eq!(
        names.iter().map(is_there).collect::<Vec<_>>(),
        [false, false, true, true]
    );
    // What is needed stays, whatever it takes.
    store.keep_within(names[3], &newest_first, 0).unwrap();
    assert_eq!(files(&store), 2);
}

#[test]
fn a_state_without_moments_is_one_file() {
    let (_place, store) = store();
    let mut plain = state(1.0);
    plain.moments = None;
    let name = hash(&plain);
    store.write(&name, &name, &plain).unwrap();
    assert_eq!(files(&store), 1);
    assert_eq!(store.read(&name, 3).unwrap(), Some(plain));
}

#[test]
fn what_is_damaged_or_of_another_model_is_not_there() {
    let (_place, store) = store();
    let whole = state(1.0);
    let name = hash(&whole);
    store.write(&name, &name, &whole).unwrap();
    assert_eq!(store.read(&name, 4).unwrap(), None);
    for suffix in ["state", "moments"] {
        let path = store.path(&name, suffix);
        let bytes = fs::read(&path).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x10;
            fs::write(&path, &changed).unwrap();
            assert_eq!(store.read(&name, 3).unwrap(), None, "{suffix} byte {index}");
        }
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(store.read(&name, 3).unwrap(), None, "{suffix} of {length}");
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(store.read(&name, 3).unwrap(), Some(whole));
}
