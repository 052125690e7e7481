//! Each kernel against a plain f64 version over odd shapes.

use super::matmul::{Operand, Shape, Write, matmul};
use super::rotary::Rotary;
use super::{adamw, attention, cross_entropy, norm, swiglu, vector};
use crate::arithmetic::Family;
use crate::arithmetic::tests::with_each_family;
use crate::layout::SplitMix;
use crate::threads::Threads;

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut generator = SplitMix::new(seed);
    (0..len).map(|_| generator.uniform() * 2.0 - 1.0).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// Fails if any element is off by more than `tolerance` of the largest.
fn close(own: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(own.len(), expected.len(), "{what}");
    let scale = expected
        .iter()
        .fold(1e-30f64, |largest, value| largest.max(value.abs()));
    for (index, (&own, expected)) in own.iter().zip(expected).enumerate() {
        let error = (f64::from(own) - expected).abs();
        assert!(
            error <= tolerance * scale,
            "{what}, element {index}: {own}, plain {expected}, largest {scale}"
        );
    }
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let mut worst = 0.0f64;
    for step in 0..200_000 {
        let x = -87.3 + step as f32 * (175.6 / 200_000.0);
        let exact = f64::from(x).exp();
        worst = worst.max(((f64::from(vector::exp(x)) - exact) / exact).abs());
    }
    assert!(
        worst < 2.0 * f64::from(f32::EPSILON),
        "worst relative error {worst}"
    );
    assert!(vector::exp(0.0) == 1.0 && vector::exp(f32::NAN).is_nan());
    assert!(
        vector::exp(-1e9) < 1.3e-38
            && vector::exp(1e9).is_finite()
            && vector::exp(f32::NEG_INFINITY) < 1.3e-38
    );
}

#[test]
fn reductions() {
    for len in [0, 1, 15, 16, 17, 5000] {
        let values = random(len as u64, len);
        let expected: f64 = wide(&values).iter().map(|value| value * value).sum();
        assert!((vector::sum_of_squares(&values) - expected).abs() <= 1e-6 * expected);
        let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(vector::max_lanes(&values), largest);
    }
}

#[test]
fn matrix_products() {
    let shapes = [
        (1, 1, 1),
        (1, 7, 3),
        (5, 1, 9),
        (33, 17, 2),
        (64, 64, 64),
        (3, 5, 1100),
        (700, 9, 40),
        (4, 2100, 31),
    ];
    for (seed, &(rows, columns, depth)) in shapes.iter().enumerate() {
        for threads in [1, 2] {
            for transposed in [false, true] {
                let threads = Threads::new(threads);
                let (a, b) = (
                    random(seed as u64, rows * depth),
                    random(seed as u64 + 50, depth * columns),
                );
                let before = random(seed as u64 + 90, rows * columns);
                let at = |row: usize, step: usize| {
                    if transposed {
                        a[step * rows + row]
                    } else {
                        a[row * depth + step]
                    }
                };
                let expected: Vec<f64> = (0..rows * columns)
                    .map(|cell| {
                        let (row, column) = (cell / columns, cell % columns);
                        let product =
                            |step| f64::from(at(row, step)) * f64::from(b[step * columns + column]);
                        (0..depth).map(product).sum()
                    })
                    .collect();
                let left = if transposed {
                    Operand::transposed(&a, rows)
                } else {
                    Operand::rows(&a, depth)
                };
                let shape = Shape {
                    rows,
                    columns,
                    depth,
                };
                let mut out = before.clone();
                matmul(
                    &threads,
                    shape,
                    &mut out,
                    Write::Replace,
                    left,
                    Operand::rows(&b, columns),
                );
                close(&out, &expected, 1e-6, "replaced");
                out.copy_from_slice(&before);
                matmul(
                    &threads,
                    shape,
                    &mut out,
                    Write::Accumulate,
                    left,
                    Operand::rows(&b, columns),
                );
                let summed: Vec<f64> = expected
                    .iter()
                    .zip(wide(&before))
                    .map(|(sum, before)| sum + before)
                    .collect();
                close(&out, &summed, 1e-6, "accumulated");
            }
        }
    }
}

