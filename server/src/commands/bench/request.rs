//! One request and what was measured of it.

use crate::commands::http_client::{ClientError, Connection, Events, Target};
use crate::config::Endpoint;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What to send, and when to hang up.
pub struct Plan {
    pub number: usize,
    pub endpoint: Endpoint,
    pub model: String,
    pub prompt: String,
    pub output_len: usize,
    /// Close the connection after so many pieces of text.
    pub drop_after: Option<usize>,
}

/// Times are since the start of the measurement.
#[derive(Debug, Default)]
pub struct Record {
    pub number: usize,
    pub sent: Duration,
    pub ended: Duration,
    /// When each piece of text arrived; the first one gives TTFT.
    pub pieces: Vec<Duration>,
    /// As the server counts them; 0 when it did not say.
    pub prompt_tokens: usize,
    pub output_tokens: usize,
    pub cached_tokens: usize,
    pub is_dropped: bool,
    /// The server stopped before `output_len` tokens.
    pub is_short: bool,
    pub error: Option<ClientError>,
}

impl Record {
    /// A request that should have been sent while too many were under way.
    pub fn not_sent(number: usize, now: Duration) -> Self {
        let reason = "too many requests under way, this one was not sent".to_string();
        let error = Some(ClientError::Broken { reason });
        Record { number, sent: now, ended: now, error, ..Record::default() }
    }

    pub fn is_complete(&self) -> bool {
        self.error.is_none() && !self.is_dropped
    }

    /// The server said that it has too much to do.
    pub fn is_refused(&self) -> bool {
        matches!(self.error, Some(ClientError::Status { status: 429, .. }))
    }
}

/// Sends one request, on `connection` if it is still open, and leaves it there for the next one.
pub async fn send(
    target: &Target,
    connection: &mut Option<Connection>,
    plan: &Plan,
    start: Instant,
) -> Record {
    let mut record = Record { number: plan.number, sent: start.elapsed(), ..Record::default() };
    let result = stream(target, connection, plan, start, &mut record).await;
    record.ended = start.elapsed();
    match result {
        Ok(()) => record.is_short = !record.is_dropped && record.output_tokens < plan.output_len,
        Err(error) => {
            *connection = None;
            record.error = Some(error);
        }
    }
    record
}

async fn stream(
    target: &Target,
    connection: &mut Option<Connection>,
    plan: &Plan,
    start: Instant,
    record: &mut Record,
) -> Result<(), ClientError> {
    let (path, body) = body(plan);
    let (mut events, open) = post(target, connection.take(), path, &body).await?;
    let mut num_answer_events = 0;
    while let Some(event) = events.next().await? {
        let now = start.elapsed();
        if let Some(choice) = event["choices"].get(0) {
            num_answer_events += 1;
            if has_text(choice) {
                record.pieces.push(now);
            }
        }
        read_usage(&event["usage"], record);
        if plan.drop_after.is_some_and(|pieces| record.pieces.len() >= pieces) {
            // `open` goes out of scope here, which closes the socket.
            record.is_dropped = true;
            record.output_tokens = record.pieces.len();
            return Ok(());
        }
    }
    if num_answer_events == 0 {
        return Err(ClientError::Answer { reason: "a stream without an answer".to_string() });
    }
    if record.output_tokens == 0 {
        record.output_tokens = record.pieces.len();
    }
    events.finish().await?;
    *connection = Some(open);
    Ok(())
}

/// Posts on the kept connection if there is one. A server may close it in the very moment in which
/// it is used again; then nothing has been answered, and a new one takes its place.
async fn post(
    target: &Target,
    kept: Option<Connection>,
    path: &str,
    body: &Value,
) -> Result<(Events, Connection), ClientError> {
    if let Some(mut kept) = kept
        && kept.is_open().await
    {
        match kept.post_stream(path, body).await {
            Ok(events) => return Ok((events, kept)),
            Err(ClientError::Broken { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let mut fresh = target.connect().await?;
    Ok((fresh.post_stream(path, body).await?, fresh))
}

fn body(plan: &Plan) -> (&'static str, Value) {
    let mut body = json!({
        "model": plan.model,
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": plan.output_len,
        "ignore_eos": true,
        "temperature": 0,
    });
    match plan.endpoint {
        Endpoint::Chat => {
            body["messages"] = json!([{"role": "user", "content": plan.prompt}]);
            ("/v1/chat/completions", body)
        }
        Endpoint::Completions => {
            body["prompt"] = json!(plan.prompt);
            ("/v1/completions", body)
        }
    }
}

fn has_text(choice: &Value) -> bool {
    let delta = &choice["delta"];
    [&delta["content"], &delta["reasoning_content"], &choice["text"]]
        .into_iter()
        .any(|text| text.as_str().is_some_and(|t| !t.is_empty()))
}

fn read_usage(usage: &Value, record: &mut Record) {
    let count = |value: &Value| value.as_u64().map(|n| n as usize);
    if let Some(tokens) = count(&usage["prompt_tokens"]) {
        record.prompt_tokens = tokens;
    }
    if let Some(tokens) = count(&usage["completion_tokens"]) {
        record.output_tokens = tokens;
    }
    if let Some(tokens) = count(&usage["prompt_tokens_details"]["cached_tokens"]) {
        record.cached_tokens = tokens;
    }
}
