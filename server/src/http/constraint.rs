//! What an answer must be: `response_format` and its other names, `bad_words`,
//! `allowed_token_ids`, and how long it may think.

use super::error::{ApiError, RequestError, excerpt};
use super::fields::{Field, Fields, Kind, field, out_of_range, show, wrong_type};
use super::generation::text_error;
use super::limits::ALLOWED_TOKEN_IDS_MAX;
use super::sampling::read_token_id;
use super::state::{Context, ServedModel, Serving};
use crate::engine;
use crate::text::constraint::{
    Allowed, BAD_WORD_BYTES_MAX, BAD_WORDS_MAX, CHOICES_MAX, WHITESPACE, gbnf_to_lark,
};
use crate::text::{
    Constraint, ConstraintParts, EncodedPrompt, GrammarError, GrammarSource, SequenceConstraint,
};
use models::TokenId;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::task::Poll;

pub const RESPONSE_FORMAT: Field = field(
    "response_format",
    Kind::Shape(response_format_schema),
    "text; json_object: any JSON object; json_schema: JSON that json_schema.schema accepts.",
);
pub const STRUCTURED_OUTPUTS: Field = field(
    "structured_outputs",
    Kind::Shape(structured_outputs_schema),
    "Exactly one of json, regex, choice, grammar (Lark, or GBNF with `root ::=`), json_object.",
);
pub const GUIDED_JSON: Field =
    field("guided_json", Kind::Shape(json_schema_schema), "As structured_outputs.json.");
pub const GUIDED_REGEX: Field =
    field("guided_regex", Kind::Shape(text_schema), "As structured_outputs.regex.");
pub const GUIDED_CHOICE: Field =
    field("guided_choice", Kind::Shape(choice_schema), "As structured_outputs.choice.");
pub const GUIDED_GRAMMAR: Field =
    field("guided_grammar", Kind::Shape(text_schema), "As structured_outputs.grammar.");
pub const GUIDED_WHITESPACE_PATTERN: Field = field(
    "guided_whitespace_pattern",
    Kind::Shape(text_schema),
    "What may stand between the parts of JSON. Default: a space, or a line feed and an indent.",
);
pub const JSON_SCHEMA: Field =
    field("json_schema", Kind::Shape(json_schema_schema), "As structured_outputs.json.");
pub const REGEX: Field = field("regex", Kind::Shape(text_schema), "As structured_outputs.regex.");
pub const EBNF: Field = field("ebnf", Kind::Shape(text_schema), "As structured_outputs.grammar.");
pub const GRAMMAR: Field =
    field("grammar", Kind::Shape(text_schema), "As structured_outputs.grammar.");
pub const BAD_WORDS: Field = field(
    "bad_words",
    Kind::Shape(bad_words_schema),
    "Strings that do not appear in the text, however it is cut into tokens.",
);
pub const ALLOWED_TOKEN_IDS: Field = field(
    "allowed_token_ids",
    Kind::Shape(allowed_schema),
    "No other tokens are sampled, not even one that ends the text.",
);

/// What `Wanted::read` reads.
pub const CONSTRAINT_FIELDS: &[Field] = &[
    RESPONSE_FORMAT,
    STRUCTURED_OUTPUTS,
    GUIDED_JSON,
    GUIDED_REGEX,
    GUIDED_CHOICE,
    GUIDED_GRAMMAR,
    GUIDED_WHITESPACE_PATTERN,
    JSON_SCHEMA,
    REGEX,
    EBNF,
    GRAMMAR,
    BAD_WORDS,
    ALLOWED_TOKEN_IDS,
];

/// A grammar and the field that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedGrammar {
    pub field: String,
    pub source: GrammarSource,
}

/// What a request wants of its answer.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub grammar: Option<WantedGrammar>,
    pub bad_words: Vec<String>,
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// Tokens of thinking.
    pub thinking_budget: Option<usize>,
}

