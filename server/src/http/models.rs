//! GET /v1/models and /v1/models/{id}.

use super::auth::Client;
use super::error::{ApiError, RequestError, excerpt};
use super::state::{Context, ServedModel};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};

/// The names that the client may use.
pub async fn list_models(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
) -> Result<Json<Value>, ApiError> {
    let model = &context.serving()?.model;
    let names = model.names.iter().filter(|name| client.limits().allows_model(name));
    let data: Vec<Value> = names.map(|name| model_object(model, name)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// Names may hold slashes. Errors: 404 naming an unknown model.
pub async fn get_model(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let model = &context.serving()?.model;
    match model.names.contains(&name) && client.limits().allows_model(&name) {
        true => Ok(Json(model_object(model, &name))),
        false => Err(RequestError::UnknownModel { name: excerpt(&name) }.into()),
    }
}

fn model_object(model: &ServedModel, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "monsoon",
        "root": model.names[0],
        "parent": null,
        "max_model_len": model.max_model_len,
    })
}
