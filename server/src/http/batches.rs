//! POST and GET /v1/batches, GET of one, POST .../cancel.

use super::auth::Client;
use super::body::read_fields;
use super::error::{ApiError, RequestError, excerpt};
use super::fields::{Field, Fields, Kind, as_integer, field, out_of_range, wrong_type};
use super::files::{EXPIRES_AFTER_MAX, EXPIRES_AFTER_MIN, check_anchor};
use super::paging::{list, page, parameters};
use super::rows::check_endpoint;
use super::state::Context;
use super::unknown::IgnoredFields;
use super::wire::random_hex;
use crate::jobs::{BatchRecord, LineFault, NewBatch};
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

/// Batches in a list, as in OpenAI's API.
const PAGE_DEFAULT: usize = 20;
const PAGE_MAX: usize = 100;
/// Bounds of `metadata`, as in OpenAI's API.
const METADATA_MAX: usize = 16;
const METADATA_KEY_CHARS_MAX: usize = 64;
const METADATA_VALUE_CHARS_MAX: usize = 512;
/// Longest `completion_window`.
const WINDOW_DAYS_MAX: u64 = 30;
const HOUR_S: u64 = 3600;

const INPUT_FILE_ID: Field =
    field("input_file_id", Kind::Name, "A file with the purpose `batch`. Required.");
const ENDPOINT: Field = field("endpoint", Kind::Name, "What every row asks of. Required.");
const COMPLETION_WINDOW: Field = field(
    "completion_window",
    Kind::Name,
    "Time in which rows are answered: hours as in 24h, or days as in 7d, up to 30 days. Required.",
);
const METADATA: Field = field(
    "metadata",
    Kind::Shape(metadata_schema),
    "Up to 16 texts with a name, given back as they are.",
);
const OUTPUT_EXPIRES_AFTER: Field = field(
    "output_expires_after",
    Kind::Shape(expires_schema),
    "{anchor: created_at, seconds}: when the files of the results are deleted. Default: never.",
);

pub fn fields() -> impl Iterator<Item = &'static Field> {
    [INPUT_FILE_ID, ENDPOINT, COMPLETION_WINDOW, METADATA, OUTPUT_EXPIRES_AFTER].iter()
}

pub async fn create(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let jobs = context.jobs()?;
    let (mut fields, _reservation) = read_fields(&context, request).await?;
    let model = context.serving()?.model.names[0].clone();
    let input_file_id = required(&mut fields, &INPUT_FILE_ID)?;
    let endpoint = required(&mut fields, &ENDPOINT)?;
    check_endpoint(ENDPOINT.name, &endpoint)?;
    let completion_window = required(&mut fields, &COMPLETION_WINDOW)?;
    let new = NewBatch {
        id: format!("batch_{}", random_hex()),
        owner: client.owner(),
        endpoint,
        input_file_id,
        window_s: read_window(&completion_window)?,
        completion_window,
        model,
        metadata: read_metadata(fields.take(&METADATA))?,
        output_expires_after: read_expires_after(fields.take(&OUTPUT_EXPIRES_AFTER))?,
    };
    let ignored = IgnoredFields::of(&fields, &[], &context.config)?;
    let batch = jobs.create(new).await?;
    Ok(ignored.tell(Json(batch_json(&batch)).into_response()))
}

pub async fn list_batches(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    let page = page(&parameters(query.as_deref()), PAGE_DEFAULT, PAGE_MAX)?;
    let (batches, has_more) = context.jobs()?.batches(&client.owner(), page).await?;
    Ok(Json(list(batches.iter().map(batch_json).collect(), has_more.into())))
}

pub async fn get_batch(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(batch_json(&context.jobs()?.batch(&client.owner(), &id).await?)))
}

pub async fn cancel(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(batch_json(&context.jobs()?.cancel(&client.owner(), &id).await?)))
}

