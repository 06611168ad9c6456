//! POST /v1/chat/completions.

use super::auth::Client;
use super::body::read_fields;
use super::choice::Output;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind};
use super::generation::{Generation, Job, admit, estimate_tokens, text_error};
use super::limits::HttpConfig;
use super::messages::{messages_schema, read_messages};
use super::sampling::{COMMON_FIELDS, Common};
use super::sse::{ChunkFormat, respond};
use super::state::{Context, ServedModel};
use super::unsupported::check_chat;
use super::wire::{Head, TokenNames, set_finish};
use crate::engine::request::TOP_LOGPROBS_MAX;
use crate::text::ChatPrompt;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Map, Value, json};
use std::time::Instant;

pub const MESSAGES: Field = Field {
    name: "messages",
    kind: Kind::Shape(messages_schema),
    doc: "The conversation so far. Required.",
};
pub const MAX_TOKENS: Field = Field {
    name: "max_tokens",
    kind: Kind::Integer { min: 1, max: i64::MAX },
    doc: "Most tokens to generate. Default: up to the end of the context.",
};
pub const MAX_COMPLETION_TOKENS: Field = Field {
    name: "max_completion_tokens",
    kind: Kind::Integer { min: 1, max: i64::MAX },
    doc: "The newer name of max_tokens; goes before it.",
};
pub const LOGPROBS: Field = Field {
    name: "logprobs",
    kind: Kind::Boolean,
    doc: "Report the log-probability of each token. Default false.",
};
pub const TOP_LOGPROBS: Field = Field {
    name: "top_logprobs",
    kind: Kind::Integer { min: 0, max: TOP_LOGPROBS_MAX as i64 },
    doc: "Report so many likeliest tokens at each place; needs `logprobs`. Default 0.",
};
pub const ADD_GENERATION_PROMPT: Field = Field {
    name: "add_generation_prompt",
    kind: Kind::Boolean,
    doc: "Open the assistant's turn. Default true, unless the final message is continued.",
};
pub const CONTINUE_FINAL_MESSAGE: Field = Field {
    name: "continue_final_message",
    kind: Kind::Boolean,
    doc: "Continue the last message instead of answering it. Default false.",
};
pub const CHAT_TEMPLATE_KWARGS: Field = Field {
    name: "chat_template_kwargs",
    kind: Kind::Shape(kwargs_schema),
    doc: "Variables for the chat template, as enable_thinking.",
};
pub const ENABLE_THINKING: Field = Field {
    name: "enable_thinking",
    kind: Kind::Boolean,
    doc: "The same as chat_template_kwargs.enable_thinking, which goes before it.",
};

/// What only this endpoint reads.
pub const OWN_FIELDS: &[Field] = &[
    MESSAGES,
    MAX_TOKENS,
    MAX_COMPLETION_TOKENS,
    LOGPROBS,
    TOP_LOGPROBS,
    ADD_GENERATION_PROMPT,
    CONTINUE_FINAL_MESSAGE,
    CHAT_TEMPLATE_KWARGS,
    ENABLE_THINKING,
];

/// All fields of the endpoint.
pub fn fields() -> impl Iterator<Item = &'static Field> {
    OWN_FIELDS.iter().chain(COMMON_FIELDS)
}

/// A checked request.
#[derive(Debug)]
pub struct ChatRequest {
    pub common: Common,
    pub chat: ChatPrompt,
    pub max_tokens: Option<usize>,
    pub max_tokens_field: &'static str,
    /// Some(k): logprobs with the k best.
    pub logprobs: Option<usize>,
}

impl ChatRequest {
    /// Errors: the first field that is wrong, missing or not supported.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<ChatRequest, RequestError> {
        check_chat(fields)?;
        let common = Common::read(fields, model, config)?;
        let messages = read_messages(fields.take(&MESSAGES), config)?;
        let chat = read_template_fields(fields, messages)?;
        let max_tokens = fields.count(&MAX_TOKENS)?;
        let max_completion_tokens = fields.count(&MAX_COMPLETION_TOKENS)?;
        let logprobs = read_logprobs(fields)?;
        Ok(ChatRequest {
            common,
            chat,
            max_tokens: max_completion_tokens.or(max_tokens),
            max_tokens_field: match max_completion_tokens {
                Some(_) => MAX_COMPLETION_TOKENS.name,
                None => MAX_TOKENS.name,
            },
            logprobs,
        })
    }
}

