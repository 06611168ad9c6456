//! POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, turned into a chat and back.

pub mod into_chat;

use super::auth::Client;
use super::body::read_fields;
use super::chat_completions::{
    ChatRequest, MAX_TOKENS, MESSAGES, read_chat, refuse_more_than_a_message, start_chat,
};
use super::choice::{Finish, Output, StopCause};
use super::error::{ApiError, RequestError};
use super::generation::{Call, Generation, Whole, text_error};
use super::sampling::read_model;
use super::sse::{ChunkFormat, named_event, respond};
use super::state::Context;
use super::unknown::IgnoredFields;
use super::unsupported::chat_names;
use super::wire::{Usage, random_hex};
use crate::engine::FinishReason;
use crate::text::Part;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use into_chat::into_chat;
use serde_json::{Value, json};
use std::time::Instant;

/// Routes whose errors have Anthropic's shape begin so.
pub const PATH: &str = "/v1/messages";

/// Errors in Anthropic's shape.
pub struct AnthropicError(ApiError);

impl<E: Into<ApiError>> From<E> for AnthropicError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for AnthropicError {
    fn into_response(self) -> Response {
        self.0.respond(error_body(&self.0))
    }
}

/// The error object of Anthropic's API.
pub fn error_body(error: &ApiError) -> Value {
    let kind = match error.status().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    let message = error.body()["error"]["message"].clone();
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

pub async fn messages(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, AnthropicError> {
    let arrived = Instant::now();
    let serving = context.generator()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    if fields.value(MAX_TOKENS.name).is_none() {
        return Err(RequestError::Missing { field: MAX_TOKENS.name.into() }.into());
    }
    into_chat(&mut fields)?;
    let request = ChatRequest::into_request(&mut fields, &serving.model, &context.config)?;
    refuse_more_than_a_message(&request)?;
    let ignored = IgnoredFields::of(&fields, &chat_names(), &context.config)?;
    let (stream, model) = (request.common.stream, request.common.model.clone());
    let (generation, _) = start_chat(&context, &client, request, reservation, arrived).await?;
    let head = Head { id: format!("msg_{}", random_hex()), model };
    let response = match stream {
        None => whole_reply(generation, &head).await?,
        Some(options) => {
            let events = MessageEvents { head, started: false, block: None, num_blocks: 0 };
            respond(generation, events, options, context.config.ping_interval).await?
        }
    };
    Ok(ignored.tell(response))
}

pub async fn count_tokens(
    State(context): State<Context>,
    request: Request,
) -> Result<Response, AnthropicError> {
    let serving = context.serving()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    into_chat(&mut fields)?;
    read_model(&mut fields, &serving.model)?;
    let (chat, _) = read_chat(&mut fields, &serving.model, &context.config)?;
    let ignored = IgnoredFields::of(&fields, &chat_names(), &context.config)?;
    let encoded = serving.text.encode_chat(chat).await;
    drop(reservation);
    let prompt = encoded.map_err(|e| text_error(&context, MESSAGES.name, e))?;
    let reply = Json(json!({"input_tokens": prompt.token_ids.len()}));
    Ok(ignored.tell(reply.into_response()))
}

/// What the head of an answer says.
struct Head {
    id: String,
    model: String,
}

impl Head {
    fn message(&self, content: Vec<Value>, finish: Option<&Finish>, usage: Usage) -> Value {
        let (reason, sequence) = stop_of(finish);
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage_json(usage),
        })
    }
}

async fn whole_reply(generation: Generation, head: &Head) -> Result<Response, ApiError> {
    let (wholes, usage) = generation.collect().await?;
    let whole = wholes.into_iter().next().unwrap_or_default();
    let message = head.message(blocks(&whole), whole.finish.as_ref(), usage);
    Ok(Json(message).into_response())
}

fn blocks(whole: &Whole) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !whole.reasoning.is_empty() {
        blocks.push(json!({"type": "thinking", "thinking": whole.reasoning, "signature": ""}));
    }
    if !whole.content.is_empty() {
        blocks.push(json!({"type": "text", "text": whole.content}));
    }
    blocks.extend(whole.calls.iter().map(|call| {
        json!({
            "type": "tool_use",
            "id": format!("toolu_{}", random_hex()),
            "name": call.name,
            "input": input_of(call),
        })
    }));
    blocks
}

