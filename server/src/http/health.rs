//! GET /health, /ping and /version.

use super::state::Context;
use crate::engine::EngineHealth;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// 200 while requests are served and the engine makes progress, else 503. Asks nothing that waits.
pub async fn health(State(context): State<Context>) -> Response {
    let (status, reason) = match context.serving() {
        Err(_) => ("loading", None),
        Ok(serving) => match serving.engine.health() {
            EngineHealth::Stuck { step_age } => {
                ("stuck", Some(format!("a step has taken {} s", step_age.as_secs())))
            }
            // The reason may name devices and files: it is for the log, not for the public.
            EngineHealth::Stopped { .. } => ("stopped", None),
            EngineHealth::Ok if context.is_draining() => ("draining", None),
            EngineHealth::Ok => ("ok", None),
        },
    };
    let code = match status {
        "ok" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, Json(json!({"status": status, "reason": reason}))).into_response()
}

/// The same, as SageMaker asks it.
pub async fn ping(state: State<Context>) -> Response {
    health(state).await
}

pub async fn version() -> Json<serde_json::Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
