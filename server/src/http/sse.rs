//! Server-sent events: an answer in pieces, as they are made.

use super::choice::{Output, PlainText};
use super::error::ApiError;
use super::generation::Generation;
use super::sampling::StreamOptions;
use super::wire::Usage;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::Stream;
use patience::Patience;
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use template::{Template, Templates};
use tokio::time::timeout;

mod patience;
mod template;

/// A comment, which clients skip: it keeps idle connections from being cut on the way.
const PING: &str = ": ping\n\n";
/// Events that are ready together are sent in pieces of hardly more than this.
const WRITE_BYTES_MAX: usize = 16 * 1024;

/// How an endpoint writes its chunks.
pub trait ChunkFormat: Send + Unpin + 'static {
    /// The chunks of one output. OpenAI's usage is added to them where it was asked for.
    fn chunks(&mut self, output: Output, usage: Usage) -> Vec<Value>;

    /// The text of an output whose chunk says nothing else that changes: between two such chunks of
    /// one choice and kind only the text differs, and making one changes nothing. `None` is never
    /// wrong, but takes longer.
    fn plain_text<'a>(&self, output: &'a Output) -> Option<PlainText<'a>> {
        let _ = output;
        None
    }

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
    format: F,
    options: StreamOptions,
    ping_interval: Duration,
) -> Result<Response, ApiError> {
    let first = timeout(ping_interval, generation.next()).await;
    let opening = match first {
        Ok(Some(output)) => Opening::Output(output?),
        Ok(None) => Opening::None,
        Err(_) => Opening::Ping,
    };
    let templates = Templates::new(generation.num_choices());
    let patience = Patience::new(ping_interval);
    let state = State::Running;
    let mut events =
        Events { generation, format, options, opening: Vec::new(), templates, patience, state };
    let mut opening_bytes = Vec::new();
    match opening {
        Opening::Output(output) => events.encode(output, &mut opening_bytes),
        Opening::Ping => opening_bytes.extend_from_slice(PING.as_bytes()),
        Opening::None => {}
    }
    events.opening = opening_bytes;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Tells nginx not to collect the events.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((StatusCode::OK, headers, Body::from_stream(events)).into_response())
}

/// An event whose name is its `type`.
pub fn named_event(chunk: &Value) -> String {
    format!("event: {}\ndata: {chunk}\n\n", chunk["type"].as_str().unwrap_or_default())
}

/// What there is before the status is sent.
enum Opening {
    Output(Output),
    Ping,
    None,
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
    /// Sent before all else; empty once it is.
    opening: Vec<u8>,
    templates: Templates,
    patience: Patience,
    state: State,
}

/// What is there already is sent together: a connection that lags behind its answer costs one write
/// for many tokens.
impl<F: ChunkFormat> Stream for Events<F> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut out = std::mem::take(&mut self.opening);
        while out.len() < WRITE_BYTES_MAX {
            match self.poll_events(task, &mut out) {
                Poll::Ready(Going::On) => {}
                Poll::Ready(Going::Over) if out.is_empty() => return Poll::Ready(None),
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Ready(Going::Over) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(Ok(Bytes::from(out))))
    }
}

/// Whether more events may come.
enum Going {
    On,
    Over,
}

impl<F: ChunkFormat> Events<F> {
    /// Adds the next events to `out`, whole ones.
    fn poll_events(&mut self, task: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<Going> {
        match self.state {
            State::Running => {}
            State::Closing => {
                self.close(out);
                return Poll::Ready(Going::On);
            }
            State::Closed => return Poll::Ready(Going::Over),
        }
        let Poll::Ready(output) = self.generation.poll_next(task) else {
            ready!(self.patience.poll_end(task));
            out.extend_from_slice(PING.as_bytes());
            return Poll::Ready(Going::On);
        };
        self.patience.begin_anew();
        match output {
            None => self.state = State::Closing,
            Some(Ok(output)) => self.encode(output, out),
            Some(Err(error)) => {
                self.state = State::Closed;
                out.extend_from_slice(self.format.error_event(&error).as_bytes());
                out.extend_from_slice(self.format.end_mark().as_bytes());
            }
        }
        Poll::Ready(Going::On)
    }

    /// The events of an output; none where it tells the client nothing.
    fn encode(&mut self, output: Output, out: &mut Vec<u8>) {
        let plain = self.format.plain_text(&output).filter(|_| !self.options.continuous_usage);
        let Some(plain) = plain else { return self.encode_anew(output, out) };
        if self.templates.get(plain).is_none() {
            let mut example = Vec::new();
            let marked = PlainText { text: Template::marker(), ..plain };
            self.encode_anew(marked.to_output(), &mut example);
            self.templates.set(plain, Template::of(&example));
        }
        let template = self.templates.get(plain).expect("it was made above");
        template.fill(plain.text, out);
    }

    fn encode_anew(&mut self, output: Output, out: &mut Vec<u8>) {
        for mut chunk in self.format.chunks(output, self.generation.usage()) {
            if self.options.continuous_usage {
                chunk["usage"] = self.generation.usage().to_json();
            } else if self.options.include_usage {
                chunk["usage"] = Value::Null;
            }
            out.extend_from_slice(self.format.event(&chunk).as_bytes());
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        self.state = State::Closed;
        if let Some(mut chunk) = self.format.usage_chunk().filter(|_| self.options.include_usage) {
            chunk["usage"] = self.generation.usage().to_json();
            out.extend_from_slice(self.format.event(&chunk).as_bytes());
        }
        out.extend_from_slice(self.format.end_mark().as_bytes());
    }
}

#[cfg(test)]
mod tests;
