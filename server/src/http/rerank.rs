//! POST /v1/rerank, /v2/rerank and /rerank: documents in the order in which they answer a query.

use super::auth::Client;
use super::body::read_fields;
use super::embeddings::{INSTRUCTION, check_count, read_instruction, usage};
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, string_of, wrong_type};
use super::judge::{JudgeJob, judge};
use super::limits::HttpConfig;
use super::pooling::{COMMON_FIELDS, Common};
use super::state::{Context, ServedModel};
use super::unknown::IgnoredFields;
use super::unsupported::{check_rerank, rerank_names};
use super::wire::random_hex;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::time::Instant;

pub const QUERY: Field = Field {
    name: "query",
    kind: Kind::Shape(query_schema),
    doc: "What the documents are to answer. Required.",
};
pub const DOCUMENTS: Field = Field {
    name: "documents",
    kind: Kind::Shape(documents_schema),
    doc: "Texts, or objects with a `text`. Required.",
};
pub const TOP_N: Field = Field {
    name: "top_n",
    kind: Kind::Integer { min: 0, max: i64::MAX },
    doc: "Answer with so many best documents; 0 or left out: all.",
};
pub const RETURN_DOCUMENTS: Field = Field {
    name: "return_documents",
    kind: Kind::Boolean,
    doc: "Repeat the documents in the answer. Default true.",
};

const OWN_FIELDS: &[Field] = &[QUERY, DOCUMENTS, TOP_N, RETURN_DOCUMENTS, INSTRUCTION];

/// All fields of the endpoint.
pub fn fields() -> impl Iterator<Item = &'static Field> {
    OWN_FIELDS.iter().chain(COMMON_FIELDS)
}

/// A checked request.
#[derive(Debug)]
pub struct RerankRequest {
    pub common: Common,
    pub query: String,
    /// At least one.
    pub documents: Vec<String>,
    /// `None`: all.
    pub top_n: Option<usize>,
    pub returns_documents: bool,
    pub instruction: Option<String>,
}

impl RerankRequest {
    /// Errors: the first field that is wrong, missing or not supported.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<RerankRequest, RequestError> {
        check_rerank(fields)?;
        let common = Common::read(fields, model)?;
        let query = match fields.take(&QUERY) {
            None => return Err(RequestError::Missing { field: QUERY.name.into() }),
            Some(Value::String(query)) => query,
            Some(other) => return Err(wrong_type(QUERY.name, &other, "a string")),
        };
        Ok(RerankRequest {
            common,
            query,
            documents: read_documents(DOCUMENTS.name, fields.take(&DOCUMENTS), config)?,
            top_n: fields.count(&TOP_N)?.filter(|&n| n > 0),
            returns_documents: fields.boolean(&RETURN_DOCUMENTS)?.unwrap_or(true),
            instruction: read_instruction(fields)?,
        })
    }
}

pub async fn rerank(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (serving, reranker) = context.reranker()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let request = RerankRequest::into_request(&mut fields, &serving.model, &context.config)?;
    let ignored = IgnoredFields::of(&fields, &rerank_names(), &context.config)?;
    let RerankRequest { common, query, documents, top_n, returns_documents, instruction } = request;
    let job = JudgeJob {
        pairs: documents.iter().map(|document| (query.clone(), document.clone())).collect(),
        instruction,
        field: DOCUMENTS.name,
        tokens_max: common.tokens_max,
        account: common.open(&context, &client)?,
        arrived,
    };
    let judged = judge(&context, serving, reranker, job).await?;
    drop(reservation);
    let shown = returns_documents.then_some(&documents[..]);
    let reply = json!({
        "id": format!("rerank-{}", random_hex()),
        "model": common.model,
        "usage": usage(judged.prompt_tokens, judged.cached_tokens),
        "results": results(&judged.scores, top_n, shown),
    });
    Ok(ignored.tell(Json(reply).into_response()))
}

/// The best documents, best first; `shown`: repeat them.
pub fn results(scores: &[f64], top_n: Option<usize>, shown: Option<&[String]>) -> Vec<Value> {
    let results = best(scores, top_n).into_iter().map(|index| {
        let mut result = json!({"index": index, "relevance_score": scores[index]});
        if let Some(documents) = shown {
            result["document"] = json!({"text": documents[index]});
        }
        result
    });
    results.collect()
}

/// Indices of the best scores, best first, the first on a tie.
fn best(scores: &[f64], top_n: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(top_n.unwrap_or(scores.len()));
    order
}

/// Errors: missing, no list of texts, none or too many.
pub fn read_documents(
    field: &'static str,
    value: Option<Value>,
    config: &HttpConfig,
) -> Result<Vec<String>, RequestError> {
    let list = match value {
        None => return Err(RequestError::Missing { field: field.into() }),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(field, &other, "a list of strings")),
    };
    check_count(field, list.len(), config)?;
    let texts = list.into_iter().enumerate().map(|(i, document)| match document {
        Value::String(text) => Ok(text),
        Value::Object(mut object) => string_of(&format!("{field}[{i}]"), "text", &mut object),
        other => {
            let expected = "a string, or an object with a text";
            Err(wrong_type(&format!("{field}[{i}]"), &other, expected))
        }
    });
    texts.collect()
}

fn query_schema() -> Value {
    json!({"type": "string"})
}

fn documents_schema() -> Value {
    let object =
        json!({"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}});
    let document = json!({"anyOf": [{"type": "string"}, object]});
    json!({"type": "array", "items": document, "minItems": 1})
}
