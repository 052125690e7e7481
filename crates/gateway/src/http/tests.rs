//! The API as a client sees it, over the router, with a tiny random model.

use axum::{
    body::{Body, to_bytes},
    http::{Request as HttpRequest, StatusCode},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::testing::{CONTEXT, service};

async fn send(service: &Service, request: HttpRequest<Body>) -> Response {
    router(service.clone())
        .oneshot(request)
        .await
        .expect("the router never fails")
}

fn post_json(path: &str, body: &Value) -> HttpRequest<Body> {
    HttpRequest::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .expect("a request")
}

fn get_from(path: &str) -> HttpRequest<Body> {
    HttpRequest::get(path)
        .body(Body::empty())
        .expect("a request")
}

async fn text_of(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), 1 << 20)
        .await
        .expect("a body");
    String::from_utf8(bytes.to_vec()).expect("text")
}

async fn json_of(response: Response) -> Value {
    serde_json::from_str(&text_of(response).await).expect("JSON")
}

/// The data of a stream's events.
async fn events_of(response: Response) -> Vec<String> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = text_of(response).await;
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(str::to_owned)
        .collect()
}

fn chat_body(extra: Value) -> Value {
    let mut body = json!({
        "model": "speeches", "seed": 3, "max_tokens": 20,
        "messages": [{"role": "user", "content": "the union"}],
    });
    if let (Some(body), Some(extra)) = (body.as_object_mut(), extra.as_object()) {
        body.extend(extra.clone());
    }
    body
}

fn completion_body(extra: Value) -> Value {
    let mut body = json!({"model": "speeches", "seed": 3, "max_tokens": 20, "prompt": "the union"});
    if let (Some(body), Some(extra)) = (body.as_object_mut(), extra.as_object()) {
        body.extend(extra.clone());
    }
    body
}

#[tokio::test]
async fn a_chat_answer_has_openais_shape() {
    let service = service(1, 0);
    let response = send(
        &service,
        post_json("/v1/chat/completions", &chat_body(json!({}))),
    )
    .await;
    assert_eq!(response.status(), StatusCode::OK);
    let answer = json_of(response).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(
        answer["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("chatcmpl-"))
    );
    assert_eq!(answer["model"], "speeches");
    assert_eq!(answer["system_fingerprint"], "02020202");
    assert!(answer["created"].as_u64().is_some());
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].is_string());
    assert!(choice["logprobs"].is_null());
    let usage = &answer["usage"];
    let model = crate::testing::tiny_model("speeches");
    let prompt = model.tokenizer.encode("User: the union\nAssistant:").len();
    assert_eq!(usage["prompt_tokens"], prompt);
    if choice["finish_reason"] == "length" {
        assert_eq!(usage["completion_tokens"], 20);
    } else {
        assert_eq!(choice["finish_reason"], "stop");
    }
    let sum =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
}

#[tokio::test]
async fn a_chat_stream_says_what_the_whole_answer_says() {
    let service = service(1, 0);
    for extra in [
        json!({}),
        json!({"n": 3}),
        json!({"stop": "e"}),
        json!({"temperature": 0}),
    ] {
        let body = chat_body(extra);
        let whole = json_of(send(&service, post_json("/v1/chat/completions", &body)).await).await;
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let events =
            events_of(send(&service, post_json("/v1/chat/completions", &streamed)).await).await;
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        let chunks: Vec<Value> = events[..events.len() - 1]
            .iter()
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect();
        let (last, chunks) = chunks.split_last().expect("chunks");
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], whole["usage"]);
        for (index, choice) in whole["choices"]
            .as_array()
            .expect("choices")
            .iter()
            .enumerate()
        {
            let deltas: Vec<&Value> = chunks
                .iter()
                .map(|chunk| &chunk["choices"][0])
                .filter(|part| part["index"] == index)
                .collect();
            assert_eq!(deltas[0]["delta"]["role"], "assistant");
            let text: String = deltas
                .iter()
                .filter_map(|part| part["delta"]["content"].as_str())
                .collect();
            assert_eq!(text, choice["message"]["content"].as_str().expect("text"));
            let (end, before) = deltas.split_last().expect("an end");
            assert_eq!(end["finish_reason"], choice["finish_reason"]);
            assert_eq!(end["delta"], json!({}));
            assert!(before.iter().all(|part| part["finish_reason"].is_null()));
        }
        assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["usage"].is_null()));
        assert!(chunks.iter().all(|chunk| chunk["id"] == last["id"]));
    }
}

#[tokio::test]
async fn a_completion_stream_says_what_the_whole_answer_says() {
    let service = service(1, 0);
    let body = completion_body(json!({"n": 2}));
    let whole = json_of(send(&service, post_json("/v1/completions", &body)).await).await;
    assert_eq!(whole["object"], "text_completion");
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = events_of(send(&service, post_json("/v1/completions", &streamed)).await).await;
    let mut texts = [String::new(), String::new()];
    for data in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(chunk["object"], "text_completion");
        assert!(chunk.get("usage").is_none(), "nobody asked for it");
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().expect("an index") as usize]
            .push_str(choice["text"].as_str().expect("text"));
    }
    for (choice, text) in whole["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .zip(&texts)
    {
        assert_eq!(choice["text"].as_str(), Some(text.as_str()));
    }
    assert_ne!(texts[0], texts[1]);
}

#[tokio::test]
async fn models_are_listed_and_labelled() {
    let service = service(1, 0);
    let list = json_of(send(&service, get_from("/v1/models")).await).await;
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "speeches");
    assert_eq!(list["data"][1]["id"], "speeches@12");
    let model = json_of(send(&service, get_from("/v1/models/speeches%4012")).await).await;
    assert_eq!(model["object"], "model");
    assert_eq!(model["preview"], true);
    assert_eq!(model["label"], "research preview");
    assert_eq!(model["round"], 12);
    assert_eq!(model["held_out_bits_per_byte"], 1.5);
    assert_eq!(model["run"], "01".repeat(32));
    assert_eq!(model["context_length"], CONTEXT);
}

