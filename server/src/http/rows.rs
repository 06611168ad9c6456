//! The rows of batch jobs: lines that hold a request, answered by the endpoints themselves.

use super::error::{ApiError, RequestError, excerpt};
use super::fields::{Field, Fields, Kind, show, wrong_type};
use super::limits::{CUSTOM_ID_BYTES_MAX, ROW_ANSWER_BYTES_MAX};
use super::router::{ROUTES, row_router};
use super::state::Context;
use super::wire::random_hex;
use crate::engine::Rejected;
use crate::jobs::{Answer, LineFault, Owner, RowResult, Rows, Unanswered, Verdict};
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tower::ServiceExt;

/// What a row may ask of, where the server has it.
pub const ROW_ENDPOINTS: &[&str] =
    &["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"];

/// Pause where a refusal names none.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

const CUSTOM_ID: Field = part("custom_id", "The name of the row in the results.");
const METHOD: Field = part("method", "POST.");
const URL: Field = part("url", "The endpoint of the batch.");
const BODY: Field = part("body", "What would be sent there.");

const fn part(name: &'static str, doc: &'static str) -> Field {
    Field { name, kind: Kind::Shape(|| json!({})), doc }
}

/// Errors: an endpoint that no row may ask of, or that this server does not have.
pub fn check_endpoint(field: &str, endpoint: &str) -> Result<(), RequestError> {
    if !ROW_ENDPOINTS.contains(&endpoint) {
        return Err(RequestError::OutOfRange {
            field: field.into(),
            value: excerpt(endpoint),
            range: format!("one of {}", ROW_ENDPOINTS.join(", ")),
        });
    }
    if !ROUTES.contains(&("post", endpoint)) {
        let (field, value) = (field.into(), endpoint.into());
        return Err(RequestError::Unsupported { field, value });
    }
    Ok(())
}

/// Answers rows through the routes, without a socket.
pub struct RowRouter {
    context: Context,
    router: Router,
}

impl RowRouter {
    /// `context` says in which lane.
    pub fn new(context: Context) -> RowRouter {
        RowRouter { router: row_router(context.clone()), context }
    }

    async fn call(&self, owner: &Owner, row: Row) -> Answer {
        let Some(client) = self.context.config.keys.client_of(owner) else {
            // The key was taken away meanwhile: it may come back before the job expires.
            return Answer::Busy { retry_after: Duration::MAX };
        };
        let body = match row_body(&row) {
            Ok(body) => body,
            Err(error) => return row.refused(error.into()),
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(&row.url)
            .header(header::CONTENT_TYPE, "application/json")
            .extension(client)
            .body(Body::from(body.to_string()))
            .expect("the path of a route is a URI");
        let Ok(response) = self.router.clone().oneshot(request).await;
        row.answered(response).await
    }
}

impl Rows for RowRouter {
    fn check(&self, endpoint: Option<&str>, line: &[u8]) -> Result<String, LineFault> {
        let row = Row::read(line)?;
        if let Some(endpoint) = endpoint.filter(|endpoint| *endpoint != row.url) {
            let shown = excerpt(&row.url);
            let message =
                format!("The url '{shown}' is not the endpoint of the batch, {endpoint}.");
            return Err(fault("mismatched_url", "url", message));
        }
        check_endpoint("url", &row.url)
            .map_err(|error| fault("invalid_url", "url", error.to_string()))?;
        Ok(row.custom_id)
    }

    fn can_run(&self, owner: &Owner, model: &str) -> bool {
        let Ok(serving) = self.context.serving() else { return false };
        let serves = serving.model.names.iter().any(|name| name == model);
        serves && !self.context.is_draining() && self.context.config.keys.client_of(owner).is_some()
    }

    async fn answer(&self, owner: &Owner, line: &[u8]) -> Answer {
        match Row::read(line) {
            Ok(row) => self.call(owner, row).await,
            // It was good when the job was validated.
            Err(fault) => {
                let error = json!({"code": fault.code, "message": fault.message});
                failed(result_line(&Value::Null, "null", &error))
            }
        }
    }

    fn unanswered(&self, line: &[u8], why: Unanswered) -> Vec<u8> {
        let custom_id = Row::read(line).map_or(Value::Null, |row| row.custom_id.into());
        let (code, message) = match why {
            Unanswered::Expired => (
                "batch_expired",
                "This request could not be executed before the completion window expired.",
            ),
            Unanswered::Cancelled => {
                ("batch_cancelled", "The batch was cancelled before this request was executed.")
            }
            Unanswered::Lost => ("internal_error", "The server failed while it did this request."),
        };
        let error = json!({"code": code, "message": message});
        result_line(&custom_id, "null", &error)
    }
}

/// The custom_id of a line of results.
pub fn name_of_result(line: &[u8]) -> Option<String> {
    match serde_json::from_slice(line).ok()? {
        Value::Object(mut result) => match result.remove("custom_id")? {
            Value::String(name) => Some(name),
            _ => None,
        },
        _ => None,
    }
}

/// One line of a job's file.
struct Row {
    custom_id: String,
    url: String,
    body: Map<String, Value>,
}

impl Row {
    /// Errors: what OpenAI's API says of such lines.
    fn read(line: &[u8]) -> Result<Row, LineFault> {
        let mut fields = Fields::parse(line).map_err(|error| LineFault {
            code: "invalid_json_line".into(),
            message: format!("This line is not a request: {error}."),
            param: None,
            line: None,
        })?;
        let custom_id = text(&mut fields, &CUSTOM_ID)?;
        if custom_id.is_empty() || custom_id.len() > CUSTOM_ID_BYTES_MAX {
            let bytes = custom_id.len();
            let message = format!("It has {bytes} bytes, allowed are 1 to {CUSTOM_ID_BYTES_MAX}.");
            return Err(fault("invalid_custom_id", CUSTOM_ID.name, message));
        }
        let method = text(&mut fields, &METHOD)?;
        if method != "POST" {
            let message = format!("The method is '{}', allowed is POST.", excerpt(&method));
            return Err(fault("invalid_method", METHOD.name, message));
        }
        let url = text(&mut fields, &URL)?;
        match fields.take(&BODY) {
            Some(Value::Object(body)) => Ok(Row { custom_id, url, body }),
            None => Err(missing(&BODY)),
            Some(other) => {
                let error = wrong_type(BODY.name, &other, "an object");
                Err(fault("invalid_body", BODY.name, error.to_string()))
            }
        }
    }

