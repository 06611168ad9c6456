//! The grammar of answers that must call tools, in the format that the model was taught.

use super::super::tools::schema::ParameterKind;
use super::super::tools::{Tool, ToolFormat};
use super::grammar::{GrammarError, GrammarSource, WHITESPACE, lark_literal, with_whitespace};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Calls in one answer.
const CALLS_MAX: usize = 32;
/// What a parameter that is written as it is cannot be held to.
const TEXT_KEYWORDS: [&str; 6] = ["pattern", "format", "minLength", "maxLength", "allOf", "not"];

/// Which calls an answer makes.
#[derive(Debug, Clone, PartialEq)]
pub struct CallsWanted<'a> {
    /// None: of any of the tools.
    pub name: Option<&'a str>,
    pub calls_max: usize,
    /// What the answer may be instead; None: it must call.
    pub or: Option<GrammarSource>,
}

/// Text that is nothing but calls, whose arguments their schemas accept, or what may come instead.
///
/// Errors: a schema that cannot be held in this format; `or` is a grammar of its own.
pub fn tool_calls_grammar(
    format: ToolFormat,
    tools: &[Tool],
    wanted: CallsWanted,
) -> Result<GrammarSource, GrammarError> {
    let mut lark = match wanted.or {
        None => "start: calls\n".to_owned(),
        Some(or) => format!("start: calls | answer\nanswer: {}\n", or.as_lark_item()?),
    };
    match wanted.calls_max.clamp(1, CALLS_MAX) - 1 {
        0 => line(&mut lark, format_args!("calls: call")),
        more => line(&mut lark, format_args!("calls: call (\"\\n\" call){{0,{more}}}")),
    }
    let is_wanted = |tool: &&Tool| wanted.name.is_none_or(|name| name == tool.name);
    let mut names = Vec::new();
    for (index, tool) in tools.iter().filter(is_wanted).enumerate() {
        names.push(format!("call_{index}"));
        match format {
            ToolFormat::Hermes => write_hermes(&mut lark, index, tool),
            ToolFormat::Xml => write_xml(&mut lark, index, tool)?,
        }
    }
    line(&mut lark, format_args!("call: {}", names.join(" | ")));
    Ok(GrammarSource::Lark(lark))
}

fn write_hermes(lark: &mut String, index: usize, tool: &Tool) {
    let name = Value::from(tool.name.as_str());
    let head = format!("<tool_call>\n{{\"name\": {name}, \"arguments\": ");
    let (head, tail) = (lark_literal(&head), lark_literal("}\n</tool_call>"));
    line(lark, format_args!("call_{index}: {head} arguments_{index} {tail}"));
    write_json(lark, format_args!("arguments_{index}"), object_schema(&tool.parameters));
}

fn write_xml(lark: &mut String, index: usize, tool: &Tool) -> Result<(), GrammarError> {
    let schema = &tool.parameters;
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    let is_required = |name: &str| required.iter().any(|r| r == name);
    if let Some(missing) =
        required.iter().filter_map(Value::as_str).find(|name| !properties.contains_key(*name))
    {
        return Err(unsupported(tool, missing, "is required and has no schema"));
    }
    let mut parts = String::new();
    for (number, name) in properties.keys().enumerate() {
        let optional = if is_required(name) { "" } else { "?" };
        // The order is that of the schema.
        let _ = write!(parts, " parameter_{index}_{number}{optional}");
        write_parameter(lark, &format!("{index}_{number}"), tool, name)?;
    }
    let head = lark_literal(&format!("<tool_call>\n<function={}>\n", tool.name));
    let tail = lark_literal("</function>\n</tool_call>");
    line(lark, format_args!("call_{index}: {head}{parts} {tail}"));
    Ok(())
}

fn write_parameter(
    lark: &mut String,
    place: &str,
    tool: &Tool,
    name: &str,
) -> Result<(), GrammarError> {
    if name.contains(['<', '>', '\n']) {
        return Err(unsupported(tool, name, "has < or > or a line feed in its name"));
    }
    const END: &str = "\n</parameter>\n";
    let schema = &tool.parameters["properties"][name];
    let head = lark_literal(&format!("<parameter={name}>\n"));
    let strings = schema["enum"].as_array().map_or(&[][..], Vec::as_slice);
    let strings = strings.iter().chain(schema.get("const"));
    let strings: Option<Vec<&str>> = strings.map(Value::as_str).collect();
    let is_text = match ParameterKind::of(&tool.parameters, name) {
        ParameterKind::Text => true,
        ParameterKind::Json(types) => types.iter().any(|kind| kind == "string"),
    };
    match strings {
        Some(strings) if !strings.is_empty() => {
            let values: Vec<String> =
                strings.iter().map(|s| lark_literal(&format!("{s}{END}"))).collect();
            line(lark, format_args!("parameter_{place}: {head} ({})", values.join(" | ")));
        }
        _ if is_text => {
            if let Some(keyword) = TEXT_KEYWORDS.iter().find(|word| schema.get(word).is_some()) {
                let reason = format!("has '{keyword}', which cannot be held in this model's calls");
                return Err(unsupported(tool, name, &reason));
            }
            line(lark, format_args!("parameter_{place}: {head} value_{place}"));
            let end = lark_literal(END);
            line(lark, format_args!("value_{place}[suffix={end}]: /(?s:.*)/"));
        }
        _ => {
            let end = lark_literal(END);
            line(lark, format_args!("parameter_{place}: {head} value_{place} {end}"));
            let mut schema = schema.clone();
            if let Some(schema) = schema.as_object_mut() {
                for key in ["$defs", "definitions"] {
                    if let Some(definitions) = tool.parameters.get(key) {
                        schema.entry(key).or_insert_with(|| definitions.clone());
                    }
                }
            }
            write_json(lark, format_args!("value_{place}"), schema);
        }
    }
    Ok(())
}

/// Arguments are an object, also where the schema does not say so.
fn object_schema(parameters: &Value) -> Value {
    match parameters {
        Value::Object(map) => {
            let mut map = map.clone();
            map.entry("type").or_insert_with(|| "object".into());
            Value::Object(map)
        }
        _ => json!({"type": "object"}),
    }
}

fn write_json(lark: &mut String, rule: std::fmt::Arguments, schema: Value) {
    let schema = with_whitespace(schema, WHITESPACE);
    line(lark, format_args!("{rule}: %json {schema}"));
}

fn line(lark: &mut String, text: std::fmt::Arguments) {
    // Writing to a string cannot fail.
    let _ = writeln!(lark, "{text}");
}

fn unsupported(tool: &Tool, parameter: &str, reason: &str) -> GrammarError {
    let reason = format!("the parameter '{parameter}' of '{}' {reason}", tool.name);
    GrammarError::Invalid { reason }
}
