//! The events of a stream, framed as DashScope's clients expect to the byte: no space follows
//! `event:`, and there is no `[DONE]`.

use super::answer::{call_id, call_json, content_json, finish_word, usage_json};
use super::into_chat::{Pieces, ResultFormat, Style};
use super::{RequestId, error_body};
use crate::http::choice::{Delta, Output, TextToken};
use crate::http::error::ApiError;
use crate::http::generation::Call;
use crate::http::sse::ChunkFormat;
use crate::http::wire::{TokenNames, Usage};
use crate::text::Part;
use serde_json::{Value, json};
use std::cell::Cell;

pub struct Events {
    id: RequestId,
    style: Style,
    /// Where they were asked for.
    logprobs: Option<TokenNames>,
    choices: Vec<SoFar>,
    /// Of the last event.
    number: Cell<u64>,
}

/// What a choice has said.
#[derive(Default)]
struct SoFar {
    content: String,
    reasoning: String,
    calls: Vec<(String, Call)>,
    logprobs: Vec<TextToken>,
}

impl Events {
    pub fn new(
        id: RequestId,
        style: Style,
        logprobs: Option<TokenNames>,
        num_choices: usize,
    ) -> Self {
        let choices = (0..num_choices).map(|_| SoFar::default()).collect();
        Self { id, style, logprobs, choices, number: Cell::new(0) }
    }

    fn next_number(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }

    /// Adds a piece; gives what is new of it.
    fn add(&mut self, delta: &mut Delta) -> (SoFar, Vec<Value>) {
        let all = &mut self.choices[delta.index];
        let (mut new, mut calls) = (SoFar::default(), Vec::new());
        for part in std::mem::take(&mut delta.parts) {
            match part {
                Part::Content(text) => new.content.push_str(&text),
                Part::Reasoning(text) => new.reasoning.push_str(&text),
                Part::Call { name, .. } => {
                    let (id, call) = (call_id(), Call { name, arguments: String::new() });
                    calls.push(call_json(all.calls.len(), &id, &call));
                    all.calls.push((id, call));
                }
                Part::Arguments { index, text } => {
                    all.calls[index].1.arguments.push_str(&text);
                    calls.push(json!({
                        "index": index,
                        "id": "",
                        "type": "function",
                        "function": {"arguments": text},
                    }));
                }
            }
        }
        new.logprobs = std::mem::take(&mut delta.logprobs);
        all.content.push_str(&new.content);
        all.reasoning.push_str(&new.reasoning);
        if self.style.pieces == Pieces::SoFar {
            all.logprobs.extend(new.logprobs.iter().cloned());
        }
        (new, calls)
    }
}

impl ChunkFormat for Events {
    fn chunks(&mut self, output: Output, usage: Usage) -> Vec<Value> {
        let Output::Delta(mut delta) = output else { return Vec::new() };
        let index = delta.index;
        let (new, new_calls) = self.add(&mut delta);
        let finish = finish_word(delta.finish.as_ref());
        let (shown, calls) = match self.style.pieces {
            Pieces::New => (&new, new_calls),
            Pieces::SoFar => {
                let all = &self.choices[index];
                let calls = all.calls.iter().enumerate();
                (all, calls.map(|(place, (id, call))| call_json(place, id, call)).collect())
            }
        };
        let format = self.style.format;
        let output = if format == ResultFormat::Text && self.choices.len() == 1 {
            json!({"text": shown.content, "finish_reason": finish})
        } else {
            let mut message =
                json!({"role": "assistant", "content": content_json(format, &shown.content)});
            if !shown.reasoning.is_empty() {
                message["reasoning_content"] = shown.reasoning.as_str().into();
            }
            if !calls.is_empty() {
                message["tool_calls"] = calls.into();
            }
            let mut choice = json!({"index": index, "finish_reason": finish, "message": message});
            if let Some(names) = &self.logprobs {
                choice["logprobs"] = names.chat_logprobs(&shown.logprobs);
            }
            json!({"choices": [choice]})
        };
        vec![json!({
            "request_id": self.id.as_str(),
            "output": output,
            "usage": usage_json(usage),
        })]
    }

    fn event(&self, chunk: &Value) -> String {
        format!("id:{}\nevent:result\n:HTTP_STATUS/200\ndata:{chunk}\n\n", self.next_number())
    }

    fn error_event(&self, error: &ApiError) -> String {
        let (number, status) = (self.next_number(), error.status().as_u16());
        let body = error_body(error, &self.id);
        format!("id:{number}\nevent:error\nstatus:{status}\ndata:{body}\n\n")
    }

    fn end_mark(&self) -> &'static str {
        ""
    }
}
