//! What counting alone achieves: unigram, bigram and trigram losses on the held-out tokens. A model that "learns" beats them.
//!
//! Interpolation after Witten and Bell (1991), as in Chen and Goodman (1999), section 2.5:
//!
//! p(w | h) = (c(h w) + T(h) · p(w | h′)) / (c(h) + T(h))
//!
//! with c counts in the training tokens, T(h) the number of distinct tokens seen after h, h′ the history without its first token.
//! The unigram interpolates with the uniform distribution over the vocabulary, so every token has a probability.

use crate::held_out;

/// The longest n-gram: a trigram.
pub const ORDER_MAX: usize = 3;

/// An interpolated n-gram model of orders 1 to [`ORDER_MAX`].
#[derive(Clone, Debug)]
pub struct Ngram {
    vocabulary_size: u32,
    /// `counts[n]` are those of n + 1 tokens.
    counts: [Counts; ORDER_MAX],
}

/// How often each n-gram occurs.
#[derive(Clone, Debug)]
struct Counts {
    /// Distinct n-grams as numbers, ascending: those with the same history lie together.
    keys: Vec<u64>,
    /// `before[i]` occurrences are of n-grams before `keys[i]`; one more entry than keys.
    before: Vec<u64>,
}

impl Ngram {
    /// Counts the training tokens; n-grams go across document ends. At most 2^18 different tokens (`tokenizer::VOCABULARY_SIZE_MAX`).
    ///
    /// # Panics
    /// If a token is not below `vocabulary_size`, or that is 0 or above 2^18.
    #[must_use]
    pub fn train(training_tokens: &[u32], vocabulary_size: u32) -> Self {
        assert!((1..=crate::tokenizer::VOCABULARY_SIZE_MAX).contains(&vocabulary_size));
        assert!(training_tokens.iter().all(|&token| token < vocabulary_size));
        let counts = std::array::from_fn(|index| {
            Counts::of(training_tokens, index + 1, u64::from(vocabulary_size))
        });
        Self {
            vocabulary_size,
            counts,
        }
    }

    /// The probability of `token` after `history`, of which an n-gram of `order` uses at most the last `order − 1` tokens.
    ///
    /// # Panics
    /// If `order` is not 1 to [`ORDER_MAX`].
    #[must_use]
    pub fn probability(&self, order: usize, history: &[u32], token: u32) -> f64 {
        assert!((1..=ORDER_MAX).contains(&order));
        let base = u64::from(self.vocabulary_size);
        let mut probability = 1.0 / f64::from(self.vocabulary_size);
        for length in 0..order.min(history.len() + 1) {
            let prefix = history[history.len() - length..]
                .iter()
                .fold(0, |key, &past| key * base + u64::from(past));
            let counts = &self.counts[length];
            let (seen, distinct) = counts.range(prefix * base, (prefix + 1) * base);
            if distinct == 0 {
                break;
            }
            let key = prefix * base + u64::from(token);
            let (hits, _) = counts.range(key, key + 1);
            probability = (hits as f64 + distinct as f64 * probability) / (seen + distinct) as f64;
        }
        probability
    }

    /// The mean loss in nats over exactly the tokens that [`held_out::windows`] has a model predict; `None` if there are none.
    ///
    /// Unlike the model, an n-gram also sees the true tokens before the window's start, where there are any.
    ///
    /// # Panics
    /// If `order` is not 1 to [`ORDER_MAX`].
    #[must_use]
    pub fn nats_per_token(
        &self,
        order: usize,
        held_out_tokens: &[u32],
        context: usize,
        tokens_max: usize,
    ) -> Option<f64> {
        let starts = held_out::starts(held_out_tokens.len(), context, tokens_max);
        let predicted = starts.len() * context;
        let mut nats = 0.0;
        for start in starts {
            for position in start + 1..=start + context {
                let history = &held_out_tokens[position.saturating_sub(order - 1)..position];
                nats -= self
                    .probability(order, history, held_out_tokens[position])
                    .ln();
            }
        }
        (predicted > 0).then(|| nats / predicted as f64)
    }
}

impl Counts {
    fn of(tokens: &[u32], length: usize, base: u64) -> Self {
        let mut occurrences: Vec<u64> = tokens
            .windows(length)
            .map(|ngram| {
                ngram
                    .iter()
                    .fold(0, |key, &token| key * base + u64::from(token))
            })
            .collect();
        occurrences.sort_unstable();
        let mut keys = Vec::new();
        let mut before = vec![0];
        for equal in occurrences.chunk_by(|a, b| a == b) {
            keys.push(equal[0]);
            before.push(before[before.len() - 1] + equal.len() as u64);
        }
        Self { keys, before }
    }

    /// Occurrences and distinct n-grams with `from <= key < to`.
    fn range(&self, from: u64, to: u64) -> (u64, u64) {
        let first = self.keys.partition_point(|&key| key < from);
        let end = first + self.keys[first..].partition_point(|&key| key < to);
        (self.before[end] - self.before[first], (end - first) as u64)
    }
}

#[cfg(test)]
mod tests;
