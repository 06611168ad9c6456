//! POST /v1/embeddings.

use super::auth::Client;
use super::body::read_fields;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, out_of_range, show, wrong_type};
use super::limits::{HttpConfig, INSTRUCTION_BYTES_MAX};
use super::pooling::{self, COMMON_FIELDS, Common};
use super::sampling::read_token_id;
use super::state::{Context, ServedModel, Serving};
use super::task::Embedder;
use super::tenants::Account;
use super::unknown::IgnoredFields;
use super::unsupported::{check_embeddings, embedding_names};
use crate::engine::{Pooled, Pooling};
use crate::text::{Frame, FramedText};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use models::TokenId;
use serde_json::{Value, json};
use std::time::Instant;

/// As on the cards of Qwen3-Embedding and Qwen3-Reranker.
pub const INSTRUCTION_DEFAULT: &str =
    "Given a web search query, retrieve relevant passages that answer the query";
/// Embeddings written before other tasks get a turn.
const WRITTEN_AT_ONCE_MAX: usize = 16;

pub const INPUT: Field = Field {
    name: "input",
    kind: Kind::Shape(input_schema),
    doc: "Text, token ids, or a list of either. Required. Token ids are taken as they are; a text \
          gets the end token of the model.",
};
pub const ENCODING_FORMAT: Field = Field {
    name: "encoding_format",
    kind: Kind::Shape(encoding_schema),
    doc: "float: a list of numbers; base64: little-endian 32-bit floats. Default float.",
};
pub const DIMENSIONS: Field = Field {
    name: "dimensions",
    kind: Kind::Integer { min: 1, max: i64::MAX },
    doc: "Only the first so many values, of unit length again. Default: all.",
};
pub const INPUT_TYPE: Field = Field {
    name: "input_type",
    kind: Kind::Shape(input_type_schema),
    doc: "query: the text is put after the instruction, as the model was trained. Default \
          document: as it is.",
};
pub const INSTRUCTION: Field = Field {
    name: "instruction",
    kind: Kind::Shape(instruction_schema),
    doc: "What queries are for. Default: that of the model's card, for web search.",
};
pub const ADD_SPECIAL_TOKENS: Field = Field {
    name: "add_special_tokens",
    kind: Kind::Boolean,
    doc: "False: texts do not get the model's end token. Default true.",
};

const OWN_FIELDS: &[Field] =
    &[INPUT, ENCODING_FORMAT, DIMENSIONS, INPUT_TYPE, INSTRUCTION, ADD_SPECIAL_TOKENS];

/// All fields of the endpoint.
pub fn fields() -> impl Iterator<Item = &'static Field> {
    OWN_FIELDS.iter().chain(COMMON_FIELDS)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Float,
    Base64,
}

/// A checked request.
#[derive(Debug)]
pub struct EmbeddingsRequest {
    pub common: Common,
    /// At least one, none of them empty.
    pub texts: Vec<FramedText>,
    pub frame: Frame,
    pub encoding: Encoding,
    /// `None`: all values.
    pub dimensions: Option<usize>,
}

impl EmbeddingsRequest {
    /// Errors: the first field that is wrong, missing or not supported.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        embedder: Embedder,
        config: &HttpConfig,
    ) -> Result<EmbeddingsRequest, RequestError> {
        check_embeddings(fields)?;
        let common = Common::read(fields, model)?;
        let texts = read_input(fields.take(&INPUT), model, config)?;
        let encoding = read_encoding(fields)?;
        let dimensions = fields.count(&DIMENSIONS)?;
        if let Some(dimensions) = dimensions {
            check_dimensions(DIMENSIONS.name, dimensions, embedder)?;
        }
        let instruction = read_instruction(fields)?;
        let is_query = read_is_query(fields)?;
        if !is_query && instruction.is_some() {
            let reason = "is only for 'input_type' query".into();
            return Err(RequestError::Invalid { field: INSTRUCTION.name.into(), reason });
        }
        let texts = match is_query {
            true => as_queries(texts, instruction.as_deref())?,
            false => texts,
        };
        let frame = match fields.boolean(&ADD_SPECIAL_TOKENS)?.unwrap_or(true) {
            true => Frame::Tokenizer,
            false => Frame::None,
        };
        Ok(EmbeddingsRequest { common, texts, frame, encoding, dimensions })
    }
}

pub async fn embeddings(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (serving, embedder) = context.embedder()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let config = &context.config;
    let request = EmbeddingsRequest::into_request(&mut fields, &serving.model, embedder, config)?;
    let ignored = IgnoredFields::of(&fields, &embedding_names(), config)?;
    let EmbeddingsRequest { common, texts, frame, encoding, dimensions } = request;
    let account = common.open(&context, &client)?;
    let job = EmbedJob {
        texts,
        frame,
        dimensions,
        field: INPUT.name,
        tokens_max: common.tokens_max,
        account,
        arrived,
    };
    let embedded = embed(&context, serving, job).await?;
    drop(reservation);
    let body = write_reply(&common.model, &embedded, encoding).await;
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok(ignored.tell((headers, body).into_response()))
}

