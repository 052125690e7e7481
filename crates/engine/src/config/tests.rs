use super::*;

fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 512,
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_id: Some(0),
        initializer_range: 0.02,
    }
}

fn refused(edit: impl Fn(&mut serde_json::Value)) -> String {
    let mut value: serde_json::Value =
        serde_json::from_str(&small().to_json()).expect("our own JSON");
    edit(&mut value);
    match ModelConfig::from_json(value.to_string().as_bytes()) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn own_json_reads_back() {
    let config = small();
    assert_eq!(
        ModelConfig::from_json(config.to_json().as_bytes()).expect("our own JSON"),
        config
    );
    assert!(
        config.to_json().contains("\"rms_norm_eps\": 1e-5") || config.to_json().contains("0.00001")
    );
}

#[test]
fn counts_follow_the_layout() {
    for (tied, key_value_heads) in [(true, 4), (false, 4), (true, 1), (false, 2)] {
        let config = ModelConfig {
            tie_word_embeddings: tied,
            num_key_value_heads: key_value_heads,
            ..small()
        };
        let layout = config.layout();
        assert_eq!(layout.len, config.parameter_count());
        assert_eq!(layout.lengths().iter().sum::<usize>(), layout.len);
    }
    assert_eq!(small().parameter_count(), 869_504);
}

#[test]
fn flops_follow_the_credit_rule() {
    let tied = small();
    assert_eq!(
        tied.training_flops_per_token(128),
        6 * 869_504 + 12 * 4 * 128 * 128
    );
    let untied = ModelConfig {
        tie_word_embeddings: false,
        ..small()
    };
    assert_eq!(
        untied.training_flops_per_token(128),
        tied.training_flops_per_token(128)
    );
}

#[test]
fn foreign_settings_are_refused_by_name() {
    assert!(refused(|_| {}) == "accepted");
    for (field, value) in [
        ("model_type", serde_json::json!("gpt2")),
        ("hidden_act", serde_json::json!("gelu")),
        ("attention_bias", serde_json::json!(true)),
        ("mlp_bias", serde_json::json!(true)),
        (
            "rope_scaling",
            serde_json::json!({"type": "linear", "factor": 2.0}),
        ),
        ("head_dim", serde_json::json!(64)),
        ("hidden_size", serde_json::json!(0)),
        ("hidden_size", serde_json::json!(130)),
        ("num_key_value_heads", serde_json::json!(3)),
        ("vocab_size", serde_json::json!(1u64 << 40)),
        ("num_hidden_layers", serde_json::json!(1_000_000)),
        ("rms_norm_eps", serde_json::json!(0.0)),
        ("rope_theta", serde_json::json!(-1.0)),
        ("eos_token_id", serde_json::json!(512)),
    ] {
        let reason = refused(|document| document[field] = value.clone());
        assert!(reason.contains(field), "{field} = {value}: {reason}");
    }
    assert!(ModelConfig::from_json(&vec![b' '; CONFIG_BYTES_MAX + 1]).is_err());
    assert!(ModelConfig::from_json(b"{").is_err());
}

#[test]
fn a_huge_product_is_refused() {
    let huge = ModelConfig {
        hidden_size: 1 << 20,
        intermediate_size: 1 << 20,
        num_hidden_layers: 1024,
        vocab_size: 1 << 20,
        ..small()
    };
    assert!(huge.validate().is_err());
}
