//! The runs of the benches.

use anyhow::Result;

/// Model A of `crates/engine/examples/train_speed.rs`, 12.29 M parameters, updates with 64 kept values of 4096.
///
/// # Errors
/// As [`tests::charters::with`].
pub(crate) fn model_a(window_ms: u64, batch_rows: u64) -> Result<String> {
    tests::charters::with(&[
        ("vocab_size", 4_096),
        ("hidden_size", 384),
        ("intermediate_size", 1_024),
        ("num_hidden_layers", 6),
        ("num_attention_heads", 6),
        ("num_key_value_heads", 6),
        ("max_position_embeddings", 256),
        ("batch_rows", batch_rows),
        ("sequence", 256),
        ("kept", 64),
        ("window_ms", window_ms),
        ("reveal_ms", window_ms.max(30_000)),
        ("warm_start_tokens", 0),
        ("steps_max", 1_000),
        // A checkpoint every few rounds is the hub's work; it sends none to workers that follow by deltas.
        ("checkpoint_every", 20),
        ("tokens_max", 1_000_000_000),
    ])
}
