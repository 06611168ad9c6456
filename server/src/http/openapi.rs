//! GET /openapi.json: made from the same tables that requests are read by.

mod jobs;
mod pooled;

use super::fields::Field;
use super::limits::HttpConfig;
use super::page::{self, WebPage};
use super::router::ROUTES;
use super::state::Context;
use super::{anthropic, chat_completions, completions, dashscope, responses, tokenize};
use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

pub async fn openapi(State(context): State<Context>) -> Json<Value> {
    Json(document(&context.config))
}

/// The whole document, OpenAPI 3.1.
pub fn document(config: &HttpConfig) -> Value {
    let mut paths = Map::new();
    for (method, path) in ROUTES.iter().filter(|(_, path)| is_there(path, config)) {
        let methods = paths.entry(*path).or_insert_with(|| json!({}));
        methods[*method] = operation(method, path, config);
        if (*method, *path) == ("delete", "/v1/responses/{id}") {
            methods[*method]["operationId"] = "deleteResponse".into();
            methods[*method]["summary"] = "Forget a response".into();
        }
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Monsoon",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "LLM inference with the OpenAI API. Unknown fields are ignored; null \
                means the default; fields of the API that are not served get a 400 naming them.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(config),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    });
    if !config.keys.is_open() {
        document["security"] = json!([{"bearer": []}]);
    }
    document
}

fn is_there(path: &str, config: &HttpConfig) -> bool {
    path != page::PATH || config.web_page == WebPage::Served
}

fn operation(method: &str, path: &str, config: &HttpConfig) -> Value {
    let mut operation = described(method, path);
    if path.contains("{id}") {
        let (description, missing) = match path.starts_with("/v1/models") {
            true => ("A name from /v1/models; it may contain slashes.", "No such model"),
            false => jobs::id_of(path).unwrap_or(("The id of a response.", "No such response")),
        };
        operation["parameters"] = json!([{
            "name": "id", "in": "path", "required": true, "description": description,
            "schema": {"type": "string"},
        }]);
        operation["responses"]["404"] = error_response(missing);
    }
    if path.starts_with("/v1/models") {
        operation["responses"]["503"] = error_response("The model is loading");
    }
    if super::auth::PUBLIC_ROUTES.contains(&path) {
        operation["security"] = json!([]);
        if path == page::PATH {
            return operation;
        }
        operation["responses"]["503"] = response("Health", "Loading, stuck, stopped or draining");
    } else if !config.keys.is_open() {
        operation["responses"]["401"] = error_response("No API key, or an unknown one");
        if method == "post" {
            operation["responses"]["403"] = error_response("A model that the key may not use");
        }
    }
    if path.starts_with(anthropic::PATH) {
        errors_as(&mut operation, "AnthropicError");
    }
    operation
}

/// A route by itself: what it is for, takes and gives.
fn described(method: &str, path: &str) -> Value {
    match path {
        "/v1/chat/completions" => generate(
            "createChatCompletion",
            "Answer a conversation",
            "ChatCompletionRequest",
            "ChatCompletion",
        ),
        "/v1/completions" => {
            generate("createCompletion", "Continue a text", "CompletionRequest", "Completion")
        }
        "/v1/models" => read("listModels", "Models served", "ModelList"),
        "/v1/models/{id}" => read("getModel", "One model", "Model"),
        "/health" => read("health", "Whether requests are served", "Health"),
        "/openapi.json" => read("openapi", "This document", "AnyObject"),
        "/version" => read("version", "The server's version", "Version"),
        "/ping" => read("ping", "The same as /health", "Health"),
        "/v1/messages" => generate(
            "createMessage",
            "Answer a conversation, as Anthropic's API does",
            "MessageRequest",
            "AnyObject",
        ),
        "/v1/messages/count_tokens" => {
            post("countTokens", "Tokens of a conversation", "CountTokensRequest", "InputTokens")
        }
        "/v1/responses" => generate(
            "createResponse",
            "Answer a conversation item by item",
            "ResponseRequest",
            "AnyObject",
        ),
        "/v1/responses/{id}" => read("response", "A response that was kept", "AnyObject"),
        "/v1/responses/{id}/cancel" => {
            let summary = "End the work of a response in the background";
            let mut operation = read("cancelResponse", summary, "AnyObject");
            operation["responses"]["400"] = error_response("It is not in the background");
            operation
        }
        "/tokenize" => {
            post("tokenize", "Text or a conversation to tokens", "TokenizeRequest", "Tokens")
        }
        "/detokenize" => post("detokenize", "Tokens to text", "DetokenizeRequest", "Text"),
        "/metrics" => {
            let mut operation = read("metrics", "Metrics for Prometheus", "AnyObject");
            operation["responses"]["200"]["content"] =
                json!({"text/plain": {"schema": {"type": "string"}}});
            operation
        }
        page::PATH => {
            let mut operation = read("page", "A web page: chat, and what the server does", "Error");
            operation["responses"]["200"]["content"] =
                json!({"text/html": {"schema": {"type": "string"}}});
            operation["responses"]["304"] = json!({"description": "The client has the page"});
            operation
        }
        other => {
            let operation = pooled::operation(other).or_else(|| dashscope(other));
            let operation = operation.or_else(|| jobs::operation(method, other));
            operation.unwrap_or_else(|| unreachable!("{method} {other} is described"))
        }
    }
}

