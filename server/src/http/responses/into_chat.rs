//! The body of a request to /v1/responses as that of a chat.

use super::store::ResponseStore;
use crate::http::auth::Identity;
use crate::http::chat_completions::{MAX_COMPLETION_TOKENS, MESSAGES};
use crate::http::constraint::RESPONSE_FORMAT;
use crate::http::error::{RequestError, excerpt};
use crate::http::fields::{Field, Fields, Kind, field, out_of_range, show, string_of, wrong_type};
use crate::http::limits::{TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use crate::http::sampling::{MODEL, STREAM, TEMPERATURE, TOP_P, USER};
use crate::http::thinking::REASONING_EFFORT;
use crate::http::tools::{PARALLEL_TOOL_CALLS, TOOL_CHOICE, TOOLS};
use serde_json::{Map, Value, json};

/// Entries of `metadata`, as in OpenAI's API.
const METADATA_MAX: usize = 16;

const INPUT: Field =
    field("input", Kind::Shape(input_schema), "Text, or items of a conversation. Required.");
const INSTRUCTIONS: Field =
    field("instructions", Kind::Shape(text_schema), "A system message before the conversation.");
const MAX_OUTPUT_TOKENS: Field = field(
    "max_output_tokens",
    Kind::Integer { min: 1, max: i64::MAX },
    "Most tokens to generate. Default: up to the end of the context.",
);
const STORE: Field =
    field("store", Kind::Boolean, "Keep the response, to be read or gone on from. Default true.");
const PREVIOUS: Field =
    field("previous_response_id", Kind::Name, "Go on from this response, which was kept.");
const BACKGROUND: Field =
    field("background", Kind::Boolean, "Answer at once and work on; needs `store`. Default false.");
const TEXT: Field = field(
    "text",
    Kind::Shape(object_schema),
    "format: {type: text}, {type: json_object} or {type: json_schema, schema}.",
);
const REASONING: Field =
    field("reasoning", Kind::Shape(object_schema), "effort: as the chat's reasoning_effort.");
const TRUNCATION: Field = field("truncation", Kind::Name, "Only `disabled`.");
const METADATA: Field =
    field("metadata", Kind::Shape(object_schema), "Up to 16 entries, given back as they are.");
const INCLUDE: Field = field("include", Kind::Shape(list_schema), "Nothing is served.");

const OWN_TOOLS: Field =
    field(TOOLS.name, Kind::Shape(tools_schema), "Functions that the model may call.");

/// OpenAI's fields, as they are described. Those of chats pass too.
pub const FIELDS: &[Field] = &[
    MODEL,
    INPUT,
    INSTRUCTIONS,
    MAX_OUTPUT_TOKENS,
    STREAM,
    STORE,
    PREVIOUS,
    BACKGROUND,
    TEMPERATURE,
    TOP_P,
    OWN_TOOLS,
    TOOL_CHOICE,
    PARALLEL_TOOL_CALLS,
    TEXT,
    REASONING,
    TRUNCATION,
    METADATA,
    INCLUDE,
    USER,
];

/// What the endpoint keeps of a request that has become one of the chat API.
pub struct Asked {
    /// What the response repeats of the request.
    pub echo: Map<String, Value>,
    /// The conversation so far, without instructions.
    pub messages: Vec<Value>,
    pub is_kept: bool,
    pub in_background: bool,
}

/// Errors: a field that is wrong or not served; an unknown `previous_response_id`.
pub fn into_chat(
    fields: &mut Fields,
    store: &ResponseStore,
    client: Identity,
) -> Result<Asked, RequestError> {
    let echo = echo(fields);
    let previous = fields.name(&PREVIOUS)?;
    let mut messages = match previous {
        None => Vec::new(),
        Some(id) => {
            let unknown = RequestError::UnknownResponse { id: excerpt(&id) };
            store.get(&id, client).ok_or(unknown)?.messages
        }
    };
    match fields.take(&INPUT) {
        None => return Err(RequestError::Missing { field: INPUT.name.into() }),
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => {
            for (index, item) in items.into_iter().enumerate() {
                add_item(&format!("input[{index}]"), item, &mut messages)?;
            }
        }
        Some(other) => return Err(wrong_type(INPUT.name, &other, "a string or a list of items")),
    }
    let instructions = match fields.take(&INSTRUCTIONS) {
        None => None,
        Some(Value::String(text)) => Some(json!({"role": "system", "content": text})),
        Some(other) => return Err(wrong_type(INSTRUCTIONS.name, &other, "a string")),
    };
    let all: Vec<Value> = instructions.into_iter().chain(messages.iter().cloned()).collect();
    fields.set(&MESSAGES, all.into());
    if let Some(max_tokens) = fields.integer(&MAX_OUTPUT_TOKENS)? {
        fields.set(&MAX_COMPLETION_TOKENS, max_tokens.into());
    }
    if let Some(tools) = fields.take(&TOOLS) {
        fields.set(&TOOLS, read_tools(tools)?);
    }
    if let Some(Value::Object(choice)) = fields.value(TOOL_CHOICE.name) {
        let named = json!({"type": "function", "function": {"name": choice.get("name")}});
        fields.set(&TOOL_CHOICE, named);
    }
    set_text_and_reasoning(fields)?;
    let is_kept = fields.boolean(&STORE)?.unwrap_or(true);
    let in_background = fields.boolean(&BACKGROUND)?.unwrap_or(false);
    if in_background && !is_kept {
        let reason = "needs 'store'".to_string();
        return Err(RequestError::Invalid { field: BACKGROUND.name.into(), reason });
    }
    Ok(Asked { echo, messages, is_kept, in_background })
}

/// Adds an item of the API to the messages of a chat: input as well as our own output.
///
/// Errors: an item that is wrong or not served.
pub fn add_item(field: &str, item: Value, to: &mut Vec<Value>) -> Result<(), RequestError> {
    let Value::Object(mut item) = item else {
        return Err(wrong_type(field, &item, "an object with a type"));
    };
    let kind = item.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
    match kind.as_str() {
        "message" => {
            let role = string_of(field, "role", &mut item)?;
            let content = text_of(&format!("{field}.content"), item.remove("content"))?;
            match assistant_without_text(to).filter(|_| role == "assistant") {
                Some(last) => last["content"] = content.into(),
                None => to.push(json!({"role": role, "content": content})),
            }
        }
        "reasoning" => {
            let text = text_of(&format!("{field}.content"), item.remove("content"))?;
            to.push(json!({"role": "assistant", "content": "", "reasoning_content": text}));
        }
        "function_call" => {
            let call = json!({
                "id": string_of(field, "call_id", &mut item)?,
                "type": "function",
                "function": {
                    "name": string_of(field, "name", &mut item)?,
                    "arguments": string_of(field, "arguments", &mut item)?,
                },
            });
            match to.last_mut().filter(|last| last["role"] == "assistant") {
                Some(last) => match &mut last["tool_calls"] {
                    Value::Array(calls) => calls.push(call),
                    calls => *calls = json!([call]),
                },
                None => to.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let id = string_of(field, "call_id", &mut item)?;
            let content = text_of(&format!("{field}.output"), item.remove("output"))?;
            to.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        }
        _ => {
            let field = format!("{field}.type");
            return Err(RequestError::Unsupported { field, value: excerpt(&kind) });
        }
    }
    Ok(())
}

/// A message that has only its reasoning so far.
fn assistant_without_text(messages: &mut [Value]) -> Option<&mut Value> {
    messages.last_mut().filter(|last| {
        last["role"] == "assistant" && last["content"] == "" && last["tool_calls"].is_null()
    })
}

/// A string, or parts that are text joined with line feeds; nothing is no text.
fn text_of(field: &str, content: Option<Value>) -> Result<String, RequestError> {
    let parts = match content {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong_type(field, &other, "a string or a list of parts")),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        let Value::Object(mut part) = part else {
            return Err(wrong_type(&field, &part, "an object with a type"));
        };
        match part.get("type").and_then(Value::as_str) {
            Some("input_text" | "output_text" | "text" | "reasoning_text") => {
                texts.push(string_of(&field, "text", &mut part)?);
            }
            _ => {
                let value = show(part.get("type").unwrap_or(&Value::Null));
                return Err(RequestError::Unsupported { field: format!("{field}.type"), value });
            }
        }
    }
    Ok(texts.join("\n"))
}

/// Here the function's name and parameters stand in the tool itself.
fn read_tools(tools: Value) -> Result<Value, RequestError> {
    let Value::Array(tools) = tools else {
        return Err(wrong_type(TOOLS.name, &tools, "a list of objects"));
    };
    let tools = tools.into_iter().enumerate().map(|(index, tool)| {
        let field = format!("tools[{index}]");
        let Value::Object(mut tool) = tool else {
            return Err(wrong_type(&field, &tool, "an object with a type"));
        };
        let kind = tool.remove("type").unwrap_or_default();
        if kind != "function" {
            return Err(out_of_range(&format!("{field}.type"), &kind, "function".into()));
        }
        Ok(json!({"type": "function", "function": tool}))
    });
    Ok(tools.collect::<Result<Vec<_>, _>>()?.into())
}

fn set_text_and_reasoning(fields: &mut Fields) -> Result<(), RequestError> {
    let unsupported = |field: &str, value: &Value| {
        Err(RequestError::Unsupported { field: field.into(), value: show(value) })
    };
    match fields.take(&TEXT) {
        None => {}
        Some(Value::Object(mut text)) => {
            if let Some(format) = text.remove("format").filter(|format| !format.is_null()) {
                fields.set(&RESPONSE_FORMAT, response_format(format)?);
            }
        }
        Some(other) => return Err(wrong_type(TEXT.name, &other, "an object")),
    }
    match fields.take(&REASONING) {
        None => {}
        Some(Value::Object(reasoning)) => match reasoning.get("effort") {
            None | Some(Value::Null) => {}
            Some(effort) => fields.set(&REASONING_EFFORT, effort.clone()),
        },
        Some(other) => return Err(wrong_type(REASONING.name, &other, "an object")),
    }
    match fields.name(&TRUNCATION)?.as_deref() {
        None | Some("disabled") => {}
        Some(other) => return unsupported(TRUNCATION.name, &other.into()),
    }
    match fields.take(&INCLUDE) {
        None => {}
        Some(Value::Array(list)) if list.is_empty() => {}
        Some(other) => return unsupported(INCLUDE.name, &other),
    }
    match fields.take(&METADATA) {
        None => Ok(()),
        Some(Value::Object(map)) if map.len() <= METADATA_MAX => Ok(()),
        Some(Value::Object(map)) => {
            let reason = format!("has {} entries, at most {METADATA_MAX}", map.len());
            Err(RequestError::Invalid { field: METADATA.name.into(), reason })
        }
        Some(other) => Err(wrong_type(METADATA.name, &other, "an object")),
    }
}

/// Here name and schema stand in the format itself.
fn response_format(format: Value) -> Result<Value, RequestError> {
    match format {
        Value::Object(mut format) if format.get("type").is_some_and(|t| t == "json_schema") => {
            format.remove("type");
            Ok(json!({"type": "json_schema", "json_schema": format}))
        }
        Value::Object(_) => Ok(format),
        other => Err(wrong_type("text.format", &other, "an object with a type")),
    }
}

/// What every response repeats, with the defaults of the API.
fn echo(fields: &Fields) -> Map<String, Value> {
    let plain = json!({"format": {"type": "text"}});
    let no_reasoning = json!({"effort": null, "summary": null});
    let defaults = [
        (INSTRUCTIONS.name, Value::Null),
        (MAX_OUTPUT_TOKENS.name, Value::Null),
        (PREVIOUS.name, Value::Null),
        (BACKGROUND.name, false.into()),
        (STORE.name, true.into()),
        (PARALLEL_TOOL_CALLS.name, true.into()),
        (TOOLS.name, json!([])),
        (TOOL_CHOICE.name, "auto".into()),
        (TEMPERATURE.name, Value::Null),
        (TOP_P.name, Value::Null),
        (TEXT.name, plain),
        (REASONING.name, no_reasoning),
        (TRUNCATION.name, "disabled".into()),
        (METADATA.name, json!({})),
        (USER.name, Value::Null),
    ];
    let given = |(name, default): (&str, Value)| {
        (name.to_owned(), fields.value(name).cloned().unwrap_or(default))
    };
    defaults.into_iter().map(given).collect()
}

fn input_schema() -> Value {
    let item = json!({
        "type": "object",
        "properties": {
            "type": {"enum": ["message", "reasoning", "function_call", "function_call_output"]},
            "role": {"enum": ["user", "assistant", "system", "developer"]},
            "content": {"type": ["string", "array", "null"]},
            "call_id": {"type": "string"},
            "name": {"type": "string"},
            "arguments": {"type": "string"},
            "output": {"type": ["string", "array", "null"]},
        },
    });
    json!({"anyOf": [{"type": "string"}, {"type": "array", "items": item}]})
}

fn tools_schema() -> Value {
    json!({"type": ["array", "null"], "maxItems": TOOLS_MAX, "items": {
        "type": "object",
        "required": ["type", "name"],
        "properties": {
            "type": {"const": "function"},
            "name": {"type": "string", "minLength": 1, "maxLength": TOOL_NAME_BYTES_MAX},
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
        },
    }})
}

fn text_schema() -> Value {
    json!({"type": ["string", "null"]})
}

fn object_schema() -> Value {
    json!({"type": ["object", "null"]})
}

fn list_schema() -> Value {
    json!({"type": ["array", "null"]})
}
