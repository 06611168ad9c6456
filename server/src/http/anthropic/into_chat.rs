//! The body of a request to Anthropic's API as that of a chat.

use crate::http::chat_completions::{CHAT_TEMPLATE_KWARGS, ENABLE_THINKING, MAX_TOKENS, MESSAGES};
use crate::http::error::{RequestError, excerpt};
use crate::http::fields::{Field, Fields, Kind, out_of_range, show, string_of, wrong_type};
use crate::http::limits::{TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use crate::http::sampling::{MODEL, STOP, STREAM, TEMPERATURE, TOP_K, TOP_P};
use crate::http::thinking::THINKING_BUDGET;
use crate::http::tools::{PARALLEL_TOOL_CALLS, TOOL_CHOICE, TOOLS};
use serde_json::{Map, Value, json};

const SYSTEM: Field =
    Field { name: "system", kind: Kind::Shape(system_schema), doc: "Text, or text blocks." };
const STOP_SEQUENCES: Field = Field {
    name: "stop_sequences",
    kind: Kind::Shape(stop_schema),
    doc: "The answer ends before the first one that appears.",
};
const THINKING: Field = Field {
    name: "thinking",
    kind: Kind::Shape(object_schema),
    doc: "{type: disabled}, the default; or {type: enabled, budget_tokens}.",
};
const METADATA: Field =
    Field { name: "metadata", kind: Kind::Shape(object_schema), doc: "Accepted and not used." };

const OWN_MESSAGES: Field = Field {
    name: MESSAGES.name,
    kind: Kind::Shape(messages_schema),
    doc: "The conversation: text, or blocks of text, thinking, calls and results. Required.",
};
const OWN_TOOLS: Field = Field {
    name: TOOLS.name,
    kind: Kind::Shape(tools_schema),
    doc: "Functions that the model may call.",
};
const OWN_TOOL_CHOICE: Field = Field {
    name: TOOL_CHOICE.name,
    kind: Kind::Shape(tool_choice_schema),
    doc: "{type: auto} or {type: none}; disable_parallel_tool_use: one call at most.",
};

/// Anthropic's fields, as they are described. Those of chats pass too.
pub const FIELDS: &[Field] = &[
    MODEL,
    OWN_MESSAGES,
    MAX_TOKENS,
    SYSTEM,
    STOP_SEQUENCES,
    STREAM,
    TEMPERATURE,
    TOP_P,
    TOP_K,
    OWN_TOOLS,
    OWN_TOOL_CHOICE,
    THINKING,
    METADATA,
];

/// Turns the body into that of a chat. Fields of the chat API that Anthropic's lacks pass.
pub fn into_chat(fields: &mut Fields) -> Result<(), RequestError> {
    let mut messages = Vec::new();
    if let Some(system) = fields.take(&SYSTEM) {
        messages.push(json!({"role": "system", "content": text_of("system", system)?}));
    }
    match fields.take(&MESSAGES) {
        None => return Err(RequestError::Missing { field: MESSAGES.name.into() }),
        Some(Value::Array(list)) => {
            for (index, message) in list.into_iter().enumerate() {
                add_message(&format!("messages[{index}]"), message, &mut messages)?;
            }
        }
        Some(other) => return Err(wrong_type(MESSAGES.name, &other, "a list of objects")),
    }
    fields.set(&MESSAGES, messages.into());
    if let Some(stops) = fields.take(&STOP_SEQUENCES) {
        fields.set(&STOP, stops);
    }
    if let Some(tools) = fields.take(&TOOLS) {
        fields.set(&TOOLS, read_tools(tools)?);
    }
    if let Some(choice) = fields.take(&TOOL_CHOICE) {
        set_tool_choice(fields, choice)?;
    }
    fields.take(&METADATA);
    set_thinking(fields)
}

/// A user's results of tools come first, as messages of their own.
fn add_message(field: &str, message: Value, to: &mut Vec<Value>) -> Result<(), RequestError> {
    let Value::Object(mut message) = message else {
        return Err(wrong_type(field, &message, "an object"));
    };
    let role = message.remove("role").unwrap_or_default();
    let content = message.remove("content").unwrap_or_default();
    let blocks = match (role.as_str(), content) {
        (Some("user" | "assistant"), Value::Array(blocks)) => blocks,
        (Some("user" | "assistant"), Value::Null) => {
            return Err(RequestError::Missing { field: format!("{field}.content") });
        }
        (Some("user" | "assistant"), content) => {
            to.push(json!({"role": role, "content": content}));
            return Ok(());
        }
        _ => {
            let range = "user or assistant".to_string();
            return Err(out_of_range(&format!("{field}.role"), &role, range));
        }
    };
    let (mut texts, mut thinking, mut calls) = (Vec::new(), String::new(), Vec::new());
    for (index, block) in blocks.into_iter().enumerate() {
        let field = format!("{field}.content[{index}]");
        let Value::Object(mut block) = block else {
            return Err(wrong_type(&field, &block, "an object with a type"));
        };
        let kind = block.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match kind.as_str() {
            "text" => texts.push(string_of(&field, "text", &mut block)?),
            "thinking" => thinking.push_str(&string_of(&field, "thinking", &mut block)?),
            // What its writer alone can read.
            "redacted_thinking" => {}
            "tool_use" => calls.push(tool_call(&field, &mut block)?),
            "tool_result" => to.push(tool_result(&field, &mut block)?),
            "image" | "document" => {
                let (field, value) = (format!("{field}.type"), kind);
                return Err(RequestError::Unsupported { field, value });
            }
            _ => {
                let range = "text, thinking, tool_use or tool_result".to_string();
                return Err(out_of_range(&format!("{field}.type"), &excerpt(&kind).into(), range));
            }
        }
    }
    // A message of results alone is complete with them.
    if texts.is_empty() && calls.is_empty() && role == "user" {
        return Ok(());
    }
    let mut chat = json!({"role": role, "content": texts.join("\n")});
    if !thinking.is_empty() {
        chat["reasoning_content"] = thinking.into();
    }
    if !calls.is_empty() {
        chat["tool_calls"] = calls.into();
    }
    to.push(chat);
    Ok(())
}

fn tool_call(field: &str, block: &mut Map<String, Value>) -> Result<Value, RequestError> {
    let name = string_of(field, "name", block)?;
    let id = string_of(field, "id", block)?;
    let input = block.remove("input").unwrap_or_else(|| json!({}));
    let function = json!({"name": name, "arguments": input.to_string()});
    Ok(json!({"id": id, "type": "function", "function": function}))
}

fn tool_result(field: &str, block: &mut Map<String, Value>) -> Result<Value, RequestError> {
    let id = string_of(field, "tool_use_id", block)?;
    let content = match block.remove("content") {
        None | Some(Value::Null) => String::new(),
        Some(content) => text_of(&format!("{field}.content"), content)?,
    };
    Ok(json!({"role": "tool", "tool_call_id": id, "content": content}))
}

/// A string, or text blocks joined with line feeds.
fn text_of(field: &str, value: Value) -> Result<String, RequestError> {
    let blocks = match value {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => return Err(wrong_type(field, &other, "a string or a list of text blocks")),
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.into_iter().enumerate() {
        let field = format!("{field}[{index}]");
        match block {
            Value::Object(mut block) if block.get("type").is_some_and(|kind| kind == "text") => {
                texts.push(string_of(&field, "text", &mut block)?);
            }
            Value::Object(block) => {
                let value = show(block.get("type").unwrap_or(&Value::Null));
                return Err(RequestError::Unsupported { field: format!("{field}.type"), value });
            }
            other => return Err(wrong_type(&field, &other, "a text block")),
        }
    }
    Ok(texts.join("\n"))
}

fn read_tools(tools: Value) -> Result<Value, RequestError> {
    let Value::Array(tools) = tools else {
        return Err(wrong_type(TOOLS.name, &tools, "a list of objects"));
    };
    let tools = tools.into_iter().enumerate().map(|(index, tool)| {
        let field = format!("tools[{index}]");
        let Value::Object(mut tool) = tool else {
            return Err(wrong_type(&field, &tool, "an object"));
        };
        // Tools that Anthropic's own servers run have another type.
        match tool.remove("type") {
            None | Some(Value::Null) => {}
            Some(kind) if kind == "custom" => {}
            Some(kind) => {
                let (field, value) = (format!("{field}.type"), show(&kind));
                return Err(RequestError::Unsupported { field, value });
            }
        }
        let mut function = Map::new();
        for (theirs, ours) in
            [("name", "name"), ("description", "description"), ("input_schema", "parameters")]
        {
            function.extend(tool.remove(theirs).map(|value| (ours.to_owned(), value)));
        }
        Ok(json!({"type": "function", "function": function}))
    });
    Ok(tools.collect::<Result<Vec<_>, _>>()?.into())
}

fn set_tool_choice(fields: &mut Fields, choice: Value) -> Result<(), RequestError> {
    let Value::Object(choice) = choice else {
        return Err(wrong_type(TOOL_CHOICE.name, &choice, "an object with a type"));
    };
    let ours = match choice.get("type").and_then(Value::as_str) {
        Some("auto") => json!("auto"),
        Some("none") => json!("none"),
        Some("any") => json!("required"),
        Some("tool") => {
            let name = choice.get("name").cloned().unwrap_or_default();
            json!({"type": "function", "function": {"name": name}})
        }
        _ => {
            let kind = choice.get("type").cloned().unwrap_or_default();
            let range = "auto, any, tool or none".to_string();
            return Err(out_of_range("tool_choice.type", &kind, range));
        }
    };
    fields.set(&TOOL_CHOICE, ours);
    match choice.get("disable_parallel_tool_use") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(disabled)) => fields.set(&PARALLEL_TOOL_CALLS, (!disabled).into()),
        Some(other) => {
            let field = "tool_choice.disable_parallel_tool_use";
            return Err(wrong_type(field, other, "a boolean"));
        }
    }
    Ok(())
}

