//! The tools that a chat may call: `tools`, `tool_choice`, `parallel_tool_calls`.

use super::constraint::WantedGrammar;
use super::error::{RequestError, excerpt};
use super::fields::{Field, Fields, Kind, out_of_range, wrong_type};
use super::limits::{TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use super::sampling::Common;
use crate::text::{AnswerTools, CallsWanted, Tool, ToolFormat, tool_calls_grammar};
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
    doc: "auto: text or calls; none: the model is not told of the tools; required: calls alone; \
          an object: calls of that function alone. Default auto.",
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
    pub callable: CallableTools,
}

/// Tools for reading the answer, and which of them it must call.
#[derive(Debug)]
pub struct CallableTools {
    for_answer: AnswerTools,
    must_call: MustCall,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum MustCall {
    No,
    Any,
    One(String),
}

impl CallableTools {
    /// Constrains the answer to calls, or, where it is to be something else, to calls or that.
    ///
    /// Errors: schemas that cannot be held.
    pub fn constrain(self, common: &mut Common) -> Result<AnswerTools, RequestError> {
        let CallableTools { for_answer, must_call } = self;
        let (name, or) = match (&must_call, common.wanted.grammar.take()) {
            (MustCall::No, None) => return Ok(for_answer),
            (MustCall::No, Some(wanted)) => (None, Some(wanted)),
            // An answer of calls has no content to be held to anything.
            (MustCall::Any, _) => (None, None),
            (MustCall::One(name), _) => (Some(name.as_str()), None),
        };
        let field = or.as_ref().map_or(TOOLS.name, |wanted| &wanted.field).to_owned();
        let or = or.map(|wanted| wanted.source);
        let wanted = CallsWanted { name, calls_max: for_answer.calls_max, or };
        let source = tool_calls_grammar(for_answer.format, &for_answer.tools, wanted);
        let source = source.map_err(|error| RequestError::Invalid {
            field: field.clone(),
            reason: error.to_string(),
        })?;
        common.wanted.grammar = Some(WantedGrammar { field, source });
        Ok(for_answer)
    }
}

/// `None`: the request has no tools, or does not want them called. Then the answer stays the text
/// it is, whatever it looks like.
///
/// Errors: tools that are wrong, or that this model's template does not know; a choice that names
/// none of them.
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
    let must_call = match read_choice(choice.as_ref(), &names)? {
        Some(must_call) if !tools.is_empty() => must_call,
        _ => return Ok(None),
    };
    let Some(format) = format else {
        let reason = "the chat template of this model knows no tools".to_string();
        return Err(RequestError::Invalid { field: TOOLS.name.into(), reason });
    };
    let calls_max = if parallel { usize::MAX } else { 1 };
    let for_answer = AnswerTools { format, tools: Arc::new(tools), calls_max };
    Ok(Some(RequestTools { for_template, callable: CallableTools { for_answer, must_call } }))
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

/// `None`: the model is not told of the tools.
fn read_choice(
    choice: Option<&Value>,
    names: &BTreeSet<String>,
) -> Result<Option<MustCall>, RequestError> {
    let field = || TOOL_CHOICE.name.to_string();
    let no_tools = || RequestError::Invalid { field: field(), reason: "needs 'tools'".into() };
    match choice {
        None => Ok(Some(MustCall::No)),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Some(MustCall::No)),
            "none" => Ok(None),
            "required" if names.is_empty() => Err(no_tools()),
            "required" => Ok(Some(MustCall::Any)),
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
            Ok(Some(MustCall::One(name.to_owned())))
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
    let named = json!({
        "type": "object",
        "required": ["function"],
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}},
            },
        },
    });
    json!({"anyOf": [{"enum": ["auto", "none", "required"]}, named, {"type": "null"}]})
}
