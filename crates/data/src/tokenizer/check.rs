//! What a `tokenizer.json` may ask for, checked before the `tokenizers` crate sees it.
//!
//! Everything that would lose text (normalizers), depend on chance (dropout), cost unbounded time (foreign patterns)
//! or let text spell special tokens is refused; what remains is byte-level BPE as this project trains it.

use serde_json::Value;

use super::{END_OF_TEXT, TokenizerError, VOCABULARY_SIZE_MAX};

pub(super) fn check(bytes: &[u8]) -> Result<(), TokenizerError> {
    let root: Value = serde_json::from_slice(bytes).map_err(TokenizerError::NotJson)?;
    for part in ["truncation", "padding", "normalizer"] {
        expect(root[part].is_null(), || format!("{part} is not supported"))?;
    }
    expect(is_byte_level(&root["pre_tokenizer"]), || {
        "the pre-tokenizer is not ByteLevel with GPT-2's pattern and without a prefix space".into()
    })?;
    expect(root["decoder"]["type"] == "ByteLevel", || {
        "the decoder is not ByteLevel".into()
    })?;
    let post_processor = &root["post_processor"];
    expect(
        post_processor.is_null() || post_processor["type"] == "ByteLevel",
        || "the post-processor would add tokens".into(),
    )?;
    check_added_tokens(&root["added_tokens"])?;
    check_model(&root["model"])
}

fn expect(holds: bool, reason: impl FnOnce() -> String) -> Result<(), TokenizerError> {
    if holds {
        Ok(())
    } else {
        Err(TokenizerError::Unsupported(reason()))
    }
}

fn is_byte_level(part: &Value) -> bool {
    part["type"] == "ByteLevel"
        && part["add_prefix_space"] == false
        && (part["use_regex"].is_null() || part["use_regex"] == true)
}

/// Exactly one added token: end of text, special, matched as it stands.
fn check_added_tokens(tokens: &Value) -> Result<(), TokenizerError> {
    let only = match tokens.as_array().map(Vec::as_slice) {
        Some([only]) => only,
        _ => &Value::Null,
    };
    let plain = ["single_word", "lstrip", "rstrip", "normalized"]
        .iter()
        .all(|flag| only[flag] == false);
    expect(
        only["content"] == END_OF_TEXT && only["special"] == true && plain,
        || format!("the added tokens are not {END_OF_TEXT} alone"),
    )
}

fn check_model(model: &Value) -> Result<(), TokenizerError> {
    expect(model["type"] == "BPE", || "the model is not BPE".into())?;
    for option in [
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    ] {
        let value = &model[option];
        let absent = value.is_null() || *value == false || *value == "";
        expect(absent, || format!("the model's {option} is not supported"))?;
    }
    let merges = model["merges"].as_array().map_or(usize::MAX, Vec::len);
    let vocabulary = model["vocab"].as_object();
    let tokens = vocabulary.map_or(usize::MAX, serde_json::Map::len);
    expect(
        tokens <= VOCABULARY_SIZE_MAX as usize && merges <= 2 * VOCABULARY_SIZE_MAX as usize,
        || "the vocabulary or the merges are missing or too many".into(),
    )?;
    let known = vocabulary.is_some_and(|tokens| tokens.contains_key(END_OF_TEXT));
    expect(known, || format!("{END_OF_TEXT} is not in the vocabulary"))
}
