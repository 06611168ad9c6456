//! URL -> handler, one line each, and what every request passes on its way there.

use super::anthropic::{count_tokens, messages};
use super::auth::{authenticate, refuse};
use super::chat_completions::chat_completions;
use super::completions::completions;
use super::error::{RejectionReason, RequestError, excerpt};
use super::health::{health, ping, version};
use super::limits::REQUEST_ID_BYTES_MAX;
use super::metrics_endpoint::metrics;
use super::models::{get_model, list_models};
use super::openapi::openapi;
use super::page::{self, WebPage};
use super::responses;
use super::state::Context;
use super::tokenize::{detokenize, tokenize};
use super::wire::random_hex;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Method and path of every route, as they stand in /openapi.json.
pub const ROUTES: &[(&str, &str)] = &[
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/messages"),
    ("post", "/v1/messages/count_tokens"),
    ("post", "/v1/responses"),
    ("get", "/v1/responses/{id}"),
    ("delete", "/v1/responses/{id}"),
    ("post", "/v1/responses/{id}/cancel"),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{id}"),
    ("get", "/health"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
    ("get", "/version"),
    ("get", "/ping"),
    ("get", page::PATH),
];

pub fn router(context: Context) -> Router {
    let page = match context.config.web_page {
        WebPage::Served => Router::new().route(page::PATH, get(page::page)),
        WebPage::Absent => Router::new(),
    };
    Router::new()
        .merge(page)
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(get_model))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/version", get(version))
        .route("/ping", get(ping))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(context.clone(), check_headers))
        .layer(from_fn_with_state(context.clone(), authenticate))
        .layer(from_fn_with_state(context.clone(), count_answers))
        .layer(from_fn(name_request))
        .with_state(context)
}

/// Every answer names its request: by the client's own id, else by one of ours.
async fn name_request(request: Request, next: Next) -> Response {
    let is_good = |id: &&HeaderValue| id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok();
    let id = request.headers().get(REQUEST_ID).filter(is_good).cloned();
    let id = id.or_else(|| HeaderValue::try_from(format!("req-{}", random_hex())).ok());
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Outside of the others, so that it counts what the others refuse too.
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
        return refuse(request.uri().path(), error.into());
    }
    next.run(request).await
}

async fn unknown_route(method: Method, uri: Uri) -> Response {
    let (method, path) = (excerpt(method.as_str()), excerpt(uri.path()));
    refuse(uri.path(), RequestError::UnknownRoute { method, path }.into())
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let (method, path) = (excerpt(method.as_str()), excerpt(uri.path()));
    refuse(uri.path(), RequestError::MethodNotAllowed { method, path }.into())
}
