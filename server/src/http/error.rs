//! The one table from error to status, code and body.

use super::tenants::LimitReached;
use crate::engine::{EngineError, Rejected};
use crate::jobs::{JobsError, Refused};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Longest message sent to a client; what is longer is cut.
pub const MESSAGE_CHARS_MAX: usize = 400;
/// Longest piece of a client's own data that a message repeats.
pub const EXCERPT_CHARS_MAX: usize = 60;
/// Seconds after which a client may try again while the model is loading.
const LOADING_RETRY_SECONDS: u64 = 5;
/// The same when the store of jobs fails, and when too many files or jobs are there.
const JOB_STORE_RETRY_SECONDS: u64 = 10;
const JOB_LIMIT_RETRY_SECONDS: u64 = 60;

/// Everything a route can answer instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{reason}; retry after {retry_after_s} s")]
    Busy { reason: Rejected, retry_after_s: u64 },
    #[error("request bodies of {bytes} bytes are in memory, the limit is {bytes_max}")]
    BodiesInFlight { bytes: usize, bytes_max: usize, retry_after_s: u64 },
    #[error("{jobs} prompts wait for the tokenizer, the limit is {jobs_max}")]
    TokenizerBusy { jobs: usize, jobs_max: usize, retry_after_s: u64 },
    #[error("{grammars} grammars are being compiled, the limit is {grammars_max}")]
    GrammarsBusy { grammars: usize, grammars_max: usize, retry_after_s: u64 },
    #[error("the model is loading")]
    Loading,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the engine has stopped")]
    EngineStopped,
    #[error("the prompt could not be processed")]
    TextStage,
    #[error("the model computed no finite number for this input")]
    NotFinite,
    #[error(
        "this server does no batch jobs: it was started without a folder for them (--jobs-dir)"
    )]
    JobsOff,
    #[error("the store of files and batch jobs does not answer")]
    JobStore { retry_after_s: u64 },
    #[error(transparent)]
    JobLimit(Refused),
    #[error("{limit}; retry after {retry_after_s} s")]
    Limit { limit: LimitReached, retry_after_s: u64 },
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> ApiError {
        use Refused as R;
        match error {
            JobsError::Refused(
                limit @ (R::TooManyFiles { .. }
                | R::TooManyBytes { .. }
                | R::TooManyBatches { .. }
                | R::TooManyUploads { .. }),
            ) => ApiError::JobLimit(limit),
            JobsError::Refused(refused) => RequestError::Jobs(refused).into(),
            JobsError::Gone { id } => RequestError::Jobs(R::NoFile { id }).into(),
            other => {
                tracing::error!(error = %other, "files and batch jobs");
                ApiError::JobStore { retry_after_s: JOB_STORE_RETRY_SECONDS }
            }
        }
    }
}

