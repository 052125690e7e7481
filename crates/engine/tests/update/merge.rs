//! The merge against the same formulas in wide integers over whole vectors.

use engine::update::codec::{decode, encode};
use engine::update::decoded::DecodedUpdate;
use engine::update::hash::parameters_hash;
use engine::update::merge::{MergeError, Merging, Norms, Share, Weighted, merge};
use engine::update::norms::{ONE_Q24, clip_factor_q24, clip_factors_q24, median, norm};
use engine::update::outer::OuterState;
use engine::update::round::merge_round;
use engine::update::settings::{
    DeltaSettings, DenseSettings, DenseWidth, MergeSettings, ONE_Q16, SettingsError,
    SparseSettings, UpdateSettings,
};

use crate::codec::{dense, sparse, values};
use crate::random::{LENGTHS, Random, hex};

fn random_updates(
    random: &mut Random,
    lengths: &[usize],
    settings: &[UpdateSettings],
) -> Vec<(DecodedUpdate, u64)> {
    let total = lengths.iter().sum();
    let of_settings = |settings: &UpdateSettings| {
        let scale = 1e-3 * (1 + random.below(5)) as f32;
        let bytes = encode(lengths, settings, &random.normals(total, scale)).unwrap();
        (
            decode(&bytes, lengths, settings).unwrap(),
            1 + random.next() % 100_000,
        )
    };
    settings.iter().map(of_settings).collect()
}

fn weighted(updates: &[(DecodedUpdate, u64)]) -> Vec<Weighted<'_>> {
    updates
        .iter()
        .map(|(update, weight)| Weighted {
            update,
            weight: *weight,
            standing: 0,
        })
        .collect()
}

/// `a / b` to the nearest, halves away from zero.
fn rounded(a: i128, b: i128) -> i128 {
    (a.abs() * 2 + b) / (b * 2) * a.signum()
}

/// The largest integer whose square is at most `square`, by bisection.
fn root(square: u128) -> u128 {
    let (mut low, mut high) = (0, 1 << 64);
    while high - low > 1 {
        let middle: u128 = low + (high - low) / 2;
        *(if middle <= square / middle {
            &mut low
        } else {
            &mut high
        }) = middle;
    }
    low
}

/// Residual and momentum after the merge, by the formulas of the module's documentation.
fn plain_merge(
    updates: &[(DecodedUpdate, u64)],
    settings: &MergeSettings,
    outer: &OuterState,
) -> (Vec<i32>, Option<Vec<i32>>) {
    let lengths = updates[0].0.chunks().lengths();
    let total: usize = lengths.iter().sum();
    let weight_sum: u128 = updates.iter().map(|update| u128::from(update.1)).sum();
    let (mut sums, mut senders) = (vec![0i128; total], vec![0i128; total]);
    let mut start = 0;
    for &length in lengths {
        let of_tensor = |update: &DecodedUpdate| {
            let mut found = values(update);
            found.retain(|(index, _)| (start..start + length).contains(index));
            found
        };
        let norm_of = |values: &[(usize, i32)]| {
            root(
                values
                    .iter()
                    .map(|value| i128::from(value.1).pow(2) as u128)
                    .sum(),
            )
        };
        let norms: Vec<u128> = updates
            .iter()
            .map(|(update, _)| norm_of(&of_tensor(update)))
            .collect();
        let mut sorted: Vec<u128> = norms.iter().copied().filter(|&norm| norm > 0).collect();
        sorted.sort();
        for ((update, weight), &norm) in updates.iter().zip(&norms).filter(|(_, norm)| **norm > 0) {
            let median = sorted[(sorted.len() - 1) / 2];
            let weight = u128::from(*weight) * (1 << 24) / weight_sum;
            let clip = (1 << 24).min((median << 24) / norm);
            let factor = (weight * clip) >> 24;
            for (index, units) in of_tensor(update) {
                sums[index] += factor as i128 * i128::from(units);
                senders[index] += weight as i128;
            }
        }
        start += length;
    }
    let cut = |value: i128| value.clamp(-i128::from(i32::MAX), i128::from(i32::MAX)) as i32;
    let times = |value: i128, factor: u32| rounded(value * i128::from(factor), 1 << 16);
    let mut residual = outer.residual.clone();
    let mut momentum = outer.momentum.clone();
    for index in 0..total {
        let floor = (i128::from(settings.denominator_floor_q16) << 8).max(1);
        let mut step = rounded(sums[index], senders[index].max(floor));
        if let (Some(momentum), Some(decay)) = (&mut momentum, settings.momentum_q16) {
            momentum[index] = cut(times(momentum[index].into(), decay) + step);
            step += times(momentum[index].into(), decay);
        }
        residual[index] = cut(i128::from(residual[index]) + times(step, settings.outer_rate_q16));
    }
    (residual, momentum)
}