/// A stream there is asked for by a header.
fn dashscope(path: &str) -> Option<Value> {
    let (id, summary, request) = dashscope::schemas::describe(path)?;
    let mut operation = post(id, summary, request, "AnyObject");
    errors_as(&mut operation, "DashScopeError");
    Some(operation)
}

/// This API has errors of a shape of its own.
fn errors_as(operation: &mut Value, schema: &str) {
    let responses = operation["responses"].as_object_mut().into_iter().flatten();
    for (_, response) in responses.filter(|(code, _)| *code != "200") {
        response["content"]["application/json"]["schema"] = reference(schema);
    }
}

fn generate(id: &str, summary: &str, request: &str, reply: &str) -> Value {
    let mut operation = post(id, summary, request, reply);
    operation["responses"]["200"]["content"]["text/event-stream"] = json!({
        "schema": {"description": "With `stream`: the events of that API."},
    });
    operation
}

fn post(id: &str, summary: &str, request: &str, reply: &str) -> Value {
    let mut operation = read(id, summary, reply);
    operation["requestBody"] = json!({
        "required": true,
        "content": {"application/json": {"schema": reference(request)}},
    });
    let errors = [
        ("400", "A field is wrong, missing or not supported"),
        ("404", "No such model"),
        ("408", "The body did not arrive in time"),
        ("413", "The body is too long"),
        ("415", "The body is not JSON"),
        ("429", "The queue is full; see Retry-After"),
        ("503", "Loading, ending, or the device is lost"),
    ];
    for (code, description) in errors {
        operation["responses"][code] = error_response(description);
    }
    operation
}

fn read(id: &str, summary: &str, reply: &str) -> Value {
    json!({
        "operationId": id,
        "summary": summary,
        "responses": {
            "200": response(reply, "The result"),
            "431": error_response("The headers are too large"),
        },
    })
}

fn response(schema: &str, description: &str) -> Value {
    json!({
        "description": description,
        "content": {"application/json": {"schema": reference(schema)}},
    })
}

