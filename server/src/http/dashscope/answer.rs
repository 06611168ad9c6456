//! Answers of a chat in DashScope's words.

use super::into_chat::ResultFormat;
use crate::engine::FinishReason;
use crate::http::choice::Finish;
use crate::http::generation::{Call, Whole};
use crate::http::wire::{TokenNames, Usage, random_hex};
use serde_json::{Value, json};

/// While the answer goes on, this word stands for the reason why it ended.
const GOES_ON: &str = "null";

pub fn finish_word(finish: Option<&Finish>) -> &'static str {
    match finish.map(|finish| (finish.reason, finish.has_calls)) {
        None => GOES_ON,
        Some((FinishReason::Stop, false)) => "stop",
        Some((FinishReason::Stop, true)) => "tool_calls",
        Some((FinishReason::Length, _)) => "length",
    }
}

pub fn usage_json(usage: Usage) -> Value {
    let mut json = json!({
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    });
    if let Some(tokens) = usage.reasoning_tokens {
        json["output_tokens_details"] = json!({"reasoning_tokens": tokens});
    }
    json
}

/// Content as the format has it.
pub fn content_json(format: ResultFormat, content: &str) -> Value {
    match format {
        ResultFormat::Parts if content.is_empty() => json!([]),
        ResultFormat::Parts => json!([{"text": content}]),
        ResultFormat::Text | ResultFormat::Message => content.into(),
    }
}

/// A call's id: it stays the same in all events.
pub fn call_id() -> String {
    format!("call_{}", random_hex())
}

pub fn call_json(index: usize, id: &str, call: &Call) -> Value {
    json!({
        "index": index,
        "id": id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}

/// The `output` of choices that are complete.
pub fn output(format: ResultFormat, wholes: &[Whole], logprobs: Option<&TokenNames>) -> Value {
    if let (ResultFormat::Text, [whole]) = (format, wholes) {
        return json!({"text": whole.content, "finish_reason": finish_word(whole.finish.as_ref())});
    }
    let choices = wholes.iter().enumerate().map(|(index, whole)| {
        let mut message =
            json!({"role": "assistant", "content": content_json(format, &whole.content)});
        if !whole.reasoning.is_empty() {
            message["reasoning_content"] = whole.reasoning.as_str().into();
        }
        if !whole.calls.is_empty() {
            let calls = whole.calls.iter().enumerate();
            message["tool_calls"] =
                calls.map(|(place, call)| call_json(place, &call_id(), call)).collect();
        }
        let finish = finish_word(whole.finish.as_ref());
        let mut choice = json!({"index": index, "finish_reason": finish, "message": message});
        if let Some(names) = logprobs {
            choice["logprobs"] = names.chat_logprobs(&whole.logprobs);
        }
        choice
    });
    json!({"choices": choices.collect::<Vec<Value>>()})
}