fn random_state(random: &mut Random, total: usize, momentum: bool) -> OuterState {
    let mut vector = || (0..total).map(|_| random.next() as i32 >> 12).collect();
    let residual = vector();
    OuterState {
        residual,
        momentum: momentum.then(vector),
    }
}

#[test]
fn merge_is_that_of_the_plain_version() {
    let mut random = Random::new(21);
    let total = LENGTHS.iter().sum();
    let (some, many, all) = (
        sparse(4096, 64),
        sparse(4096, 1000),
        dense(4096, DenseWidth::Eight),
    );
    let wide = dense(4096, DenseWidth::Sixteen);
    let cases: [&[UpdateSettings]; 6] = [
        &[some],
        &[some; 7],
        &[many; 4],
        &[all; 3],
        &[some, many, all, wide, some],
        &[wide; 2],
    ];
    for settings in cases {
        let updates = random_updates(&mut random, LENGTHS, settings);
        for (rate, momentum_q16, floor) in [
            (ONE_Q16, None, ONE_Q16 / 2),
            (ONE_Q16 * 7 / 10, Some(ONE_Q16 * 9 / 10), ONE_Q16),
            (16 * ONE_Q16, None, 0),
            (1, Some(0), 1),
        ] {
            let settings = MergeSettings {
                outer_rate_q16: rate,
                momentum_q16,
                denominator_floor_q16: floor,
                ..MergeSettings::default()
            };
            let before = random_state(&mut random, total, momentum_q16.is_some());
            let mut outer = before.clone();
            let report = merge(&weighted(&updates), &settings, &mut outer).unwrap();
            let (residual, momentum) = plain_merge(&updates, &settings, &before);
            assert!(
                outer.residual == residual && outer.momentum == momentum,
                "{settings:?}"
            );
            assert_eq!(report.saturated, 0);
            assert_eq!(report.updates.len(), updates.len());
            assert!(
                report
                    .updates
                    .iter()
                    .map(|update| update.weight_q24)
                    .sum::<u32>()
                    <= ONE_Q24
            );
        }
    }
}

#[test]
fn the_order_of_updates_changes_nothing() {
    let mut random = Random::new(22);
    let total = LENGTHS.iter().sum();
    let mut updates = random_updates(&mut random, LENGTHS, &[sparse(4096, 128); 9]);
    let settings = MergeSettings {
        momentum_q16: Some(ONE_Q16 / 2),
        ..MergeSettings::default()
    };
    let (start, before) = (
        random.normals(total, 0.02),
        random_state(&mut random, total, true),
    );
    let (mut theta, mut outer) = (start.clone(), before.clone());
    let first = merge_round(&mut theta, &mut outer, &updates, &settings).unwrap();
    for _ in 0..5 {
        for index in (1..updates.len()).rev() {
            updates.swap(index, random.below(index + 1));
        }
        let (mut theta_again, mut outer_again) = (start.clone(), before.clone());
        let again = merge_round(&mut theta_again, &mut outer_again, &updates, &settings).unwrap();
        assert_eq!(again.delta_bytes, first.delta_bytes);
        assert_eq!(parameters_hash(&theta_again), parameters_hash(&theta));
        assert_eq!(outer_again.hash(), outer.hash());
    }
}

#[test]
fn one_update_alone_is_taken_as_it_is() {
    let mut random = Random::new(23);
    let updates = random_updates(&mut random, LENGTHS, &[sparse(4096, 128)]);
    let mut outer = OuterState::new(LENGTHS.iter().sum(), false);
    let report = merge(&weighted(&updates), &MergeSettings::default(), &mut outer).unwrap();
    updates[0]
        .0
        .for_each(|index, units| assert_eq!(std::mem::take(&mut outer.residual[index]), units));
    assert!(outer.residual.iter().all(|&units| units == 0));
    let report = report.updates[0];
    assert_eq!(report.norm, updates[0].0.norm());
    assert_eq!(
        (
            report.weight_q24,
            report.tensors_clipped,
            report.clip_factor_min_q24
        ),
        (ONE_Q24, 0, ONE_Q24)
    );
    assert_eq!(
        u128::from(report.norm),
        root(updates[0].0.squared_norms().iter().sum())
    );
}

