//! Round trips, sizes, golden bytes and error feedback.

use engine::update::codec::{EncodeError, decode, encode, update_bytes_max};
use engine::update::decoded::DecodedUpdate;
use engine::update::feedback::{accumulate, compress, subtract_decoded};
use engine::update::settings::{
    DenseSettings, DenseWidth, SettingsError, SparseSettings, UpdateSettings,
};

use crate::random::{LENGTHS, Random, hex};

pub(crate) fn sparse(chunk: u32, kept: u32) -> UpdateSettings {
    UpdateSettings::Sparse(SparseSettings { chunk, kept })
}

pub(crate) fn dense(chunk: u32, width: DenseWidth) -> UpdateSettings {
    UpdateSettings::Dense(DenseSettings { chunk, width })
}

/// Settings that between them reach every branch of both codecs.
pub(crate) fn all_settings() -> Vec<UpdateSettings> {
    let of_sparse = [
        (4096, 128),
        (4096, 64),
        (4096, 1),
        (4096, 4096),
        (64, 7),
        (1, 1),
        (16_384, 16),
        (1000, 333),
    ];
    let mut settings: Vec<_> = of_sparse
        .into_iter()
        .map(|(chunk, kept)| sparse(chunk, kept))
        .collect();
    settings.extend([4096, 100, 1].map(|chunk| dense(chunk, DenseWidth::Eight)));
    settings.extend([4096, 100, 1].map(|chunk| dense(chunk, DenseWidth::Sixteen)));
    settings
}

pub(crate) fn values(update: &DecodedUpdate) -> Vec<(usize, i32)> {
    let mut values = Vec::new();
    update.for_each(|index, units| values.push((index, units)));
    values
}

/// The sparse codec written down plainly, in f64 and with a full sort.
fn plain_sparse(
    lengths: &[usize],
    settings: SparseSettings,
    accumulated: &[f32],
) -> Vec<(usize, i32)> {
    let mut values = Vec::new();
    let mut start = 0;
    for &length in lengths {
        for offset in (0..length).step_by(settings.chunk as usize) {
            let end = length.min(offset + settings.chunk as usize);
            let kept = (settings.kept as usize * (end - offset)).div_ceil(settings.chunk as usize);
            let mut order: Vec<usize> = (start + offset..start + end).collect();
            order.sort_by(|&a, &b| {
                accumulated[b]
                    .abs()
                    .total_cmp(&accumulated[a].abs())
                    .then(a.cmp(&b))
            });
            order.truncate(kept);
            order.sort();
            let units =
                |index: usize| (f64::from(accumulated[index]) * 2f64.powi(30)).round() as i64;
            order.retain(|&index| units(index) != 0);
            let mean = order.iter().map(|&index| units(index).abs()).sum::<i64>() as f64
                / order.len() as f64;
            let (high, low): (Vec<usize>, Vec<usize>) = order
                .iter()
                .partition(|&&index| units(index).abs() as f64 > mean);
            for group in [high, low] {
                let sum = group.iter().map(|&index| units(index).abs()).sum::<i64>();
                let mean = (sum as f64 / group.len() as f64).round();
                let step = 2f64.powi((mean.log2().floor() as i32 - 7).max(0));
                let magnitude = ((mean / step).round() * step) as i32;
                values.extend(
                    group
                        .iter()
                        .map(|&index| (index, magnitude * units(index).signum() as i32)),
                );
            }
        }
        start += length;
    }
    values.sort();
    values
}

#[test]
fn sparse_values_are_those_of_the_plain_version() {
    let mut random = Random::new(1);
    let total = LENGTHS.iter().sum();
    for (chunk, kept) in [(4096, 128), (4096, 64), (64, 7), (1000, 333)] {
        for scale in [1e-2, 1e-4, 1e-7] {
            let accumulated = random.normals(total, scale);
            let bytes = encode(LENGTHS, &sparse(chunk, kept), &accumulated).unwrap();
            let update = decode(&bytes, LENGTHS, &sparse(chunk, kept)).unwrap();
            assert_eq!(
                values(&update),
                plain_sparse(LENGTHS, SparseSettings { chunk, kept }, &accumulated)
            );
            assert_eq!(update.sent(), values(&update).len());
        }
    }
}

