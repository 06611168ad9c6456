//! Input and parameters of a generation as the body of a chat.

use super::Envelope;
use crate::http::chat_completions::{
    CHAT_TEMPLATE_KWARGS, CONTINUE_FINAL_MESSAGE, LOGPROBS, MESSAGES,
};
use crate::http::error::RequestError;
use crate::http::fields::{Field, Fields, Kind, out_of_range, show, wrong_type};
use crate::http::sampling::{MODEL, STOP, STOP_TOKEN_IDS, STREAM};
use serde_json::{Map, Value, json};

pub const PROMPT: Field = Field {
    name: "prompt",
    kind: Kind::Shape(text_schema),
    doc: "A single message of the user; or `messages`.",
};
const HISTORY: &str = "history";
const RESULT_FORMAT: Field = Field {
    name: "result_format",
    kind: Kind::Shape(text_schema),
    doc: "message or text. Default message.",
};
const INCREMENTAL_OUTPUT: Field = Field {
    name: "incremental_output",
    kind: Kind::Boolean,
    doc: "In a stream: what is new, instead of all so far. Default false.",
};
const ENABLE_SEARCH: Field =
    Field { name: "enable_search", kind: Kind::Boolean, doc: "Only false is served." };
const SEARCH_OPTIONS: Field = Field {
    name: "search_options",
    kind: Kind::Shape(text_schema),
    doc: "Of no effect without a search.",
};
/// A variable of the newer chat templates.
const PRESERVE_THINKING: Field = Field {
    name: "preserve_thinking",
    kind: Kind::Boolean,
    doc: "Keep the reasoning of former turns, where the template can.",
};

/// How the answer is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub format: ResultFormat,
    pub pieces: Pieces,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultFormat {
    Text,
    Message,
    /// A message whose content is a list of parts.
    Parts,
}

/// What an event of a stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    New,
    SoFar,
}

/// The body of a chat, and how its answer is to look. `stream`: events were asked for.
///
/// Errors: input without messages, content that is no text, parameters that are not served.
pub fn into_chat(
    envelope: Envelope,
    message_format: ResultFormat,
    stream: Stream,
) -> Result<(Fields, Style), RequestError> {
    let Envelope { model, mut input, parameters, .. } = envelope;
    let (messages, continues) = read_messages(&mut input)?;
    let mut chat = Fields::of_object(parameters);
    let format = match chat.take(&RESULT_FORMAT) {
        None => message_format,
        Some(value) => match value.as_str() {
            Some("message") => message_format,
            Some("text") if message_format == ResultFormat::Message => ResultFormat::Text,
            _ => {
                let range = "message, or text with text-generation".into();
                return Err(out_of_range(RESULT_FORMAT.name, &value, range));
            }
        },
    };
    let has_more_than_text = chat.value("tools").is_some_and(|tools| tools != &json!([]))
        || chat.value(LOGPROBS.name) == Some(&Value::Bool(true));
    if format == ResultFormat::Text && has_more_than_text {
        let reason = "text has no place for calls of tools or logprobs: use message".into();
        return Err(RequestError::Invalid { field: RESULT_FORMAT.name.into(), reason });
    }
    let pieces = match chat.boolean(&INCREMENTAL_OUTPUT)? {
        Some(true) => Pieces::New,
        Some(false) | None => Pieces::SoFar,
    };
    if chat.boolean(&ENABLE_SEARCH)? == Some(true) {
        let (field, value) = (ENABLE_SEARCH.name.into(), "true".into());
        return Err(RequestError::Unsupported { field, value });
    }
    chat.take(&SEARCH_OPTIONS);
    if let Some(keep) = chat.boolean(&PRESERVE_THINKING)? {
        chat.set(&CHAT_TEMPLATE_KWARGS, json!({PRESERVE_THINKING.name: keep}));
    }
    move_stop_tokens(&mut chat);
    chat.set(&MODEL, model.into());
    chat.set(&MESSAGES, messages.into());
    chat.set(&STREAM, (stream == Stream::Yes).into());
    if continues {
        chat.set(&CONTINUE_FINAL_MESSAGE, true.into());
    }
    Ok((chat, Style { format, pieces }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Yes,
    No,
}

/// Messages as a chat has them, from `messages` or `prompt`; and whether the last one is to be
/// continued.
pub fn read_messages(input: &mut Fields) -> Result<(Vec<Value>, bool), RequestError> {
    if let Some(history) = input.value(HISTORY) {
        let (field, value) = (format!("input.{HISTORY}"), show(history));
        return Err(RequestError::Unsupported { field, value });
    }
    let prompt = match input.take(&PROMPT) {
        None => None,
        Some(Value::String(prompt)) => Some(json!({"role": "user", "content": prompt})),
        Some(other) => return Err(wrong_type("input.prompt", &other, "a string")),
    };
    let mut messages = match input.take(&MESSAGES) {
        None => Vec::new(),
        Some(Value::Array(messages)) => messages,
        Some(other) => return Err(wrong_type("input.messages", &other, "a list of objects")),
    };
    messages.extend(prompt);
    if messages.is_empty() {
        return Err(RequestError::Missing { field: "input.messages".into() });
    }
    for (index, message) in messages.iter_mut().enumerate() {
        let parts = message.get_mut("content").and_then(Value::as_array_mut);
        for (place, part) in parts.into_iter().flatten().enumerate() {
            add_type(&format!("input.messages[{index}].content[{place}]"), part)?;
        }
    }
    let last = messages.last_mut().and_then(Value::as_object_mut);
    let partial = last.and_then(|message| message.remove("partial"));
    Ok((messages, partial == Some(Value::Bool(true))))
}

/// DashScope's parts have no type: the name of their only value tells it.
fn add_type(field: &str, part: &mut Value) -> Result<(), RequestError> {
    let Value::Object(part) = part else {
        return Err(wrong_type(field, part, "an object with a text"));
    };
    if part.contains_key("type") {
        return Ok(());
    }
    if part.get("text").is_some_and(Value::is_string) {
        part.insert("type".into(), "text".into());
        return Ok(());
    }
    match part.keys().next() {
        Some(kind) => {
            let kind = crate::http::error::excerpt(kind);
            Err(RequestError::Unsupported { field: field.into(), value: kind })
        }
        None => Err(RequestError::Missing { field: format!("{field}.text") }),
    }
}

/// `stop` may hold token ids.
fn move_stop_tokens(chat: &mut Fields) {
    let is_ids = |stop: &Value| {
        let list = stop.as_array().filter(|list| !list.is_empty());
        list.is_some_and(|list| list.iter().all(Value::is_number))
    };
    if chat.value(STOP.name).is_some_and(is_ids)
        && let Some(ids) = chat.take(&STOP)
    {
        chat.set(&STOP_TOKEN_IDS, ids);
    }
}

/// For the description of the API.
pub fn parameter_fields() -> impl Iterator<Item = &'static Field> {
    [RESULT_FORMAT, INCREMENTAL_OUTPUT, ENABLE_SEARCH, SEARCH_OPTIONS, PRESERVE_THINKING].iter()
}

/// Names that a chat gets from elsewhere.
pub fn without_own(mut parameters: Map<String, Value>) -> Map<String, Value> {
    for name in [MODEL.name, MESSAGES.name, STREAM.name, "stream_options"] {
        parameters.remove(name);
    }
    parameters
}

fn text_schema() -> Value {
    json!({"type": ["string", "null"]})
}