impl Wanted {
    /// Errors: a field that is wrong; two grammars.
    pub fn read(fields: &mut Fields, model: &ServedModel) -> Result<Wanted, RequestError> {
        let whitespace = match fields.take(&GUIDED_WHITESPACE_PATTERN) {
            None => WHITESPACE.to_owned(),
            Some(value) => text(GUIDED_WHITESPACE_PATTERN.name, value)?,
        };
        let mut found: Vec<WantedGrammar> = Vec::new();
        for wanted in [RESPONSE_FORMAT, STRUCTURED_OUTPUTS] {
            let Some(value) = fields.take(&wanted) else { continue };
            let Value::Object(map) = value else {
                return Err(wrong_type(wanted.name, &value, "an object"));
            };
            let source = match wanted.name {
                "response_format" => response_format(map, &whitespace)?,
                _ => structured_outputs(map, &whitespace)?,
            };
            let field = wanted.name.to_owned();
            found.extend(source.map(|source| WantedGrammar { field, source }));
        }
        for (wanted, kind) in [
            (GUIDED_JSON, "json"),
            (GUIDED_REGEX, "regex"),
            (GUIDED_CHOICE, "choice"),
            (GUIDED_GRAMMAR, "grammar"),
            (JSON_SCHEMA, "json"),
            (REGEX, "regex"),
            (EBNF, "grammar"),
            (GRAMMAR, "grammar"),
        ] {
            let Some(value) = fields.take(&wanted) else { continue };
            // llama.cpp's clients send an empty one for none.
            if wanted.name == GRAMMAR.name && value == "" {
                continue;
            }
            let source = source(wanted.name, kind, value, &whitespace)?;
            found.push(WantedGrammar { field: wanted.name.into(), source });
        }
        if let [first, second, ..] = found.as_slice() {
            let reason = format!("cannot be held together with '{}'", first.field);
            return Err(RequestError::Invalid { field: second.field.clone(), reason });
        }
        Ok(Wanted {
            grammar: found.pop(),
            bad_words: read_bad_words(fields)?,
            allowed_token_ids: read_allowed(fields, model)?,
            thinking_budget: None,
        })
    }

    /// Compiles what must be compiled. `prompt`: of a chat, whose answer may think.
    ///
    /// Errors: a grammar that cannot be held; too many are being compiled.
    pub async fn build(
        self,
        context: &Context,
        serving: &Serving,
        prompt: Option<&EncodedPrompt>,
    ) -> Result<Option<Arc<Constraint>>, ApiError> {
        let grammar = match self.grammar {
            None => None,
            Some(WantedGrammar { field, source }) => {
                let compiled = serving.text.compile_grammar(source).await;
                Some(compiled.map_err(|error| grammar_error(context, field, error))?)
            }
        };
        let bad_words = match self.bad_words.is_empty() {
            true => None,
            false => {
                let found = serving.text.find_bad_words(self.bad_words).await;
                Some(found.map_err(|error| text_error(context, BAD_WORDS.name, error))?)
            }
        };
        let parts = ConstraintParts {
            grammar,
            thinking_budget: self.thinking_budget,
            bad_words,
            allowed_token_ids: self.allowed_token_ids,
        };
        Ok(serving.text.constraint(prompt, parts, serving.model.eos_token_ids.clone()))
    }
}

fn grammar_error(context: &Context, field: String, error: GrammarError) -> ApiError {
    match error {
        GrammarError::Busy { grammars, grammars_max } => {
            let retry_after_s = context.retry_after_s();
            ApiError::GrammarsBusy { grammars, grammars_max, retry_after_s }
        }
        error => RequestError::Invalid { field, reason: error.to_string() }.into(),
    }
}

/// A constraint as the engine sees it.
#[derive(Debug)]
pub struct EngineConstraint(pub Arc<Constraint>);

struct EngineSequence(SequenceConstraint);

impl engine::ConstraintSource for EngineConstraint {
    fn start(&self, wake: engine::Wake) -> Box<dyn engine::Constraint> {
        Box::new(EngineSequence(SequenceConstraint::new(Arc::clone(&self.0), wake)))
    }
}

impl engine::Constraint for EngineSequence {
    fn advance(&mut self, token: TokenId) {
        self.0.advance(token);
    }

    fn allowed(
        &mut self,
        num_unknown: usize,
    ) -> Poll<Result<engine::Allowed, engine::ConstraintError>> {
        self.0.allowed(num_unknown).map(|allowed| match allowed {
            Ok(Allowed::Any) => Ok(engine::Allowed::Any),
            Ok(Allowed::Only(words)) => match engine::TokenMask::new(words) {
                Some(mask) => Ok(engine::Allowed::Only(Arc::new(mask))),
                None => Err(engine::ConstraintError { reason: "no token is left".into() }),
            },
            Err(reason) => Err(engine::ConstraintError { reason }),
        })
    }
}

