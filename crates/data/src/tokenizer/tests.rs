use std::sync::LazyLock;

use super::*;

/// Enough text for some hundred merges, with several scripts.
const TEXT: &str = "In the beginning the Universe was created. This has made a lot of people very angry \
and been widely regarded as a bad move.\n\nAm Anfang schuf Gott Himmel und Erde; und die Erde war wüst und leer. \
日本語の文字 и кириллица 🦀🦀🦀 don't, we'll, it's\t\ttabs   and   spaces \r\n 12345 67890 ";

static TRAINED: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::train([TEXT].into_iter(), 320).unwrap());

/// xorshift64: the same numbers in every run.
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move |limit| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    }
}

#[test]
fn training_is_deterministic() {
    let texts: Vec<&str> = TEXT.split_inclusive(' ').collect();
    for _ in 0..5 {
        let again = Tokenizer::train([TEXT].into_iter(), 320).unwrap();
        assert_eq!(again.to_bytes(), TRAINED.to_bytes());
    }
    // The order of the texts does not matter, only what is in them.
    let forward = Tokenizer::train(texts.iter().copied(), 320).unwrap();
    let backward = Tokenizer::train(texts.iter().rev().copied(), 320).unwrap();
    assert_eq!(forward.to_bytes(), backward.to_bytes());
    // Another process, thread count or day: always this.
    expect_test::expect!["44a00e786a3e87c564e3f52e17bfa273a9b1b2961b9bdd1981ad1c528f2a6c90"]
        .assert_eq(&TRAINED.hash().to_string());
}

/// A two-letter language has many pairs that occur equally often, and the same token from different pairs.
#[test]
fn training_is_deterministic_when_counts_tie() {
    let mut below = numbers();
    for _ in 0..50 {
        let mut text = String::new();
        for _ in 0..20 {
            for _ in 0..=below(20) {
                text.push(if below(2) == 0 { 'a' } else { 'b' });
            }
            text.push(' ');
        }
        let train = || Tokenizer::train([text.as_str()].into_iter(), 300).unwrap();
        assert_eq!(train().to_bytes(), train().to_bytes(), "{text}");
    }
}

#[test]
fn any_text_round_trips() {
    let texts = [
        "",
        " ",
        "a",
        TEXT,
        END_OF_TEXT,
        "\0\u{1}\u{7f}\u{80}\u{ad}\u{fffd}",
        "e\u{301} \u{200d}🏳️‍🌈",
    ];
    for text in texts {
        let ids = TRAINED.encode(text);
        assert_eq!(TRAINED.decode(&ids), text);
        assert!(ids.iter().all(|&id| id < TRAINED.vocabulary_size()));
        assert!(!ids.contains(&TRAINED.end_of_text()), "{text}");
    }
    assert_eq!(TRAINED.vocabulary_size(), 320);
    assert_eq!(TRAINED.end_of_text(), 0);
    assert_eq!(TRAINED.decode(&[0, 1_000_000, u32::MAX]), "");
}

#[test]
fn reading_gives_the_same_tokenizer() {
    let read = Tokenizer::from_bytes(TRAINED.to_bytes()).unwrap();
    assert_eq!(read.to_bytes(), TRAINED.to_bytes());
    assert_eq!(read.hash(), TRAINED.hash());
    assert_eq!(read.encode(TEXT), TRAINED.encode(TEXT));
}

#[test]
fn pieces_change_no_token() {
    let mut below = numbers();
    let parts = [
        "word", " ", "  ", "\n", "\t", "'s", "don't", "1", ",", "ü", "\u{a0}", "語", "\r\n", " \n ",
    ];
    let mut text = String::new();
    while text.len() < 300_000 {
        text.push_str(parts[below(parts.len() as u64) as usize]);
    }
    let pieces: Vec<&str> = Pieces::of(&text).collect();
    assert!(pieces.len() > 5);
    assert_eq!(pieces.concat(), text);
    let whole = TRAINED.inner.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(TRAINED.encode(&text), whole.get_ids());
}

#[test]
fn decoding_is_that_of_the_library() {
    let mut below = numbers();
    for length in 0..200 {
        let ids: Vec<u32> = (0..length).map(|_| below(320) as u32).collect();
        assert_eq!(
            TRAINED.decode(&ids),
            TRAINED.inner.decode(&ids, true).unwrap()
        );
    }
}

#[test]
fn stream_and_whole_decode_alike() {
    let check = |ids: &[u32]| {
        let mut stream = TRAINED.decode_stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, TRAINED.decode(ids), "{ids:?}");
    };
    let ids = TRAINED.encode(TEXT);
    check(&ids);
    for cut in 0..ids.len() {
        check(&ids[..cut]);
    }
    let mut below = numbers();
    for _ in 0..2_000 {
        let length = below(12);
        check(&(0..length).map(|_| below(330) as u32).collect::<Vec<_>>());
    }
}

