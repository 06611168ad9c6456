//! Server-sent events: an answer in pieces, as they are made.

use super::choice::Output;
use super::error::ApiError;
use super::generation::Generation;
use super::sampling::StreamOptions;
use super::wire::Usage;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::timeout;

/// A comment, which clients skip: it keeps idle connections from being cut on the way.
const PING: &str = ": ping\n\n";

/// How an endpoint writes its chunks.
pub trait ChunkFormat: Send + 'static {
    /// The chunks of one output. OpenAI's usage is added to them where it was asked for.
    fn chunks(&mut self, output: Output, usage: Usage) -> Vec<Value>;

    /// The chunk that carries OpenAI's usage at the end; `None`: the format has its own way.
    fn usage_chunk(&self) -> Option<Value> {
        None
    }

    fn event(&self, chunk: &Value) -> String {
        format!("data: {chunk}\n\n")
    }

    fn error_event(&self, error: &ApiError) -> String {
        self.event(&error.body())
    }

    /// What follows the last event.
    fn end_mark(&self) -> &'static str {
        "data: [DONE]\n\n"
    }
}

/// Answers with a stream. The body is made as the connection takes it: tokens wait in the request's
/// own queue, which holds all of them, so a slow client slows nobody else.
///
/// Errors: what goes wrong before the first token, unless that takes longer than `ping_interval`;
/// later the status is sent already, and errors are events.
pub async fn respond<F: ChunkFormat>(
    mut generation: Generation,
    mut format: F,
    options: StreamOptions,
    ping_interval: Duration,
) -> Result<Response, ApiError> {
    let first = timeout(ping_interval, generation.next()).await;
    let waits = first.is_err();
    let chunks = match first {
        Ok(Some(output)) => format.chunks(output?, generation.usage()),
        Ok(None) | Err(_) => Vec::new(),
    };
    let events = Events { generation, format, options, ping_interval, state: State::Running };
    let opening = if waits { PING.to_owned() } else { events.encode(chunks) };
    let body = stream::unfold((events, Some(opening)), |(mut events, opening)| async move {
        let bytes = match opening {
            Some(opening) if !opening.is_empty() => opening,
            _ => events.next().await?,
        };
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), (events, None)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Tells nginx not to collect the events.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((StatusCode::OK, headers, Body::from_stream(body)).into_response())
}

/// An event whose name is its `type`.
pub fn named_event(chunk: &Value) -> String {
    format!("event: {}\ndata: {chunk}\n\n", chunk["type"].as_str().unwrap_or_default())
}

enum State {
    Running,
    /// All choices have finished; the last events are due.
    Closing,
    Closed,
}

struct Events<F> {
    generation: Generation,
    format: F,
    options: StreamOptions,
    ping_interval: Duration,
    state: State,
}

impl<F: ChunkFormat> Events<F> {
    /// The next bytes to send, whole events; None at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            match self.state {
                State::Running => {}
                State::Closing => return Some(self.close()),
                State::Closed => return None,
            }
            match timeout(self.ping_interval, self.generation.next()).await {
                Err(_) => return Some(PING.into()),
                Ok(None) => self.state = State::Closing,
                Ok(Some(Ok(output))) => {
                    let chunks = self.format.chunks(output, self.generation.usage());
                    if !chunks.is_empty() {
                        return Some(self.encode(chunks));
                    }
                }
                Ok(Some(Err(error))) => {
                    self.state = State::Closed;
                    return Some(self.format.error_event(&error) + self.format.end_mark());
                }
            }
        }
    }

    fn encode(&self, chunks: Vec<Value>) -> String {
        let mut text = String::new();
        for mut chunk in chunks {
            if self.options.continuous_usage {
                chunk["usage"] = self.generation.usage().to_json();
            } else if self.options.include_usage {
                chunk["usage"] = Value::Null;
            }
            text.push_str(&self.format.event(&chunk));
        }
        text
    }

    fn close(&mut self) -> String {
        self.state = State::Closed;
        let mut text = String::new();
        if let Some(mut chunk) = self.format.usage_chunk().filter(|_| self.options.include_usage) {
            chunk["usage"] = self.generation.usage().to_json();
            text.push_str(&self.format.event(&chunk));
        }
        text.push_str(self.format.end_mark());
        text
    }
}
