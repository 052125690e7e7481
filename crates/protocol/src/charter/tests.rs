//! A charter for tests, its golden bytes and what a charter refuses.

use super::*;
use crate::SecretKey;

/// A small valid charter; every module's tests start from it.
pub(crate) fn sample_charter() -> Charter {
    let shard = |seed: u8, tokens: u64| ShardReference {
        blob: BlobReference {
            hash: Hash([seed; 32]),
            bytes: tokens * 2,
        },
        tokens,
        text_bytes: tokens * 3,
    };
    Charter {
        name: "sample".into(),
        description: "for tests".into(),
        seed: 1,
        hub: SecretKey::from_entropy([1; 32]).public(),
        addresses: vec!["http://127.0.0.1:7700".into()],
        succession: vec![],
        model: Model {
            vocab_size: 64,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            max_position_embeddings: 32,
            rms_norm_epsilon_nano: 10_000,
            rope_theta: 10_000,
            tie_word_embeddings: true,
        },
        data: Data {
            name: "sample".into(),
            tokenizer: BlobReference {
                hash: Hash([9; 32]),
                bytes: 100,
            },
            training: vec![shard(2, 1_000), shard(3, 3_000)],
            held_out: vec![shard(4, 500)],
            held_out_tokens_max: 256,
            baselines: Baselines {
                unigram_micronats: 4_000_000,
                bigram_micronats: 3_000_000,
                trigram_micronats: 2_500_000,
            },
        },
        inner: Inner {
            batch_rows: 4,
            sequence: 32,
            learning_rate_peak_nano: 3_000_000,
            warmup_tokens: 10_000,
            tokens_max: 1_000_000,
            final_rate_ppm: 100_000,
            beta1_ppm: 900_000,
            beta2_ppm: 990_000,
            epsilon_pico: 10_000,
            weight_decay_ppm: 100_000,
            clip_norm_ppm: 1_000_000,
            carry_inner_state: true,
        },
        outer: Outer {
            codec: Codec::Sparse {
                chunk: 4096,
                kept: 128,
                error_decay_q16: 62_259,
            },
            rate_q16: 65_536,
            denominator_floor_q16: 32_768,
            momentum_q16: 0,
            delta_kept: 512,
            norm_ratio_max_q16: 20 << 16,
        },
        round: RoundRules {
            window_ms: 1_000,
            reveal_ms: 1_000,
            steps_min: 1,
            steps_max: 100,
            quorum: 1,
            slots_max: 64,
            weight_cap_q16: 65_536,
            shards_per_assignment: 2,
            checkpoint_every: 10,
            leaf_steps: 5,
            warm_start_tokens: 0,
            speed_ratio_max_q16: 2 << 16,
            boinc_unit_ms: 0,
        },
        income: Income::EveryoneWhoMadeIt,
    }
}

#[test]
fn toml_round_trip_keeps_the_id() {
    let charter = sample_charter();
    let read = Charter::from_toml(&charter.to_toml()).unwrap();
    assert_eq!(read, charter);
    assert_eq!(read.id(), charter.id());
}

#[test]
fn golden_id() {
    expect_test::expect!["3f5e9f2930983dc75a79a8a9f9b651be7285d16c43efc74afe130d4a835318b4"]
        .assert_eq(&sample_charter().id().to_string());
}

#[test]
fn any_change_is_another_run() {
    let charter = sample_charter();
    let mut other = charter.clone();
    other.round.quorum = 2;
    assert_ne!(charter.id(), other.id());
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Charter), expected: &str) {
    let mut charter = sample_charter();
    change(&mut charter);
    let message = charter.check().unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

#[test]
fn values_without_meaning_are_refused() {
    refused(|it| it.name.clear(), "name");
    refused(|it| it.name = "a\nb".into(), "name");
    refused(|it| it.model.hidden_size = 18, "model.hidden_size");
    refused(|it| it.model.vocab_size = 0, "model.vocab_size");
    refused(
        |it| it.model.num_key_value_heads = 3,
        "model.num_attention_heads",
    );
    refused(|it| it.data.training.clear(), "data.training");
    refused(|it| it.inner.sequence = 33, "inner.sequence");
    refused(|it| it.inner.tokens_max = 10_000, "inner.tokens_max");
    refused(|it| it.inner.beta2_ppm = 1_000_000, "inner.beta2_ppm");
    refused(|it| it.outer.rate_q16 = 0, "outer.rate_q16");
    refused(|it| it.outer.momentum_q16 = 1, "outer.momentum_q16");
    refused(
        |it| {
            it.outer.codec = Codec::Dense {
                chunk: 4096,
                bits: 4,
            };
        },
        "outer.codec.dense.bits",
    );
    refused(|it| it.round.window_ms = 0, "round.window_ms");
    refused(|it| it.round.reveal_ms = 30_001, "round.reveal_ms");
    refused(
        |it| {
            it.round.window_ms = 60_000;
            it.round.reveal_ms = 60_001;
        },
        "round.reveal_ms",
    );
    refused(|it| it.round.quorum = 65, "round.quorum");
    refused(|it| it.round.steps_min = 101, "round.steps_min");
    refused(
        |it| {
            it.round.warm_start_tokens = 1;
            it.inner.carry_inner_state = false;
        },
        "round.warm_start_tokens",
    );
}

#[test]
fn unknown_keys_are_refused_by_name() {
    let text = format!("surprise = 1\n{}", sample_charter().to_toml());
    let error = Charter::from_toml(&text).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("surprise"), "{cause}");
}

#[test]
fn the_two_counts_agree_with_a_hand_count() {
    let model = sample_charter().model;
    // 64·16 + 2·(2·16·16 + 2·16·8 + 3·16·32 + 2·16) + 16
    assert_eq!(model.parameter_count(), 5_712);
    assert_eq!(
        model.training_flop_per_token(32),
        6 * 5_712 + 12 * 2 * 16 * 32
    );
}
