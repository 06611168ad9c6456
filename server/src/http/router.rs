//! URL -> handler, one line each, and what every request passes on its way there.

use super::auth::authenticate;
use super::chat_completions::chat_completions;
use super::completions::completions;
use super::error::{ApiError, RejectionReason, RequestError, excerpt};
use super::health::{health, version};
use super::metrics_endpoint::metrics;
use super::models::{get_model, list_models};
use super::openapi::openapi;
use super::state::Context;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

/// Method and path of every route, as they stand in /openapi.json.
pub const ROUTES: &[(&str, &str)] = &[
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{id}"),
    ("get", "/health"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
    ("get", "/version"),
];

pub fn router(context: Context) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(get_model))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/version", get(version))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(context.clone(), check_headers))
        .layer(from_fn_with_state(context.clone(), authenticate))
        .layer(from_fn_with_state(context.clone(), count_answers))
        .with_state(context)
}

/// Outermost, so that it counts what the others refuse too.
async fn count_answers(State(context): State<Context>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("unknown", MatchedPath::as_str);
    context.metrics.count_answer(route, response.status().as_u16());
    if let Some(reason) = response.extensions().get::<RejectionReason>() {
        context.metrics.count_rejection(reason.0);
    }
    response
}

/// Errors: 431. The connection itself reads no more than a small multiple of these limits.
async fn check_headers(State(context): State<Context>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let (headers_max, bytes_max) = (context.config.headers_max, context.config.header_bytes_max);
    if headers.len() > headers_max || bytes > bytes_max {
        let headers = headers.len();
        let error = RequestError::HeadersTooLarge { headers, bytes, headers_max, bytes_max };
        return ApiError::from(error).into_response();
    }
    next.run(request).await
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    let (method, path) = (excerpt(method.as_str()), excerpt(uri.path()));
    RequestError::UnknownRoute { method, path }.into()
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let (method, path) = (excerpt(method.as_str()), excerpt(uri.path()));
    RequestError::MethodNotAllowed { method, path }.into()
}
