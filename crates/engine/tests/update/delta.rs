//! The delta against its definition, its sizes, and the parameters that it gives.

use engine::update::chunks::Chunks;
use engine::update::delta::{Delta, apply_delta, delta_bytes_max};
use engine::update::settings::{DeltaSettings, DenseSettings, DenseWidth, SparseSettings};

use crate::random::{LENGTHS, Random, hex};
use crate::refusals::delta_settings;

/// Residuals of all sizes, zeros and the extremes among them.
fn random_residual(random: &mut Random, total: usize) -> Vec<i32> {
    let size = random.below(32);
    (0..total)
        .map(|_| match random.below(500) {
            0 => i32::MAX,
            1 => -i32::MAX,
            2..100 => 0,
            _ => ((random.next() as i32).max(-i32::MAX) / 4) >> size,
        })
        .collect()
}

#[test]
fn residual_and_delta_are_the_residual_before() {
    let mut random = Random::new(31);
    let total: usize = LENGTHS.iter().sum();
    for settings in delta_settings() {
        for _ in 0..12 {
            let before = random_residual(&mut random, total);
            let mut after = before.clone();
            let delta = Delta::take(LENGTHS, &settings, &mut after);
            let mut sum: Vec<i64> = after.iter().map(|&units| units.into()).collect();
            let mut sent = 0;
            delta.for_each(|index, units| {
                sum[index] += units;
                sent += 1;
            });
            assert!(
                sum.iter()
                    .zip(&before)
                    .all(|(&sum, &before)| sum == i64::from(before))
            );
            assert_eq!(sent, delta.sent());
            assert!(!after.contains(&i32::MIN));
            let bytes = delta.encode();
            assert_eq!(Delta::decode(&bytes, LENGTHS, &settings).unwrap(), delta);
            assert!(bytes.len() <= delta_bytes_max(LENGTHS, &settings));
        }
    }
}

#[test]
fn repeated_deltas_publish_everything() {
    let mut random = Random::new(32);
    let lengths = [1000, 24];
    for settings in delta_settings() {
        let mut residual: Vec<i32> = (0..1024).map(|_| random.next() as i32 >> 9).collect();
        let kept_one_in = match settings {
            DeltaSettings::Sparse(sparse) => sparse.chunk.div_ceil(sparse.kept),
            DeltaSettings::Dense(_) => 1,
        };
        let rounds = 12 * kept_one_in as usize;
        for _ in 0..rounds {
            Delta::take(&lengths, &settings, &mut residual);
        }
        assert!(residual.iter().all(|&units| units == 0), "{settings:?}");
    }
}

#[test]
fn sparse_deltas_send_the_largest_of_each_chunk() {
    let mut random = Random::new(33);
    let settings = SparseSettings {
        chunk: 4096,
        kept: 512,
    };
    let total = LENGTHS.iter().sum();
    let before: Vec<i32> = random
        .normals(total, 1e6)
        .iter()
        .map(|&value| value as i32)
        .collect();
    let mut after = before.clone();
    let delta = Delta::take(LENGTHS, &DeltaSettings::Sparse(settings), &mut after);
    let mut sent = vec![0i64; total];
    delta.for_each(|index, units| sent[index] = units);
    for span in Chunks::new(LENGTHS, 4096).spans() {
        let range = span.start..span.start + span.length;
        let mut order: Vec<usize> = range.clone().collect();
        order.sort_by_key(|&index| (std::cmp::Reverse(before[index].unsigned_abs()), index));
        let (kept, left) = order.split_at(settings.kept_of(span.length));
        assert!(left.iter().all(|&index| sent[index] == 0));
        for &index in kept {
            let (value, sent) = (i64::from(before[index]), sent[index]);
            // The largest of this many normal values spread over less than the levels' range.
            assert!(
                sent.signum() == value.signum()
                    && sent.abs() * 3 >= value.abs()
                    && sent.abs() <= value.abs() * 2
            );
        }
    }
}

#[test]
fn sizes_meet_the_budget() {
    let mut random = Random::new(34);
    let settings = DeltaSettings::Sparse(SparseSettings {
        chunk: 4096,
        kept: 512,
    });
    let mut residual: Vec<i32> = random
        .normals(1 << 20, 1e6)
        .iter()
        .map(|&value| value as i32)
        .collect();
    let delta = Delta::take(&[1 << 20], &settings, &mut residual);
    let size = delta.encode().len() as f64 / f64::from(1 << 20);
    assert!(size < 0.133, "{size}");
    assert!(delta_bytes_max(&[1 << 20], &settings) as f64 / f64::from(1 << 20) < 0.1415);
}

/// One rounding a parameter, the same as in f64 followed by a cast (f64 holds sums of these exactly or rounds them
/// innocuously: 53 ≥ 2 · 24 + 2 bits).
#[test]
fn parameters_change_by_one_rounding() {
    let mut random = Random::new(35);
    let total = LENGTHS.iter().sum();
    for settings in delta_settings() {
        for scale in [1.0, 0.02, 1e-6, 1e-20, 1e-41] {
            let before = random.normals(total, scale);
            let delta = Delta::take(LENGTHS, &settings, &mut random_residual(&mut random, total));
            let mut theta = before.clone();
            apply_delta(&mut theta, &delta);
            let mut expected = before.clone();
            delta.for_each(|index, units| {
                let change = units as f64 / f64::from(1 << 30);
                expected[index] = (f64::from(before[index]) - change) as f32;
            });
            assert!(
                theta
                    .iter()
                    .zip(&expected)
                    .all(|(theta, expected)| theta.to_bits() == expected.to_bits())
            );
        }
    }
}

#[test]
fn golden_bytes() {
    let residual = [
        1 << 20,
        -(3 << 18),
        0,
        5,
        1 << 17,
        -(1 << 19),
        3,
        -9,
        1 << 30,
        -1,
    ];
    let check = |settings: DeltaSettings, expected: &str, left: [i32; 10]| {
        let mut residual = residual;
        assert_eq!(
            hex(&Delta::take(&[8, 2], &settings, &mut residual).encode()),
            expected
        );
        assert_eq!(residual, left, "{settings:?}");
    };
    let sparse = DeltaSettings::Sparse(SparseSettings { chunk: 8, kept: 4 });
    check(
        sparse,
        "4148646501010800000004000000020000000a00000000000000639d847757",
        [0, 0, 0, 5, 0, 0, 3, -9, 0, -1],
    );
    let dense = |width| DeltaSettings::Dense(DenseSettings { chunk: 8, width });
    check(
        dense(DenseWidth::Eight),
        "4148646501020800000008000000020000000a000000000000001108fa000001fc0000184000",
        [0, 0, 0, 5, 0, 0, 3, -9, 0, -1],
    );
    check(
        dense(DenseWidth::Sixteen),
        "4148646501020800000010000000020000000a00000000000000101000f4ff000000000200f8ff000000001000400000",
        [0, 0, 0, 5, 0, 0, 3, -9, 0, -1],
    );
}
