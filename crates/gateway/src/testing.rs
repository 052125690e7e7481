//! A tiny model with random weights, and a service around it, in memory.

use std::sync::{Arc, atomic::AtomicBool};

use data::tokenizer::Tokenizer;
use engine::{ModelConfig, generate::Generator, initial_parameters};
use protocol::{Hash, units::RunId};
use tokio_util::sync::CancellationToken;

use crate::{http::Service, model::Model, queue::Queue};

/// Tokens of prompt and answer of the tiny model.
pub(crate) const CONTEXT: usize = 64;

/// A model of a few thousand random weights over a byte-level vocabulary.
pub(crate) fn tiny_model(run_name: &str) -> Model {
    let texts = ["the state of the union is the state of the people of the union"];
    let tokenizer = Tokenizer::train(texts.into_iter(), 280).expect("a tiny tokenizer");
    let config = ModelConfig {
        vocab_size: tokenizer.vocabulary_size() as usize,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_id: None,
        initializer_range: 0.2,
    };
    let parameters = initial_parameters(&config, 7);
    Model {
        run: RunId(Hash([1; 32])),
        run_name: run_name.to_owned(),
        run_created_ms: 1_000,
        round: 12,
        stored_ms: 5_000,
        checkpoint: Hash([2; 32]),
        bits_per_byte: Some(1.5),
        generator: Generator::new(&config, Arc::new(parameters))
            .expect("parameters of this configuration"),
        tokenizer: Arc::new(tokenizer),
    }
}

/// A service with the tiny model `speeches`.
pub(crate) fn service(places: usize, waiting: usize) -> Service {
    let service = Service {
        catalogue: Arc::default(),
        queue: Queue::new(places, waiting),
        metrics: Arc::default(),
        hub_reached: Arc::new(AtomicBool::new(true)),
        stopping: CancellationToken::new(),
        abort: CancellationToken::new(),
    };
    let model = tiny_model("speeches");
    service.catalogue.replace(model.run, vec![model]);
    service
}