/// The client must change the request. Messages name the field, the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the body is not valid JSON: {reason}")]
    MalformedJson { reason: String },
    #[error("the body nests deeper than {depth_max} levels")]
    TooDeep { depth_max: usize },
    #[error("the body holds more than {values_max} JSON values")]
    TooManyValues { values_max: usize },
    #[error("the body is {found}, expected a JSON object")]
    NotAnObject { found: &'static str },
    #[error("'{field}' is required")]
    Missing { field: String },
    #[error("'{field}' is {found}, expected {expected}")]
    WrongType { field: String, found: String, expected: &'static str },
    #[error("'{field}' is {value}, expected {range}")]
    OutOfRange { field: String, value: String, range: String },
    #[error("'{field}': {reason}")]
    Invalid { field: String, reason: String },
    #[error("'{field}' is not supported by this server (got {value})")]
    Unsupported { field: String, value: String },
    #[error("'{field}' is not a field that this server knows")]
    UnknownField { field: String },
    #[error(
        "the prompt has {prompt_tokens} tokens, the model's context is {max_model_len} tokens \
         and must have room for at least one more"
    )]
    PromptTooLong { field: &'static str, prompt_tokens: usize, max_model_len: usize },
    #[error(
        "'{field}' is {max_tokens}, but with the prompt's {prompt_tokens} tokens the model's \
         context of {max_model_len} tokens leaves room for {}",
        max_model_len.saturating_sub(*prompt_tokens)
    )]
    MaxTokensTooLarge {
        field: &'static str,
        max_tokens: usize,
        prompt_tokens: usize,
        max_model_len: usize,
    },
    #[error("the chat template refused the messages: {reason}")]
    Template { reason: String },
    #[error(
        "the model '{model}' {does}, this server does not {asked} with it \
         (its operator may choose: --task {flag})"
    )]
    WrongTask { model: String, does: &'static str, asked: &'static str, flag: &'static str },
    #[error(
        "'{field}' has {tokens} tokens, the model's context is {max_model_len} tokens; \
         'truncate_prompt_tokens' cuts it"
    )]
    InputTooLong { field: String, tokens: usize, max_model_len: usize },
    #[error("the model '{name}' does not exist")]
    UnknownModel { name: String },
    #[error("this key may not use the model '{name}'; allowed: {allowed}")]
    ModelNotAllowed { name: String, allowed: String },
    #[error("there is no response '{id}': it was never kept, or is forgotten")]
    UnknownResponse { id: String },
    #[error("there is no route {method} {path}")]
    UnknownRoute { method: String, path: String },
    #[error("the method {method} is not allowed for {path}")]
    MethodNotAllowed { method: String, path: String },
    #[error("the body is longer than {bytes_max} bytes")]
    BodyTooLarge { bytes_max: usize },
    #[error("the body broke off: {reason}")]
    BodyBroken { reason: String },
    #[error("the body did not arrive within {seconds} s")]
    BodyTimeout { seconds: u64 },
    #[error("the content type is {found}, expected application/json")]
    MediaType { found: String },
    #[error("the content encoding is {found}, expected none")]
    ContentEncoding { found: String },
    #[error(
        "the request has {headers} headers of {bytes} bytes, at most {headers_max} of {bytes_max} \
         are read"
    )]
    HeadersTooLarge { headers: usize, bytes: usize, headers_max: usize, bytes_max: usize },
    #[error("the content type is {found}, expected multipart/form-data with a boundary")]
    NoForm { found: String },
    #[error("the form cannot be read: {reason}")]
    Form { reason: String },
    #[error(transparent)]
    Jobs(Refused),
    #[error("no API key was given: send 'Authorization: Bearer KEY'")]
    KeyMissing,
    #[error("the API key is not known")]
    KeyUnknown,
}

/// Why a request was turned away for load; travels beside the response, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RejectionReason(pub &'static str);

/// One row of the table.
struct Row {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
}

const fn row(status: StatusCode, kind: &'static str, code: &'static str) -> Row {
    Row { status, kind, code }
}

const INVALID: &str = "invalid_request_error";
const RATE_LIMIT: &str = "rate_limit_error";
const SERVER: &str = "server_error";

impl ApiError {
    pub fn status(&self) -> StatusCode {
        self.row().status
    }

    /// The error object as it stands in a response's body and in a stream's error event.
    pub fn body(&self) -> serde_json::Value {
        let row = self.row();
        let message: String = self.to_string().chars().take(MESSAGE_CHARS_MAX).collect();
        json!({"error": {
            "message": message,
            "type": row.kind,
            "param": self.param(),
            "code": row.code,
        }})
    }