fn batch_json(batch: &BatchRecord) -> Value {
    let fault = |fault: &LineFault| {
        json!({
            "code": fault.code,
            "line": fault.line,
            "message": fault.message,
            "param": fault.param,
        })
    };
    let faults: Vec<Value> = batch.faults.iter().map(fault).collect();
    let errors = (!faults.is_empty()).then(|| json!({"object": "list", "data": faults}));
    let metadata = batch.metadata.as_ref().and_then(|text| serde_json::from_str(text).ok());
    json!({
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status.name(),
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {
            "total": batch.counts.total,
            "completed": batch.counts.completed,
            "failed": batch.counts.failed,
        },
        "metadata": metadata.unwrap_or(Value::Null),
    })
}

fn required(fields: &mut Fields, field: &Field) -> Result<String, RequestError> {
    fields.name(field)?.ok_or_else(|| RequestError::Missing { field: field.name.into() })
}

/// Seconds.
fn read_window(window: &str) -> Result<u64, RequestError> {
    let (number, hours) = match (window.strip_suffix('h'), window.strip_suffix('d')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 24),
        _ => ("", 0),
    };
    // At most as many digits as the limit has, and no sign.
    let is_plain = (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let hours = number.parse().ok().filter(|_| is_plain).map_or(0, |number: u64| number * hours);
    if hours == 0 || hours > 24 * WINDOW_DAYS_MAX {
        let range = format!("hours as in 24h or days as in 7d, 1h to {WINDOW_DAYS_MAX}d");
        return Err(out_of_range(COMPLETION_WINDOW.name, &json!(excerpt(window)), range));
    }
    Ok(hours * HOUR_S)
}

/// As JSON text.
fn read_metadata(value: Option<Value>) -> Result<Option<String>, RequestError> {
    let map = match value {
        None => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type(METADATA.name, &other, "an object")),
    };
    let invalid = |reason| Err(RequestError::Invalid { field: METADATA.name.into(), reason });
    if map.len() > METADATA_MAX {
        return invalid(format!("has {} entries, at most {METADATA_MAX}", map.len()));
    }
    for (key, value) in &map {
        let chars = key.chars().count();
        if chars > METADATA_KEY_CHARS_MAX {
            return invalid(format!(
                "a key has {chars} characters, at most {METADATA_KEY_CHARS_MAX}"
            ));
        }
        let Value::String(text) = value else {
            let field = format!("{}.{}", METADATA.name, excerpt(key));
            return Err(wrong_type(&field, value, "a string"));
        };
        let chars = text.chars().count();
        if chars > METADATA_VALUE_CHARS_MAX {
            return invalid(format!(
                "'{}' has {chars} characters, at most {METADATA_VALUE_CHARS_MAX}",
                excerpt(key)
            ));
        }
    }
    Ok(Some(Value::from(map).to_string()))
}

fn read_expires_after(value: Option<Value>) -> Result<Option<u64>, RequestError> {
    let map = match value {
        None => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type(OUTPUT_EXPIRES_AFTER.name, &other, "an object")),
    };
    check_anchor("output_expires_after.anchor", map.get("anchor").and_then(Value::as_str))?;
    let field = "output_expires_after.seconds";
    let Some(value) = map.get("seconds") else {
        return Err(RequestError::Missing { field: field.into() });
    };
    let seconds = as_integer(field, value)?;
    if seconds < EXPIRES_AFTER_MIN.into() || seconds > EXPIRES_AFTER_MAX.into() {
        let range = format!("an integer from {EXPIRES_AFTER_MIN} to {EXPIRES_AFTER_MAX}");
        return Err(out_of_range(field, value, range));
    }
    Ok(Some(seconds as u64))
}

fn metadata_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "maxProperties": METADATA_MAX,
        "propertyNames": {"maxLength": METADATA_KEY_CHARS_MAX},
        "additionalProperties": {"type": "string", "maxLength": METADATA_VALUE_CHARS_MAX},
    })
}

fn expires_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "required": ["anchor", "seconds"],
        "properties": {
            "anchor": {"const": "created_at"},
            "seconds": {
                "type": "integer", "minimum": EXPIRES_AFTER_MIN, "maximum": EXPIRES_AFTER_MAX,
            },
        },
    })
}
