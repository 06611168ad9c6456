//! POST /v1/responses, and GET, DELETE and POST .../cancel of one: OpenAI's Responses API.

pub mod into_chat;
pub mod store;
mod writer;

use super::auth::{Client, Identity};
use super::body::read_fields;
use super::chat_completions::{ChatRequest, refuse_more_than_a_message, start_chat};
use super::choice::{Finish, Output};
use super::error::{ApiError, RequestError, excerpt};
use super::generation::{Generation, Whole};
use super::sse::{ChunkFormat, named_event, respond};
use super::state::Context;
use super::unknown::IgnoredFields;
use super::unsupported::chat_names;
use super::wire::{Usage, random_hex, unix_seconds};
use crate::engine::FinishReason;
use crate::text::Part;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use into_chat::{Asked, add_item, into_chat};
use serde_json::{Map, Value, json};
use std::time::Instant;
use store::Kept;
use writer::Writer;

pub async fn create(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let serving = context.generator()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let asked = into_chat(&mut fields, &context.responses, client.identity())?;
    let request = ChatRequest::into_request(&mut fields, &serving.model, &context.config)?;
    refuse_more_than_a_message(&request)?;
    let ignored = IgnoredFields::of(&fields, &chat_names(), &context.config)?;
    let stream = request.common.stream;
    if asked.in_background && stream.is_some() {
        let value = "true with stream".to_string();
        return Err(RequestError::Unsupported { field: "background".into(), value }.into());
    }
    let in_background = asked.in_background;
    let draft = Draft::new(context.clone(), client.identity(), request.common.model.clone(), asked);
    let (generation, _) = start_chat(&context, &client, request, reservation, arrived).await?;
    let response = match stream {
        Some(options) => {
            let events = ResponseEvents { draft, writer: Writer::default(), has_begun: false };
            respond(generation, events, options, context.config.ping_interval).await?
        }
        None if in_background => Json(draft.work_in_background(generation)).into_response(),
        None => Json(draft.finish_whole(generation).await?).into_response(),
    };
    Ok(ignored.tell(response))
}

pub async fn get(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let kept = context.responses.get(&id, client.identity()).ok_or_else(|| unknown(&id))?;
    Ok(Json(kept.response))
}

pub async fn delete(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match context.responses.delete(&id, client.identity()) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(unknown(&id)),
    }
}

/// Ends the work of a response in the background. One that has ended stays as it is.
pub async fn cancel(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let kept = context.responses.get(&id, client.identity()).ok_or_else(|| unknown(&id))?;
    if kept.response["background"] != true {
        let reason = "only a response in the background can be cancelled".to_string();
        return Err(RequestError::Invalid { field: "response_id".into(), reason }.into());
    }
    let change = |response: &mut Value| {
        if response["status"] == "in_progress" {
            response["status"] = "cancelled".into();
        }
    };
    context.responses.cancel(&id, client.identity(), change).map(Json).ok_or_else(|| unknown(&id))
}

fn unknown(id: &str) -> ApiError {
    RequestError::UnknownResponse { id: excerpt(id) }.into()
}

/// A response whose output is being written.
struct Draft {
    context: Context,
    client: Identity,
    id: String,
    created: u64,
    model: String,
    echo: Map<String, Value>,
    messages: Vec<Value>,
    keeping: Keeping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Not,
    AtEnd,
    /// Is kept from its beginning.
    InBackground,
}

impl Draft {
    fn new(context: Context, client: Identity, model: String, asked: Asked) -> Draft {
        Draft {
            context,
            client,
            id: format!("resp_{}", random_hex()),
            created: unix_seconds(),
            model,
            echo: asked.echo,
            messages: asked.messages,
            keeping: match (asked.is_kept, asked.in_background) {
                (false, _) => Keeping::Not,
                (true, false) => Keeping::AtEnd,
                (true, true) => Keeping::InBackground,
            },
        }
    }