    /// What the endpoint answered.
    async fn answered(self, response: Response) -> Answer {
        let status = response.status();
        // Refused while nothing else waits, it never fits.
        let never_fits = matches!(
            response.extensions().get::<Rejected>(),
            Some(Rejected::QueueFull { waiting: 0, .. })
        );
        let is_busy =
            matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        if is_busy && !never_fits {
            let named = response.headers().get(header::RETRY_AFTER);
            let seconds = named.and_then(|value| value.to_str().ok()?.parse().ok());
            let retry_after = seconds.map_or(RETRY_AFTER_DEFAULT, Duration::from_secs);
            return Answer::Busy { retry_after };
        }
        let request_id = response.headers().get("x-request-id");
        let request_id = request_id.and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let body = axum::body::to_bytes(response.into_body(), ROW_ANSWER_BYTES_MAX).await;
        let Ok(body) = body else {
            let message = format!("The answer has more than {ROW_ANSWER_BYTES_MAX} bytes.");
            let error = json!({"code": "answer_too_long", "message": message});
            return failed(result_line(&self.custom_id.into(), "null", &error));
        };
        let Some(body) = one_line(&body) else {
            let error = json!({"code": "internal_error", "message": "The answer is no JSON."});
            let line = result_line(&self.custom_id.into(), "null", &error);
            return Answer::Broken(RowResult { verdict: Verdict::Failed, line });
        };
        let line = self.response_line(status, &request_id, body);
        match status {
            _ if status.is_success() => {
                Answer::Done(RowResult { verdict: Verdict::Answered, line })
            }
            _ if status.is_server_error() => {
                Answer::Broken(RowResult { verdict: Verdict::Failed, line })
            }
            _ => failed(line),
        }
    }

    /// Never sent to the endpoint.
    fn refused(self, error: ApiError) -> Answer {
        let request_id = format!("req-{}", random_hex());
        failed(self.response_line(error.status(), &request_id, &error.body().to_string()))
    }

    /// `body`: JSON in one line.
    fn response_line(self, status: StatusCode, request_id: &str, body: &str) -> Vec<u8> {
        let (status, request_id) = (status.as_u16(), Value::from(request_id));
        let response =
            format!("{{\"status_code\":{status},\"request_id\":{request_id},\"body\":{body}}}");
        result_line(&self.custom_id.into(), &response, &Value::Null)
    }
}

/// JSON that can stand in a line of results as it is. Vectors make long answers, so none is built
/// up in memory a second time.
fn one_line(body: &[u8]) -> Option<&str> {
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok() && !body.contains(&b'\n');
    std::str::from_utf8(body).ok().filter(|_| is_json)
}

/// What is sent to the endpoint.
///
/// Errors: what makes sense only for a client that is there.
fn row_body(row: &Row) -> Result<Value, RequestError> {
    let mut body = row.body.clone();
    for name in ["stream", "background"] {
        if body.get(name).is_some_and(|value| *value == true) {
            let (field, value) = (name.into(), "true in a batch".into());
            return Err(RequestError::Unsupported { field, value });
        }
    }
    if row.url == "/v1/responses" {
        // Those of millions of rows would push out what clients keep.
        match body.get("store") {
            None | Some(Value::Null | Value::Bool(false)) => {
                body.insert("store".into(), false.into());
            }
            Some(other) => {
                let (field, value) = ("store".into(), format!("{} in a batch", show(other)));
                return Err(RequestError::Unsupported { field, value });
            }
        }
    }
    Ok(body.into())
}

fn failed(line: Vec<u8>) -> Answer {
    Answer::Done(RowResult { verdict: Verdict::Failed, line })
}

/// `response`: JSON in one line.
fn result_line(custom_id: &Value, response: &str, error: &Value) -> Vec<u8> {
    let id = format!("batch_req_{}", random_hex());
    format!(
        "{{\"id\":\"{id}\",\"custom_id\":{custom_id},\"response\":{response},\"error\":{error}}}"
    )
    .into_bytes()
}

fn text(fields: &mut Fields, field: &Field) -> Result<String, LineFault> {
    match fields.take(field) {
        Some(Value::String(text)) => Ok(text),
        None => Err(missing(field)),
        Some(other) => {
            let error = wrong_type(field.name, &other, "a string");
            Err(fault("invalid_type", field.name, error.to_string()))
        }
    }
}

fn missing(field: &Field) -> LineFault {
    let message = format!("Missing required parameter: '{}'.", field.name);
    fault("missing_required_parameter", field.name, message)
}

fn fault(code: &str, param: &str, message: String) -> LineFault {
    LineFault { code: code.into(), message, param: Some(param.into()), line: None }
}
