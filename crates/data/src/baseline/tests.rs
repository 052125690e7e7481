use super::*;

/// Counted and worked out by hand for the training tokens 0 1 0 1 2 and a vocabulary of 3.
#[test]
fn probabilities_by_hand() {
    let ngram = Ngram::train(&[0, 1, 0, 1, 2], 3);
    let check = |order, history: &[u32], token, expected: f64| {
        let found = ngram.probability(order, history, token);
        assert!(
            (found - expected).abs() < 1e-12,
            "{order} {history:?} {token}: {found}"
        );
    };
    // 5 tokens, 3 distinct: (2 + 3 · 1/3) / 8 and (1 + 3 · 1/3) / 8.
    check(1, &[], 0, 3.0 / 8.0);
    check(1, &[1, 2], 1, 3.0 / 8.0);
    check(1, &[], 2, 2.0 / 8.0);
    // After 0 twice 1: (2 + 1 · 3/8) / 3 and (0 + 1 · 3/8) / 3.
    check(2, &[0], 1, 19.0 / 24.0);
    check(2, &[0], 0, 1.0 / 8.0);
    // After 1 once 0 and once 2: (1 + 2 · 3/8) / 4 and (1 + 2 · 2/8) / 4.
    check(2, &[1], 0, 7.0 / 16.0);
    check(2, &[2, 1], 2, 3.0 / 8.0);
    // Nothing comes after 2: the unigram decides.
    check(2, &[2], 0, 3.0 / 8.0);
    // After 0 1 once 0 and once 2: (1 + 2 · 7/16) / 4; after 1 0 once 1: (1 + 1 · 19/24) / 2.
    check(3, &[0, 1], 0, 15.0 / 32.0);
    check(3, &[0, 1], 2, 7.0 / 16.0);
    check(3, &[1, 0], 1, 43.0 / 48.0);
    // Histories that are too short or unseen.
    check(3, &[0], 1, 19.0 / 24.0);
    check(3, &[], 2, 2.0 / 8.0);
    check(3, &[2, 0], 1, 19.0 / 24.0);
}

#[test]
fn losses_by_hand() {
    let ngram = Ngram::train(&[0, 1, 0, 1, 2], 3);
    let check = |order, tokens: &[u32], context, expected: Option<f64>| {
        let found = ngram.nats_per_token(order, tokens, context, usize::MAX);
        match (found, expected) {
            (Some(found), Some(expected)) => assert!((found - expected).abs() < 1e-12, "{found}"),
            (found, expected) => assert_eq!(found, expected),
        }
    };
    // 1 after 0, then 2 after 0 1.
    let expected = -((19.0_f64 / 24.0).ln() + (7.0_f64 / 16.0).ln()) / 2.0;
    check(3, &[0, 1, 2], 2, Some(expected));
    // Two windows of context 1: the second trigram sees the token before its window.
    check(3, &[0, 1, 2], 1, Some(expected));
    // Unigram: 1 and 2.
    let expected = -((3.0_f64 / 8.0).ln() + (2.0_f64 / 8.0).ln()) / 2.0;
    check(1, &[0, 1, 2], 2, Some(expected));
    check(1, &[0, 1], 2, None);
}

#[test]
fn every_history_gives_a_distribution() {
    let vocabulary_size = 7;
    let mut state = 1_u32;
    let tokens: Vec<u32> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) * (state >> 24) / 0x2600
    })
    .take(300)
    .collect();
    let ngram = Ngram::train(&tokens, vocabulary_size);
    for order in 1..=ORDER_MAX {
        for history in (0..7).flat_map(|a| (0..7).map(move |b| [a, b])) {
            let of = |token| ngram.probability(order, &history, token);
            let sum: f64 = (0..vocabulary_size).map(of).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{order} {history:?}: {sum}");
            assert!((0..vocabulary_size).all(|token| of(token) > 0.0));
        }
    }
}

#[test]
fn no_training_tokens_is_uniform() {
    let ngram = Ngram::train(&[], 4);
    assert_eq!(ngram.probability(3, &[1, 2], 3), 0.25);
}