/// Texts to embed.
pub struct EmbedJob {
    pub texts: Vec<FramedText>,
    pub frame: Frame,
    /// `None`: all values.
    pub dimensions: Option<usize>,
    /// For messages: which field holds the texts.
    pub field: &'static str,
    pub tokens_max: Option<usize>,
    pub account: Account,
    pub arrived: Instant,
}

pub struct Embedded {
    /// Of unit length, in the order of the texts.
    pub vectors: Vec<Vec<f32>>,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
}

/// Errors: as `pooling::run`; an embedding that is not finite.
pub async fn embed(
    context: &Context,
    serving: &Serving,
    job: EmbedJob,
) -> Result<Embedded, ApiError> {
    let EmbedJob { texts, frame, dimensions, field, tokens_max, account, arrived } = job;
    let pooling = Pooling::Hidden;
    let job = pooling::Job { texts, frame, pooling, field, tokens_max, account, arrived };
    let answers = pooling::run(context, serving, job).await?;
    let mut vectors = Vec::with_capacity(answers.pooled.len());
    for pooled in answers.pooled {
        let Pooled::Hidden(mut values) = pooled else { unreachable!("what was asked for") };
        values.truncate(dimensions.unwrap_or(values.len()));
        normalize(&mut values)?;
        vectors.push(values);
    }
    let pooling::Answers { prompt_tokens, cached_tokens, .. } = answers;
    Ok(Embedded { vectors, prompt_tokens, cached_tokens })
}

/// To unit length; zeros stay zeros. Errors: a value is not finite.
fn normalize(values: &mut [f32]) -> Result<(), ApiError> {
    let squares: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if !squares.is_finite() {
        return Err(ApiError::NotFinite);
    }
    if squares > 0.0 {
        let scale = squares.sqrt().recip();
        values.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    Ok(())
}

/// Piece by piece: a reply may have tens of megabytes.
async fn write_reply(model: &str, embedded: &Embedded, encoding: Encoding) -> String {
    let mut body = String::from("{\"object\":\"list\",\"data\":[");
    write_vectors(&mut body, &embedded.vectors, encoding, |index, embedding| {
        format!("{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{embedding}}}")
    })
    .await;
    let usage = usage(embedded.prompt_tokens, embedded.cached_tokens);
    body.push_str(&format!("],\"model\":{},\"usage\":{usage}}}", json!(model)));
    body
}

/// Appends one entry for each vector, with commas between.
pub async fn write_vectors(
    body: &mut String,
    vectors: &[Vec<f32>],
    encoding: Encoding,
    entry: impl Fn(usize, String) -> String,
) {
    for (index, vector) in vectors.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(&entry(index, encoded(vector, encoding)));
        if index % WRITTEN_AT_ONCE_MAX == WRITTEN_AT_ONCE_MAX - 1 {
            tokio::task::yield_now().await;
        }
    }
}

/// As JSON, with the shortest digits that give the same 32-bit numbers.
fn encoded(vector: &[f32], encoding: Encoding) -> String {
    match encoding {
        Encoding::Float => serde_json::to_string(vector).expect("finite numbers are JSON"),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            format!("\"{}\"", STANDARD.encode(bytes))
        }
    }
}

/// The `usage` of replies without generated tokens.
pub fn usage(prompt_tokens: usize, cached_tokens: usize) -> Value {
    json!({
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    })
}

/// Errors: more than the model has, or it was not made for fewer.
pub fn check_dimensions(
    field: &'static str,
    dimensions: usize,
    embedder: Embedder,
) -> Result<(), RequestError> {
    let Embedder { size, shortens } = embedder;
    let range = match shortens {
        _ if dimensions == size => return Ok(()),
        true if dimensions < size => return Ok(()),
        true => format!("an integer from 1 to {size}"),
        false => format!("{size}: this model was not made for other sizes"),
    };
    Err(out_of_range(field, &json!(dimensions), range))
}

/// The text after its instruction, as on the model's card.
pub fn as_query(text: &str, instruction: Option<&str>) -> String {
    format!("Instruct: {}\nQuery:{text}", instruction.unwrap_or(INSTRUCTION_DEFAULT))
}

/// Errors: token ids, to which nothing can be added.
fn as_queries(
    texts: Vec<FramedText>,
    instruction: Option<&str>,
) -> Result<Vec<FramedText>, RequestError> {
    let texts = texts.into_iter().map(|text| match text {
        FramedText::Text(text) => Ok(FramedText::Text(as_query(&text, instruction))),
        FramedText::Tokens(_) => Err(RequestError::Invalid {
            field: INPUT_TYPE.name.into(),
            reason: "query is only for texts, not for token ids".into(),
        }),
    });
    texts.collect()
}

