//! POST /api/v1/services/aigc/text-generation/generation: a chat.

use super::answer::{output, usage_json};
use super::events::Events;
use super::into_chat::{ResultFormat, Stream, into_chat, without_own};
use super::{DashScopeError, RequestId, read_envelope, reply};
use crate::http::auth::Client;
use crate::http::chat_completions::{ChatRequest, Reasoning, start_chat};
use crate::http::error::{ApiError, RequestError};
use crate::http::sse::respond;
use crate::http::state::Context;
use crate::http::unknown::IgnoredFields;
use crate::http::unsupported::chat_names;
use crate::http::wire::TokenNames;
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::Response;
use std::time::Instant;

const SSE: HeaderName = HeaderName::from_static("x-dashscope-sse");

pub async fn text_generation(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, DashScopeError> {
    Ok(generate(&context, &client, request, ResultFormat::Message).await?)
}

/// `format`: of messages.
pub async fn generate(
    context: &Context,
    client: &Client,
    request: Request,
    format: ResultFormat,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let serving = context.generator()?;
    let stream = stream_of(request.headers());
    let (mut envelope, reservation) = read_envelope(context, &serving.model, request).await?;
    envelope.parameters = without_own(envelope.parameters);
    let outer = envelope.ignored.clone();
    let (mut fields, style) = into_chat(envelope, format, stream)?;
    let request = ChatRequest::into_request(&mut fields, &serving.model, &context.config)?;
    refuse_what_has_no_place(&request)?;
    let inner = IgnoredFields::of(&fields, &chat_names(), &context.config)?;
    if style.format == ResultFormat::Text && request.common.n > 1 {
        let reason = "text has place for one answer only: use message".into();
        return Err(RequestError::Invalid { field: "result_format".into(), reason }.into());
    }
    let names = request.logprobs.is_some().then(|| TokenNames::as_text(&serving.text));
    let options = request.common.stream;
    let (generation, _) = start_chat(context, client, request, reservation, arrived).await?;
    match options {
        None => {
            let (wholes, usage) = generation.collect().await?;
            let output = output(style.format, &wholes, names.as_ref());
            Ok(reply(output, usage_json(usage), [&outer, &inner]))
        }
        Some(options) => {
            let id = RequestId::new();
            let events = Events::new(id.clone(), style, names, generation.num_choices());
            let ping_interval = context.config.ping_interval;
            let response = respond(generation, events, options, ping_interval).await?;
            Ok(inner.tell(outer.tell(id.tell(response))))
        }
    }
}

/// Errors: the first field that asks for what an answer here has no place for.
fn refuse_what_has_no_place(request: &ChatRequest) -> Result<(), RequestError> {
    let common = &request.common;
    let asked = [
        ("prompt_logprobs", common.prompt_logprobs.is_some()),
        ("return_token_ids", common.returns_token_ids),
        ("include_reasoning", request.reasoning == Reasoning::LeftOut),
    ];
    match asked.into_iter().find(|(_, is_asked)| *is_asked) {
        Some((field, _)) => {
            let value = "a value that is used".into();
            Err(RequestError::Unsupported { field: field.into(), value })
        }
        None => Ok(()),
    }
}

/// Clients ask by either header, DashScope's own by both.
fn stream_of(headers: &HeaderMap) -> Stream {
    let has = |name: &HeaderName, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.into_iter().any(|value| value.to_ascii_lowercase().contains(word))
    };
    match has(&SSE, "enable") || has(&header::ACCEPT, "text/event-stream") {
        true => Stream::Yes,
        false => Stream::No,
    }
}