    fn row(&self) -> Row {
        use StatusCode as S;
        match self {
            ApiError::Request(error) => error.row(),
            ApiError::Busy { reason: Rejected::QueueFull { .. }, .. } => {
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "queue_full")
            }
            ApiError::Busy { reason: Rejected::TooManyTokens { .. }, .. } => {
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "too_many_tokens_waiting")
            }
            ApiError::Busy { reason: Rejected::ShuttingDown, .. } => {
                row(S::SERVICE_UNAVAILABLE, SERVER, "shutting_down")
            }
            ApiError::Busy { reason: Rejected::EngineStopped, .. } | ApiError::EngineStopped => {
                row(S::SERVICE_UNAVAILABLE, SERVER, "engine_stopped")
            }
            ApiError::BodiesInFlight { .. } => {
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "too_many_bytes_in_flight")
            }
            ApiError::TokenizerBusy { .. } => {
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "tokenizer_queue_full")
            }
            ApiError::GrammarsBusy { .. } => {
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "too_many_grammars")
            }
            ApiError::Loading => row(S::SERVICE_UNAVAILABLE, SERVER, "loading"),
            ApiError::Engine(EngineError::NeverFits { .. } | EngineError::PromptTooLong { .. }) => {
                row(S::BAD_REQUEST, INVALID, "context_length_exceeded")
            }
            ApiError::Engine(EngineError::Constraint { .. }) => {
                row(S::BAD_REQUEST, INVALID, "constraint_failed")
            }
            ApiError::Engine(EngineError::DeviceLost(_)) => {
                row(S::SERVICE_UNAVAILABLE, SERVER, "device_lost")
            }
            ApiError::NotFinite => row(S::INTERNAL_SERVER_ERROR, SERVER, "not_finite"),
            ApiError::TextStage => row(S::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
            ApiError::Limit { limit: LimitReached::Concurrent { .. }, .. } => {
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "too_many_concurrent_requests")
            }
            ApiError::Limit { .. } => row(S::TOO_MANY_REQUESTS, RATE_LIMIT, "rate_limit_exceeded"),
            ApiError::JobsOff => row(S::NOT_IMPLEMENTED, SERVER, "jobs_off"),
            ApiError::JobStore { .. } => row(S::SERVICE_UNAVAILABLE, SERVER, "job_store_failed"),
            ApiError::JobLimit(limit) => {
                let code = match limit {
                    Refused::TooManyFiles { .. } => "too_many_files",
                    Refused::TooManyBytes { .. } => "too_many_file_bytes",
                    Refused::TooManyBatches { .. } => "too_many_batches",
                    _ => "too_many_uploads",
                };
                row(S::TOO_MANY_REQUESTS, RATE_LIMIT, code)
            }
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            ApiError::Request(error) => error.param(),
            _ => None,
        }
    }

    fn retry_after_s(&self) -> Option<u64> {
        match self {
            ApiError::Busy { retry_after_s, .. }
            | ApiError::BodiesInFlight { retry_after_s, .. }
            | ApiError::GrammarsBusy { retry_after_s, .. }
            | ApiError::Limit { retry_after_s, .. }
            | ApiError::TokenizerBusy { retry_after_s, .. } => Some(*retry_after_s),
            ApiError::Loading => Some(LOADING_RETRY_SECONDS),
            ApiError::JobStore { retry_after_s } => Some(*retry_after_s),
            ApiError::JobLimit(_) => Some(JOB_LIMIT_RETRY_SECONDS),
            _ => None,
        }
    }

    fn rejection(&self) -> Option<RejectionReason> {
        match self {
            ApiError::Busy { .. }
            | ApiError::BodiesInFlight { .. }
            | ApiError::TokenizerBusy { .. }
            | ApiError::GrammarsBusy { .. }
            | ApiError::Limit { .. }
            | ApiError::JobLimit(_)
            | ApiError::JobStore { .. }
            | ApiError::Loading => Some(RejectionReason(self.row().code)),
            _ => None,
        }
    }
}