#[test]
fn a_lonely_coordinate_is_divided_by_the_floor() {
    let settings = sparse(4, 1);
    let update = |values: &[f32]| {
        decode(&encode(&[4], &settings, values).unwrap(), &[4], &settings).unwrap()
    };
    // Equal norms, nothing is clipped; the first coordinate has three of four senders, the second one.
    let (first, second) = (
        update(&[0.5, 0.0, 0.0, 0.0]),
        update(&[0.0, -0.5, 0.0, 0.0]),
    );
    let updates = [
        (first.clone(), 10),
        (first.clone(), 10),
        (second, 10),
        (first, 10),
    ];
    let mut outer = OuterState::new(4, false);
    merge(&weighted(&updates), &MergeSettings::default(), &mut outer).unwrap();
    assert_eq!(outer.residual, [1 << 29, -(1 << 28), 0, 0]);
}

#[test]
fn norms_are_exact_and_large_updates_are_clipped() {
    let mut random = Random::new(24);
    for settings in [
        sparse(4096, 128),
        sparse(64, 9),
        dense(100, DenseWidth::Eight),
        dense(4096, DenseWidth::Sixteen),
    ] {
        let update = random_updates(&mut random, LENGTHS, &[settings])
            .remove(0)
            .0;
        let mut expected = vec![0u128; LENGTHS.len()];
        let ends: Vec<usize> = LENGTHS
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        for (index, units) in values(&update) {
            let tensor = ends.iter().position(|&end| index < end).unwrap();
            expected[tensor] += u128::from(units.unsigned_abs()) * u128::from(units.unsigned_abs());
        }
        assert_eq!(update.squared_norms(), expected);
    }
    for square in [
        0,
        1,
        2,
        3,
        4,
        99,
        1 << 90,
        (1 << 100) - 1,
        u128::from(random.next()).pow(2),
    ] {
        assert_eq!(u128::from(norm(square)), root(square));
    }
    let newcomers = |norms: &[u64]| median(norms.iter().map(|&norm| (norm, 0)));
    assert_eq!(newcomers(&[]), 0);
    assert_eq!(newcomers(&[0, 0]), 0);
    assert_eq!(newcomers(&[7, 0, 0]), 7);
    assert_eq!(newcomers(&[9, 3]), 3, "the lower of two");
    assert_eq!(newcomers(&[9, 3, 5, 0]), 5);
    assert_eq!(median([(9, 1), (3, 0)]), 9, "the known one's");
    assert_eq!(median([(9, 5), (3, 3)]), 3, "not clearly more known");
    assert_eq!(median([(9, 0), (3, 1)]), 3);
    assert_eq!(
        median([(9, 4), (3, 4), (5, 1), (8, 6)]),
        8,
        "the upper half's"
    );
    assert_eq!(
        median([(9, 9), (3, 0), (5, 0)]),
        5,
        "no half: the middle one"
    );
    assert_eq!(clip_factor_q24(0, 5), ONE_Q24);
    assert_eq!(clip_factor_q24(5, 5), ONE_Q24);
    assert_eq!(clip_factor_q24(15, 5), ONE_Q24 / 3);
    assert_eq!(clip_factor_q24(u64::MAX, 1), 0);
    let factors = clip_factors_q24(&[vec![4, 0], vec![2, 8], vec![1, 4]], &[0; 3]);
    assert_eq!(
        factors,
        [
            [ONE_Q24 / 2, ONE_Q24],
            [ONE_Q24, ONE_Q24 / 2],
            [ONE_Q24, ONE_Q24]
        ]
    );
}

