//! Where each tensor lies in the flat parameter vector, and how a new model's parameters are drawn.
//!
//! All parameters of a model are one `Vec<f32>`, so that optimiser, updates and merges are loops over one slice. The
//! order keeps q, k and v adjacent, and gate and up adjacent: one matrix product serves each group.

use crate::config::ModelConfig;

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major shape: `[out, in]` for a matrix, `[width]` for a norm's gains.
    pub shape: Vec<usize>,
    /// Index of its first element in the flat vector.
    pub offset: usize,
}

impl TensorSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements; never true for a valid configuration.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The tensors of a model in their order of storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Adjacent and without gaps: each begins where the one before it ends.
    pub tensors: Vec<TensorSpec>,
    /// Number of parameters of all tensors.
    pub len: usize,
}

impl Layout {
    /// The layout of a model of this configuration.
    pub fn new(config: &ModelConfig) -> Self {
        let (hidden, key_value) = (config.hidden_size, config.key_value_size());
        let intermediate = config.intermediate_size;
        let mut layout = Layout {
            tensors: Vec::with_capacity(3 + 9 * config.num_hidden_layers),
            len: 0,
        };
        layout.push(
            "model.embed_tokens.weight".to_owned(),
            vec![config.vocab_size, hidden],
        );
        for layer in 0..config.num_hidden_layers {
            let mut push = |name: &str, shape| {
                layout.push(format!("model.layers.{layer}.{name}.weight"), shape)
            };
            push("input_layernorm", vec![hidden]);
            push("self_attn.q_proj", vec![hidden, hidden]);
            push("self_attn.k_proj", vec![key_value, hidden]);
            push("self_attn.v_proj", vec![key_value, hidden]);
            push("self_attn.o_proj", vec![hidden, hidden]);
            push("post_attention_layernorm", vec![hidden]);
            push("mlp.gate_proj", vec![intermediate, hidden]);
            push("mlp.up_proj", vec![intermediate, hidden]);
            push("mlp.down_proj", vec![hidden, intermediate]);
        }
        layout.push("model.norm.weight".to_owned(), vec![hidden]);
        if !config.tie_word_embeddings {
            layout.push("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]);
        }
        layout
    }

    /// Number of elements of each tensor, in order.
    pub fn lengths(&self) -> Vec<usize> {
        self.tensors.iter().map(TensorSpec::len).collect()
    }

    fn push(&mut self, name: String, shape: Vec<usize>) {
        let spec = TensorSpec {
            name,
            shape,
            offset: self.len,
        };
        self.len += spec.len();
        self.tensors.push(spec);
    }
}

/// Offsets of the groups that the kernels read, from the start of the flat vector.
#[derive(Debug, Clone)]
pub(crate) struct Offsets {
    pub(crate) layers: Vec<LayerOffsets>,
    pub(crate) final_norm: usize,
    /// The output matrix `[vocabulary, hidden]`: 0, the embedding's place, if tied.
    pub(crate) output: usize,
}

/// Offsets of one layer's groups.
#[derive(Debug, Clone)]
pub(crate) struct LayerOffsets {
    pub(crate) attention_norm: usize,
    /// `[hidden + 2·key_value, hidden]`.
    pub(crate) query_key_value: usize,
    /// `[hidden, hidden]`.
    pub(crate) attention_output: usize,
    pub(crate) mlp_norm: usize,
    /// `[2·intermediate, hidden]`.
    pub(crate) gate_up: usize,
    /// `[hidden, intermediate]`.
    pub(crate) down: usize,
}

impl Offsets {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let (hidden, key_value) = (config.hidden_size, config.key_value_size());
        let mut next = config.vocab_size * hidden;
        let mut take = |len: usize| {
            next += len;
            next - len
        };
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerOffsets {
                attention_norm: take(hidden),
                query_key_value: take((hidden + 2 * key_value) * hidden),
                attention_output: take(hidden * hidden),
                mlp_norm: take(hidden),
                gate_up: take(2 * config.intermediate_size * hidden),
                down: take(config.intermediate_size * hidden),
            })
            .collect();
        let final_norm = take(hidden);
        let output = if config.tie_word_embeddings {
            0
        } else {
            take(config.vocab_size * hidden)
        };
        Offsets {
            layers,
            final_norm,
            output,
        }
    }
}

