//! Generation: cache against full forward, sampling, stops and limits.

use std::sync::Arc;

use engine::ModelConfig;
use engine::generate::{Completion, Finish, GenerateError, Generator, SamplingSettings};

use crate::sample;

const CONTEXT: usize = 90;

fn config() -> ModelConfig {
    sample::config([61, 32, 40, 2, 4, 2, CONTEXT], false)
}

fn generator() -> Generator {
    let config = config();
    let parameters = Arc::new(sample::parameters(&config));
    Generator::new(&config, parameters).expect("parameters that fit")
}

#[test]
fn the_cache_agrees_with_a_full_forward() {
    let generator = generator();
    let tokens = sample::tokens(4, CONTEXT, 61);
    let mut step_by_step = generator.session();
    for len in 1..=CONTEXT {
        step_by_step.prefill(&tokens[len - 1..len]).expect("room");
        if len % 13 == 0 || len == CONTEXT {
            let mut at_once = generator.session();
            at_once.prefill(&tokens[..len]).expect("room");
            let expected = at_once.logits().expect("a prompt").to_vec();
            let cached = step_by_step.logits().expect("a prompt");
            for (cached, expected) in cached.iter().zip(&expected) {
                assert!(
                    (cached - expected).abs() < 1e-5,
                    "{len} tokens: {cached}, at once {expected}"
                );
            }
        }
    }
}

#[test]
fn drawn_tokens_become_part_of_the_text() {
    let generator = generator();
    let mut session = generator.session();
    session.prefill(&[1, 2, 3]).expect("room");
    let settings = SamplingSettings {
        temperature: 0.8,
        top_p: 0.9,
        seed: 5,
    };
    let drawn: Vec<u32> = (0..10)
        .map(|_| session.next_token(&settings).expect("room"))
        .collect();
    assert_eq!(session.len(), 13);
    let mut again = generator.session();
    again
        .prefill(&[[1, 2, 3].as_slice(), &drawn].concat())
        .expect("room");
    let expected = again.logits().expect("a prompt").to_vec();
    for (own, expected) in session.logits().expect("a prompt").iter().zip(&expected) {
        assert!((own - expected).abs() < 1e-5);
    }
}

fn completion(settings: &SamplingSettings) -> Vec<u32> {
    let mut session = generator().session();
    session.prefill(&[7, 8]).expect("room");
    session
        .complete(settings, 40, &[])
        .expect("a completion")
        .tokens
}

#[test]
fn a_seed_repeats_and_another_differs() {
    let settings = SamplingSettings {
        temperature: 1.0,
        top_p: 0.95,
        seed: 11,
    };
    assert_eq!(completion(&settings), completion(&settings));
    assert_ne!(
        completion(&settings),
        completion(&SamplingSettings {
            seed: 12,
            ..settings
        })
    );
}

#[test]
fn temperature_zero_and_tiny_top_p_take_the_likeliest() {
    let greedy = completion(&SamplingSettings::default());
    assert_eq!(
        greedy,
        completion(&SamplingSettings {
            temperature: 1.0,
            top_p: 1e-6,
            seed: 3
        })
    );
    let mut session = generator().session();
    session.prefill(&[7, 8]).expect("room");
    let logits = session.logits().expect("a prompt");
    assert!(
        logits
            .iter()
            .all(|&logit| logit <= logits[greedy[0] as usize])
    );
}

#[test]
fn draws_follow_the_probabilities() {
    let generator = generator();
    let mut session = generator.session();
    session.prefill(&[9]).expect("room");
    let logits = session.logits().expect("a prompt").to_vec();
    let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    let mut counts = vec![0u32; logits.len()];
    const DRAWS: u64 = 4000;
    for seed in 0..DRAWS {
        let mut session = generator.session();
        session.prefill(&[9]).expect("room");
        let settings = SamplingSettings {
            temperature: 1.0,
            top_p: 1.0,
            seed,
        };
        counts[session.next_token(&settings).expect("room") as usize] += 1;
    }
    for (token, &count) in counts.iter().enumerate() {
        let expected = DRAWS as f64 * f64::from(logits[token]).exp() / total;
        // Five standard deviations of a Poisson count.
        let slack = 5.0 * expected.sqrt();
        assert!(
            (f64::from(count) - expected).abs() < slack,
            "token {token}: {count} of {expected}"
        );
    }
}

#[test]
fn stops_limits_and_the_end_of_the_context() {
    let generator = generator();
    let settings = SamplingSettings {
        temperature: 1.0,
        top_p: 1.0,
        seed: 1,
    };
    let mut session = generator.session();
    session.prefill(&[5]).expect("room");
    let free = session.complete(&settings, 20, &[]).expect("a completion");
    assert_eq!((free.tokens.len(), free.finish), (20, Finish::Length));

    let mut session = generator.session();
    session.prefill(&[5]).expect("room");
    let stop = free.tokens[6];
    let first = free
        .tokens
        .iter()
        .position(|&token| token == stop)
        .expect("it was drawn");
    let stopped = session
        .complete(&settings, 20, &[stop])
        .expect("a completion");
    assert_eq!(
        stopped,
        Completion {
            tokens: free.tokens[..first].to_vec(),
            finish: Finish::Stop
        }
    );

    let mut session = generator.session();
    session
        .prefill(&sample::tokens(1, CONTEXT - 2, 61))
        .expect("room");
    let ended = session.complete(&settings, 20, &[]).expect("a completion");
    assert_eq!((ended.tokens.len(), ended.finish), (3, Finish::ContextFull));
    assert_eq!(
        session.next_token(&settings),
        Err(GenerateError::ContextFull { context: CONTEXT })
    );
}

#[test]
fn bad_requests_are_refused() {
    let generator = generator();
    let mut session = generator.session();
    assert_eq!(
        session.next_token(&SamplingSettings::default()),
        Err(GenerateError::Empty)
    );
    assert_eq!(
        session.prefill(&[61]),
        Err(GenerateError::Token {
            token: 61,
            vocabulary: 61
        })
    );
    assert_eq!(
        session.prefill(&[0; CONTEXT + 1]),
        Err(GenerateError::ContextFull { context: CONTEXT })
    );
    assert!(session.is_empty());
    session.prefill(&[0]).expect("room");
    for (temperature, top_p) in [
        (-1.0, 1.0),
        (f32::NAN, 1.0),
        (1.0, 0.0),
        (1.0, 1.5),
        (f32::INFINITY, 1.0),
    ] {
        let refused = session.next_token(&SamplingSettings {
            temperature,
            top_p,
            seed: 0,
        });
        assert!(
            matches!(refused, Err(GenerateError::Settings { .. })),
            "{temperature} {top_p}"
        );
    }
    let short = Generator::new(&config(), Arc::new(vec![0.0; 3]));
    assert!(matches!(
        short.err(),
        Some(GenerateError::Parameters { given: 3, .. })
    ));
    let damaged = Arc::new(vec![f32::NAN; config().parameter_count()]);
    let mut session = Generator::new(&config(), damaged)
        .expect("the right length")
        .session();
    session.prefill(&[0]).expect("room");
    assert_eq!(
        session.next_token(&SamplingSettings::default()),
        Err(GenerateError::NotFinite)
    );
}
