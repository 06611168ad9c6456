//! The messages of a chat as a template wants them.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::error::TextError;
use super::python::DEPTH_MAX;

/// What a client asks to have rendered. `content` is a string: lists of parts are joined before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatPrompt {
    /// As in the OpenAI API.
    pub messages: Vec<Json>,
    pub tools: Option<Vec<Json>>,
    /// More variables for the template, as `enable_thinking`; unknown ones do no harm.
    pub template_kwargs: Map<String, Json>,
    /// Ends the prompt with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Ends the prompt inside the last message, so that the model continues it. Goes before
    /// `add_generation_prompt`.
    pub continue_final_message: bool,
    /// Tokens of long messages are kept for the next turn, and found by chats of this salt only.
    pub cache_salt: Option<[u8; 32]>,
}

impl ChatPrompt {
    /// Bytes of all strings and keys.
    pub fn text_bytes(&self) -> usize {
        let mut bytes = 0;
        self.for_each_string(&mut |text| bytes += text.len());
        bytes
    }

    /// Visits every string and key.
    pub fn for_each_string(&self, visit: &mut impl FnMut(&str)) {
        let tools = self.tools.iter().flatten();
        for value in self.messages.iter().chain(tools) {
            for_each_string(value, visit);
        }
        for (key, value) in &self.template_kwargs {
            visit(key);
            for_each_string(value, visit);
        }
    }

    /// Brings the messages into the form that templates know: `developer` is a system message, no
    /// content is empty content, and the arguments of a tool call are an object, not its JSON.
    pub fn normalize(&mut self) {
        for message in self.messages.iter_mut().filter_map(Json::as_object_mut) {
            if message.get("role").and_then(Json::as_str) == Some("developer") {
                message.insert("role".to_owned(), Json::from("system"));
            }
            if message.get("content").is_none_or(Json::is_null) {
                message.insert("content".to_owned(), Json::from(""));
            }
            let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut);
            for call in calls.into_iter().flatten().filter_map(Json::as_object_mut) {
                if let Some(function) = call.get_mut("function").and_then(Json::as_object_mut) {
                    parse_arguments(function);
                }
                parse_arguments(call);
            }
        }
    }

    /// Appends to the content of the last message.
    ///
    /// Errors: `NothingToContinue` if it is not the assistant's or not text.
    pub fn append_to_final_content(&mut self, text: &str) -> Result<(), TextError> {
        let last = self.messages.last_mut().and_then(Json::as_object_mut);
        let last = last.filter(|m| m.get("role").and_then(Json::as_str) == Some("assistant"));
        match last.and_then(|message| message.get_mut("content")) {
            Some(Json::String(content)) => {
                content.push_str(text);
                Ok(())
            }
            _ => Err(TextError::NothingToContinue),
        }
    }
}

/// Errors: `TooDeep`.
pub fn template_value(json: Json) -> Result<Value, TextError> {
    convert(json, DEPTH_MAX)
}

fn for_each_string(value: &Json, visit: &mut impl FnMut(&str)) {
    match value {
        Json::String(text) => visit(text),
        Json::Array(items) => items.iter().for_each(|item| for_each_string(item, visit)),
        Json::Object(map) => {
            for (key, value) in map {
                visit(key);
                for_each_string(value, visit);
            }
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

/// What is not the JSON of an object stays the string it is; nothing at all is no arguments.
fn parse_arguments(call: &mut Map<String, Json>) {
    let Some(Json::String(text)) = call.get("arguments") else { return };
    let parsed = if text.trim().is_empty() { Ok(Map::new()) } else { serde_json::from_str(text) };
    if let Ok(arguments) = parsed {
        call.insert("arguments".to_owned(), Json::Object(arguments));
    }
}

fn convert(json: Json, depth_left: usize) -> Result<Value, TextError> {
    if depth_left == 0 {
        return Err(TextError::TooDeep { depth_max: DEPTH_MAX });
    }
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(value),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => {
            let items = items.into_iter().map(|item| convert(item, depth_left - 1));
            Value::from(items.collect::<Result<Vec<_>, _>>()?)
        }
        Json::Object(map) => {
            let pairs = map.into_iter().map(|(k, v)| Ok((k, convert(v, depth_left - 1)?)));
            Value::from_pairs(pairs.collect::<Result<Vec<(String, Value)>, TextError>>()?)
        }
    })
}
