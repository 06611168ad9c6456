//! POST /api/v1/services/aigc/multimodal-generation/generation: a chat of text parts.

use super::DashScopeError;
use super::into_chat::ResultFormat;
use super::text_generation::generate;
use crate::http::auth::Client;
use crate::http::state::Context;
use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;

pub async fn multimodal_generation(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, DashScopeError> {
    Ok(generate(&context, &client, request, ResultFormat::Parts).await?)
}