fn error_response(description: &str) -> Value {
    response("Error", description)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn schemas(config: &HttpConfig) -> Value {
    let mut chat = request_schema(chat_completions::fields(), &["messages"], config);
    chat["properties"]["messages"]["maxItems"] = config.messages_max.into();
    let completion = request_schema(completions::fields(), &["prompt"], config);
    let tokenize = request_schema(tokenize::tokenize_fields(), &[], config);
    let detokenize = request_schema(tokenize::detokenize_fields(), &["tokens"], config);
    let message =
        |required: &[&str]| request_schema(anthropic::into_chat::FIELDS.iter(), required, config);
    let response = request_schema(responses::into_chat::FIELDS.iter(), &["input"], config);
    let text = json!({"type": "string"});
    let integer = json!({"type": "integer"});
    let model = json!({
        "id": text, "object": {"const": "model"}, "created": integer, "owned_by": text,
        "max_model_len": integer,
    });
    let mut schemas = json!({
        "ChatCompletionRequest": chat,
        "CompletionRequest": completion,
        "MessageRequest": message(&["messages", "max_tokens"]),
        "CountTokensRequest": message(&["messages"]),
        "ResponseRequest": response,
        "TokenizeRequest": tokenize,
        "DetokenizeRequest": detokenize,
        "Tokens": object(json!({
            "tokens": {"type": "array", "items": integer},
            "count": integer,
            "max_model_len": integer,
            "token_strs": {"type": ["array", "null"], "items": text},
        })),
        "InputTokens": object(json!({"input_tokens": integer})),
        "Text": object(json!({"prompt": text, "content": text})),
        "ChatCompletion": reply_schema("chat.completion", json!({
            "message": message_schema(),
        })),
        "Completion": reply_schema("text_completion", json!({"text": text})),
        "Usage": object(json!({
            "prompt_tokens": integer,
            "completion_tokens": integer,
            "total_tokens": integer,
            "prompt_tokens_details": object(json!({"cached_tokens": integer})),
        })),
        "Model": object(model),
        "ModelList": object(json!({
            "object": {"const": "list"},
            "data": {"type": "array", "items": reference("Model")},
        })),
        "Health": object(json!({
            "status": {"enum": ["ok", "loading", "stuck", "stopped", "draining"]},
            "reason": {"type": ["string", "null"]},
        })),
        "Version": object(json!({"version": text})),
        "AnyObject": {"type": "object"},
        "AnthropicError": object(json!({
            "type": {"const": "error"},
            "error": object(json!({"type": text, "message": text})),
        })),
        "Error": object(json!({"error": object(json!({
            "message": text,
            "type": text,
            "param": {"type": ["string", "null"]},
            "code": text,
        }))})),
    });
    add_schemas(&mut schemas, config);
    schemas
}

/// Of endpoints that are described where they are.
fn add_schemas(schemas: &mut Value, config: &HttpConfig) {
    pooled::add_schemas(schemas, config);
    for (name, schema) in dashscope::schemas::requests() {
        schemas[name] = schema;
    }
    let text = json!({"type": "string"});
    schemas["DashScopeError"] = object(json!({"code": text, "message": text, "request_id": text}));
    if let (Value::Object(all), Value::Object(more)) = (schemas, jobs::schemas(config)) {
        all.extend(more);
    }
}

/// Only `role` and `content` are always there.
fn message_schema() -> Value {
    let text = json!({"type": "string"});
    let call = object(json!({
        "id": text,
        "type": {"const": "function"},
        "function": object(json!({"name": text, "arguments": text})),
    }));
    let mut schema = object(json!({
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
    }));
    schema["properties"]["reasoning_content"] = text.clone();
    schema["properties"]["reasoning"] = text;
    schema["properties"]["tool_calls"] = json!({"type": "array", "items": call});
    schema
}

/// An object all of whose properties are always there.
fn object(properties: Value) -> Value {
    let required: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn reply_schema(object_name: &str, choice: Value) -> Value {
    let mut choice = choice;
    choice["index"] = json!({"type": "integer"});
    choice["logprobs"] = json!({"type": ["object", "null"]});
    choice["finish_reason"] = json!({"enum": ["stop", "length", "tool_calls"]});
    choice["stop_reason"] = json!({"type": ["string", "integer", "null"]});
    object(json!({
        "id": {"type": "string"},
        "object": {"const": object_name},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "system_fingerprint": {"type": "string"},
        "choices": {"type": "array", "items": object(choice)},
        "usage": reference("Usage"),
    }))
}

fn request_schema<'a>(
    fields: impl Iterator<Item = &'a Field>,
    required: &[&str],
    config: &HttpConfig,
) -> Value {
    let mut properties: Map<String, Value> =
        fields.map(|field| (field.name.to_owned(), field.schema())).collect();
    if let Some(n) = properties.get_mut("n") {
        n["maximum"] = config.choices_max.into();
    }
    json!({"type": "object", "required": required, "properties": properties})
}
