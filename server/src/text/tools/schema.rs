//! What a parameter's JSON schema says of values that a model writes without quotes.

use serde_json::Value;

/// References followed, one after the other.
const REFERENCES_MAX: usize = 8;
const UNIONS: [&str; 2] = ["anyOf", "oneOf"];

/// How to read a parameter's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParameterKind {
    /// The text itself.
    Text,
    /// JSON of one of these types if it is that, else the text itself.
    Json(Vec<String>),
}

impl ParameterKind {
    /// `parameters`: the schema of a function's arguments.
    pub fn of(parameters: &Value, name: &str) -> ParameterKind {
        let mut types = Vec::new();
        collect_types(parameters, &parameters["properties"][name], REFERENCES_MAX, &mut types);
        match types.iter().any(|kind| kind != "string") {
            true => ParameterKind::Json(types),
            false => ParameterKind::Text,
        }
    }
}

/// The parameter's value as JSON text. Whoever writes Python's True, False and None means theirs.
pub fn to_json(text: &str, types: &[String]) -> String {
    let trimmed = text.trim();
    let allows = |kind: &str| types.iter().any(|t| t == kind);
    let lower = trimmed.to_ascii_lowercase();
    let is_null = lower == "null" || lower == "none";
    if is_null && (allows("null") || !allows("string")) {
        return "null".into();
    }
    if allows("boolean") && (lower == "true" || lower == "false") {
        return lower;
    }
    let fits = match serde_json::from_str::<Value>(trimmed) {
        Ok(Value::Number(number)) => {
            let is_whole = number.as_f64().is_some_and(|x| x.fract() == 0.0);
            allows("number") || (allows("integer") && is_whole)
        }
        Ok(Value::Object(_)) => allows("object"),
        Ok(Value::Array(_)) => allows("array"),
        Ok(Value::Null | Value::Bool(_) | Value::String(_)) | Err(_) => false,
    };
    match fits {
        true => trimmed.to_owned(),
        false => Value::from(text).to_string(),
    }
}

fn collect_types(root: &Value, schema: &Value, references_left: usize, types: &mut Vec<String>) {
    let mut add = |kind: &str| {
        if !types.iter().any(|t| t == kind) {
            types.push(kind.to_owned());
        }
    };
    match &schema["type"] {
        Value::String(kind) => add(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).for_each(&mut add),
        _ => {
            let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
            values.for_each(|value| add(type_name(value)));
        }
    }
    if references_left == 0 {
        return;
    }
    let parts = UNIONS.iter().filter_map(|name| schema[*name].as_array()).flatten();
    for part in parts {
        collect_types(root, part, references_left - 1, types);
    }
    let target = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    if let Some(target) = target.and_then(|pointer| root.pointer(pointer)) {
        collect_types(root, target, references_left - 1, types);
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kinds(property: Value) -> ParameterKind {
        let schema = json!({
            "type": "object",
            "properties": {"p": property},
            "$defs": {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}},
        });
        ParameterKind::of(&schema, "p")
    }

    #[test]
    fn types_come_from_lists_unions_enums_and_references() {
        let json = |types: &[&str]| {
            ParameterKind::Json(types.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(kinds(json!({"type": "integer"})), json(&["integer"]));
        assert_eq!(kinds(json!({"type": ["string", "null"]})), json(&["string", "null"]));
        let union = json!({"anyOf": [{"type": "number"}, {"$ref": "#/$defs/Place"}]});
        assert_eq!(kinds(union), json(&["number", "object"]));
        assert_eq!(kinds(json!({"enum": [1, "a"]})), json(&["number", "string"]));
        for text in [json!({}), json!({"type": "string"}), json!({"enum": ["a"]}), json!(null)] {
            assert_eq!(kinds(text), ParameterKind::Text);
        }
        assert_eq!(kinds(json!({"$ref": "#/$defs/Loop"})), ParameterKind::Text);
        assert_eq!(ParameterKind::of(&Value::Null, "p"), ParameterKind::Text);
    }

    #[test]
    fn values_take_the_type_of_the_schema_or_stay_text() {
        let check = |text: &str, types: &[&str], json: &str| {
            let types: Vec<_> = types.iter().map(|t| (*t).to_owned()).collect();
            assert_eq!(to_json(text, &types), json, "{text} as {types:?}");
        };
        check(" 42 ", &["integer"], "42");
        check("4.5", &["integer"], "\"4.5\"");
        check("4.0", &["integer"], "4.0");
        check("-1e3", &["number"], "-1e3");
        check("007", &["number"], "\"007\"");
        check("NaN", &["number"], "\"NaN\"");
        check("True", &["boolean"], "true");
        check("yes", &["boolean"], "\"yes\"");
        check("null", &["object"], "null");
        check("None", &["string", "null"], "null");
        check("null", &["string", "integer"], "\"null\"");
        check("{\"b\": 1, \"a\": [2]}", &["object"], "{\"b\": 1, \"a\": [2]}");
        check("[1,", &["array"], "\"[1,\"");
        check("[1]", &["object", "array"], "[1]");
        check("12345678901234567890123", &["integer"], "12345678901234567890123");
        check("a \"b\"\n", &["string", "integer"], "\"a \\\"b\\\"\\n\"");
    }
}