/// Errors: no text, or too long.
pub fn read_instruction(fields: &mut Fields) -> Result<Option<String>, RequestError> {
    match fields.take(&INSTRUCTION) {
        None => Ok(None),
        Some(Value::String(text)) => check_instruction(INSTRUCTION.name, text).map(Some),
        Some(other) => Err(wrong_type(INSTRUCTION.name, &other, "a string")),
    }
}

/// Errors: too long.
pub fn check_instruction(field: &'static str, text: String) -> Result<String, RequestError> {
    match text.len() {
        bytes if bytes > INSTRUCTION_BYTES_MAX => Err(RequestError::Invalid {
            field: field.into(),
            reason: format!("has {bytes} bytes, at most {INSTRUCTION_BYTES_MAX}"),
        }),
        _ => Ok(text),
    }
}

fn read_is_query(fields: &mut Fields) -> Result<bool, RequestError> {
    match fields.take(&INPUT_TYPE) {
        None => Ok(false),
        Some(value) => match value.as_str() {
            Some("query") => Ok(true),
            Some("document" | "passage") => Ok(false),
            _ => {
                let range = "one of query, document, passage".into();
                Err(out_of_range(INPUT_TYPE.name, &value, range))
            }
        },
    }
}

fn read_encoding(fields: &mut Fields) -> Result<Encoding, RequestError> {
    match fields.take(&ENCODING_FORMAT) {
        None => Ok(Encoding::Float),
        Some(value) => match value.as_str() {
            Some("float") => Ok(Encoding::Float),
            Some("base64") => Ok(Encoding::Base64),
            _ => Err(out_of_range(ENCODING_FORMAT.name, &value, "float or base64".into())),
        },
    }
}

const EXPECTED: &str = "a string, a list of token ids, or a list of either";

fn read_input(
    value: Option<Value>,
    model: &ServedModel,
    config: &HttpConfig,
) -> Result<Vec<FramedText>, RequestError> {
    let list = match value {
        None => return Err(RequestError::Missing { field: INPUT.name.into() }),
        Some(Value::String(text)) => return Ok(vec![read_text(INPUT.name, text)?]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(INPUT.name, &other, EXPECTED)),
    };
    if matches!(list.first(), Some(Value::Number(_))) {
        return Ok(vec![FramedText::Tokens(read_token_ids(INPUT.name, &list, model)?)]);
    }
    check_count(INPUT.name, list.len(), config)?;
    let texts = list.into_iter().enumerate().map(|(i, value)| match value {
        Value::String(text) => read_text(&format!("input[{i}]"), text),
        Value::Array(ids) => {
            let field = format!("input[{i}]");
            Ok(FramedText::Tokens(read_token_ids(&field, &ids, model)?))
        }
        other => Err(wrong_type(&format!("input[{i}]"), &other, EXPECTED)),
    });
    texts.collect()
}

/// Errors: none, or more texts than a request may have.
pub fn check_count(field: &str, count: usize, config: &HttpConfig) -> Result<(), RequestError> {
    let count_max = config.prompts_max.min(config.sequences_max);
    if (1..=count_max).contains(&count) {
        return Ok(());
    }
    Err(RequestError::OutOfRange {
        field: field.into(),
        value: format!("a list of {count}"),
        range: format!("1 to {count_max} texts"),
    })
}

/// As OpenAI's API, which refuses empty texts.
fn read_text(field: &str, text: String) -> Result<FramedText, RequestError> {
    match text.is_empty() {
        true => Err(empty(field)),
        false => Ok(FramedText::Text(text)),
    }
}

fn read_token_ids(
    field: &str,
    ids: &[Value],
    model: &ServedModel,
) -> Result<Vec<TokenId>, RequestError> {
    if ids.is_empty() {
        return Err(empty(field));
    }
    ids.iter().map(|id| read_token_id(field, id, model)).collect()
}

fn empty(field: &str) -> RequestError {
    let range = "at least one token".into();
    RequestError::OutOfRange { field: field.into(), value: show(&json!("")), range }
}

fn input_schema() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let ids = json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1});
    json!({"anyOf": [
        text,
        ids,
        {"type": "array", "items": text, "minItems": 1},
        {"type": "array", "items": ids, "minItems": 1},
    ]})
}

fn encoding_schema() -> Value {
    json!({"enum": ["float", "base64", null]})
}

fn input_type_schema() -> Value {
    json!({"enum": ["query", "document", "passage", null]})
}

fn instruction_schema() -> Value {
    json!({"type": ["string", "null"], "maxLength": INSTRUCTION_BYTES_MAX})
}