/// Whoever does not ask for thinking gets none, where the template can tell the model so.
fn set_thinking(fields: &mut Fields) -> Result<(), RequestError> {
    let on = match fields.take(&THINKING) {
        None => false,
        Some(Value::Object(thinking)) => {
            let kind = thinking.get("type").cloned().unwrap_or_default();
            match kind.as_str() {
                Some("disabled") => false,
                Some("enabled" | "adaptive") => {
                    if let Some(budget) = thinking.get("budget_tokens").filter(|b| !b.is_null()) {
                        fields.set(&THINKING_BUDGET, budget.clone());
                    }
                    true
                }
                _ => {
                    let range = "enabled or disabled".to_string();
                    return Err(out_of_range("thinking.type", &kind, range));
                }
            }
        }
        Some(other) => return Err(wrong_type(THINKING.name, &other, "an object")),
    };
    let is_given = fields.value(ENABLE_THINKING.name).is_some()
        || fields.value(CHAT_TEMPLATE_KWARGS.name).is_some();
    if !is_given {
        fields.set(&ENABLE_THINKING, on.into());
    }
    Ok(())
}

fn messages_schema() -> Value {
    let block = json!({
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]},
            "text": {"type": "string"},
            "thinking": {"type": "string"},
            "id": {"type": "string"},
            "name": {"type": "string"},
            "input": {"type": "object"},
            "tool_use_id": {"type": "string"},
            "content": {"type": ["string", "array", "null"]},
        },
    });
    let content = json!([{"type": "string"}, {"type": "array", "items": block}]);
    json!({"type": "array", "minItems": 1, "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"anyOf": content}},
    }})
}

fn tools_schema() -> Value {
    let text = json!({"type": ["string", "null"]});
    json!({"type": ["array", "null"], "maxItems": TOOLS_MAX, "items": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": TOOL_NAME_BYTES_MAX},
            "description": text,
            "input_schema": {"type": "object"},
        },
    }})
}

fn tool_choice_schema() -> Value {
    json!({"type": ["object", "null"], "required": ["type"], "properties": {
        "type": {"enum": ["auto", "none", "any", "tool"]},
        "name": {"type": "string"},
        "disable_parallel_tool_use": {"type": ["boolean", "null"]},
    }})
}

fn system_schema() -> Value {
    json!({"type": ["string", "array", "null"]})
}

fn stop_schema() -> Value {
    json!({"type": ["array", "null"], "items": {"type": "string"}})
}

fn object_schema() -> Value {
    json!({"type": ["object", "null"]})
}