#[test]
fn what_is_decoded_encodes_to_the_same_bytes() {
    let mut random = Random::new(2);
    let total: usize = LENGTHS.iter().sum();
    for settings in all_settings() {
        for scale in [0.2, 1e-3, 1e-8, 3e-10, 0.0] {
            let accumulated = random.normals(total, scale);
            let bytes = encode(LENGTHS, &settings, &accumulated).unwrap();
            assert!(
                bytes.len() <= update_bytes_max(LENGTHS, &settings),
                "{settings:?} {scale}"
            );
            let update = decode(&bytes, LENGTHS, &settings).unwrap();
            let decoded = to_floats(&update, total);
            assert_eq!(
                encode(LENGTHS, &settings, &decoded).unwrap(),
                bytes,
                "{settings:?} {scale}"
            );
        }
    }
}

fn to_floats(update: &DecodedUpdate, total: usize) -> Vec<f32> {
    let mut decoded = vec![0.0; total];
    update.for_each(|index, units| decoded[index] = units as f32 / (1u32 << 30) as f32);
    decoded
}

#[test]
fn dense_values_err_by_half_a_step() {
    let mut random = Random::new(3);
    let total: usize = LENGTHS.iter().sum();
    for (width, levels) in [(DenseWidth::Eight, 127.0), (DenseWidth::Sixteen, 32767.0)] {
        let accumulated = random.normals(total, 1e-2);
        let settings = dense(4096, width);
        let update = decode(
            &encode(LENGTHS, &settings, &accumulated).unwrap(),
            LENGTHS,
            &settings,
        )
        .unwrap();
        assert_eq!(update.sent(), total);
        for (span, decoded) in update
            .chunks()
            .spans()
            .map(|span| (span, to_floats(&update, total)))
        {
            let range = span.start..span.start + span.length;
            let largest = accumulated[range.clone()]
                .iter()
                .fold(0.0f32, |largest, value| largest.max(value.abs()));
            for index in range {
                // The scale is the power of two that holds the largest: at most twice the least possible one.
                let error = (decoded[index] - accumulated[index]).abs();
                assert!(
                    error <= largest / levels + 1e-9,
                    "{index}: {error} of {largest}"
                );
            }
        }
    }
}

#[test]
fn sizes_meet_the_budget() {
    let mut random = Random::new(4);
    let lengths = [1_000_000];
    let accumulated = random.normals(lengths[0], 1e-3);
    let size = |settings| {
        encode(&lengths, &settings, &accumulated).unwrap().len() as f64 / lengths[0] as f64
    };
    let (of_128, of_64) = (size(sparse(4096, 128)), size(sparse(4096, 64)));
    assert!(of_128 < 0.0345, "{of_128}");
    assert!(of_64 < 0.0198, "{of_64}");
    // Whatever the positions are, the budget holds.
    assert!(update_bytes_max(&lengths, &sparse(4096, 128)) as f64 / 1e6 < 0.0368);
    assert!(update_bytes_max(&lengths, &sparse(4096, 64)) as f64 / 1e6 < 0.0213);
}

#[test]
fn the_longest_update_is_within_its_bound() {
    let mut random = Random::new(5);
    for settings in all_settings() {
        // Values at the end, at the start and far apart: the longest runs of zeros.
        for shape in 0..4 {
            let length = 1 + random.below(6000);
            let accumulated: Vec<f32> = (0..length)
                .map(|index| match shape {
                    0 => index as f32,
                    1 => (length - index) as f32,
                    2 if index % 37 == 0 => 3.0 + (index % 2) as f32,
                    3 if index + 9 > length => 1.0 + index as f32,
                    _ => 0.0,
                } / 1e5)
                .collect();
            let bytes = encode(&[length], &settings, &accumulated).unwrap();
            assert!(
                bytes.len() <= update_bytes_max(&[length], &settings),
                "{settings:?}, {length}, {shape}"
            );
            assert!(decode(&bytes, &[length], &settings).is_ok());
        }
    }
}

#[test]
fn error_feedback_loses_nothing() {
    let mut random = Random::new(6);
    let total: usize = LENGTHS.iter().sum();
    for settings in all_settings() {
        let base = random.normals(total, 0.02);
        let theta: Vec<f32> = base
            .iter()
            .map(|base| base - random.normal() * 1e-3)
            .collect();
        let before = random.normals(total, 1e-4);
        let mut accumulated = before.clone();
        accumulate(&mut accumulated, &base, &theta, 0.95);
        for index in 0..total {
            assert_eq!(
                accumulated[index],
                0.95f32 * before[index] + (base[index] - theta[index])
            );
        }
        let bytes = encode(LENGTHS, &settings, &accumulated).unwrap();
        let update = decode(&bytes, LENGTHS, &settings).unwrap();
        let mut error = accumulated.clone();
        subtract_decoded(&mut error, &update);
        let decoded = to_floats(&update, total);
        for index in 0..total {
            let sum = f64::from(decoded[index]) + f64::from(error[index]);
            let rounding =
                f64::from(accumulated[index].abs().max(error[index].abs())) * 2f64.powi(-24);
            assert!((sum - f64::from(accumulated[index])).abs() <= rounding);
        }
        let mut compressed = before;
        assert_eq!(
            compress(LENGTHS, &settings, &mut compressed, &base, &theta, 0.95).unwrap(),
            bytes
        );
        assert_eq!(compressed, error);
    }
}

