//! POST /api/v1/services/rerank/text-rerank/text-rerank.

use super::text_embedding::read_instruct;
use super::{DashScopeError, Envelope, read_envelope, reply};
use crate::http::auth::Client;
use crate::http::error::RequestError;
use crate::http::fields::{Field, Fields, Kind, wrong_type};
use crate::http::judge::{JudgeJob, judge};
use crate::http::rerank::{DOCUMENTS, QUERY, TOP_N, read_documents, results};
use crate::http::state::Context;
use crate::http::unknown::IgnoredFields;
use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use std::time::Instant;

const RETURN_DOCUMENTS: Field = Field {
    name: "return_documents",
    kind: Kind::Boolean,
    doc: "Repeat the documents in the answer. Default false.",
};
const INSTRUCT: Field = Field {
    name: "instruct",
    kind: Kind::Shape(text_schema),
    doc: "What queries are for, in place of the words of the model's card.",
};

/// For the description of the API: of `input` and of `parameters`.
pub const FIELDS: (&[Field], &[Field]) =
    (&[QUERY, DOCUMENTS], &[TOP_N, RETURN_DOCUMENTS, INSTRUCT]);

pub async fn text_rerank(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, DashScopeError> {
    let arrived = Instant::now();
    let (serving, reranker) = context.reranker()?;
    let (envelope, reservation) = read_envelope(&context, &serving.model, request).await?;
    let Envelope { model, mut input, parameters, ignored: outer } = envelope;
    let mut parameters = Fields::of_object(parameters);
    let query = match input.take(&QUERY) {
        None => return Err(RequestError::Missing { field: "input.query".into() }.into()),
        Some(Value::String(query)) => query,
        Some(other) => return Err(wrong_type("input.query", &other, "a string").into()),
    };
    let documents = read_documents("input.documents", input.take(&DOCUMENTS), &context.config)?;
    let top_n = parameters.count(&TOP_N)?.filter(|&n| n > 0);
    let returns_documents = parameters.boolean(&RETURN_DOCUMENTS)?.unwrap_or(false);
    let instruction = read_instruct(&mut parameters, &INSTRUCT)?;
    let ignored = IgnoredFields::of(&parameters, &[], &context.config)?;
    let job = JudgeJob {
        pairs: documents.iter().map(|document| (query.clone(), document.clone())).collect(),
        instruction,
        field: "input.documents",
        tokens_max: None,
        account: client.open(context.lane(), &model, 0, None)?,
        arrived,
    };
    let judged = judge(&context, serving, reranker, job).await?;
    drop(reservation);
    let shown = returns_documents.then_some(&documents[..]);
    let output = json!({"results": results(&judged.scores, top_n, shown)});
    let usage = json!({"total_tokens": judged.prompt_tokens});
    Ok(reply(output, usage, [&outer, &ignored]))
}

fn text_schema() -> Value {
    json!({"type": ["string", "null"]})
}