#[test]
fn a_stream_waits_for_whole_characters() {
    // Trained on nothing, so that each byte is a token.
    let bytes = Tokenizer::train([].into_iter(), 300).unwrap();
    assert_eq!(bytes.vocabulary_size(), VOCABULARY_SIZE_MIN);
    let mut stream = bytes.decode_stream();
    let emitted: Vec<String> = bytes
        .encode("a語🦀")
        .iter()
        .map(|&id| stream.push(id))
        .collect();
    assert_eq!(emitted, ["a", "", "", "語", "", "", "", "🦀"]);
    // The beginning of a character, then something else.
    let crab = bytes.encode("🦀");
    let letter = bytes.encode("a")[0];
    assert_eq!(
        stream.push(crab[0]) + &stream.push(crab[1]) + &stream.push(letter),
        "\u{fffd}a"
    );
    assert_eq!(stream.push(crab[0]), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn sizes_out_of_bounds_are_refused() {
    for size in [0, VOCABULARY_SIZE_MIN - 1, VOCABULARY_SIZE_MAX + 1] {
        let refused = Tokenizer::train([TEXT].into_iter(), size);
        assert!(matches!(refused, Err(TokenizerError::VocabularySize(found)) if found == size));
    }
    let spaces = vec![b' '; TOKENIZER_BYTES_MAX + 1];
    assert!(matches!(
        Tokenizer::from_bytes(&spaces),
        Err(TokenizerError::TooLarge { .. })
    ));
}

#[test]
fn foreign_tokenizers_are_refused() {
    let check = |change: fn(&mut serde_json::Value), expected: &str| {
        let mut json = serde_json::from_slice(TRAINED.to_bytes()).unwrap();
        change(&mut json);
        let error = Tokenizer::from_bytes(json.to_string().as_bytes()).expect_err(expected);
        let chain = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        assert!(chain.contains(expected), "{chain}");
    };
    use serde_json::json;
    check(
        |j| j["normalizer"] = json!({"type": "Lowercase"}),
        "normalizer",
    );
    check(|j| j["truncation"] = json!({"max_length": 1}), "truncation");
    check(
        |j| j["pre_tokenizer"] = json!({"type": "Whitespace"}),
        "pre-tokenizer",
    );
    check(
        |j| j["pre_tokenizer"]["add_prefix_space"] = json!(true),
        "pre-tokenizer",
    );
    check(|j| j["pre_tokenizer"] = json!(null), "pre-tokenizer");
    check(|j| j["decoder"] = json!(null), "decoder");
    check(
        |j| j["post_processor"] = json!({"type": "BertProcessing"}),
        "post-processor",
    );
    check(|j| j["added_tokens"] = json!([]), "added tokens");
    check(
        |j| j["added_tokens"][0]["content"] = json!("the"),
        "added tokens",
    );
    check(
        |j| j["added_tokens"][0]["lstrip"] = json!(true),
        "added tokens",
    );
    check(|j| j["model"]["dropout"] = json!(0.5), "dropout");
    check(
        |j| j["model"]["byte_fallback"] = json!(true),
        "byte_fallback",
    );
    check(|j| j["model"]["type"] = json!("WordLevel"), "not BPE");
    check(
        |j| drop(j["model"].as_object_mut().unwrap().remove("merges")),
        "missing or too many",
    );
    check(
        |j| drop(j["model"]["vocab"].as_object_mut().unwrap().remove("a")),
        "cannot be read",
    );
    check(
        |j| j["model"]["vocab"]["zz"] = json!(400),
        "no token has the id 320",
    );
    check(
        |j| j["model"]["vocab"]["語"] = json!(320),
        "stands for no byte",
    );
    check(
        |j| {
            drop(
                j["model"]["vocab"]
                    .as_object_mut()
                    .unwrap()
                    .remove(END_OF_TEXT),
            )
        },
        "not in the vocabulary",
    );
    assert!(matches!(
        Tokenizer::from_bytes(b"{\"version\":"),
        Err(TokenizerError::NotJson(_))
    ));
}

#[test]
fn damaged_files_are_survived() {
    let bytes = TRAINED.to_bytes();
    let mut below = numbers();
    for _ in 0..300 {
        let mut damaged = bytes.to_vec();
        for _ in 0..=below(3) {
            let position = below(damaged.len() as u64) as usize;
            damaged[position] = b' ' + below(95) as u8;
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&damaged) {
            let ids = tokenizer.encode(TEXT);
            assert_eq!(tokenizer.decode(&ids), TEXT);
        }
    }
}
