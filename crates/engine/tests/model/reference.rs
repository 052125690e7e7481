//! Losses, gradients, logits and 200 training steps against PyTorch and transformers (`fixtures/reference.json`).

use std::sync::Arc;

use engine::ModelConfig;
use engine::evaluate::Evaluator;
use engine::generate::Generator;
use engine::train::{OptimizerSettings, Trainer};
use serde::Deserialize;

use crate::sample;

#[derive(Deserialize)]
struct Document {
    cases: Vec<Case>,
    curve: Curve,
}

#[derive(Deserialize)]
struct Shape {
    name: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    sequence: usize,
    rows: usize,
    rope_theta: f32,
    tie_word_embeddings: bool,
}

#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    shape: Shape,
    losses: Vec<f32>,
    last_logits: Vec<f32>,
    gradients: Vec<Gradient>,
}

#[derive(Deserialize)]
struct Gradient {
    name: String,
    norm: f64,
    product: f64,
    elements: Vec<f64>,
}

#[derive(Deserialize)]
struct Curve {
    #[serde(flatten)]
    shape: Shape,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
    clip_norm: f32,
    learning_rate: f32,
    losses: Vec<f32>,
    norms: Vec<f32>,
}

fn document() -> Document {
    serde_json::from_str(include_str!("../../fixtures/reference.json"))
        .expect("the committed fixture")
}

fn config(shape: &Shape) -> ModelConfig {
    let sizes = [
        shape.vocab_size,
        shape.hidden_size,
        shape.intermediate_size,
        shape.num_hidden_layers,
        shape.num_attention_heads,
        shape.num_key_value_heads,
        shape.sequence,
    ];
    ModelConfig {
        rope_theta: shape.rope_theta,
        ..sample::config(sizes, shape.tie_word_embeddings)
    }
}

#[test]
fn losses_and_gradients_agree_with_pytorch() {
    for case in document().cases {
        let (shape, config) = (&case.shape, config(&case.shape));
        let tokens = sample::tokens(2, shape.rows * (shape.sequence + 1), shape.vocab_size);
        let mut trainer = Trainer::new(&config, shape.rows, shape.sequence, 1);
        trainer
            .parameters_mut()
            .copy_from_slice(&sample::parameters(&config));
        let (loss, gradient) = trainer
            .loss_and_gradient(&tokens)
            .expect("a batch that fits");
        let mean = case.losses.iter().sum::<f32>() / case.losses.len() as f32;
        assert!(
            (loss - mean).abs() < 2e-6 * mean,
            "{}: loss {loss}, PyTorch {mean}",
            shape.name
        );
        for (number, (spec, expected)) in config
            .layout()
            .tensors
            .iter()
            .zip(&case.gradients)
            .enumerate()
        {
            assert_eq!(spec.name, expected.name);
            let own = &gradient[spec.offset..spec.offset + spec.len()];
            let direction = sample::uniform(100 + number as u64, own.len());
            let product: f64 = own
                .iter()
                .zip(&direction)
                .map(|(&g, &d)| f64::from(g) * f64::from(d))
                .sum();
            let norm = own
                .iter()
                .map(|&g| f64::from(g) * f64::from(g))
                .sum::<f64>()
                .sqrt();
            // Rounding of f32 sums on both sides: 2e-5 of the tensor's norm.
            let tolerance = 2e-5 * expected.norm;
            let place = format!("{}, {}", shape.name, spec.name);
            assert!(
                (norm - expected.norm).abs() < tolerance,
                "{place}: norm {norm}, PyTorch {}",
                expected.norm
            );
            assert!(
                (product - expected.product).abs() < 2.0 * tolerance,
                "{place}: product {product}, PyTorch {}",
                expected.product
            );
            for (index, &element) in expected.elements.iter().enumerate() {
                let own = f64::from(own[index * 37 % own.len()]);
                assert!(
                    (own - element).abs() < tolerance,
                    "{place}: element {own}, PyTorch {element}"
                );
            }
        }
    }
}

#[test]
fn token_losses_and_logits_agree_with_transformers() {
    for case in document().cases {
        let (shape, config) = (&case.shape, config(&case.shape));
        let tokens = sample::tokens(2, shape.rows * (shape.sequence + 1), shape.vocab_size);
        let parameters = Arc::new(sample::parameters(&config));
        // One row at a time, so that the last batch is smaller than the buffers in one of the cases.
        let mut evaluator = Evaluator::new(&config, 2, shape.sequence, 1);
        let losses = evaluator
            .token_losses(&parameters, &tokens)
            .expect("whole rows");
        assert_eq!(losses.len(), case.losses.len());
        for (own, theirs) in losses.iter().zip(&case.losses) {
            assert!(
                (own - theirs).abs() < 2e-5,
                "{}: loss {own}, PyTorch {theirs}",
                shape.name
            );
        }
        let sum = evaluator
            .loss_sum(&parameters, &tokens)
            .expect("whole rows");
        assert_eq!(sum.tokens as usize, losses.len());
        assert!(
            (sum.mean() - losses.iter().copied().map(f64::from).sum::<f64>() / losses.len() as f64)
                .abs()
                < 1e-12
        );

        let generator = Generator::new(&config, parameters).expect("parameters that fit");
        let mut session = generator.session();
        session.prefill(&tokens[..shape.sequence]).expect("room");
        let logits = session.logits().expect("a prompt");
        for (own, theirs) in logits.iter().zip(&case.last_logits) {
            assert!(
                (own - theirs).abs() < 2e-5,
                "{}: logit {own}, transformers {theirs}",
                shape.name
            );
        }
    }
}

#[test]
fn two_hundred_steps_follow_pytorch() {
    let curve = document().curve;
    let (shape, config) = (&curve.shape, config(&curve.shape));
    let settings = OptimizerSettings {
        beta1: curve.beta1,
        beta2: curve.beta2,
        epsilon: curve.epsilon,
        weight_decay: curve.weight_decay,
        clip_norm: curve.clip_norm,
    };
    let mut trainer = Trainer::new(&config, shape.rows, shape.sequence, 1);
    trainer
        .parameters_mut()
        .copy_from_slice(&sample::parameters(&config));
    let mut largest = 0.0f32;
    for (step, (&loss, &norm)) in curve.losses.iter().zip(&curve.norms).enumerate() {
        let tokens = sample::tokens(
            1000 + step as u64,
            shape.rows * (shape.sequence + 1),
            shape.vocab_size,
        );
        let report = trainer
            .step(&tokens, curve.learning_rate, &settings)
            .expect("a finite step");
        largest = largest.max((report.loss - loss).abs());
        // Rounding differences grow as both sides learn; a wrong bias correction, decay or clip is off by more than
        // 1e-2 within ten steps.
        let bound = 2e-6 + 5e-6 * step as f32;
        assert!(
            (report.loss - loss).abs() < bound,
            "step {step}: loss {}, PyTorch {loss}",
            report.loss
        );
        assert!(
            (report.gradient_norm - norm).abs() < 10.0 * bound,
            "step {step}: norm {} {norm}",
            report.gradient_norm
        );
    }
    assert_eq!(trainer.inner_state().step, 200);
    assert!(
        curve.losses[199] < 0.5 * curve.losses[0],
        "the curve learns"
    );
    assert!(largest < 1e-3, "largest difference {largest}");
}
