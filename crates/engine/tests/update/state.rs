//! States that are carried and committed to: bytes, hashes, refusals, proofs.

use engine::update::carried::{CarriedError, CarriedState, Moments};
use engine::update::hash::{moment_hash, parameters_hash, samples_hash};
use engine::update::outer::{OuterState, OuterStateError};
use engine::update::steps::{StepLeaf, StepTree};

use crate::random::{Random, hex};

fn random_carried(random: &mut Random, parameters: usize, moments: bool) -> CarriedState {
    let first = random.normals(parameters, 1e-3);
    let second = first.iter().map(|value| value * value).collect();
    CarriedState {
        step: random.next(),
        error: random.normals(parameters, 1e-2),
        moments: moments.then_some(Moments { first, second }),
    }
}

#[test]
fn carried_states_round_trip() {
    let mut random = Random::new(41);
    for (parameters, moments) in [(0, false), (1, true), (1000, false), (40_000, true)] {
        let state = random_carried(&mut random, parameters, moments);
        let bytes = state.to_bytes();
        assert_eq!(bytes.len(), 22 + parameters * if moments { 12 } else { 4 });
        assert_eq!(
            CarriedState::from_bytes(&bytes, parameters, moments).unwrap(),
            state
        );
        let mut other = state.clone();
        other.step ^= 1;
        assert_ne!(other.hash(), state.hash());
        if let Some(last) = other.error.last_mut() {
            other.step = state.step;
            *last = f32::from_bits(last.to_bits() ^ 1);
            assert_ne!(other.hash(), state.hash());
        }
    }
    assert_eq!(CarriedState::new(3, true).moments.unwrap().second, [0.0; 3]);
}

#[test]
fn carried_states_are_refused() {
    let state = random_carried(&mut Random::new(42), 5, true);
    let good = state.to_bytes();
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: CarriedError| {
        let mut bytes = good.clone();
        change(&mut bytes);
        assert_eq!(
            CarriedState::from_bytes(&bytes, 5, true).unwrap_err(),
            expected
        );
    };
    check(&|bytes| bytes.truncate(21), CarriedError::WrongFormat);
    check(&|bytes| bytes[0] = 0, CarriedError::WrongFormat);
    check(&|bytes| bytes[4] = 2, CarriedError::WrongFormat);
    check(&|bytes| bytes[5] = 2, CarriedError::WrongFormat);
    check(&|bytes| bytes[5] = 0, CarriedError::WrongMoments);
    check(
        &|bytes| bytes[14] = 6,
        CarriedError::WrongShape {
            expected: 5,
            found: 6,
        },
    );
    check(
        &|bytes| bytes.push(0),
        CarriedError::WrongLength {
            expected: 82,
            found: 83,
        },
    );
    check(
        &|bytes| bytes.truncate(81),
        CarriedError::WrongLength {
            expected: 82,
            found: 81,
        },
    );
    for (index, value) in [(0, f32::NAN), (7, f32::INFINITY), (14, f32::NEG_INFINITY)] {
        let change = |bytes: &mut Vec<u8>| {
            bytes[22 + 4 * index..][..4].copy_from_slice(&value.to_le_bytes())
        };
        check(&change, CarriedError::NotFinite { index });
    }
    let negative =
        |bytes: &mut Vec<u8>| bytes[22 + 4 * 12..][..4].copy_from_slice(&(-1f32).to_le_bytes());
    check(&negative, CarriedError::NegativeSecondMoment { index: 2 });
}

#[test]
fn outer_states_round_trip_and_are_refused() {
    let mut random = Random::new(43);
    for momentum in [false, true] {
        for parameters in [0, 1, 70_000] {
            let mut state = OuterState::new(parameters, momentum);
            state
                .residual
                .iter_mut()
                .for_each(|units| *units = random.next() as i32 >> 1);
            let bytes = state.to_bytes();
            assert_eq!(OuterState::from_bytes(&bytes, parameters).unwrap(), state);
            let found = OuterState::from_bytes(&bytes, parameters + 1).unwrap_err();
            assert_eq!(
                found,
                OuterStateError::WrongShape {
                    expected: parameters as u64 + 1,
                    found: parameters as u64
                }
            );
        }
    }
    let good = OuterState::new(2, true).to_bytes();
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: OuterStateError| {
        let mut bytes = good.clone();
        change(&mut bytes);
        assert_eq!(OuterState::from_bytes(&bytes, 2).unwrap_err(), expected);
    };
    check(&|bytes| bytes.truncate(13), OuterStateError::WrongFormat);
    check(&|bytes| bytes[3] = 0, OuterStateError::WrongFormat);
    check(&|bytes| bytes[4] = 0, OuterStateError::WrongFormat);
    check(&|bytes| bytes[5] = 3, OuterStateError::WrongFormat);
    check(
        &|bytes| bytes[5] = 0,
        OuterStateError::WrongLength {
            expected: 22,
            found: 30,
        },
    );
    check(
        &|bytes| bytes.push(1),
        OuterStateError::WrongLength {
            expected: 30,
            found: 31,
        },
    );
    check(&|bytes| bytes[29] = 0x80, OuterStateError::ValueOutOfRange);
    check(&|bytes| bytes[17] = 0x80, OuterStateError::ValueOutOfRange);
}

