//! The same model in f64 with plain loops and no tricks: what the engine's gradients are differenced against.

use engine::ModelConfig;

/// Mean loss of rows of `sequence + 1` tokens.
pub(crate) fn loss(
    config: &ModelConfig,
    parameters: &[f64],
    tokens: &[u32],
    sequence: usize,
) -> f64 {
    let rows = tokens.chunks_exact(sequence + 1);
    let count = rows.len() * sequence;
    rows.map(|row| row_loss(config, parameters, row))
        .sum::<f64>()
        / count as f64
}

/// Finds tensors by name, so it does not depend on how the engine groups them.
struct Named<'a> {
    config: &'a ModelConfig,
    layout: engine::Layout,
    parameters: &'a [f64],
}

impl Named<'_> {
    fn get(&self, name: &str) -> &[f64] {
        let spec = self
            .layout
            .tensors
            .iter()
            .find(|spec| spec.name == name)
            .expect(name);
        &self.parameters[spec.offset..spec.offset + spec.len()]
    }

    /// W·x.
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.get(name)
            .chunks_exact(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let r = 1.0 / (mean + f64::from(self.config.rms_norm_eps)).sqrt();
        self.get(name)
            .iter()
            .zip(x)
            .map(|(gain, x)| gain * x * r)
            .collect()
    }

    fn rotate(&self, heads: &mut [f64], position: usize) {
        let size = self.config.head_size();
        for head in heads.chunks_exact_mut(size) {
            for index in 0..size / 2 {
                let exponent = (2 * index) as f64 / size as f64;
                let (sine, cosine) =
                    (position as f64 / f64::from(self.config.rope_theta).powf(exponent)).sin_cos();
                let (a, b) = (head[index], head[index + size / 2]);
                head[index] = a * cosine - b * sine;
                head[index + size / 2] = b * cosine + a * sine;
            }
        }
    }

    fn attention(&self, layer: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
        let project = |part: &str| -> Vec<Vec<f64>> {
            x.iter().map(|x| self.linear(&name(part), x)).collect()
        };
        let (mut queries, mut keys, values) =
            (project("q_proj"), project("k_proj"), project("v_proj"));
        for position in 0..x.len() {
            self.rotate(&mut queries[position], position);
            self.rotate(&mut keys[position], position);
        }
        let size = self.config.head_size();
        let group = self.config.num_attention_heads / self.config.num_key_value_heads;
        (0..x.len())
            .map(|position| {
                let mut joined = vec![0.0; self.config.hidden_size];
                for head in 0..self.config.num_attention_heads {
                    let own = head * size..(head + 1) * size;
                    let shared = head / group * size..(head / group + 1) * size;
                    let query = &queries[position][own.clone()];
                    let dot = |key: &Vec<f64>| {
                        key[shared.clone()]
                            .iter()
                            .zip(query)
                            .map(|(k, q)| k * q)
                            .sum::<f64>()
                    };
                    let scores: Vec<f64> = keys[..=position]
                        .iter()
                        .map(dot)
                        .map(|s| s / (size as f64).sqrt())
                        .collect();
                    let total: f64 = scores.iter().map(|score| score.exp()).sum();
                    for (score, value) in scores.iter().zip(&values) {
                        let weight = score.exp() / total;
                        for (sum, value) in
                            joined[own.clone()].iter_mut().zip(&value[shared.clone()])
                        {
                            *sum += weight * value;
                        }
                    }
                }
                self.linear(&name("o_proj"), &joined)
            })
            .collect()
    }

    fn mlp(&self, layer: usize, x: &[f64]) -> Vec<f64> {
        let name = |part: &str| format!("model.layers.{layer}.mlp.{part}.weight");
        let (gate, up) = (
            self.linear(&name("gate_proj"), x),
            self.linear(&name("up_proj"), x),
        );
        let inner: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
            .collect();
        self.linear(&name("down_proj"), &inner)
    }
}

fn row_loss(config: &ModelConfig, parameters: &[f64], row: &[u32]) -> f64 {
    let named = Named {
        config,
        layout: config.layout(),
        parameters,
    };
    let table = named.get("model.embed_tokens.weight");
    let width = config.hidden_size;
    let look_up =
        |&token: &u32| table[token as usize * width..(token as usize + 1) * width].to_vec();
    let mut stream: Vec<Vec<f64>> = row[..row.len() - 1].iter().map(look_up).collect();
    let add = |stream: &mut Vec<Vec<f64>>, part: &[Vec<f64>]| {
        for (x, y) in stream.iter_mut().flatten().zip(part.iter().flatten()) {
            *x += y;
        }
    };
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let normed: Vec<_> = stream
            .iter()
            .map(|x| named.norm(&name("input_layernorm"), x))
            .collect();
        add(&mut stream, &named.attention(layer, &normed));
        let normed: Vec<_> = stream
            .iter()
            .map(|x| named.norm(&name("post_attention_layernorm"), x))
            .collect();
        let out: Vec<_> = normed.iter().map(|x| named.mlp(layer, x)).collect();
        add(&mut stream, &out);
    }
    let output = if config.tie_word_embeddings {
        "model.embed_tokens.weight"
    } else {
        "lm_head.weight"
    };
    let one = |(x, &target): (&Vec<f64>, &u32)| {
        let logits = named.linear(output, &named.norm("model.norm.weight", x));
        logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[target as usize]
    };
    stream.iter().zip(&row[1..]).map(one).sum()
}