#[test]
fn norms() {
    let threads = Threads::new(2);
    for (rows, width) in [(1, 1), (1, 5), (3, 16), (65, 33), (130, 7)] {
        let (x, gains, upstream) = (
            random(1, rows * width),
            random(2, width),
            random(3, rows * width),
        );
        let (mut normalised, mut reciprocal) = (vec![0.0; rows * width], vec![0.0; rows]);
        let mut out = vec![0.0; rows * width];
        let kept = norm::Kept {
            normalised: &mut normalised,
            reciprocal: &mut reciprocal,
        };
        norm::forward(&threads, &x, &gains, 1e-5, kept, &mut out);
        let mut again = vec![0.0; rows * width];
        norm::recompute(&threads, &normalised, &gains, &mut again);
        assert_eq!(out, again);
        let before = random(4, rows * width);
        let (mut input, mut gains_gradient) = (before.clone(), vec![9.0; width]);
        let mut partial = vec![0.0; rows.div_ceil(norm::TASK_ROWS) * width];
        let saved = norm::Saved {
            gains: &gains,
            normalised: &normalised,
            reciprocal: &reciprocal,
        };
        let into = norm::Target {
            input: &mut input,
            write: Write::Accumulate,
            partial: &mut partial,
            gains: &mut gains_gradient,
        };
        norm::backward(&threads, &saved, &upstream, into);

        let (x, gains, upstream) = (wide(&x), wide(&gains), wide(&upstream));
        let (mut forward, mut backward, mut by_gain) = (vec![], wide(&before), vec![0.0; width]);
        for row in 0..rows {
            let x = &x[row * width..(row + 1) * width];
            let upstream = &upstream[row * width..(row + 1) * width];
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt();
            let dot: f64 = (0..width).map(|i| gains[i] * upstream[i] * x[i]).sum();
            for i in 0..width {
                forward.push(x[i] * r * gains[i]);
                backward[row * width + i] +=
                    r * gains[i] * upstream[i] - x[i] * r.powi(3) * dot / width as f64;
                by_gain[i] += upstream[i] * x[i] * r;
            }
        }
        close(&out, &forward, 1e-6, "norm forward");
        close(&input, &backward, 2e-5, "norm backward");
        close(&gains_gradient, &by_gain, 1e-5, "norm gains");
    }
}

#[test]
fn swiglu_and_its_gradient() {
    let threads = Threads::new(2);
    for (rows, width) in [(1, 1), (3, 17), (40, 33)] {
        let mut gate_up: Vec<f32> = random(7, 2 * rows * width)
            .iter()
            .map(|value| value * 12.0)
            .collect();
        let upstream = random(8, rows * width);
        let (mut forward, mut gradient) = (vec![], vec![0.0; 2 * rows * width]);
        for (cell, &upstream) in upstream.iter().enumerate() {
            let (row, column) = (cell / width, cell % width);
            let at = 2 * row * width + column;
            let (g, u) = (f64::from(gate_up[at]), f64::from(gate_up[at + width]));
            let sigmoid = 1.0 / (1.0 + (-g).exp());
            forward.push(g * sigmoid * u);
            gradient[at] = f64::from(upstream) * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
            gradient[at + width] = f64::from(upstream) * g * sigmoid;
        }
        let mut out = vec![0.0; rows * width];
        swiglu::forward(&threads, width, &gate_up, &mut out);
        close(&out, &forward, 1e-6, "swiglu forward");
        let mut activation = upstream.clone();
        swiglu::backward(&threads, width, &mut gate_up, &mut activation);
        close(&activation, &forward, 1e-6, "swiglu recomputed");
        close(&gate_up, &gradient, 1e-6, "swiglu backward");
    }
}

#[test]
fn swiglu_survives_extremes() {
    let gate_up = [-1e30, -200.0, 200.0, 1e30, 1.0, 1.0, 1.0, 1.0];
    let mut out = [0.0; 4];
    swiglu::forward(&Threads::new(1), 4, &gate_up, &mut out);
    assert!(
        out.iter().all(|value| value.is_finite()) && out[1].abs() < 1e-30 && out[2] == 200.0,
        "{out:?}"
    );
}

#[test]
fn cross_entropy_and_its_gradient() {
    let threads = Threads::new(2);
    for (rows, vocabulary) in [(1, 1), (1, 3), (9, 17), (20, 300)] {
        let logits: Vec<f32> = random(9, rows * vocabulary)
            .iter()
            .map(|value| value * 20.0)
            .collect();
        let targets: Vec<u32> = (0..rows)
            .map(|row| (row * 31 % vocabulary) as u32)
            .collect();
        let scale = 0.25f32;
        let (mut expected, mut gradient) = (vec![], vec![]);
        for (row, &target) in wide(&logits).chunks_exact(vocabulary).zip(&targets) {
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            expected.push(sum.ln() - row[target as usize]);
            for (token, logit) in row.iter().enumerate() {
                let hit = if token == target as usize { 1.0 } else { 0.0 };
                gradient.push((logit.exp() / sum - hit) * f64::from(scale));
            }
        }
        let (mut own, mut losses) = (logits.clone(), vec![0.0; rows]);
        cross_entropy::loss_and_gradient(
            &threads,
            vocabulary,
            &mut own,
            &targets,
            scale,
            &mut losses,
        );
        close(&losses, &expected, 1e-6, "loss");
        close(&own, &gradient, 1e-6, "logit gradient");
    }
}