#[test]
fn golden_bytes_and_hashes() {
    let moments = Moments {
        first: vec![0.5],
        second: vec![0.25],
    };
    let carried = CarriedState {
        step: 7,
        error: vec![-1.0],
        moments: Some(moments),
    };
    assert_eq!(
        hex(&carried.to_bytes()),
        "41486373010107000000000000000100000000000000000080bf0000003f0000803e"
    );
    let outer = OuterState {
        residual: vec![1, -2],
        momentum: Some(vec![3, 4]),
    };
    assert_eq!(
        hex(&outer.to_bytes()),
        "41486f730101020000000000000001000000feffffff0300000004000000"
    );
    let hashes = [
        carried.hash(),
        outer.hash(),
        parameters_hash(&[1.0, -0.0]),
        moment_hash(&[1.0, -0.0]),
        samples_hash(&[1, 2, 3]),
        leaf(1).hash(),
        tree(3).root(),
    ];
    assert_eq!(
        hashes.map(|hash| hex(&hash[..8])),
        [
            "9aa8f393793b970b",
            "4a24e4b5201ee8ca",
            "779884656b17a1b1",
            "11fcc0f77ffe3f19",
            "ae1efce8ad3caaa6",
            "e4baa500917f2793",
            "6519cc5a70b31ac9"
        ]
    );
}

/// The same words over one or more blocks, and as one piece.
#[test]
fn hashes_are_of_the_bytes() {
    let mut random = Random::new(44);
    for count in [0, 1, 16_383, 16_384, 16_385, 40_000] {
        let values = random.normals(count, 1.0);
        let mut hasher = blake3::Hasher::new_derive_key("athome 1 model parameters");
        hasher.update(&(count as u64).to_le_bytes());
        hasher.update(
            &values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
        assert_eq!(parameters_hash(&values), *hasher.finalize().as_bytes());
        assert_ne!(parameters_hash(&values), moment_hash(&values));
    }
}

fn leaf(step: u64) -> StepLeaf {
    StepLeaf {
        step,
        parameters: parameters_hash(&[step as f32]),
        first_moment: moment_hash(&[1.0]),
        second_moment: moment_hash(&[2.0]),
        samples: samples_hash(&[step]),
        loss_bits: 2.5f32.to_bits(),
        gradient_norm_bits: 1f32.to_bits(),
    }
}

fn tree(leaves: u64) -> StepTree {
    let mut tree = StepTree::new();
    (0..leaves).for_each(|step| tree.push(&leaf(step)));
    tree
}

#[test]
fn proofs_hold_for_their_leaf_alone() {
    let mut roots = vec![tree(0).root()];
    for leaves in 1..=20 {
        let tree = tree(leaves);
        let root = tree.root();
        assert!(!roots.contains(&root));
        roots.push(root);
        assert_eq!(tree.len() as u64, leaves);
        assert!(tree.proof(leaves as u32).is_none());
        for index in 0..leaves {
            let proof = tree.proof(index as u32).unwrap();
            assert!(proof.verify(&leaf(index), &root));
            assert!(!proof.verify(&leaf(index + 1), &root));
            assert!(!proof.verify(&leaf(index), &roots[leaves as usize - 1]));
            let mut changed = proof.clone();
            changed.index = (index as u32 + 1) % leaves as u32;
            assert!(leaves == 1 || !changed.verify(&leaf(index), &root));
            let mut changed = proof.clone();
            changed.leaves += 1;
            assert!(!changed.verify(&leaf(index), &root));
            let mut changed = proof.clone();
            changed.neighbours.push([0; 32]);
            assert!(!changed.verify(&leaf(index), &root));
            let mut changed = proof.clone();
            if changed.neighbours.pop().is_some() {
                assert!(!changed.verify(&leaf(index), &root));
            }
            let mut changed = proof;
            if let Some(neighbour) = changed.neighbours.first_mut() {
                neighbour[31] ^= 1;
                assert!(!changed.verify(&leaf(index), &root));
            }
        }
    }
    let mut proof = tree(3).proof(0).unwrap();
    proof.leaves = u32::MAX;
    assert!(!proof.verify(&leaf(0), &tree(3).root()));
}

#[test]
fn every_field_of_a_leaf_counts() {
    let good = leaf(1);
    let other = [9; 32];
    let changed = [
        StepLeaf { step: 2, ..good },
        StepLeaf {
            parameters: other,
            ..good
        },
        StepLeaf {
            first_moment: other,
            ..good
        },
        StepLeaf {
            second_moment: other,
            ..good
        },
        StepLeaf {
            samples: other,
            ..good
        },
        StepLeaf {
            loss_bits: 0,
            ..good
        },
        StepLeaf {
            gradient_norm_bits: 0,
            ..good
        },
    ];
    assert!(changed.iter().all(|changed| changed.hash() != good.hash()));
}
