//! Parameters and tokens from an integer hash; `fixtures/make_fixtures.py` has the same functions.

use engine::ModelConfig;

/// Output number `index` (from 1) of SplitMix64 started at `stream`.
pub(crate) fn mixed(stream: u64, index: u64) -> u64 {
    let mut state = stream.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// Numbers in [-1, 1) with 24 bits.
pub(crate) fn uniform(stream: u64, count: usize) -> Vec<f32> {
    let value = |index| ((mixed(stream, index) >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32;
    (1..=count as u64).map(value).collect()
}

/// Text with something to learn: each token is usually its predecessor times 5 plus 1, else random.
pub(crate) fn tokens(stream: u64, count: usize, vocabulary: usize) -> Vec<u32> {
    let vocabulary = vocabulary as u64;
    let mut token = mixed(stream, 1) % vocabulary;
    let mut tokens = vec![token as u32];
    for index in 2..=count as u64 {
        let draw = mixed(stream, index);
        token = if !draw.is_multiple_of(8) {
            (token * 5 + 1) % vocabulary
        } else {
            (draw >> 8) % vocabulary
        };
        tokens.push(token as u32);
    }
    tokens
}

/// Gains near 1, matrices within ±1/8.
pub(crate) fn parameters(config: &ModelConfig) -> Vec<f32> {
    let layout = config.layout();
    let mut values = uniform(1, layout.len);
    for tensor in &layout.tensors {
        for value in &mut values[tensor.offset..tensor.offset + tensor.len()] {
            *value = if tensor.shape.len() == 1 {
                1.0 + *value * 0.25
            } else {
                *value * 0.125
            };
        }
    }
    values
}

/// A small model: `[vocabulary, hidden, intermediate, layers, heads, key/value heads, context]`.
pub(crate) fn config(shape: [usize; 7], tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: shape[0],
        hidden_size: shape[1],
        intermediate_size: shape[2],
        num_hidden_layers: shape[3],
        num_attention_heads: shape[4],
        num_key_value_heads: shape[5],
        max_position_embeddings: shape[6],
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: tied,
        bos_token_id: None,
        eos_token_id: None,
        initializer_range: 0.02,
    }
}