pub async fn chat_completions(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let serving = context.serving()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let ChatRequest { common, chat, max_tokens, max_tokens_field, logprobs } =
        ChatRequest::into_request(&mut fields, &serving.model, &context.config)?;
    let estimate = estimate_tokens(chat.text_bytes()).min(serving.model.max_model_len);
    let admission = admit(&context, &serving.engine, common.n, estimate * common.n)?;
    let encoded = serving.text.encode_chat(chat).await;
    drop(reservation);
    let prompt = encoded.map_err(|e| text_error(&context, MESSAGES.name, e))?;
    let head = Head::new("chatcmpl", &common.model);
    let names = match common.tokens_as_ids {
        true => TokenNames::as_ids(&serving.text),
        false => TokenNames::as_text(&serving.text),
    };
    let stream = common.stream;
    let job = Job {
        cache_salt: client.cache_salt(common.cache_salt.as_deref()),
        common,
        prompts: vec![prompt.token_ids],
        max_tokens,
        prompt_field: MESSAGES.name,
        max_tokens_field,
        logprobs,
        prompt_logprobs: None,
        arrived,
    };
    let generation = Generation::start(&context, serving, admission, job)?;
    let names = logprobs.is_some().then_some(names);
    match stream {
        None => whole_reply(generation, &head, names.as_ref()).await,
        Some(options) => {
            let has_role = vec![false; generation.num_choices()];
            let format = ChatChunks { head, names, has_role };
            respond(generation, format, options, context.config.ping_interval).await
        }
    }
}

async fn whole_reply(
    generation: Generation,
    head: &Head,
    names: Option<&TokenNames>,
) -> Result<Response, ApiError> {
    let (wholes, usage) = generation.collect().await?;
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
        let mut choice = json!({
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": null},
            "logprobs": names.map(|names| names.chat_logprobs(&whole.logprobs)),
        });
        set_finish(&mut choice, whole.finish.as_ref());
        choice
    });
    let mut reply = head.reply("chat.completion", choices.collect());
    reply["usage"] = usage.to_json();
    Ok(Json(reply).into_response())
}

/// Writes `chat.completion.chunk` objects.
struct ChatChunks {
    head: Head,
    /// Present when logprobs were asked for.
    names: Option<TokenNames>,
    /// Choices whose first chunk was sent.
    has_role: Vec<bool>,
}

impl ChunkFormat for ChatChunks {
    fn chunks(&mut self, output: Output) -> Vec<Value> {
        // A chat never asks for its prompt's logprobs.
        let Output::Delta(delta) = output else { return Vec::new() };
        let mut chunks = Vec::new();
        let index = delta.index;
        if !std::mem::replace(&mut self.has_role[index], true) {
            let mut choice = json!({
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
            });
            set_finish(&mut choice, None);
            chunks.push(self.head.reply("chat.completion.chunk", vec![choice]));
        }
        let content = match delta.finish {
            Some(_) => json!({}),
            None => json!({"content": delta.text}),
        };
        let with_tokens = self.names.as_ref().filter(|_| !delta.logprobs.is_empty());
        let mut choice = json!({
            "index": index,
            "delta": content,
            "logprobs": with_tokens.map(|names| names.chat_logprobs(&delta.logprobs)),
        });
        set_finish(&mut choice, delta.finish.as_ref());
        chunks.push(self.head.reply("chat.completion.chunk", vec![choice]));
        chunks
    }

    fn closing(&self) -> Value {
        self.head.reply("chat.completion.chunk", Vec::new())
    }
}

fn read_template_fields(
    fields: &mut Fields,
    messages: Vec<Value>,
) -> Result<ChatPrompt, RequestError> {
    let add_generation_prompt = fields.boolean(&ADD_GENERATION_PROMPT)?;
    let continue_final_message = fields.boolean(&CONTINUE_FINAL_MESSAGE)?.unwrap_or(false);
    if continue_final_message && add_generation_prompt == Some(true) {
        return Err(RequestError::Invalid {
            field: CONTINUE_FINAL_MESSAGE.name.into(),
            reason: "and 'add_generation_prompt' cannot both be true".into(),
        });
    }
    let mut template_kwargs = match fields.take(&CHAT_TEMPLATE_KWARGS) {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => {
            let field = CHAT_TEMPLATE_KWARGS.name;
            return Err(super::fields::wrong_type(field, &other, "an object"));
        }
    };
    if let Some(on) = fields.boolean(&ENABLE_THINKING)? {
        template_kwargs.entry(ENABLE_THINKING.name).or_insert(on.into());
    }
    Ok(ChatPrompt {
        messages,
        tools: None,
        template_kwargs,
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
    })
}

fn read_logprobs(fields: &mut Fields) -> Result<Option<usize>, RequestError> {
    let logprobs = fields.boolean(&LOGPROBS)?.unwrap_or(false);
    let top = fields.count(&TOP_LOGPROBS)?;
    match (logprobs, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(RequestError::Invalid {
            field: TOP_LOGPROBS.name.into(),
            reason: "is only allowed when 'logprobs' is true".into(),
        }),
    }
}

fn kwargs_schema() -> Value {
    json!({"type": ["object", "null"], "additionalProperties": true})
}