#[tokio::test]
async fn errors_have_openais_shape() {
    let service = service(1, 0);
    let check = async |request: HttpRequest<Body>, status: u16, code: &str| {
        let response = send(&service, request).await;
        assert_eq!(response.status().as_u16(), status, "{code}");
        let error = json_of(response).await;
        assert_eq!(error["error"]["code"], code, "{error}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string());
        assert!(error["error"].get("param").is_some());
    };
    let chat = "/v1/chat/completions";
    check(
        post_json(chat, &chat_body(json!({"model": "gpt-x"}))),
        404,
        "model_not_found",
    )
    .await;
    check(get_from("/v1/models/gpt-x"), 404, "model_not_found").await;
    check(get_from("/v1/embeddings"), 404, "unknown_url").await;
    check(get_from(chat), 405, "method_not_supported").await;
    check(
        post_json(chat, &chat_body(json!({"logit_bias": {"1": 2}}))),
        400,
        "unsupported_parameter",
    )
    .await;
    let long = "the union ".repeat(50);
    check(
        post_json("/v1/completions", &completion_body(json!({"prompt": long}))),
        400,
        "context_length_exceeded",
    )
    .await;
    let streamed = completion_body(json!({"prompt": long, "stream": true}));
    check(
        post_json("/v1/completions", &streamed),
        400,
        "context_length_exceeded",
    )
    .await;
    assert_eq!(service.queue.running(), 0);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let service = service(1, 0);
    let body = completion_body(json!({"prompt": "x".repeat(BODY_BYTES_MAX)}));
    let response = send(&service, post_json("/v1/completions", &body)).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        json_of(response).await["error"]["type"],
        "invalid_request_error"
    );
}

#[tokio::test]
async fn a_full_queue_is_told_and_says_when_to_come_back() {
    let service = service(1, 0);
    let place = service.queue.take().await.expect("the only place");
    let response = send(
        &service,
        post_json("/v1/chat/completions", &chat_body(json!({}))),
    )
    .await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(
        json_of(response).await["error"]["code"],
        "rate_limit_exceeded"
    );
    drop(place);
    let response = send(
        &service,
        post_json("/v1/chat/completions", &chat_body(json!({}))),
    )
    .await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let service = service(1, 1);
    let body = completion_body(json!({"stream": true, "n": 4, "max_tokens": CONTEXT}));
    let response = send(&service, post_json("/v1/completions", &body)).await;
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    // Waits in the queue until the abandoned answer has let go.
    let place = service
        .queue
        .take()
        .await
        .expect("the place that became free");
    drop(place);
    assert_eq!(service.queue.running(), 0);
}

#[tokio::test]
async fn an_answer_keeps_its_model_while_a_newer_one_comes() {
    let service = service(1, 1);
    let body = completion_body(json!({"stream": true}));
    let response = send(&service, post_json("/v1/completions", &body)).await;
    let mut newer = crate::testing::tiny_model("speeches");
    newer.checkpoint = protocol::Hash([3; 32]);
    newer.round = 13;
    service.catalogue.replace(newer.run, vec![newer]);
    for data in events_of(response)
        .await
        .iter()
        .filter(|data| *data != "[DONE]")
    {
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(chunk["system_fingerprint"], "02020202");
    }
    let after = json_of(
        send(
            &service,
            post_json("/v1/completions", &completion_body(json!({}))),
        )
        .await,
    )
    .await;
    assert_eq!(after["system_fingerprint"], "03030303");
}

#[tokio::test]
async fn a_stopping_gateway_takes_no_more_requests() {
    let service = service(1, 0);
    service.stopping.cancel();
    let response = send(
        &service,
        post_json("/v1/chat/completions", &chat_body(json!({}))),
    )
    .await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let health = json_of(send(&service, get_from("/health")).await).await;
    assert_eq!(health["status"], "stopping");
}

#[tokio::test]
async fn any_origin_may_ask_without_credentials() {
    let service = service(1, 0);
    let preflight = HttpRequest::options("/v1/chat/completions")
        .header("origin", "http://127.0.0.1:7700")
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization, content-type",
        )
        .body(Body::empty())
        .expect("a request");
    let response = send(&service, preflight).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    assert!(
        !response
            .headers()
            .contains_key("access-control-allow-credentials")
    );
    let allowed = response.headers()["access-control-allow-headers"]
        .to_str()
        .expect("text");
    assert!(
        allowed.contains("authorization") && allowed.contains("content-type"),
        "{allowed}"
    );
}

#[tokio::test]
async fn requests_and_tokens_are_counted() {
    let service = service(1, 0);
    let answer = json_of(
        send(
            &service,
            post_json("/v1/completions", &completion_body(json!({}))),
        )
        .await,
    )
    .await;
    send(
        &service,
        post_json("/v1/completions", &completion_body(json!({"model": "x"}))),
    )
    .await;
    let text = text_of(send(&service, get_from("/metrics")).await).await;
    let completion = &answer["usage"]["completion_tokens"];
    for line in [
        "athome_gateway_requests_total{endpoint=\"completions\",status=\"200\"} 1".to_owned(),
        "athome_gateway_requests_total{endpoint=\"completions\",status=\"404\"} 1".to_owned(),
        format!("athome_gateway_completion_tokens_total {completion}"),
        "athome_gateway_answers_running 0".to_owned(),
        "athome_gateway_models 1".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in:\n{text}");
    }
}
