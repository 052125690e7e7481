//! What is read, what is refused, and under which name.

use serde_json::json;

use super::*;

fn read(endpoint: Endpoint, body: Value) -> Result<Request, ApiError> {
    Request::from_body(endpoint, body.to_string().as_bytes(), 77)
}

fn chat(extra: Value) -> Result<Request, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    if let (Some(body), Some(extra)) = (body.as_object_mut(), extra.as_object()) {
        body.extend(extra.clone());
    }
    read(Endpoint::Chat, body)
}

#[track_caller]
fn refused(extra: Value, param: &str, code: &str) {
    let error = chat(extra.clone()).expect_err("a refusal").to_json();
    assert_eq!(error["error"]["param"], param, "{extra}: {error}");
    assert_eq!(error["error"]["code"], code, "{extra}: {error}");
    assert_eq!(error["error"]["type"], "invalid_request_error");
}

#[test]
fn defaults_are_those_of_openai() {
    let request = chat(json!({})).expect("a request");
    assert!(!request.stream && !request.include_usage);
    assert_eq!(request.ask.choices, 1);
    assert_eq!(request.ask.tokens_max, None);
    assert_eq!(
        request.ask.sampling,
        SamplingSettings {
            temperature: 1.0,
            top_p: 1.0,
            seed: 77
        }
    );
    assert_eq!(
        request.ask.prompt,
        Prompt::Text("User: hi\nAssistant:".to_owned())
    );
    let completion =
        read(Endpoint::Completions, json!({"model": "m", "prompt": "hi"})).expect("a request");
    assert_eq!(completion.ask.tokens_max, Some(16));
    assert!(completion.ask.stops.is_empty() && !completion.ask.trim_start);
}

#[test]
fn parameters_are_read() {
    let request = chat(json!({
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 0, "seed": -1, "n": 4, "stop": ["a", "b"],
        "stream": true, "stream_options": {"include_usage": true}, "truncation": "auto", "user": "someone",
        "tools": [], "tool_choice": "none", "logit_bias": {}, "logprobs": false, "presence_penalty": 0, "stream_x": 1,
        "response_format": {"type": "text"},
    }))
    .expect("a request");
    assert!(request.stream && request.include_usage && request.ask.truncate);
    assert_eq!((request.ask.tokens_max, request.ask.choices), (Some(7), 4));
    assert_eq!(request.ask.sampling.temperature, 0.0);
    assert!(request.ask.sampling.top_p > 0.0);
    assert_eq!(request.ask.sampling.seed, u64::MAX);
    assert_eq!(request.ask.stops[..2], ["a", "b"]);
}

#[test]
fn content_may_come_in_parts_and_a_prompt_as_tokens() {
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let request =
        chat(json!({"messages": [{"role": "developer", "content": parts}]})).expect("a request");
    assert_eq!(
        request.ask.prompt,
        Prompt::Text("System: a\nb\nAssistant:".to_owned())
    );
    let tokens = read(
        Endpoint::Completions,
        json!({"model": "m", "prompt": [1, 2, 3]}),
    )
    .expect("a request");
    assert_eq!(tokens.ask.prompt, Prompt::Tokens(vec![1, 2, 3]));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    refused(
        json!({"model": null}),
        "model",
        "missing_required_parameter",
    );
    refused(
        json!({"messages": null}),
        "messages",
        "missing_required_parameter",
    );
    for (param, value) in [
        ("model", json!(3)),
        ("messages", json!([])),
        (
            "messages",
            json!(vec![json!({"role": "user", "content": "x"}); 257]),
        ),
        ("messages", json!([{"role": "wizard", "content": "x"}])),
        ("messages", json!([{"role": "user", "content": 5}])),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(-0.1)),
        ("n", json!(0)),
        ("n", json!(5)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-4)),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", json!([""])),
        ("stop", json!(7)),
        ("seed", json!(0.5)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("truncation", json!("maybe")),
    ] {
        let mut extra = serde_json::Map::new();
        extra.insert(param.to_owned(), value);
        refused(Value::Object(extra), param, "invalid_value");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (param, value) in [
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("functions", json!([{}])),
        ("logit_bias", json!({"5": 1})),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(3)),
        ("echo", json!(true)),
        ("suffix", json!("x")),
        ("frequency_penalty", json!(0.5)),
        ("response_format", json!({"type": "json_object"})),
        ("best_of", json!(2)),
    ] {
        let mut extra = serde_json::Map::new();
        extra.insert(param.to_owned(), value);
        refused(Value::Object(extra), param, "unsupported_parameter");
    }
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in ["", "{", "[]", "\"x\"", "{\"model\":\"\u{0}\"}"] {
        let error = Request::from_body(Endpoint::Chat, body.as_bytes(), 0).expect_err(body);
        assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST, "{body}");
    }
}

/// The short run of the fuzz target `openai_request`: a request with some bytes changed is read or refused.
#[test]
fn no_bytes_make_reading_panic() {
    let seed = json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "prompt": [1, 2, 3], "n": 2, "stop": ["a", "b"],
        "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5, "seed": -3, "max_tokens": 7,
    })
    .to_string()
    .into_bytes();
    // Bytes that JSON and UTF-8 turn on.
    let interesting = b"\"\\{}[],:0-e9.\0\x7f\x80\xff\xed\xf4 tfn";
    let mut state = 1_u64;
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize % below
    };
    for _ in 0..20_000 {
        let mut body = seed.clone();
        for _ in 0..=draw(4) {
            let at = draw(body.len());
            match draw(4) {
                0 => body.truncate(at.max(1)),
                1 => body.insert(at, interesting[draw(interesting.len())]),
                2 => {
                    body.remove(at);
                    body.push(b'}');
                }
                _ => body[at] = interesting[draw(interesting.len())],
            }
        }
        let _ = crate::check_request(&body);
    }
}
