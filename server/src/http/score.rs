//! POST /v1/score and /score: how well texts answer other texts, as vLLM has it.

use super::auth::Client;
use super::body::read_fields;
use super::embeddings::{INSTRUCTION, check_count, read_instruction, usage};
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, wrong_type};
use super::judge::{JudgeJob, judge};
use super::limits::HttpConfig;
use super::pooling::{COMMON_FIELDS, Common};
use super::state::{Context, ServedModel};
use super::unknown::IgnoredFields;
use super::unsupported::{check_rerank, rerank_names};
use super::wire::{random_hex, unix_seconds};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::time::Instant;

pub const TEXT_1: Field = Field {
    name: "text_1",
    kind: Kind::Shape(texts_schema),
    doc: "One query for all of `text_2`, or as many queries. Required (or `queries`).",
};
pub const TEXT_2: Field = Field {
    name: "text_2",
    kind: Kind::Shape(texts_schema),
    doc: "One document or more. Required (or `documents`).",
};
/// Their newer names.
pub const QUERIES: Field =
    Field { name: "queries", kind: Kind::Shape(texts_schema), doc: "The same as `text_1`." };
pub const DOCUMENTS: Field =
    Field { name: "documents", kind: Kind::Shape(texts_schema), doc: "The same as `text_2`." };

const OWN_FIELDS: &[Field] = &[TEXT_1, TEXT_2, QUERIES, DOCUMENTS, INSTRUCTION];

/// All fields of the endpoint.
pub fn fields() -> impl Iterator<Item = &'static Field> {
    OWN_FIELDS.iter().chain(COMMON_FIELDS)
}

/// A checked request.
#[derive(Debug)]
pub struct ScoreRequest {
    pub common: Common,
    /// At least one.
    pub pairs: Vec<(String, String)>,
    pub instruction: Option<String>,
}

impl ScoreRequest {
    /// Errors: the first field that is wrong, missing or not supported.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<ScoreRequest, RequestError> {
        check_rerank(fields)?;
        let common = Common::read(fields, model)?;
        let queries = read_texts(fields, [&TEXT_1, &QUERIES], config)?;
        let documents = read_texts(fields, [&TEXT_2, &DOCUMENTS], config)?;
        if queries.len() > 1 && queries.len() != documents.len() {
            return Err(RequestError::OutOfRange {
                field: TEXT_1.name.into(),
                value: format!("a list of {}", queries.len()),
                range: format!("one, or as many as in 'text_2': {}", documents.len()),
            });
        }
        let pairs = queries.iter().cycle().cloned().zip(documents).collect();
        Ok(ScoreRequest { common, pairs, instruction: read_instruction(fields)? })
    }
}

pub async fn score(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (serving, reranker) = context.reranker()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let request = ScoreRequest::into_request(&mut fields, &serving.model, &context.config)?;
    let ignored = IgnoredFields::of(&fields, &rerank_names(), &context.config)?;
    let ScoreRequest { common, pairs, instruction } = request;
    let job = JudgeJob {
        pairs,
        instruction,
        field: TEXT_2.name,
        tokens_max: common.tokens_max,
        account: common.open(&context, &client)?,
        arrived,
    };
    let judged = judge(&context, serving, reranker, job).await?;
    drop(reservation);
    let scores = judged.scores.iter().enumerate();
    let data = scores.map(|(i, score)| json!({"index": i, "object": "score", "score": score}));
    let reply = json!({
        "id": format!("score-{}", random_hex()),
        "object": "list",
        "created": unix_seconds(),
        "model": common.model,
        "data": data.collect::<Vec<Value>>(),
        "usage": usage(judged.prompt_tokens, judged.cached_tokens),
    });
    Ok(ignored.tell(Json(reply).into_response()))
}

fn read_texts(
    fields: &mut Fields,
    [field, newer]: [&Field; 2],
    config: &HttpConfig,
) -> Result<Vec<String>, RequestError> {
    let (old, new) = (fields.take(field), fields.take(newer));
    let list = match old.or(new) {
        None => return Err(RequestError::Missing { field: field.name.into() }),
        Some(Value::String(text)) => return Ok(vec![text]),
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(wrong_type(field.name, &other, "a string or a list of strings"));
        }
    };
    check_count(field.name, list.len(), config)?;
    let texts = list.into_iter().enumerate().map(|(i, text)| match text {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{}[{i}]", field.name), &other, "a string")),
    });
    texts.collect()
}

fn texts_schema() -> Value {
    let text = json!({"type": "string"});
    json!({"anyOf": [text, {"type": "array", "items": text, "minItems": 1}, {"type": "null"}]})
}