impl RequestError {
    fn row(&self) -> Row {
        use StatusCode as S;
        match self {
            RequestError::MalformedJson { .. } => row(S::BAD_REQUEST, INVALID, "malformed_json"),
            RequestError::TooDeep { .. }
            | RequestError::TooManyValues { .. }
            | RequestError::NotAnObject { .. }
            | RequestError::BodyBroken { .. } => row(S::BAD_REQUEST, INVALID, "invalid_body"),
            RequestError::Missing { .. } => row(S::BAD_REQUEST, INVALID, "missing_field"),
            RequestError::WrongType { .. } => row(S::BAD_REQUEST, INVALID, "invalid_type"),
            RequestError::OutOfRange { .. } | RequestError::Invalid { .. } => {
                row(S::BAD_REQUEST, INVALID, "invalid_value")
            }
            RequestError::Unsupported { .. } => row(S::BAD_REQUEST, INVALID, "unsupported_field"),
            RequestError::UnknownField { .. } => row(S::BAD_REQUEST, INVALID, "unknown_field"),
            RequestError::WrongTask { .. } => row(S::BAD_REQUEST, INVALID, "unsupported_task"),
            RequestError::PromptTooLong { .. }
            | RequestError::InputTooLong { .. }
            | RequestError::MaxTokensTooLarge { .. } => {
                row(S::BAD_REQUEST, INVALID, "context_length_exceeded")
            }
            RequestError::Template { .. } => row(S::BAD_REQUEST, INVALID, "template_error"),
            RequestError::UnknownModel { .. } => row(S::NOT_FOUND, INVALID, "model_not_found"),
            RequestError::ModelNotAllowed { .. } => {
                row(S::FORBIDDEN, "permission_error", "model_not_allowed")
            }
            RequestError::UnknownResponse { .. } => {
                row(S::NOT_FOUND, INVALID, "response_not_found")
            }
            RequestError::UnknownRoute { .. } => row(S::NOT_FOUND, INVALID, "unknown_route"),
            RequestError::MethodNotAllowed { .. } => {
                row(S::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed")
            }
            RequestError::BodyTooLarge { .. } => {
                row(S::PAYLOAD_TOO_LARGE, INVALID, "body_too_large")
            }
            RequestError::BodyTimeout { .. } => row(S::REQUEST_TIMEOUT, INVALID, "body_timeout"),
            RequestError::Jobs(refused) => jobs_row(refused),
            RequestError::Form { .. } => row(S::BAD_REQUEST, INVALID, "invalid_body"),
            RequestError::MediaType { .. }
            | RequestError::NoForm { .. }
            | RequestError::ContentEncoding { .. } => {
                row(S::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type")
            }
            RequestError::HeadersTooLarge { .. } => {
                row(S::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, "headers_too_large")
            }
            RequestError::KeyMissing | RequestError::KeyUnknown => {
                row(S::UNAUTHORIZED, "authentication_error", "invalid_api_key")
            }
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            RequestError::Missing { field }
            | RequestError::WrongType { field, .. }
            | RequestError::OutOfRange { field, .. }
            | RequestError::Invalid { field, .. }
            | RequestError::Unsupported { field, .. }
            | RequestError::InputTooLong { field, .. }
            | RequestError::UnknownField { field } => Some(field),
            RequestError::PromptTooLong { field, .. }
            | RequestError::MaxTokensTooLarge { field, .. } => Some(field),
            RequestError::Template { .. } => Some("messages"),
            RequestError::UnknownModel { .. }
            | RequestError::ModelNotAllowed { .. }
            | RequestError::WrongTask { .. } => Some("model"),
            RequestError::Jobs(Refused::WrongPurpose { .. }) => Some("input_file_id"),
            _ => None,
        }
    }
}

fn jobs_row(refused: &Refused) -> Row {
    use StatusCode as S;
    match refused {
        Refused::NoFile { .. } => row(S::NOT_FOUND, INVALID, "file_not_found"),
        Refused::NoBatch { .. } => row(S::NOT_FOUND, INVALID, "batch_not_found"),
        Refused::FileTooLong { .. } => row(S::PAYLOAD_TOO_LARGE, INVALID, "file_too_large"),
        Refused::FileInUse { .. } => row(S::CONFLICT, INVALID, "file_in_use"),
        Refused::HasEnded { .. } => row(S::CONFLICT, INVALID, "batch_has_ended"),
        _ => row(S::BAD_REQUEST, INVALID, "invalid_value"),
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(self.body())
    }
}

impl ApiError {
    /// With a body that says it in the words of the API that was called.
    pub fn respond(&self, body: serde_json::Value) -> Response {
        let mut response =
            (self.status(), [(header::CONTENT_TYPE, "application/json")], body.to_string())
                .into_response();
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let ApiError::Busy { reason, .. } = self {
            response.extensions_mut().insert(reason.clone());
        }
        if let Some(reason) = self.rejection() {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

/// The beginning of a client's value, short enough to be repeated in a message.
pub fn excerpt(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(EXCERPT_CHARS_MAX).collect();
    if chars.next().is_some() { format!("{start}...") } else { start }
}