/// What the model wrote as arguments is an object as a rule; if not, it is given as it is under the
/// name that Anthropic's own documents use for that.
fn input_of(call: &Call) -> Value {
    match serde_json::from_str::<Value>(&call.arguments) {
        Ok(object @ Value::Object(_)) => object,
        Ok(_) | Err(_) => json!({"INVALID_JSON": call.arguments}),
    }
}

fn stop_of(finish: Option<&Finish>) -> (Value, Value) {
    let Some(finish) = finish else { return (Value::Null, Value::Null) };
    match (finish.reason, &finish.cause) {
        (FinishReason::Length, _) => ("max_tokens".into(), Value::Null),
        (FinishReason::Stop, Some(StopCause::String(stop))) => {
            ("stop_sequence".into(), stop.as_str().into())
        }
        (FinishReason::Stop, _) if finish.has_calls => ("tool_use".into(), Value::Null),
        (FinishReason::Stop, _) => ("end_turn".into(), Value::Null),
    }
}

/// Tokens from the prefix cache are counted apart from the others.
fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    })
}

/// Writes the events of a message.
struct MessageEvents {
    head: Head,
    started: bool,
    /// The block being written.
    block: Option<Block>,
    num_blocks: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    ToolUse,
}

impl MessageEvents {
    fn start(&mut self, mut usage: Usage, events: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.started, true) {
            usage.completion_tokens = 0;
            let message = self.head.message(Vec::new(), None, usage);
            events.push(json!({"type": "message_start", "message": message}));
        }
    }

    fn add(&mut self, part: Part, events: &mut Vec<Value>) {
        let (block, opening, delta) = match part {
            Part::Reasoning(text) => (
                Block::Thinking,
                json!({"type": "thinking", "thinking": "", "signature": ""}),
                json!({"type": "thinking_delta", "thinking": text}),
            ),
            Part::Content(text) => (
                Block::Text,
                json!({"type": "text", "text": ""}),
                json!({"type": "text_delta", "text": text}),
            ),
            Part::Call { name, .. } => {
                let id = format!("toolu_{}", random_hex());
                self.close_block(events);
                let opening = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open_block(Block::ToolUse, opening, events);
                return;
            }
            Part::Arguments { text, .. } => (
                Block::ToolUse,
                Value::Null,
                json!({"type": "input_json_delta", "partial_json": text}),
            ),
        };
        if self.block != Some(block) {
            self.close_block(events);
            self.open_block(block, opening, events);
        }
        let index = self.num_blocks - 1;
        events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
    }

    fn open_block(&mut self, block: Block, opening: Value, events: &mut Vec<Value>) {
        let index = self.num_blocks;
        events
            .push(json!({"type": "content_block_start", "index": index, "content_block": opening}));
        self.block = Some(block);
        self.num_blocks += 1;
    }

    fn close_block(&mut self, events: &mut Vec<Value>) {
        if self.block.take().is_some() {
            let index = self.num_blocks - 1;
            events.push(json!({"type": "content_block_stop", "index": index}));
        }
    }
}

impl ChunkFormat for MessageEvents {
    fn chunks(&mut self, output: Output, usage: Usage) -> Vec<Value> {
        let mut events = Vec::new();
        let Output::Delta(delta) = output else { return events };
        self.start(usage, &mut events);
        delta.parts.into_iter().for_each(|part| self.add(part, &mut events));
        if let Some(finish) = &delta.finish {
            self.close_block(&mut events);
            let (reason, sequence) = stop_of(Some(finish));
            events.push(json!({
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": usage_json(usage),
            }));
            events.push(json!({"type": "message_stop"}));
        }
        events
    }

    fn event(&self, chunk: &Value) -> String {
        named_event(chunk)
    }

    fn error_event(&self, error: &ApiError) -> String {
        self.event(&error_body(error))
    }

    fn end_mark(&self) -> &'static str {
        ""
    }
}