#[test]
fn rotation_turns_back_and_keeps_lengths() {
    let rotary = Rotary::new(50, 6, 100.0);
    let head = random(1, 6);
    for position in [0, 1, 49] {
        let mut turned = head.clone();
        rotary.turn(&mut turned, position);
        let lengths: Vec<f64> = (0..3)
            .map(|i| f64::from(turned[i]).hypot(f64::from(turned[i + 3])))
            .collect();
        let before: Vec<f32> = (0..3).map(|i| head[i].hypot(head[i + 3])).collect();
        close(&before, &lengths, 1e-6, "length");
        let angle = f64::from(position as u32) / 100f64.powf(2.0 / 6.0);
        let (a, b) = (f64::from(head[1]), f64::from(head[4]));
        close(
            &[turned[1]],
            &[a * angle.cos() - b * angle.sin()],
            1e-5,
            "pair",
        );
        rotary.turn_back(&mut turned, position);
        close(&turned, &wide(&head), 1e-6, "turned back");
    }
}

/// Plain causal attention without rotation; returns the output of one head at all positions.
fn plain_head(queries: &[Vec<f64>], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let size = queries[0].len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let one = |position: usize| {
        let scores: Vec<f64> = (0..=position)
            .map(|key| (dot(&queries[position], &keys[key]) / (size as f64).sqrt()).exp())
            .collect();
        let total: f64 = scores.iter().sum();
        (0..size)
            .map(|i| {
                scores
                    .iter()
                    .zip(values)
                    .map(|(score, value)| score * value[i])
                    .sum::<f64>()
                    / total
            })
            .collect()
    };
    (0..queries.len()).map(one).collect()
}

#[test]
fn attention_forward() {
    // Gradients of attention are checked by differences of the whole model.
    for (sequence, heads, key_value_heads, head_size) in
        [(1, 1, 1, 2), (5, 3, 1, 4), (65, 2, 2, 6), (300, 4, 2, 2)]
    {
        let heads = attention::Heads {
            sequence,
            heads,
            key_value_heads,
            head_size,
        };
        let (sequences, stride) = (2, heads.stride());
        // A tiny base keeps the angle 0 at position 0 only, so rotation is applied by hand below.
        let rotary = Rotary::new(sequence, head_size, 1000.0);
        let mut qkv: Vec<f32> = random(3, sequences * sequence * stride)
            .iter()
            .map(|value| value * 2.0)
            .collect();
        let original = qkv.clone();
        let mut out = vec![0.0; sequences * sequence * heads.width()];
        let mut statistics = vec![0.0; sequences * sequence * heads.heads * 2];
        let threads = Threads::new(2);
        let mut scratch = vec![0.0; threads.count() * attention::SCRATCH];
        attention::forward(
            &threads,
            heads,
            &rotary,
            &mut qkv,
            &mut out,
            &mut statistics,
            &mut scratch,
        );
        for sequence_index in 0..sequences {
            let column = |column: usize, turned: bool| -> Vec<Vec<f64>> {
                let row = |position: usize| {
                    let start = (sequence_index * sequence + position) * stride + column;
                    let mut head = original[start..start + head_size].to_vec();
                    if turned {
                        rotary.turn(&mut head, position);
                    }
                    wide(&head)
                };
                (0..sequence).map(row).collect()
            };
            for head in 0..heads.heads {
                let shared = head / (heads.heads / key_value_heads);
                let keys = column((heads.heads + shared) * head_size, true);
                let values = column((heads.heads + key_value_heads + shared) * head_size, false);
                let expected = plain_head(&column(head * head_size, true), &keys, &values);
                for (position, expected) in expected.iter().enumerate() {
                    let start =
                        (sequence_index * sequence + position) * heads.width() + head * head_size;
                    let what = format!("sequence {sequence}, head {head}, position {position}");
                    close(&out[start..start + head_size], expected, 1e-5, &what);
                }
            }
        }
    }
}