#[test]
fn large_values_are_cut_and_small_ones_are_not_sent() {
    let settings = sparse(8, 4);
    let check = |accumulated: &[f32], expected: &[(usize, i32)]| {
        let bytes = encode(&[accumulated.len()], &settings, accumulated).unwrap();
        assert_eq!(
            values(&decode(&bytes, &[accumulated.len()], &settings).unwrap()),
            expected
        );
    };
    check(
        &[0.0, 5.0, -f32::MAX, 0.0],
        &[(1, 255 << 22), (2, -(255 << 22))],
    );
    check(&[1e-10, -0.0, 1e-9, -1e-9], &[(2, 1), (3, -1)]);
    check(&[0.5, 0.5, -0.5, 0.5], &[(0, 1 << 29), (1, 1 << 29)]);
    check(&[0.5, 0.25, 0.125, 0.125], &[(0, 1 << 29), (1, 1 << 28)]);
    check(&[], &[]);
}

#[test]
fn bad_input_is_refused() {
    let settings = sparse(8, 4);
    let check = |settings: UpdateSettings, accumulated: &[f32], expected| {
        assert_eq!(encode(&[3], &settings, accumulated).unwrap_err(), expected);
    };
    check(
        settings,
        &[0.0, f32::NAN, f32::INFINITY],
        EncodeError::NotFinite { index: 1 },
    );
    check(
        settings,
        &[0.0, 0.0, f32::NEG_INFINITY],
        EncodeError::NotFinite { index: 2 },
    );
    check(
        settings,
        &[0.0],
        EncodeError::Length {
            expected: 3,
            found: 1,
        },
    );
    check(
        sparse(0, 1),
        &[0.0; 3],
        EncodeError::Settings(SettingsError::Chunk { chunk: 0 }),
    );
    check(
        sparse(16_385, 1),
        &[0.0; 3],
        EncodeError::Settings(SettingsError::Chunk { chunk: 16_385 }),
    );
    check(
        sparse(8, 0),
        &[0.0; 3],
        EncodeError::Settings(SettingsError::Kept { kept: 0, chunk: 8 }),
    );
    check(
        sparse(8, 9),
        &[0.0; 3],
        EncodeError::Settings(SettingsError::Kept { kept: 9, chunk: 8 }),
    );
    check(
        dense(0, DenseWidth::Eight),
        &[0.0; 3],
        EncodeError::Settings(SettingsError::Chunk { chunk: 0 }),
    );
}

#[test]
fn golden_bytes() {
    let accumulated = [0.5, -0.25, 0.0, 1e-9, -0.125, 0.0, 0.0625, 0.0, 0.75, -0.5];
    let check = |settings: UpdateSettings, expected: &str| {
        assert_eq!(
            hex(&encode(&[8, 2], &settings, &accumulated).unwrap()),
            expected,
            "{settings:?}"
        );
    };
    check(
        sparse(8, 4),
        "4148757001010800000004000000020000000a00000000000000812770ed9904b60020",
    );
    check(
        dense(8, DenseWidth::Eight),
        "4148757001020800000008000000020000000a000000000000001740e00000f00008001760c0",
    );
    check(
        dense(8, DenseWidth::Sixteen),
        "4148757001020800000010000000020000000a000000000000000f004000e00000000000f00000000800000f006000c0",
    );
}

#[test]
fn settings_read_from_a_charter() {
    let read = |text: &str| serde_json::from_str::<UpdateSettings>(text);
    assert_eq!(
        read(r#"{"sparse":{"chunk":4096,"kept":128}}"#).unwrap(),
        UpdateSettings::default()
    );
    assert_eq!(
        read(r#"{"dense":{"chunk":4096,"width":"eight"}}"#).unwrap(),
        dense(4096, DenseWidth::Eight)
    );
    assert!(read(r#"{"sparse":{"chunk":4096,"kept":128,"keep":1}}"#).is_err());
}