fn response_format(
    mut map: Map<String, Value>,
    whitespace: &str,
) -> Result<Option<GrammarSource>, RequestError> {
    let json = |schema: Value| GrammarSource::Json { schema, whitespace: whitespace.to_owned() };
    let kind = map.remove("type").unwrap_or_default();
    match kind.as_str() {
        None => Err(RequestError::Missing { field: "response_format.type".into() }),
        Some("text") => Ok(None),
        Some("json_object") => match map.remove("schema") {
            None | Some(Value::Null) => Ok(Some(json(json!({"type": "object"})))),
            Some(value) => Ok(Some(json(schema("response_format.schema", value)?))),
        },
        Some("json_schema") => {
            let field = "response_format.json_schema";
            let Some(Value::Object(mut map)) = map.remove("json_schema") else {
                return Err(RequestError::Missing { field: field.into() });
            };
            match map.remove("schema") {
                None | Some(Value::Null) => {
                    Err(RequestError::Missing { field: format!("{field}.schema") })
                }
                Some(value) => Ok(Some(json(schema(&format!("{field}.schema"), value)?))),
            }
        }
        Some("structural_tag") => {
            let (field, value) = ("response_format.type".into(), show(&kind));
            Err(RequestError::Unsupported { field, value })
        }
        Some(_) => {
            let range = "text, json_object or json_schema".to_string();
            Err(out_of_range("response_format.type", &kind, range))
        }
    }
}

fn structured_outputs(
    map: Map<String, Value>,
    whitespace: &str,
) -> Result<Option<GrammarSource>, RequestError> {
    let mut whitespace = whitespace.to_owned();
    let mut found = Vec::new();
    for (key, value) in map {
        let field = format!("{}.{key}", STRUCTURED_OUTPUTS.name);
        match (key.as_str(), value) {
            (_, Value::Null) => {}
            ("json" | "regex" | "choice" | "grammar", value) => found.push((key, value)),
            ("json_object", Value::Bool(true)) => {
                found.push(("json".into(), json!({"type": "object"})));
            }
            ("json_object" | "disable_fallback" | "disable_additional_properties", value)
                if value == false => {}
            ("whitespace_pattern", value) => whitespace = text(&field, value)?,
            ("disable_any_whitespace", Value::Bool(true)) => whitespace = "(|)".into(),
            ("disable_any_whitespace", Value::Bool(false)) => {}
            (_, value) => {
                return Err(RequestError::Unsupported { field, value: show(&value) });
            }
        }
    }
    if found.len() > 1 {
        let reason = "holds exactly one of json, regex, choice, grammar, json_object".to_string();
        return Err(RequestError::Invalid { field: STRUCTURED_OUTPUTS.name.into(), reason });
    }
    let Some((key, value)) = found.pop() else { return Ok(None) };
    let field = format!("{}.{key}", STRUCTURED_OUTPUTS.name);
    source(&field, &key, value, &whitespace).map(Some)
}

fn source(
    field: &str,
    kind: &str,
    value: Value,
    whitespace: &str,
) -> Result<GrammarSource, RequestError> {
    let whitespace = whitespace.to_owned();
    match kind {
        "json" => Ok(GrammarSource::Json { schema: schema(field, value)?, whitespace }),
        "regex" => text(field, value).map(GrammarSource::Regex),
        "choice" => choices(field, value).map(GrammarSource::Choice),
        _ => {
            let grammar = text(field, value)?;
            // The arrow of GBNF is no part of Lark.
            let lark = match grammar.contains("::=") {
                true => gbnf_to_lark(&grammar).map_err(|error| RequestError::Invalid {
                    field: field.into(),
                    reason: error.to_string(),
                })?,
                false => grammar,
            };
            Ok(GrammarSource::Lark(lark))
        }
    }
}

/// An object, or its JSON text.
fn schema(field: &str, value: Value) -> Result<Value, RequestError> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(value),
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(schema @ Value::Object(_)) => Ok(schema),
            Ok(_) | Err(_) => {
                let reason = "is no JSON schema: the text is no JSON object".to_string();
                Err(RequestError::Invalid { field: field.into(), reason })
            }
        },
        other => Err(wrong_type(field, &other, "a JSON schema")),
    }
}

