//! Which held-out tokens a loss is measured on: one definition, for every evaluation and for the baselines.
//!
//! A window is `context + 1` tokens of the held-out stream; a model sees its first `context` tokens and predicts all but the first.
//! Windows lie `context` apart, so neighbours share one token and no token is predicted twice.
//! The stream's tail that fills no window is left out.

/// Where the windows begin: the first token's position in a stream of `tokens` held-out tokens, ascending.
///
/// Each window predicts `context` tokens. If all windows would predict more than `tokens_max`,
/// `tokens_max / context` of them are taken, spread evenly over the whole stream.
/// Empty if `context` is 0, if the stream is shorter than one window, or if `tokens_max` is.
#[must_use]
pub fn starts(tokens: usize, context: usize, tokens_max: usize) -> Vec<usize> {
    if context == 0 {
        return Vec::new();
    }
    let available = tokens.saturating_sub(1) / context;
    let taken = available.min(tokens_max / context);
    (0..taken)
        .map(|index| (index as u128 * available as u128 / taken as u128) as usize * context)
        .collect()
}

/// The windows themselves: slices of `context + 1` tokens of `held_out_tokens`, at [`starts`].
#[must_use]
pub fn windows(held_out_tokens: &[u32], context: usize, tokens_max: usize) -> Vec<&[u32]> {
    starts(held_out_tokens.len(), context, tokens_max)
        .into_iter()
        .map(|start| &held_out_tokens[start..=start + context])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tokens: usize, context: usize, tokens_max: usize, expected: &[usize]) {
        assert_eq!(
            starts(tokens, context, tokens_max),
            expected,
            "{tokens} tokens, context {context}, at most {tokens_max}"
        );
    }

    #[test]
    fn windows_tile_the_stream_and_share_one_token() {
        check(9, 4, usize::MAX, &[0, 4]);
        check(12, 4, usize::MAX, &[0, 4]);
        check(13, 4, usize::MAX, &[0, 4, 8]);
        let tokens: Vec<u32> = (0..9).collect();
        assert_eq!(
            windows(&tokens, 4, usize::MAX),
            [&[0, 1, 2, 3, 4][..], &[4, 5, 6, 7, 8]]
        );
    }

    #[test]
    fn a_limit_spreads_the_windows_evenly() {
        check(101, 10, 100, &[0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
        check(101, 10, 50, &[0, 20, 40, 60, 80]);
        check(101, 10, 39, &[0, 30, 60]);
        check(101, 10, 19, &[0]);
    }

    #[test]
    fn too_little_gives_nothing() {
        check(0, 4, usize::MAX, &[]);
        check(4, 4, usize::MAX, &[]);
        check(5, 4, usize::MAX, &[0]);
        check(100, 0, usize::MAX, &[]);
        check(100, 10, 9, &[]);
        check(usize::MAX, usize::MAX, usize::MAX, &[]);
    }
}
