//! Equal inputs give equal bits: twice, with any number of threads, and after resuming.

use engine::ModelConfig;
use engine::batch::BatchError;
use engine::evaluate::Evaluator;
use engine::train::{OptimizerSettings, TrainError, Trainer};

use crate::sample;

const SEQUENCE: usize = 70;
const ROWS: usize = 9;

/// Large enough for several tiles, tasks and chunks of every kernel.
fn config() -> ModelConfig {
    sample::config([1100, 96, 130, 2, 6, 3, SEQUENCE], true)
}

fn trainer(threads: usize) -> Trainer {
    let config = config();
    let mut trainer = Trainer::new(&config, ROWS, SEQUENCE, threads);
    trainer
        .parameters_mut()
        .copy_from_slice(&sample::parameters(&config));
    trainer
}

/// Steps `first..last`; returns the bits of each loss and norm.
fn steps(trainer: &mut Trainer, first: u64, last: u64) -> Vec<(u32, u32)> {
    let settings = OptimizerSettings::default();
    (first..last)
        .map(|step| {
            let tokens = sample::tokens(50 + step, ROWS * (SEQUENCE + 1), 1100);
            let report = trainer
                .step(&tokens, 1e-3, &settings)
                .expect("a finite step");
            (report.loss.to_bits(), report.gradient_norm.to_bits())
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn same_state(left: &Trainer, right: &Trainer, what: &str) {
    assert!(
        bits(left.parameters()) == bits(right.parameters()),
        "parameters differ: {what}"
    );
    assert!(
        bits(&left.inner_state().m) == bits(&right.inner_state().m),
        "first moments differ: {what}"
    );
    assert!(
        bits(&left.inner_state().v) == bits(&right.inner_state().v),
        "second moments differ: {what}"
    );
}

#[test]
fn any_number_of_threads() {
    let mut one = trainer(1);
    let reports = steps(&mut one, 0, 3);
    for threads in [1, 2, 3] {
        let mut other = trainer(threads);
        assert_eq!(steps(&mut other, 0, 3), reports, "{threads} threads");
        same_state(&one, &other, &format!("{threads} threads"));
    }
}

#[test]
fn resuming_from_parameters_and_state() {
    let mut whole = trainer(1);
    let reports = steps(&mut whole, 0, 5);
    let mut first = trainer(1);
    let mut joined = steps(&mut first, 0, 2);
    let mut second = Trainer::new(&config(), ROWS, SEQUENCE, 2);
    second.parameters_mut().copy_from_slice(first.parameters());
    second.set_inner_state(first.inner_state().clone());
    joined.extend(steps(&mut second, 2, 5));
    assert_eq!(joined, reports);
    same_state(&whole, &second, "resumed");
}

#[test]
fn evaluation_with_any_number_of_threads_and_rows() {
    let (config, tokens) = (config(), sample::tokens(9, 5 * (SEQUENCE + 1), 1100));
    let parameters = sample::parameters(&config);
    let one = Evaluator::new(&config, 5, SEQUENCE, 1)
        .token_losses(&parameters, &tokens)
        .expect("whole rows");
    for (rows, threads) in [(5, 2), (5, 3), (2, 1), (1, 1)] {
        let mut evaluator = Evaluator::new(&config, rows, SEQUENCE, threads);
        let other = evaluator
            .token_losses(&parameters, &tokens)
            .expect("whole rows");
        assert!(
            bits(&one) == bits(&other),
            "{rows} rows at a time, {threads} threads"
        );
    }
}

#[test]
fn a_refused_step_changes_nothing() {
    let mut trainer = trainer(1);
    steps(&mut trainer, 0, 1);
    let (parameters, state) = (trainer.parameters().to_vec(), trainer.inner_state().clone());
    let settings = OptimizerSettings::default();
    let tokens = sample::tokens(1, ROWS * (SEQUENCE + 1), 1100);
    let mut foreign = tokens.clone();
    foreign[17] = 1100;
    let refused = [
        trainer.step(&tokens[1..], 1e-3, &settings),
        trainer.step(&[], 1e-3, &settings),
        trainer.step(
            &[tokens.as_slice(), &tokens[..SEQUENCE + 1]].concat(),
            1e-3,
            &settings,
        ),
        trainer.step(&foreign, 1e-3, &settings),
    ];
    for (number, result) in refused.iter().enumerate() {
        let token = matches!(
            result,
            Err(TrainError::Batch(BatchError::Token { token: 1100, .. }))
        );
        let size = matches!(result, Err(TrainError::Batch(BatchError::Size { .. })));
        assert!(if number == 3 { token } else { size }, "{result:?}");
    }
    trainer.parameters_mut()[5] = f32::NAN;
    let damaged = trainer.step(&tokens, 1e-3, &settings);
    assert!(
        matches!(damaged, Err(TrainError::NotFinite { .. })),
        "{damaged:?}"
    );
    trainer.parameters_mut()[5] = parameters[5];
    assert!(trainer.parameters() == parameters && *trainer.inner_state() == state);
}

#[test]
fn a_smaller_batch_uses_its_own_rows_only() {
    let config = config();
    let tokens = sample::tokens(3, 2 * (SEQUENCE + 1), 1100);
    let mut roomy = trainer(1);
    steps(&mut roomy, 0, 1);
    roomy
        .parameters_mut()
        .copy_from_slice(&sample::parameters(&config));
    let mut exact = Trainer::new(&config, 2, SEQUENCE, 1);
    exact
        .parameters_mut()
        .copy_from_slice(&sample::parameters(&config));
    let (loss, gradient) = roomy.loss_and_gradient(&tokens).expect("fewer rows");
    let (exact_loss, exact_gradient) = exact.loss_and_gradient(&tokens).expect("two rows");
    assert_eq!(loss.to_bits(), exact_loss.to_bits());
    assert!(bits(gradient) == bits(exact_gradient));
}

#[test]
fn the_memory_plan_grows_as_its_parts_do() {
    let config = config();
    let parameters = 4 * 4 * config.parameter_count();
    let one = Trainer::memory_bytes(&config, 1, SEQUENCE);
    let nine = Trainer::memory_bytes(&config, ROWS, SEQUENCE);
    assert!(one > parameters && nine > one);
    // What a position of each layer keeps, in floats: two normalised rows, the attention's output, q, k and v, gate and
    // up, two reciprocals, and two statistics for each head.
    let kept = 3 * 96 + (96 + 2 * 48) + 2 * 130 + 2 + 2 * 6;
    assert!(
        nine - one > 4 * 2 * kept * SEQUENCE * (ROWS - 1),
        "{nine} - {one}"
    );
}