#[test]
fn an_update_a_thousand_times_too_large_counts_like_the_others() {
    let mut random = Random::new(25);
    let lengths = [4096];
    let settings = sparse(4096, 128);
    let direction = random.normals(4096, 1e-4);
    let scaled = |factor: f32| {
        let values: Vec<f32> = direction.iter().map(|value| value * factor).collect();
        decode(
            &encode(&lengths, &settings, &values).unwrap(),
            &lengths,
            &settings,
        )
        .unwrap()
    };
    let merged = |updates: &[(DecodedUpdate, u64)]| {
        let mut outer = OuterState::new(4096, false);
        let report = merge(&weighted(updates), &MergeSettings::default(), &mut outer).unwrap();
        (outer.residual, report)
    };
    let (honest, _) = merged(&[(scaled(1.0), 1), (scaled(1.0), 1), (scaled(1.0), 1)]);
    let (attacked, report) = merged(&[(scaled(1.0), 1), (scaled(1000.0), 1), (scaled(1.0), 1)]);
    assert_eq!(report.updates[1].tensors_clipped, 1);
    assert!(
        report.updates[1]
            .clip_factor_min_q24
            .abs_diff(ONE_Q24 / 1000)
            < 200
    );
    for (honest, attacked) in honest.iter().zip(&attacked) {
        assert!(honest.abs_diff(*attacked) as f32 <= honest.unsigned_abs() as f32 * 0.01 + 1.0);
    }
}

#[test]
fn saturation_is_counted_and_bounded() {
    let settings = dense(4, DenseWidth::Eight);
    let update = decode(
        &encode(&[4], &settings, &[0.9; 4]).unwrap(),
        &[4],
        &settings,
    )
    .unwrap();
    let full = MergeSettings {
        outer_rate_q16: 16 * ONE_Q16,
        ..MergeSettings::default()
    };
    let mut outer = OuterState {
        residual: vec![0, i32::MAX, -i32::MAX, -5],
        momentum: None,
    };
    let report = merge(
        &[Weighted {
            update: &update,
            weight: 1,
            standing: 0,
        }],
        &full,
        &mut outer,
    )
    .unwrap();
    assert_eq!(outer.residual, [i32::MAX; 4]);
    assert_eq!(report.saturated, 4);
}

#[test]
fn what_cannot_be_merged_is_refused_and_changes_nothing() {
    let mut random = Random::new(26);
    let updates = random_updates(&mut random, &[100], &[sparse(64, 9), sparse(64, 9)]);
    let other_chunk = random_updates(&mut random, &[100], &[sparse(32, 9)]).remove(0);
    let other_model = random_updates(&mut random, &[50, 50], &[sparse(64, 9)]).remove(0);
    let good = MergeSettings::default();
    let check = |updates: &[(DecodedUpdate, u64)],
                 settings: MergeSettings,
                 before: &OuterState,
                 expected| {
        let mut outer = before.clone();
        let mut theta = vec![1.0; 100];
        assert_eq!(
            merge(&weighted(updates), &settings, &mut outer).unwrap_err(),
            expected
        );
        assert_eq!(
            merge_round(&mut theta, &mut outer, updates, &settings).unwrap_err(),
            expected
        );
        assert!(outer == *before && theta == [1.0; 100]);
    };
    let zero = OuterState::new(100, false);
    check(&[], good, &zero, MergeError::NoUpdates);
    let silent = [updates[0].clone(), (updates[1].0.clone(), 0)];
    check(&silent, good, &zero, MergeError::ZeroWeight { update: 1 });
    check(
        &[updates[0].clone(), other_chunk],
        good,
        &zero,
        MergeError::ShapeMismatch { update: 1 },
    );
    check(
        &[updates[0].clone(), other_model],
        good,
        &zero,
        MergeError::ShapeMismatch { update: 1 },
    );
    check(
        &updates,
        good,
        &OuterState::new(99, false),
        MergeError::Length {
            expected: 100,
            found: 99,
        },
    );
    check(
        &updates,
        good,
        &OuterState::new(100, true),
        MergeError::Momentum,
    );
    let momentum = MergeSettings {
        momentum_q16: Some(1),
        ..good
    };
    check(&updates, momentum, &zero, MergeError::Momentum);
    let short = OuterState {
        momentum: Some(vec![0; 7]),
        ..zero.clone()
    };
    check(
        &updates,
        momentum,
        &short,
        MergeError::Length {
            expected: 100,
            found: 7,
        },
    );
    for (settings, expected) in [
        (
            MergeSettings {
                outer_rate_q16: 0,
                ..good
            },
            SettingsError::OuterRate { rate_q16: 0 },
        ),
        (
            MergeSettings {
                outer_rate_q16: 1 << 21,
                ..good
            },
            SettingsError::OuterRate { rate_q16: 1 << 21 },
        ),
        (
            MergeSettings {
                momentum_q16: Some(ONE_Q16),
                ..good
            },
            SettingsError::Momentum {
                momentum_q16: ONE_Q16,
            },
        ),
        (
            MergeSettings {
                denominator_floor_q16: ONE_Q16 + 1,
                ..good
            },
            SettingsError::DenominatorFloor {
                floor_q16: ONE_Q16 + 1,
            },
        ),
        (
            MergeSettings {
                delta: DeltaSettings::Sparse(SparseSettings { chunk: 4, kept: 5 }),
                ..good
            },
            SettingsError::Kept { kept: 5, chunk: 4 },
        ),
    ] {
        check(&updates, settings, &zero, MergeError::Settings(expected));
    }
    let mut theta = vec![0.0; 99];
    let result = merge_round(&mut theta, &mut zero.clone(), &updates, &good);
    assert_eq!(
        result.unwrap_err(),
        MergeError::Length {
            expected: 100,
            found: 99
        }
    );
}