fn choices(field: &str, value: Value) -> Result<Vec<String>, RequestError> {
    let list = strings(field, value)?;
    if list.is_empty() || list.len() > CHOICES_MAX || list.iter().any(String::is_empty) {
        let range = format!("1 to {CHOICES_MAX} strings, none of them empty");
        let value = format!("a list of {}", list.len());
        return Err(RequestError::OutOfRange { field: field.into(), value, range });
    }
    Ok(list)
}

fn text(field: &str, value: Value) -> Result<String, RequestError> {
    match value {
        Value::String(text) if text.is_empty() => {
            Err(out_of_range(field, &Value::from(""), "a string that is not empty".into()))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type(field, &other, "a string")),
    }
}

fn strings(field: &str, value: Value) -> Result<Vec<String>, RequestError> {
    let Value::Array(list) = value else {
        return Err(wrong_type(field, &value, "a list of strings"));
    };
    let text = |value| match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(field, &other, "a list of strings")),
    };
    list.into_iter().map(text).collect()
}

fn read_bad_words(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let Some(value) = fields.take(&BAD_WORDS) else { return Ok(Vec::new()) };
    let words = strings(BAD_WORDS.name, value)?;
    let invalid = |reason: String| RequestError::Invalid { field: BAD_WORDS.name.into(), reason };
    if words.len() > BAD_WORDS_MAX {
        return Err(invalid(format!("has {} strings, at most {BAD_WORDS_MAX}", words.len())));
    }
    match words.iter().find(|word| word.is_empty() || word.len() > BAD_WORD_BYTES_MAX) {
        None => Ok(words),
        Some(word) => {
            let word = excerpt(word);
            Err(invalid(format!("'{word}' does not have 1 to {BAD_WORD_BYTES_MAX} bytes")))
        }
    }
}

fn read_allowed(
    fields: &mut Fields,
    model: &ServedModel,
) -> Result<Option<Vec<TokenId>>, RequestError> {
    let name = ALLOWED_TOKEN_IDS.name;
    let list = match fields.take(&ALLOWED_TOKEN_IDS) {
        None => return Ok(None),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(name, &other, "a list of integers")),
    };
    if list.is_empty() || list.len() > ALLOWED_TOKEN_IDS_MAX {
        let range = format!("1 to {ALLOWED_TOKEN_IDS_MAX} token ids");
        let value = format!("a list of {}", list.len());
        return Err(RequestError::OutOfRange { field: name.into(), value, range });
    }
    list.iter().map(|id| read_token_id(name, id, model)).collect::<Result<_, _>>().map(Some)
}

fn response_format_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {
                "type": "object",
                "required": ["schema"],
                "properties": {
                    "name": {"type": "string"},
                    "schema": {"type": ["object", "boolean"]},
                    "strict": {"type": ["boolean", "null"]},
                },
            },
        },
    })
}

fn structured_outputs_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "properties": {
            "json": json_schema_schema(),
            "regex": text_schema(),
            "choice": choice_schema(),
            "grammar": text_schema(),
            "json_object": {"type": ["boolean", "null"]},
            "whitespace_pattern": text_schema(),
            "disable_any_whitespace": {"type": ["boolean", "null"]},
        },
    })
}

fn json_schema_schema() -> Value {
    json!({"type": ["object", "string", "boolean", "null"]})
}

fn text_schema() -> Value {
    json!({"type": ["string", "null"]})
}

fn choice_schema() -> Value {
    json!({
        "type": ["array", "null"],
        "minItems": 1,
        "maxItems": CHOICES_MAX,
        "items": {"type": "string", "minLength": 1},
    })
}

fn bad_words_schema() -> Value {
    json!({
        "type": ["array", "null"],
        "maxItems": BAD_WORDS_MAX,
        "items": {"type": "string", "minLength": 1, "maxLength": BAD_WORD_BYTES_MAX},
    })
}

fn allowed_schema() -> Value {
    json!({
        "type": ["array", "null"],
        "minItems": 1,
        "maxItems": ALLOWED_TOKEN_IDS_MAX,
        "items": {"type": "integer", "minimum": 0},
    })
}
