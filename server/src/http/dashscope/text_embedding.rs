//! POST /api/v1/services/embeddings/text-embedding/text-embedding.

use super::{DashScopeError, Envelope, RequestId, read_envelope};
use crate::http::auth::Client;
use crate::http::embeddings::{
    EmbedJob, Encoding, as_query, check_count, check_dimensions, check_instruction, embed,
    write_vectors,
};
use crate::http::error::RequestError;
use crate::http::fields::{Field, Fields, Kind, out_of_range, wrong_type};
use crate::http::state::Context;
use crate::http::unknown::IgnoredFields;
use crate::text::{Frame, FramedText};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Instant;

const TEXTS: Field =
    Field { name: "texts", kind: Kind::Shape(texts_schema), doc: "Texts to embed. Required." };
const DIMENSION: Field = Field {
    name: "dimension",
    kind: Kind::Integer { min: 1, max: i64::MAX },
    doc: "Only the first so many values, of unit length again. Default: all.",
};
const TEXT_TYPE: Field = Field {
    name: "text_type",
    kind: Kind::Shape(word_schema),
    doc: "query: put after the instruction; document, the default: as it is.",
};
const OUTPUT_TYPE: Field =
    Field { name: "output_type", kind: Kind::Shape(word_schema), doc: "Only dense is served." };
const INSTRUCT: Field = Field {
    name: "instruct",
    kind: Kind::Shape(word_schema),
    doc: "What queries are for, in place of the words of the model's card.",
};

/// For the description of the API: of `input` and of `parameters`.
pub const FIELDS: (&[Field], &[Field]) = (&[TEXTS], &[DIMENSION, TEXT_TYPE, OUTPUT_TYPE, INSTRUCT]);

pub async fn text_embedding(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, DashScopeError> {
    let arrived = Instant::now();
    let (serving, embedder) = context.embedder()?;
    let (envelope, reservation) = read_envelope(&context, &serving.model, request).await?;
    let Envelope { model, mut input, parameters, ignored: outer } = envelope;
    let mut parameters = Fields::of_object(parameters);
    let texts = read_texts("input.texts", input.take(&TEXTS))?;
    check_count("input.texts", texts.len(), &context.config)?;
    let dimensions = parameters.count(&DIMENSION)?;
    if let Some(dimensions) = dimensions {
        check_dimensions(DIMENSION.name, dimensions, embedder)?;
    }
    let is_query = read_word(&mut parameters, &TEXT_TYPE, &["document", "query"])? == "query";
    read_word(&mut parameters, &OUTPUT_TYPE, &["dense"])?;
    let instruct = read_instruct(&mut parameters, &INSTRUCT)?;
    let ignored = IgnoredFields::of(&parameters, &[], &context.config)?;
    let text = |text: String| match is_query {
        true => FramedText::Text(as_query(&text, instruct.as_deref())),
        false => FramedText::Text(text),
    };
    let job = EmbedJob {
        texts: texts.into_iter().map(text).collect(),
        frame: Frame::Tokenizer,
        dimensions,
        field: "input.texts",
        tokens_max: None,
        account: client.open(context.lane(), &model, 0, None)?,
        arrived,
    };
    let embedded = embed(&context, serving, job).await?;
    drop(reservation);
    let id = RequestId::new();
    let mut body = format!("{{\"request_id\":\"{}\",\"output\":{{\"embeddings\":[", id.as_str());
    write_vectors(&mut body, &embedded.vectors, Encoding::Float, |index, embedding| {
        format!("{{\"text_index\":{index},\"embedding\":{embedding}}}")
    })
    .await;
    let usage = json!({"total_tokens": embedded.prompt_tokens});
    body.push_str(&format!("]}},\"usage\":{usage}}}"));
    let response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    Ok(ignored.tell(outer.tell(id.tell(response))))
}

/// Errors: missing, no list of strings, an empty string.
pub fn read_texts(field: &'static str, value: Option<Value>) -> Result<Vec<String>, RequestError> {
    let list = match value {
        None => return Err(RequestError::Missing { field: field.into() }),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(field, &other, "a list of strings")),
    };
    let texts = list.into_iter().enumerate().map(|(index, text)| match text {
        Value::String(text) if text.is_empty() => Err(RequestError::OutOfRange {
            field: format!("{field}[{index}]"),
            value: "empty".into(),
            range: "at least one character".into(),
        }),
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{field}[{index}]"), &other, "a string")),
    });
    texts.collect()
}

/// One of `words`; the first is the default.
fn read_word(
    parameters: &mut Fields,
    field: &Field,
    words: &[&'static str],
) -> Result<&'static str, RequestError> {
    let Some(value) = parameters.take(field) else { return Ok(words[0]) };
    let found = words.iter().find(|word| value == **word).copied();
    found.ok_or_else(|| out_of_range(field.name, &value, words.join(" or ")))
}

/// Errors: no text, or too long.
pub fn read_instruct(
    parameters: &mut Fields,
    field: &Field,
) -> Result<Option<String>, RequestError> {
    match parameters.take(field) {
        None => Ok(None),
        Some(Value::String(text)) => check_instruction(field.name, text).map(Some),
        Some(other) => Err(wrong_type(field.name, &other, "a string")),
    }
}

fn texts_schema() -> Value {
    json!({"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1})
}

fn word_schema() -> Value {
    json!({"type": ["string", "null"]})
}