    fn object(&self, status: &str, output: &[Value], usage: Option<Usage>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": self.model,
            "output": output,
            "usage": usage.map(usage_json),
        });
        if status == "incomplete" {
            object["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        for (name, value) in &self.echo {
            object[name] = value.clone();
        }
        object
    }

    /// The complete response, kept if it is to be.
    fn finish(&self, output: &[Value], finish: Option<&Finish>, usage: Usage) -> Value {
        let response = self.object(status_of(finish), output, Some(usage));
        if self.keeping != Keeping::Not {
            let mut messages = self.messages.clone();
            for item in output {
                // Our own items are items that can be read.
                let _ = add_item("output", item.clone(), &mut messages);
            }
            let kept = Kept { response: response.clone(), messages };
            let store = &self.context.responses;
            match self.keeping {
                Keeping::InBackground => store.update(&self.id, self.client, kept),
                Keeping::Not | Keeping::AtEnd => store.keep(&self.id, self.client, kept),
            }
        }
        response
    }

    async fn finish_whole(self, generation: Generation) -> Result<Value, ApiError> {
        let (wholes, usage) = generation.collect().await?;
        let whole = wholes.into_iter().next().unwrap_or_default();
        let mut writer = Writer::default();
        for part in parts_of(&whole) {
            writer.add(part);
        }
        let finish = whole.finish.as_ref();
        writer.end(status_of(finish));
        Ok(self.finish(writer.items(), finish, usage))
    }

    /// The response as it is now; it is kept again when it has ended.
    fn work_in_background(self, generation: Generation) -> Value {
        let begun = self.object("in_progress", &[], None);
        let kept = Kept { response: begun.clone(), messages: self.messages.clone() };
        let (context, client, id) = (self.context.clone(), self.client, self.id.clone());
        context.responses.keep(&id, client, kept);
        let (failed, store) = (self.object("failed", &[], None), context.clone());
        let messages = self.messages.clone();
        let own_id = id.clone();
        let work = tokio::spawn(async move {
            if let Err(error) = self.finish_whole(generation).await {
                let mut response = failed;
                let message = error.body()["error"]["message"].clone();
                response["error"] = json!({"code": "server_error", "message": message});
                store.responses.update(&own_id, client, Kept { response, messages });
            }
        });
        context.responses.set_work(&id, work.abort_handle());
        begun
    }
}

fn status_of(finish: Option<&Finish>) -> &'static str {
    match finish.map(|finish| finish.reason) {
        Some(FinishReason::Length) => "incomplete",
        Some(FinishReason::Stop) | None => "completed",
    }
}

fn parts_of(whole: &Whole) -> Vec<Part> {
    let mut parts = Vec::new();
    if !whole.reasoning.is_empty() {
        parts.push(Part::Reasoning(whole.reasoning.clone()));
    }
    if !whole.content.is_empty() {
        parts.push(Part::Content(whole.content.clone()));
    }
    for (index, call) in whole.calls.iter().enumerate() {
        parts.push(Part::Call { index, name: call.name.clone() });
        parts.push(Part::Arguments { index, text: call.arguments.clone() });
    }
    parts
}

fn usage_json(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens.unwrap_or(0)},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// Writes the events of a response.
struct ResponseEvents {
    draft: Draft,
    writer: Writer,
    has_begun: bool,
}

impl ChunkFormat for ResponseEvents {
    fn chunks(&mut self, output: Output, usage: Usage) -> Vec<Value> {
        let mut events = Vec::new();
        let Output::Delta(delta) = output else { return events };
        if !std::mem::replace(&mut self.has_begun, true) {
            let begun = self.draft.object("in_progress", &[], None);
            for kind in ["response.created", "response.in_progress"] {
                events.push(self.writer.event(kind, json!({"response": begun})));
            }
        }
        for part in delta.parts {
            events.extend(self.writer.add(part));
        }
        if let Some(finish) = &delta.finish {
            let status = status_of(Some(finish));
            events.extend(self.writer.end(status));
            let response = self.draft.finish(self.writer.items(), Some(finish), usage);
            let kind = format!("response.{status}");
            events.push(self.writer.event(&kind, json!({"response": response})));
        }
        events
    }

    fn event(&self, chunk: &Value) -> String {
        named_event(chunk)
    }

    fn error_event(&self, error: &ApiError) -> String {
        let mut event = error.body()["error"].take();
        event["type"] = "error".into();
        event["sequence_number"] = self.writer.num_events().into();
        named_event(&event)
    }

    fn end_mark(&self) -> &'static str {
        ""
    }
}