/// A few rounds of each kind: the hashes that every platform must reach.
#[test]
fn golden_rounds() {
    let check = |update: UpdateSettings, settings: MergeSettings, expected: [&str; 3]| {
        let mut random = Random::new(27);
        let total = LENGTHS.iter().sum();
        let mut theta = random.normals(total, 0.02);
        let mut outer = OuterState::new(total, settings.momentum_q16.is_some());
        let mut deltas = Vec::new();
        for _ in 0..3 {
            let updates = random_updates(&mut random, LENGTHS, &[update; 5]);
            deltas.extend(
                merge_round(&mut theta, &mut outer, &updates, &settings)
                    .unwrap()
                    .delta_bytes,
            );
        }
        let found = [
            blake3::hash(&deltas).into(),
            parameters_hash(&theta),
            outer.hash(),
        ];
        assert_eq!(found.map(|hash: [u8; 32]| hex(&hash[..8])), expected);
    };
    check(
        UpdateSettings::default(),
        MergeSettings::default(),
        ["da472e73877938ef", "36b86b479ce59e57", "36d9d1fd30837a6e"],
    );
    let wide = DenseSettings {
        chunk: 4096,
        width: DenseWidth::Sixteen,
    };
    let nesterov = MergeSettings {
        outer_rate_q16: ONE_Q16 * 7 / 10,
        momentum_q16: Some(ONE_Q16 * 9 / 10),
        denominator_floor_q16: ONE_Q16,
        delta: DeltaSettings::Dense(wide),
    };
    check(
        dense(4096, DenseWidth::Eight),
        nesterov,
        ["6e31e5e0ddef90b2", "95d05adb0460e0c7", "6c65f642f70fa74f"],
    );
}

#[test]
fn updates_that_come_in_pieces_give_the_same_bits() {
    let mut random = Random::new(31);
    for momentum_q16 in [None, Some(50_000)] {
        let codecs = [sparse(64, 8), dense(64, DenseWidth::Eight), sparse(64, 20)];
        let updates = random_updates(&mut random, LENGTHS, &codecs);
        let settings = MergeSettings {
            momentum_q16,
            ..MergeSettings::default()
        };
        let total = LENGTHS.iter().sum();
        let mut whole = OuterState::new(total, momentum_q16.is_some());
        let report = merge(&weighted(&updates), &settings, &mut whole).unwrap();
        let mut norms = Norms::default();
        for (update, _) in &updates {
            norms.push(update).unwrap();
        }
        let found: Vec<u64> = norms.whole().collect();
        let expected: Vec<u64> = updates.iter().map(|it| it.0.norm()).collect();
        assert_eq!(found, expected);
        let share = |it: &(DecodedUpdate, u64)| Share {
            weight: it.1,
            standing: 0,
        };
        let shares: Vec<Share> = updates.iter().map(share).collect();
        for bytes_max in [0, 1, 500, 3_000, usize::MAX] {
            let mut outer = OuterState::new(total, momentum_q16.is_some());
            let mut merging = Merging::begin(norms.clone(), &shares, &settings, &outer).unwrap();
            let windows = merging.windows(bytes_max);
            assert_eq!(windows.len() == 1, bytes_max == usize::MAX);
            for window in windows {
                // The first is there as a whole.
                let pieces: Vec<_> = updates[1..].iter().map(|it| it.0.piece(&window)).collect();
                let others = pieces.iter().map(|it| it.as_ref());
                let all: Vec<_> = [updates[0].0.whole()].into_iter().chain(others).collect();
                merging.add(&window, &all, &mut outer);
            }
            assert_eq!(merging.finish(), report, "{bytes_max} bytes");
            assert_eq!(outer, whole, "{bytes_max} bytes");
        }
    }
}
