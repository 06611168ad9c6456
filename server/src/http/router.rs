//! URL -> handler, one line each, and what every request passes on its way there.

use super::anthropic::{count_tokens, messages};
use super::auth::{authenticate, refuse};
use super::batches::{self, get_batch, list_batches};
use super::chat_completions::chat_completions;
use super::completions::completions;
use super::dashscope::multimodal_generation::multimodal_generation;
use super::dashscope::text_embedding::text_embedding;
use super::dashscope::text_generation::text_generation;
use super::dashscope::text_rerank::text_rerank;
use super::dashscope::tokenizer::tokenizer;
use super::embeddings::embeddings;
use super::error::{RejectionReason, RequestError, excerpt};
use super::files::{delete_file, file_content, get_file, list_files, upload};
use super::health::{health, ping, version};
use super::limits::REQUEST_ID_BYTES_MAX;
use super::metrics_endpoint::metrics;
use super::models::{get_model, list_models};
use super::openapi::openapi;
use super::page::{self, WebPage};
use super::rerank::rerank;
use super::responses;
use super::score::score;
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
    ("post", "/v1/embeddings"),
    ("post", "/v1/rerank"),
    ("post", "/v2/rerank"),
    ("post", "/rerank"),
    ("post", "/v1/score"),
    ("post", "/score"),
    ("post", "/api/v1/services/aigc/text-generation/generation"),
    ("post", "/api/v1/services/aigc/multimodal-generation/generation"),
    ("post", "/api/v1/services/embeddings/text-embedding/text-embedding"),
    ("post", "/api/v1/services/rerank/text-rerank/text-rerank"),
    ("post", "/api/v1/tokenizer"),
    ("post", "/v1/files"),
    ("get", "/v1/files"),
    ("get", "/v1/files/{id}"),
    ("delete", "/v1/files/{id}"),
    ("get", "/v1/files/{id}/content"),
    ("post", "/v1/batches"),
    ("get", "/v1/batches"),
    ("get", "/v1/batches/{id}"),
    ("post", "/v1/batches/{id}/cancel"),
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

/// Prefixes under which clients of Model Studio look for the same routes, with where those begin.
const PREFIXES: &[(&str, &str)] = &[("/compatible-mode", "/v1/"), ("/apps/anthropic", "/v1/")];

/// The route that a client means which puts Model Studio's prefix before it.
pub fn without_prefix(uri: Uri) -> Uri {
    let of = |(prefix, start): &(&str, &str)| {
        let path = uri.path_and_query()?.as_str().strip_prefix(prefix)?;
        path.starts_with(start).then(|| path.parse().ok()).flatten()
    };
    PREFIXES.iter().find_map(of).unwrap_or(uri)
}

pub fn router(context: Context) -> Router {
    routes(&context)
        .layer(from_fn_with_state(context.clone(), check_headers))
        .layer(from_fn_with_state(context.clone(), authenticate))
        .layer(from_fn_with_state(context.clone(), count_answers))
        .layer(from_fn(name_request))
        .with_state(context)
}

/// For the rows of batch jobs, which carry their `Client` already.
pub fn row_router(context: Context) -> Router {
    routes(&context).layer(from_fn(name_request)).with_state(context)
}

fn routes(context: &Context) -> Router<Context> {
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
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/rerank", post(rerank))
        .route("/v2/rerank", post(rerank))
        .route("/rerank", post(rerank))
        .route("/v1/score", post(score))
        .route("/score", post(score))
        .route("/api/v1/services/aigc/text-generation/generation", post(text_generation))
        .route(
            "/api/v1/services/aigc/multimodal-generation/generation",
            post(multimodal_generation),
        )
        .route("/api/v1/services/embeddings/text-embedding/text-embedding", post(text_embedding))
        .route("/api/v1/services/rerank/text-rerank/text-rerank", post(text_rerank))
        .route("/api/v1/tokenizer", post(tokenizer))
        .route("/v1/files", post(upload).get(list_files))
        .route("/v1/files/{id}", get(get_file).delete(delete_file))
        .route("/v1/files/{id}/content", get(file_content))
        .route("/v1/batches", post(batches::create).get(list_batches))
        .route("/v1/batches/{id}", get(get_batch))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
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
}

/// Every answer names its request: by the client's own id, else by one of ours.
async fn name_request(request: Request, next: Next) -> Response {
    let is_good = |id: &&HeaderValue| id.len() <= REQUEST_ID_BYTES_MAX && id.to_str().is_ok();
    let id = request.headers().get(REQUEST_ID).filter(is_good).cloned();
    let id = id.or_else(|| HeaderValue::try_from(format!("req-{}", random_hex())).ok());
    let mut response = next.run(request).await;
    // Some APIs name a request in the body as well.
    if let Some(id) = id.filter(|_| !response.headers().contains_key(REQUEST_ID)) {
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
