use protocol::{
    SecretKey,
    units::{RunId, WorkerId},
    update::seal,
};

use super::*;
use crate::{initial_parameters, update::settings::SparseSettings};

fn rules() -> Rules {
    let config = ModelConfig {
        vocab_size: 16,
        hidden_size: 8,
        intermediate_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_id: None,
        initializer_range: 0.02,
    };
    Rules {
        lengths: config.layout().lengths(),
        config,
        update: UpdateSettings::Sparse(SparseSettings {
            chunk: 64,
            kept: 16,
        }),
        merge: MergeSettings::default(),
        norm_ratio_max_q16: 20 << 16,
    }
}

fn header(slot: u32) -> UpdateHeader {
    UpdateHeader {
        run: RunId(Hash([1; 32])),
        worker: WorkerId(SecretKey::from_entropy([2; 32]).public()),
        round: 1,
        slot,
        base_round: 0,
        base: Hash([3; 32]),
        steps: 1,
        head_start_steps: 0,
        tokens: 64,
        loss_micronats: 1,
        carried_before: Hash([4; 32]),
        carried_after: Hash([5; 32]),
        carried_if_refused: Hash([6; 32]),
        steps_root: Hash([7; 32]),
        payload: Hash::of_blob(&[]),
        inner_state: None,
    }
}

fn update(rules: &Rules, scale: f32) -> Vec<u8> {
    let values: Vec<f32> = (0..rules.parameters())
        .map(|at| scale * ((at * 37 % 101) as f32 - 50.0))
        .collect();
    let payload = codec::encode(&rules.lengths, &rules.update, &values).unwrap();
    let header = UpdateHeader {
        payload: Hash::of_blob(&payload),
        ..header(0)
    };
    seal(&header, &payload)
}

/// What the file says of itself, as it was committed to.
fn committed(file: &[u8]) -> UpdateHeader {
    protocol::update::open(file).unwrap().0
}

#[test]
fn a_merge_is_stored_and_read_back_and_a_flipped_bit_is_another_model() {
    let rules = rules();
    let first = rules.first_model(initial_parameters(rules.config(), 1));
    let file = update(&rules, 1e-4);
    assert!(file.len() as u64 <= rules.update_bytes_max());
    let decoded = rules.judge(&file, &committed(&file)).unwrap();
    let mut model = first.clone();
    let weighted = [Weighted {
        update: &decoded,
        weight: 64,
        standing: 0,
    }];
    rules
        .merge(&mut model, 1, rules.rate_q16(), &weighted)
        .unwrap();
    assert_ne!(model.state.parameters, first.state.parameters);
    assert_eq!(
        Hash(parameters_hash(&first.parameters)),
        first.state.parameters,
        "the clone that was not merged into is untouched"
    );
    let mut slower = first.clone();
    rules
        .merge(&mut slower, 1, rules.rate_q16() / 2, &weighted)
        .unwrap();
    assert_ne!(slower.state.outer, model.state.outer, "the rate counts");

    let run = RunId(Hash([1; 32]));
    let stored = rules.store(&model, run);
    assert_eq!(stored, rules.store(&model, run));
    let read = rules
        .load(model.state, &stored.parameters, &stored.outer)
        .unwrap();
    assert_eq!(read.parameters, model.parameters);
    assert_eq!(read.outer, model.outer);
    for (parameters, outer) in [
        (flipped(&stored.parameters), stored.outer.clone()),
        (stored.parameters.clone(), flipped(&stored.outer)),
    ] {
        let refused = rules.load(model.state, &parameters, &outer).unwrap_err();
        assert!(
            matches!(refused, StoredModelError::Other { round: 1, .. }),
            "{refused}"
        );
    }
}

/// The last value's lowest bit changed.
fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    bytes
}

#[test]
fn an_update_must_be_the_one_committed_to_and_change_something() {
    let rules = rules();
    let file = update(&rules, 1e-4);
    assert!(matches!(
        rules.judge(&file, &header(1)),
        Err(RefusalReason::Envelope(_))
    ));
    assert!(matches!(
        rules.judge(&file[..file.len() - 1], &committed(&file)),
        Err(RefusalReason::Payload(_))
    ));
    // Another worker's payload under a header that names its own.
    let (_, payload) = protocol::update::open(&file).unwrap();
    assert_eq!(
        rules.judge(&seal(&header(0), payload), &header(0)),
        Err(RefusalReason::Envelope(
            "its payload is not the one that its header names".to_owned()
        ))
    );
    let nothing = update(&rules, 0.0);
    assert!(matches!(
        rules.judge(&nothing, &committed(&nothing)),
        Err(RefusalReason::Norm(_))
    ));
    assert!(matches!(
        rules.judge_inner_state(b"AHim"),
        Err(RefusalReason::Payload(_))
    ));
}
