//! One answer: seeds, stop sequences, limits.

use super::*;
use crate::testing::{CONTEXT, tiny_model};

fn ask(prompt: &str) -> Ask {
    Ask {
        prompt: Prompt::Text(prompt.to_owned()),
        choices: 1,
        tokens_max: Some(24),
        sampling: SamplingSettings {
            temperature: 1.0,
            top_p: 1.0,
            seed: 5,
        },
        stops: Vec::new(),
        truncate: false,
        trim_start: false,
    }
}

fn pieces(model: &Model, ask: &Ask) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut emit = |piece| {
        pieces.push(piece);
        ControlFlow::Continue(())
    };
    answer(model, ask, &mut emit, &|| false).expect("an answer");
    pieces
}

/// Text, reason and tokens of one choice.
fn outcome(pieces: &[Piece], wanted: u32) -> (String, FinishReason, usize) {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Text { choice, text: part } if *choice == wanted => text.push_str(part),
            Piece::Finished {
                choice,
                reason,
                tokens,
            } if *choice == wanted => return (text, *reason, *tokens),
            Piece::Started { .. } | Piece::Text { .. } | Piece::Finished { .. } => {}
        }
    }
    panic!("choice {wanted} never ended: {pieces:?}")
}

#[test]
fn a_seed_gives_the_same_answer_and_another_gives_another() {
    let model = tiny_model("m");
    let first = outcome(&pieces(&model, &ask("the union")), 0);
    assert_eq!(first, outcome(&pieces(&model, &ask("the union")), 0));
    let mut other = ask("the union");
    other.sampling.seed = 6;
    assert_ne!(first.0, outcome(&pieces(&model, &other), 0).0);
}

#[test]
fn choices_differ_and_each_is_what_its_seed_gives_alone() {
    let model = tiny_model("m");
    let three = pieces(
        &model,
        &Ask {
            choices: 3,
            ..ask("the union")
        },
    );
    let texts: Vec<String> = (0..3).map(|choice| outcome(&three, choice).0).collect();
    assert_ne!(texts[0], texts[1]);
    let mut alone = ask("the union");
    alone.sampling.seed = alone.sampling.seed.wrapping_add(SEED_STEP);
    assert_eq!(texts[1], outcome(&pieces(&model, &alone), 0).0);
}

#[test]
fn a_stop_sequence_over_token_borders_ends_the_text_before_it() {
    let model = tiny_model("m");
    let (whole, reason, tokens) = outcome(&pieces(&model, &ask("the union")), 0);
    assert_eq!((reason, tokens), (FinishReason::Length, 24));
    // Every substring of five characters is a stop sequence once; most of them lie over a border between tokens.
    let starts: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    let mut checked = 0;
    for window in starts.windows(6) {
        let stop = &whole[window[0]..window[5]];
        let found = pieces(
            &model,
            &Ask {
                stops: vec![stop.to_owned()],
                ..ask("the union")
            },
        );
        let (text, reason, stopped_after) = outcome(&found, 0);
        assert_eq!(
            text,
            whole[..whole.find(stop).expect("a substring")],
            "stop {stop:?}"
        );
        assert_eq!(reason, FinishReason::Stop);
        assert!(stopped_after <= tokens);
        checked += 1;
    }
    assert!(
        checked > 5,
        "the answer {whole:?} is too short to test anything"
    );
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let model = tiny_model("m");
    let found = pieces(
        &model,
        &Ask {
            tokens_max: None,
            ..ask("the union")
        },
    );
    let Some(Piece::Started { prompt_tokens }) = found.first() else {
        panic!("no start: {found:?}")
    };
    let (_, reason, tokens) = outcome(&found, 0);
    match reason {
        FinishReason::Length => assert_eq!(prompt_tokens + tokens, CONTEXT),
        FinishReason::Stop => assert!(prompt_tokens + tokens < CONTEXT),
    }
}

#[test]
fn a_prompt_that_fills_the_context_is_refused_or_loses_its_oldest_tokens() {
    let model = tiny_model("m");
    let long = Ask {
        prompt: Prompt::Tokens((0..200).collect()),
        tokens_max: Some(8),
        ..ask("")
    };
    let refused = answer(&model, &long, &mut |_| ControlFlow::Continue(()), &|| false);
    assert_eq!(
        refused,
        Err(AnswerError::ContextExceeded {
            context: CONTEXT,
            prompt_tokens: 200
        })
    );
    let kept = Ask {
        truncate: true,
        ..long.clone()
    };
    assert_eq!(
        pieces(&model, &kept)[0],
        Piece::Started {
            prompt_tokens: CONTEXT - 8
        }
    );
    let same = Ask {
        prompt: Prompt::Tokens((200 - (CONTEXT as u32 - 8)..200).collect()),
        ..long
    };
    assert_eq!(pieces(&model, &kept), pieces(&model, &same));
}

#[test]
fn an_empty_prompt_is_the_beginning_of_a_document() {
    let model = tiny_model("m");
    let end = model.tokenizer.end_of_text();
    let spelt_out = Ask {
        prompt: Prompt::Tokens(vec![end]),
        ..ask("")
    };
    assert_eq!(pieces(&model, &ask("")), pieces(&model, &spelt_out));
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let model = tiny_model("m");
    let vocabulary = model.generator.config().vocab_size;
    let foreign = Ask {
        prompt: Prompt::Tokens(vec![1, vocabulary as u32]),
        ..ask("")
    };
    let refused = answer(
        &model,
        &foreign,
        &mut |_| ControlFlow::Continue(()),
        &|| false,
    );
    assert_eq!(
        refused,
        Err(AnswerError::Token {
            token: vocabulary as u32,
            vocabulary
        })
    );
}

#[test]
fn nothing_is_computed_for_a_client_that_has_gone() {
    let model = tiny_model("m");
    let mut count = 0;
    let mut emit = |_| {
        count += 1;
        ControlFlow::Continue(())
    };
    answer(&model, &ask("the union"), &mut emit, &|| true).expect("an end without an answer");
    assert_eq!(count, 1, "only the start was told");
}
