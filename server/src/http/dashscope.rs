//! DashScope's native protocol (Model Studio): one file for each service, and what all share.
//!
//! A request is `{model, input, parameters}`; a reply `{request_id, output, usage}`; an error
//! `{code, message, request_id}`.

pub mod text_generation;
pub mod multimodal_generation;
pub mod text_embedding;
pub mod text_rerank;
pub mod tokenizer;
mod into_chat;
mod answer;
mod events;
pub mod schemas;

use super::body::read_fields;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, wrong_type};
use super::sampling::{MODEL, read_model};
use super::state::{BodyReservation, Context, ServedModel};
use super::tenants::LimitReached;
use super::unknown::IgnoredFields;
use super::wire::random_hex;
use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// Routes whose errors have DashScope's shape begin so.
pub const PATH: &str = "/api/v1/";

pub const INPUT: Field =
    Field { name: "input", kind: Kind::Shape(object_schema), doc: "What to work on. Required." };
pub const PARAMETERS: Field =
    Field { name: "parameters", kind: Kind::Shape(object_schema), doc: "How to do it." };

/// What every service takes.
pub const FIELDS: &[Field] = &[MODEL, INPUT, PARAMETERS];

/// As DashScope names requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    pub fn new() -> Self {
        let hex = random_hex();
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        Self(parts.join("-"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The header that names the request says the same as the body.
    fn tell(&self, mut response: Response) -> Response {
        let value = HeaderValue::try_from(self.as_str()).expect("digits and hyphens");
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
        response
    }
}

impl Default for RequestId {
    fn default() -> Self {
        Self::new()
    }
}

/// An error in DashScope's shape.
pub struct DashScopeError(ApiError);

impl<E: Into<ApiError>> From<E> for DashScopeError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for DashScopeError {
    fn into_response(self) -> Response {
        respond_error(&self.0)
    }
}

/// Also for what goes wrong outside of any service.
pub fn respond_error(error: &ApiError) -> Response {
    let id = RequestId::new();
    id.tell(error.respond(error_body(error, &id)))
}

fn error_body(error: &ApiError, id: &RequestId) -> Value {
    let code = match (error, error.status().as_u16()) {
        (ApiError::Request(RequestError::UnknownModel { .. }), _) => "ModelNotFound",
        (ApiError::Limit { limit: LimitReached::Tokens { .. }, .. }, _) => {
            "Throttling.AllocationQuota"
        }
        (_, 401) => "InvalidApiKey",
        (_, 403) => "Model.AccessDenied",
        (_, 404) => "NotFound",
        (_, 405) => "MethodNotAllowed",
        (_, 408) => "RequestTimeOut",
        (_, 429) => "Throttling.RateQuota",
        (_, 503) => "ServiceUnavailable",
        (_, 400..=499) => "InvalidParameter",
        _ => "InternalError",
    };
    let message = error.body()["error"]["message"].clone();
    json!({"code": code, "message": message, "request_id": id.as_str()})
}

/// A request's parts.
pub struct Envelope {
    /// The name to answer with.
    pub model: String,
    pub input: Fields,
    pub parameters: Map<String, Value>,
    /// Of the outermost object.
    ignored: IgnoredFields,
}

/// Reads the body. The reservation is to be kept until it is turned into tokens.
///
/// Errors: those of any body; an unknown model; no input.
pub async fn read_envelope(
    context: &Context,
    model: &ServedModel,
    request: Request,
) -> Result<(Envelope, BodyReservation), ApiError> {
    let (mut fields, reservation) = read_fields(context, request).await?;
    let name = read_model(&mut fields, model)?;
    let input = match fields.take(&INPUT) {
        None => return Err(RequestError::Missing { field: INPUT.name.into() }.into()),
        Some(Value::Object(input)) => Fields::of_object(input),
        Some(other) => return Err(wrong_type(INPUT.name, &other, "an object").into()),
    };
    let parameters = match fields.take(&PARAMETERS) {
        None => Map::new(),
        Some(Value::Object(parameters)) => parameters,
        Some(other) => return Err(wrong_type(PARAMETERS.name, &other, "an object").into()),
    };
    let ignored = IgnoredFields::of(&fields, &[], &context.config)?;
    Ok((Envelope { model: name, input, parameters, ignored }, reservation))
}

/// A whole reply.
fn reply(output: Value, usage: Value, ignored: [&IgnoredFields; 2]) -> Response {
    let id = RequestId::new();
    let body = json!({"request_id": id.as_str(), "output": output, "usage": usage});
    let [outer, inner] = ignored;
    inner.tell(outer.tell(id.tell(Json(body).into_response())))
}

fn object_schema() -> Value {
    json!({"type": "object"})
}
