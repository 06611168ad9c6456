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
        Events { generation, format, options, opening: String::new(), templates, patience, state };
    events.opening = match opening {
        Opening::Output(output) => events.encode(output),
        Opening::Ping => PING.to_owned(),
        Opening::None => String::new(),
    };
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
    opening: String,
    templates: Templates,
    patience: Patience,
    state: State,
}

impl<F: ChunkFormat> Stream for Events<F> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.opening.is_empty() {
            let opening = std::mem::take(&mut self.opening);
            return Poll::Ready(Some(Ok(Bytes::from(opening))));
        }
        let text = ready!(self.poll_text(task));
        Poll::Ready(text.map(|text| Ok(Bytes::from(text))))
    }
}

impl<F: ChunkFormat> Events<F> {
    /// The next bytes to send, whole events; None at the end.
    fn poll_text(&mut self, task: &mut Context<'_>) -> Poll<Option<String>> {
        loop {
            match self.state {
                State::Running => {}
                State::Closing => return Poll::Ready(Some(self.close())),
                State::Closed => return Poll::Ready(None),
            }
            let Poll::Ready(output) = self.generation.poll_next(task) else {
                ready!(self.patience.poll_end(task));
                return Poll::Ready(Some(PING.into()));
            };
            self.patience.begin_anew();
            match output {
                None => self.state = State::Closing,
                Some(Ok(output)) => {
                    let text = self.encode(output);
                    if !text.is_empty() {
                        return Poll::Ready(Some(text));
                    }
                }
                Some(Err(error)) => {
                    self.state = State::Closed;
                    let text = self.format.error_event(&error) + self.format.end_mark();
                    return Poll::Ready(Some(text));
                }
            }
        }
    }

    /// The events of an output; none where it tells the client nothing.
    fn encode(&mut self, output: Output) -> String {
        let plain = self.format.plain_text(&output).filter(|_| !self.options.continuous_usage);
        let Some(plain) = plain else { return self.encode_anew(output) };
        if self.templates.get(plain).is_none() {
            let example = PlainText { text: Template::marker(), ..plain };
            let example = self.encode_anew(example.to_output());
            self.templates.set(plain, Template::of(&example));
        }
        match self.templates.get(plain) {
            Some(template) => template.fill(plain.text),
            None => self.encode_anew(output),
        }
    }

    fn encode_anew(&mut self, output: Output) -> String {
        let mut text = String::new();
        for mut chunk in self.format.chunks(output, self.generation.usage()) {
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

#[cfg(test)]
mod tests;
