//! The tools that a chat may call: `tools`, `tool_choice`, `parallel_tool_calls`.

use super::error::{RequestError, excerpt};
use super::fields::{Field, Fields, Kind, out_of_range, show, wrong_type};
use super::limits::{TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use crate::text::{AnswerTools, Tool, ToolFormat};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

pub const TOOLS: Field = Field {
    name: "tools",
    kind: Kind::Shape(tools_schema),
    doc: "Functions that the model may call.",
};
pub const TOOL_CHOICE: Field = Field {
    name: "tool_choice",
    kind: Kind::Shape(tool_choice_schema),
    doc: "auto: text or calls; none: the model is not told of the tools. Default auto.",
};
pub const PARALLEL_TOOL_CALLS: Field = Field {
    name: "parallel_tool_calls",
    kind: Kind::Boolean,
    doc: "False: the answer has one call at most. Default true.",
};

/// The tools of a request, for the template and for reading the answer.
#[derive(Debug)]
pub struct RequestTools {
    /// As the client wrote them.
    pub for_template: Vec<Value>,
    pub for_answer: AnswerTools,
}

/// `None`: the request has no tools, or does not want them called. Then the answer stays the text
/// it is, whatever it looks like.
///
/// Errors: tools that are wrong, or that this model's template does not know; a choice that names
/// none of them, or that cannot be held yet.
pub fn read_tools(
    fields: &mut Fields,
    format: Option<ToolFormat>,
) -> Result<Option<RequestTools>, RequestError> {
    let for_template = read_list(fields)?;
    let choice = fields.take(&TOOL_CHOICE);
    let parallel = fields.boolean(&PARALLEL_TOOL_CALLS)?.unwrap_or(true);
    let mut names = BTreeSet::new();
    let mut tools = Vec::with_capacity(for_template.len());
    for (index, value) in for_template.iter().enumerate() {
        let tool = read_tool(index, value)?;
        if !names.insert(tool.name.clone()) {
            let field = format!("tools[{index}].function.name");
            let reason = format!("'{}' is there twice", excerpt(&tool.name));
            return Err(RequestError::Invalid { field, reason });
        }
        tools.push(tool);
    }
    if !wants_calls(choice.as_ref(), &names)? || tools.is_empty() {
        return Ok(None);
    }
    let Some(format) = format else {
        let reason = "the chat template of this model knows no tools".to_string();
        return Err(RequestError::Invalid { field: TOOLS.name.into(), reason });
    };
    let calls_max = if parallel { usize::MAX } else { 1 };
    let for_answer = AnswerTools { format, tools: Arc::new(tools), calls_max };
    Ok(Some(RequestTools { for_template, for_answer }))
}

fn read_list(fields: &mut Fields) -> Result<Vec<Value>, RequestError> {
    match fields.take(&TOOLS) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() > TOOLS_MAX => Err(RequestError::OutOfRange {
            field: TOOLS.name.into(),
            value: format!("a list of {}", list.len()),
            range: format!("at most {TOOLS_MAX} tools"),
        }),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => Err(wrong_type(TOOLS.name, &other, "a list of objects")),
    }
}

fn read_tool(index: usize, value: &Value) -> Result<Tool, RequestError> {
    let field = |part: &str| format!("tools[{index}]{part}");
    let Value::Object(tool) = value else {
        return Err(wrong_type(&field(""), value, "an object with type and function"));
    };
    match tool.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        None | Some(Value::Null) => return Err(RequestError::Missing { field: field(".type") }),
        Some(other) => return Err(out_of_range(&field(".type"), other, "function".into())),
    }
    let function = match tool.get("function") {
        Some(Value::Object(function)) => function,
        None | Some(Value::Null) => {
            return Err(RequestError::Missing { field: field(".function") });
        }
        Some(other) => return Err(wrong_type(&field(".function"), other, "an object")),
    };
    let name = read_name(function, &field(".function.name"))?;
    match function.get("description") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(other) => return Err(wrong_type(&field(".function.description"), other, "a string")),
    }
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => Value::Null,
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(other) => {
            return Err(wrong_type(&field(".function.parameters"), other, "a JSON schema"));
        }
    };
    Ok(Tool { name, parameters })
}

fn read_name(function: &Map<String, Value>, field: &str) -> Result<String, RequestError> {
    let name = match function.get("name") {
        Some(Value::String(name)) => name,
        None | Some(Value::Null) => return Err(RequestError::Missing { field: field.into() }),
        Some(other) => return Err(wrong_type(field, other, "a string")),
    };
    // Other characters would not come back out of the markup of a call.
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || "<>\"\\".contains(c);
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX || name.contains(is_odd) {
        let range = format!(
            "1 to {TOOL_NAME_BYTES_MAX} bytes without white space, quotes, backslashes, < and >"
        );
        return Err(out_of_range(field, &Value::from(excerpt(name)), range));
    }
    Ok(name.clone())
}

/// Whether the model shall be told of the tools.
fn wants_calls(choice: Option<&Value>, names: &BTreeSet<String>) -> Result<bool, RequestError> {
    let field = || TOOL_CHOICE.name.to_string();
    let unsupported =
        |choice: &Value| Err(RequestError::Unsupported { field: field(), value: show(choice) });
    let no_tools = || RequestError::Invalid { field: field(), reason: "needs 'tools'".into() };
    match choice {
        None => Ok(true),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(true),
            "none" => Ok(false),
            "required" if names.is_empty() => Err(no_tools()),
            "required" => unsupported(&Value::from("required")),
            _ => {
                let range = "auto, none, required or an object that names a function".to_string();
                Err(out_of_range(TOOL_CHOICE.name, &Value::from(excerpt(word)), range))
            }
        },
        Some(choice @ Value::Object(_)) => {
            let Some(name) = choice["function"]["name"].as_str() else {
                let field = "tool_choice.function.name".to_string();
                return Err(RequestError::Missing { field });
            };
            if names.is_empty() {
                return Err(no_tools());
            }
            if !names.contains(name) {
                let reason = format!("'{}' is none of the tools", excerpt(name));
                return Err(RequestError::Invalid { field: field(), reason });
            }
            unsupported(choice)
        }
        Some(other) => Err(wrong_type(TOOL_CHOICE.name, other, "a string or an object")),
    }
}

fn tools_schema() -> Value {
    json!({
        "type": ["array", "null"],
        "maxItems": TOOLS_MAX,
        "items": {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "maxLength": TOOL_NAME_BYTES_MAX},
                        "description": {"type": ["string", "null"]},
                        "parameters": {"type": ["object", "null"]},
                    },
                },
            },
        },
    })
}

fn tool_choice_schema() -> Value {
    json!({"anyOf": [{"enum": ["auto", "none"]}, {"type": "null"}]})
}
