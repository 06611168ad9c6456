//! Chat messages, checked and brought into the form that the text stage takes.

use super::error::{RequestError, excerpt};
use super::fields::{out_of_range, wrong_type};
use super::limits::{CONTENT_PARTS_MAX, HttpConfig};
use serde_json::{Map, Value, json};

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// What stands between the text parts of one message, as in vLLM.
const PART_SEPARATOR: &str = "\n";

/// Errors: no messages, too many, an unknown role, content that is no text.
pub fn read_messages(
    value: Option<Value>,
    config: &HttpConfig,
) -> Result<Vec<Value>, RequestError> {
    let list = match value {
        None => return Err(RequestError::Missing { field: "messages".into() }),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("messages", &other, "a list of objects")),
    };
    if list.is_empty() || list.len() > config.messages_max {
        return Err(RequestError::OutOfRange {
            field: "messages".into(),
            value: format!("a list of {}", list.len()),
            range: format!("1 to {} messages", config.messages_max),
        });
    }
    list.into_iter().enumerate().map(|(i, message)| read_message(i, message)).collect()
}

fn read_message(index: usize, message: Value) -> Result<Value, RequestError> {
    let name = |part: &str| format!("messages[{index}]{part}");
    let mut message = match message {
        Value::Object(map) => map,
        other => return Err(wrong_type(&name(""), &other, "an object")),
    };
    let role = match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
        Some(value @ Value::String(_)) => {
            return Err(out_of_range(
                &name(".role"),
                value,
                format!("one of {}", ROLES.join(", ")),
            ));
        }
        None | Some(Value::Null) => return Err(RequestError::Missing { field: name(".role") }),
        Some(other) => return Err(wrong_type(&name(".role"), other, "a string")),
    };
    let has_calls = check_tool_calls(&message, &role, &name)?;
    match message.remove("content") {
        None | Some(Value::Null) if has_calls => {}
        None | Some(Value::Null) => return Err(RequestError::Missing { field: name(".content") }),
        Some(content) => {
            let text = read_content(&name(".content"), content)?;
            message.insert("content".into(), text.into());
        }
    }
    // Nulls mean absent, also to templates that only ask whether a key is defined.
    message.retain(|_, value| !value.is_null());
    Ok(Value::Object(message))
}

/// Text as it is; a list of text parts joined.
fn read_content(field: &str, content: Value) -> Result<String, RequestError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(field, &other, "a string or a list of text parts")),
    };
    if parts.is_empty() || parts.len() > CONTENT_PARTS_MAX {
        return Err(RequestError::OutOfRange {
            field: field.into(),
            value: format!("a list of {}", parts.len()),
            range: format!("1 to {CONTENT_PARTS_MAX} parts"),
        });
    }
    let texts = parts.iter().enumerate().map(|(i, part)| read_part(&format!("{field}[{i}]"), part));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join(PART_SEPARATOR))
}

fn read_part<'a>(field: &str, part: &'a Value) -> Result<&'a str, RequestError> {
    let Value::Object(map) = part else {
        return Err(wrong_type(field, part, "an object with type and text"));
    };
    match map.get("type") {
        Some(Value::String(kind)) if kind == "text" => {}
        Some(Value::String(kind)) => {
            let (field, value) = (format!("{field}.type"), excerpt(kind));
            return Err(match kind.as_str() {
                "image_url" | "input_image" | "image" | "input_audio" | "audio_url" | "audio"
                | "video_url" | "video" | "file" | "refusal" => {
                    RequestError::Unsupported { field, value }
                }
                _ => RequestError::OutOfRange { field, value, range: "text".into() },
            });
        }
        None | Some(Value::Null) => {
            return Err(RequestError::Missing { field: format!("{field}.type") });
        }
        Some(other) => return Err(wrong_type(&format!("{field}.type"), other, "a string")),
    }
    match map.get("text") {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(RequestError::Missing { field: format!("{field}.text") }),
        Some(other) => Err(wrong_type(&format!("{field}.text"), other, "a string")),
    }
}

/// Whether an assistant's message calls tools. Their names and arguments go to the template.
fn check_tool_calls(
    message: &Map<String, Value>,
    role: &str,
    name: &dyn Fn(&str) -> String,
) -> Result<bool, RequestError> {
    let calls = match message.get("tool_calls") {
        None | Some(Value::Null) => return Ok(false),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(wrong_type(&name(".tool_calls"), other, "a list of objects")),
    };
    if role != "assistant" {
        let reason = format!("a message of role {role} cannot call tools");
        return Err(RequestError::Invalid { field: name(".tool_calls"), reason });
    }
    for (i, call) in calls.iter().enumerate() {
        let field = |part: &str| name(&format!(".tool_calls[{i}]{part}"));
        let Value::Object(call) = call else {
            return Err(wrong_type(&field(""), call, "an object"));
        };
        match call.get("function").and_then(|function| function.get("name")) {
            Some(Value::String(_)) => {}
            Some(other) => return Err(wrong_type(&field(".function.name"), other, "a string")),
            None => return Err(RequestError::Missing { field: field(".function.name") }),
        }
        match call.get("function").and_then(|function| function.get("arguments")) {
            None | Some(Value::String(_) | Value::Object(_) | Value::Null) => {}
            Some(other) => {
                return Err(wrong_type(&field(".function.arguments"), other, "a JSON text"));
            }
        }
    }
    Ok(!calls.is_empty())
}

pub fn messages_schema() -> Value {
    let part = json!({
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    });
    let call = json!({
        "type": "object",
        "required": ["function"],
        "properties": {
            "id": {"type": "string"},
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "arguments": {"type": ["string", "object", "null"]},
                },
            },
        },
    });
    json!({
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"enum": ROLES},
                "content": {"anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": part,
                        "minItems": 1,
                        "maxItems": CONTENT_PARTS_MAX,
                        "description": "Joined with line feeds.",
                    },
                    {"type": "null", "description": "Only with tool_calls."},
                ]},
                "name": {"type": ["string", "null"]},
                "tool_call_id": {"type": ["string", "null"]},
                "tool_calls": {"type": ["array", "null"], "items": call},
                "reasoning_content": {"type": ["string", "null"]},
            },
        },
    })
}