/// Draws a new model's parameters: gains are 1, matrices are normal with standard deviation
/// [`ModelConfig::initializer_range`].
///
/// The generator is our own and uses integers and exact products only, so a seed gives the same bits on every platform.
pub fn initial_parameters(config: &ModelConfig, seed: u64) -> Vec<f32> {
    let layout = config.layout();
    let mut parameters = vec![1.0; layout.len];
    let mut random = SplitMix::new(seed);
    for tensor in layout
        .tensors
        .iter()
        .filter(|tensor| tensor.shape.len() == 2)
    {
        for parameter in &mut parameters[tensor.offset..tensor.offset + tensor.len()] {
            *parameter = random.normal() * config.initializer_range;
        }
    }
    parameters
}

/// SplitMix64 (Steele, Lea, Flood 2014): a counter through a mixing function.
pub(crate) struct SplitMix {
    state: u64,
}

impl SplitMix {
    pub(crate) fn new(seed: u64) -> Self {
        SplitMix { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1), 24 bits.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Approximately standard normal: the sum of twelve 16-bit uniforms, whose variance is 1 (bounded by ±6).
    fn normal(&mut self) -> f32 {
        let mut sum = 0i32;
        for _ in 0..3 {
            let bits = self.next();
            sum += (0..4)
                .map(|part| (bits >> (16 * part)) as u16 as i32)
                .sum::<i32>();
        }
        (2 * sum - 12 * 65_535) as f32 / 131_072.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tied: bool) -> ModelConfig {
        ModelConfig {
            vocab_size: 11,
            hidden_size: 12,
            intermediate_size: 7,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            num_key_value_heads: 1,
            max_position_embeddings: 8,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            tie_word_embeddings: tied,
            bos_token_id: None,
            eos_token_id: None,
            initializer_range: 0.02,
        }
    }

    #[test]
    fn groups_begin_at_their_first_tensor() {
        for tied in [true, false] {
            let config = config(tied);
            let (layout, offsets) = (config.layout(), Offsets::new(&config));
            let at = |name: &str| {
                layout
                    .tensors
                    .iter()
                    .find(|spec| spec.name == name)
                    .expect(name)
                    .offset
            };
            assert_eq!(
                offsets.layers[1].query_key_value,
                at("model.layers.1.self_attn.q_proj.weight")
            );
            assert_eq!(
                offsets.layers[1].gate_up,
                at("model.layers.1.mlp.gate_proj.weight")
            );
            assert_eq!(
                offsets.layers[1].down,
                at("model.layers.1.mlp.down_proj.weight")
            );
            assert_eq!(
                offsets.layers[1].mlp_norm,
                at("model.layers.1.post_attention_layernorm.weight")
            );
            assert_eq!(offsets.final_norm, at("model.norm.weight"));
            assert_eq!(offsets.output, if tied { 0 } else { at("lm_head.weight") });
        }
    }

    #[test]
    fn a_seed_gives_known_bits() {
        let parameters = initial_parameters(&config(true), 7);
        let hash = blake3::hash(
            &parameters
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect::<Vec<_>>(),
        );
        assert_eq!(&hash.to_hex()[..16], "223dbeffca09e6fa");
    }

    #[test]
    fn draws_are_standard_normal() {
        let mut random = SplitMix::new(1);
        let draws: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|draw| draw * draw).sum::<f64>() / 1e5;
        assert!(
            mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02,
            "mean {mean}, variance {variance}"
        );
    }
}