#[test]
fn adamw_steps() {
    let threads = Threads::new(2);
    for len in [1, 17, adamw::TASK_ELEMENTS + 5] {
        let mut weights = random(1, len);
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let (mut plain, mut plain_m, mut plain_v) =
            (wide(&weights), vec![0.0; len], vec![0.0; len]);
        let (beta1, beta2, epsilon, rate, decay, clip) =
            (0.9f64, 0.95f64, 1e-8f64, 0.01f64, 0.1f64, 0.5f64);
        for step in 1..=3 {
            let gradient = random(10 + step, len);
            let (correction1, correction2) =
                (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
            let update = adamw::Update {
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                epsilon: epsilon as f32,
                step_size: (rate / correction1) as f32,
                root_correction: (1.0 / correction2.sqrt()) as f32,
                clip: clip as f32,
                keep: (1.0 - rate * decay) as f32,
            };
            adamw::update(&threads, update, &mut weights, &mut m, &mut v, &gradient);
            for index in 0..len {
                let g = f64::from(gradient[index]) * clip;
                plain_m[index] = beta1 * plain_m[index] + (1.0 - beta1) * g;
                plain_v[index] = beta2 * plain_v[index] + (1.0 - beta2) * g * g;
                let denominator = (plain_v[index] / correction2).sqrt() + epsilon;
                plain[index] -=
                    rate * decay * plain[index] + rate / correction1 * plain_m[index] / denominator;
            }
        }
        close(&weights, &plain, 1e-6, "weights");
        close(&m, &plain_m, 1e-6, "first moment");
        close(&v, &plain_v, 1e-6, "second moment");
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    const ROWS: usize = 5;
    const WIDTH: usize = 67;
    let threads = Threads::new(1);
    let mut seen: Vec<(Family, Vec<u32>)> = vec![];
    with_each_family(|family| {
        let mut all = vec![];
        let x: Vec<f32> = random(1, ROWS * WIDTH)
            .iter()
            .map(|value| value * 9.0)
            .collect();
        let (mut normalised, mut reciprocal) = (vec![0.0; ROWS * WIDTH], vec![0.0; ROWS]);
        let mut out = vec![0.0; ROWS * WIDTH];
        let kept = norm::Kept {
            normalised: &mut normalised,
            reciprocal: &mut reciprocal,
        };
        norm::forward(&threads, &x, &random(2, WIDTH), 1e-5, kept, &mut out);
        all.extend_from_slice(&out);

        let (mut input, mut gains) = (vec![0.0; ROWS * WIDTH], vec![0.0; WIDTH]);
        let weights = random(2, WIDTH);
        let saved = norm::Saved {
            gains: &weights,
            normalised: &normalised,
            reciprocal: &reciprocal,
        };
        let mut partial = vec![0.0; WIDTH];
        let into = norm::Target {
            input: &mut input,
            write: Write::Replace,
            partial: &mut partial,
            gains: &mut gains,
        };
        norm::backward(&threads, &saved, &random(3, ROWS * WIDTH), into);
        all.extend(input);
        all.extend(gains);

        let (mut gate_up, mut activation) = (random(4, 2 * ROWS * WIDTH), random(5, ROWS * WIDTH));
        swiglu::backward(&threads, WIDTH, &mut gate_up, &mut activation);
        all.extend(gate_up);
        all.extend(activation);

        let (mut logits, mut losses) = (x.clone(), vec![0.0; ROWS]);
        cross_entropy::loss_and_gradient(
            &threads,
            WIDTH,
            &mut logits,
            &[0, 9, 66, 3, 1],
            0.1,
            &mut losses,
        );
        all.extend(logits);
        all.extend(losses);

        let (mut w, mut m, mut v) = (random(6, 999), random(7, 999), vec![0.1; 999]);
        let update = adamw::Update {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            step_size: 0.01,
            root_correction: 1.1,
            clip: 0.7,
            keep: 0.99,
        };
        adamw::update(&threads, update, &mut w, &mut m, &mut v, &random(8, 999));
        all.extend(w);
        all.extend(m);
        all.extend(v);
        all.push(vector::sum_of_squares(&x) as f32);

        let past = attention::Past {
            keys: &x,
            values: &out,
            stride: WIDTH,
        };
        let (mut scores, mut head) = (vec![0.0; ROWS], vec![0.0; 24]);
        attention::attend_one(past, &random(9, 24), &mut scores, &mut head);
        all.extend(head);
        seen.push((family, all.iter().map(|value| value.to_bits()).collect()));
    });
    for (family, bits) in &seen[1..] {
        assert!(
            *bits == seen[0].1,
            "{family:?} differs from {:?}",
            seen[0].0
        );
    }
}
