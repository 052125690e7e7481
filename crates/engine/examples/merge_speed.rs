//! Measures the update path on one core: encode, decode, merge, delta. Prints one `name value` a line.
//!
//! `cargo run --profile dev -p engine --example merge_speed [parameters] [updates]`; the engine is optimised in that
//! profile too. `merge_mcoord_per_s` counts sent values, in millions, and includes norms, clips, division and the
//! residual; each figure is the best of a few runs.
#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::time::Instant;

use engine::update::codec::{decode, encode};
use engine::update::delta::{Delta, apply_delta};
use engine::update::hash::parameters_hash;
use engine::update::merge::{Weighted, merge};
use engine::update::outer::OuterState;
use engine::update::settings::{MergeSettings, SparseSettings, UpdateSettings};

const RUNS: usize = 5;

/// The least of a few times, in seconds, and the last result.
fn best<T>(mut work: impl FnMut() -> T) -> (f64, T) {
    let mut timed = || {
        let start = Instant::now();
        let result = work();
        (start.elapsed().as_secs_f64(), result)
    };
    let (mut seconds, mut result) = timed();
    for _ in 1..RUNS {
        let (again, latest) = timed();
        seconds = seconds.min(again);
        result = latest;
    }
    (seconds, result)
}

/// Nearly normal values from a counter: the sum of four bytes.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: u64 = state
            .to_le_bytes()
            .iter()
            .map(|&byte| u64::from(byte))
            .sum();
        (sum as f32 - 1020.0) * 1e-5
    };
    (0..count).map(|_| value()).collect()
}

fn main() {
    let argument = |at: usize, otherwise: usize| {
        std::env::args()
            .nth(at)
            .map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let (parameters, updates) = (argument(1, 16_000_000), argument(2, 16));
    let lengths = [parameters];
    let million = parameters as f64 / 1e6;
    for kept in [128, 64] {
        let settings = UpdateSettings::Sparse(SparseSettings { chunk: 4096, kept });
        let accumulated = values(1, parameters);
        let (encode_s, bytes) =
            best(|| encode(&lengths, &settings, &accumulated).expect("finite values"));
        let (decode_s, first) = best(|| decode(&bytes, &lengths, &settings).expect("own bytes"));
        println!("kept {kept}");
        println!(
            "update_bytes_per_parameter {:.5}",
            bytes.len() as f64 / parameters as f64
        );
        println!("encode_mparameters_per_s {:.1}", million / encode_s);
        println!(
            "decode_mcoord_per_s {:.1}",
            first.sent() as f64 / 1e6 / decode_s
        );

        let mut decoded = vec![first];
        decoded.extend((1..updates as u64).map(|seed| {
            let bytes =
                encode(&lengths, &settings, &values(seed + 1, parameters)).expect("finite values");
            decode(&bytes, &lengths, &settings).expect("own bytes")
        }));
        let weighted: Vec<_> = decoded
            .iter()
            .map(|update| Weighted {
                update,
                weight: 1000,
                standing: 0,
            })
            .collect();
        let sent: usize = decoded.iter().map(|update| update.sent()).sum();
        let merge_settings = MergeSettings::default();
        let mut outer = OuterState::new(parameters, false);
        let (merge_s, _) =
            best(|| merge(&weighted, &merge_settings, &mut outer).expect("updates of one model"));
        println!("merge_mcoord_per_s {:.1}", sent as f64 / 1e6 / merge_s);

        let (take_s, delta) =
            best(|| Delta::take(&lengths, &merge_settings.delta, &mut outer.residual.clone()));
        let (delta_encode_s, delta_bytes) = best(|| delta.encode());
        let (delta_decode_s, _) = best(|| {
            Delta::decode(&delta_bytes, &lengths, &merge_settings.delta).expect("own bytes")
        });
        let mut theta = values(0, parameters);
        let (apply_s, ()) = best(|| apply_delta(&mut theta, &delta));
        println!(
            "delta_bytes_per_parameter {:.5}",
            delta_bytes.len() as f64 / parameters as f64
        );
        println!("delta_take_mparameters_per_s {:.1}", million / take_s);
        println!(
            "delta_encode_mcoord_per_s {:.1}",
            delta.sent() as f64 / 1e6 / delta_encode_s
        );
        println!(
            "delta_decode_mcoord_per_s {:.1}",
            delta.sent() as f64 / 1e6 / delta_decode_s
        );
        println!(
            "delta_apply_mcoord_per_s {:.1}",
            delta.sent() as f64 / 1e6 / apply_s
        );
    }
    let theta = values(0, parameters);
    let (hash_s, _) = best(|| parameters_hash(&theta));
    println!("hash_mb_per_s {:.0}", million * 4.0 / hash_s);
}
