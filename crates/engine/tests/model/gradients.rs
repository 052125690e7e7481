//! The engine's gradient against central differences of the plain f64 model, for every kind of parameter.

use engine::train::Trainer;

use crate::{plain, sample};

/// Step of the differences: their own error is about its square.
const STEP: f64 = 1e-4;
/// Elements of each tensor that are checked.
const ELEMENTS: usize = 5;

fn check(shape: [usize; 7], tied: bool, rows: usize) {
    let config = sample::config(shape, tied);
    let sequence = shape[6];
    let tokens = sample::tokens(5, rows * (sequence + 1), shape[0]);
    let mut trainer = Trainer::new(&config, rows, sequence, 1);
    trainer
        .parameters_mut()
        .copy_from_slice(&sample::parameters(&config));
    let mut wide: Vec<f64> = trainer
        .parameters()
        .iter()
        .copied()
        .map(f64::from)
        .collect();
    let (loss, gradient) = trainer
        .loss_and_gradient(&tokens)
        .expect("a batch that fits");
    let plain_loss = plain::loss(&config, &wide, &tokens, sequence);
    assert!(
        (f64::from(loss) - plain_loss).abs() < 1e-6 * plain_loss,
        "loss {loss}, plain {plain_loss}"
    );
    for tensor in config.layout().tensors {
        let own = &gradient[tensor.offset..tensor.offset + tensor.len()];
        let scale = own
            .iter()
            .fold(0.0f32, |largest, value| largest.max(value.abs()));
        assert!(scale > 0.0, "{} has no gradient", tensor.name);
        for element in 0..ELEMENTS {
            let index = (element * 7919 + 3) % tensor.len();
            let at = tensor.offset + index;
            let value = wide[at];
            let mut side = |moved: f64| {
                wide[at] = value + moved;
                plain::loss(&config, &wide, &tokens, sequence)
            };
            let difference = (side(STEP) - side(-STEP)) / (2.0 * STEP);
            wide[at] = value;
            let error = (f64::from(own[index]) - difference).abs();
            assert!(
                error < 2e-5 * f64::from(scale) + 1e-8,
                "{} {index}: gradient {}, difference {difference}, largest {scale}",
                tensor.name,
                own[index]
            );
        }
    }
}

#[test]
fn tied_with_one_key_value_head_per_head() {
    check([23, 16, 20, 2, 2, 2, 9], true, 2);
}

#[test]
fn untied_with_grouped_heads() {
    check([19, 24, 14, 2, 6, 2, 11], false, 3);
}

#[test]
fn one_head_one_layer_two_positions() {
    check([7, 4, 3, 1, 1, 1, 2], true, 1);
}

#[test]
fn several_query_blocks() {
    check([11, 8, 9, 1, 2, 1, 130], false, 1);
}

#[test]
fn several_key_blocks() {
    check([11, 4, 5, 1, 1, 1, 270], true, 1);
}
