//! `GET /v1/models` and `GET /v1/models/{id}`.
//!
//! Beside OpenAI's fields a model says what it is: a research preview that no gate has passed, of which run and round.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::{Value, json};

use super::{Service, error::ApiError};
use crate::model::Model;

pub(crate) async fn list(State(service): State<Service>) -> Json<Value> {
    let models: Vec<Value> = service
        .catalogue
        .list()
        .iter()
        .map(|(name, model)| object(name, model))
        .collect();
    Json(json!({"object": "list", "data": models}))
}

pub(crate) async fn one(
    State(service): State<Service>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let model = service
        .catalogue
        .find(&name)
        .ok_or_else(|| ApiError::model_not_found(&name))?;
    Ok(Json(object(&name, &model)))
}

fn object(name: &str, model: &Model) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": model.stored_ms / 1000,
        "owned_by": "athome",
        "preview": true,
        "label": "research preview",
        "run": model.run,
        "run_name": model.run_name,
        "round": model.round,
        "checkpoint": model.checkpoint,
        "held_out_bits_per_byte": model.bits_per_byte,
        "context_length": model.context(),
        "parameters": model.generator.config().parameter_count(),
    })
}
