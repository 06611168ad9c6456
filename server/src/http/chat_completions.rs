//! POST /v1/chat/completions.

use super::auth::Client;
use super::body::read_fields;
use super::choice::{Delta, Output, PlainText, TextKind};
use super::constraint::CONSTRAINT_FIELDS;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind};
use super::generation::{Generation, Job, Whole, admit, estimate_tokens, text_error};
use super::limits::HttpConfig;
use super::messages::{messages_schema, read_messages};
use super::sampling::{COMMON_FIELDS, Common};
use super::sse::{ChunkFormat, respond};
use super::state::{BodyReservation, Context, ServedModel};
use super::thinking::{REASONING_EFFORT, THINKING_BUDGET, THINKING_TOKEN_BUDGET, read_thinking};
use super::tools::{
    CallableTools, PARALLEL_TOOL_CALLS, RequestTools, TOOL_CHOICE, TOOLS, read_tools,
};
use super::unknown::IgnoredFields;
use super::unsupported::{chat_names, check_chat};
use super::wire::{Head, TokenNames, Usage, numbers, random_hex, set_finish, set_token_ids};
use crate::engine::request::TOP_LOGPROBS_MAX;
use crate::text::{AnswerFormat, AnswerTools, ChatPrompt, Part};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use models::TokenId;
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

pub const INCLUDE_REASONING: Field = Field {
    name: "include_reasoning",
    kind: Kind::Boolean,
    doc: "False: the reasoning is left out of the answer. Default true.",
};

/// How the messages are rendered.
pub const TEMPLATE_FIELDS: &[Field] =
    &[ADD_GENERATION_PROMPT, CONTINUE_FINAL_MESSAGE, CHAT_TEMPLATE_KWARGS, ENABLE_THINKING];

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
    INCLUDE_REASONING,
    THINKING_BUDGET,
    THINKING_TOKEN_BUDGET,
    REASONING_EFFORT,
    TOOLS,
    TOOL_CHOICE,
    PARALLEL_TOOL_CALLS,
];

/// All fields of the endpoint.
pub fn fields() -> impl Iterator<Item = &'static Field> {
    OWN_FIELDS.iter().chain(COMMON_FIELDS).chain(CONSTRAINT_FIELDS)
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
    pub tools: Option<AnswerTools>,
    pub reasoning: Reasoning,
}

/// Whether the client wants to see the reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    Shown,
    LeftOut,
}

impl ChatRequest {
    /// Errors: the first field that is wrong, missing or not supported.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<ChatRequest, RequestError> {
        check_chat(fields)?;
        let mut common = Common::read(fields, model, config)?;
        let thinking = read_thinking(fields, model)?;
        let (mut chat, tools) = read_chat(fields, model, config)?;
        common.wanted.thinking_budget = thinking.budget;
        if let Some(effort) = thinking.told {
            chat.template_kwargs.entry(REASONING_EFFORT.name).or_insert(effort.into());
        }
        let tools = match tools {
            Some(tools) => Some(tools.constrain(&mut common)?),
            None => None,
        };
        let reasoning = match fields.boolean(&INCLUDE_REASONING)? {
            Some(false) => Reasoning::LeftOut,
            Some(true) | None => Reasoning::Shown,
        };
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
            tools,
            reasoning,
        })
    }
}

/// Other APIs that are turned into a chat have no place for some of what a chat can answer.
///
/// Errors: the first field that asks for such a thing.
pub fn refuse_more_than_a_message(request: &ChatRequest) -> Result<(), RequestError> {
    let common = &request.common;
    let asked = [
        ("n", common.n != 1, common.n.to_string()),
        (LOGPROBS.name, request.logprobs.is_some(), "true".into()),
        ("prompt_logprobs", common.prompt_logprobs.is_some(), "a number".into()),
        ("return_token_ids", common.returns_token_ids, "true".into()),
        (INCLUDE_REASONING.name, request.reasoning == Reasoning::LeftOut, "false".into()),
    ];
    match asked.into_iter().find(|(_, is_asked, _)| *is_asked) {
        Some((field, _, value)) => Err(RequestError::Unsupported { field: field.into(), value }),
        None => Ok(()),
    }
}

/// The conversation, and what to look for in the answer.
///
/// Errors: messages, tools or template variables that are wrong.
pub fn read_chat(
    fields: &mut Fields,
    model: &ServedModel,
    config: &HttpConfig,
) -> Result<(ChatPrompt, Option<CallableTools>), RequestError> {
    let messages = read_messages(fields.take(&MESSAGES), config)?;
    let (for_template, callable) = match read_tools(fields, model.tool_format)? {
        Some(RequestTools { for_template, callable }) => (Some(for_template), Some(callable)),
        None => (None, None),
    };
    Ok((read_template_fields(fields, messages, for_template)?, callable))
}

pub async fn chat_completions(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let serving = context.generator()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let request = ChatRequest::into_request(&mut fields, &serving.model, &context.config)?;
    let ignored = IgnoredFields::of(&fields, &chat_names(), &context.config)?;
    let common = &request.common;
    let mut format = ChatFormat {
        head: Head::new("chatcmpl", &common.model),
        names: match common.tokens_as_ids {
            true => TokenNames::as_ids(&serving.text),
            false => TokenNames::as_text(&serving.text),
        },
        has_logprobs: request.logprobs.is_some(),
        prompt_logprobs: common.prompt_logprobs,
        prompt_ids: None,
        reasoning: request.reasoning,
    };
    let (stream, returns_ids) = (common.stream, common.returns_token_ids);
    let (generation, prompt) = start_chat(&context, &client, request, reservation, arrived).await?;
    format.prompt_ids = returns_ids.then(|| numbers(&prompt));
    let response = match stream {
        None => whole_reply(generation, format).await?,
        Some(options) => {
            let has_role = vec![false; generation.num_choices()];
            let chunks = ChatChunks { format, has_role };
            respond(generation, chunks, options, context.config.ping_interval).await?
        }
    };
    Ok(ignored.tell(response))
}

/// Renders, encodes and submits a conversation; also gives its prompt.
///
/// Errors: no room in a queue, messages that the template refuses, a prompt that is too long.
pub async fn start_chat(
    context: &Context,
    client: &Client,
    request: ChatRequest,
    reservation: BodyReservation,
    arrived: Instant,
) -> Result<(Generation, Vec<TokenId>), ApiError> {
    let serving = context.serving()?;
    let ChatRequest { mut common, mut chat, max_tokens, max_tokens_field, logprobs, tools, .. } =
        request;
    let estimate = estimate_tokens(chat.text_bytes()).min(serving.model.max_model_len);
    let salt = common.cache_salt.as_deref();
    let account = client.open(context.lane(), &common.model, common.priority, salt)?;
    chat.cache_salt = Some(account.cache_salt.0);
    let admission = admit(context, serving, &account, common.n, estimate * common.n)?;
    let encoded = serving.text.encode_chat(chat).await;
    drop(reservation);
    let prompt = encoded.map_err(|e| text_error(context, MESSAGES.name, e))?;
    let wanted = std::mem::take(&mut common.wanted);
    let constraint = wanted.build(context, serving, Some(&prompt)).await?;
    let answer = AnswerFormat { reasoning: serving.text.reasoning_start(&prompt), tools };
    let prompt_logprobs = common.prompt_logprobs;
    let job = Job {
        account,
        common,
        prompts: vec![prompt.token_ids.clone()],
        max_tokens,
        prompt_field: MESSAGES.name,
        max_tokens_field,
        logprobs,
        prompt_logprobs,
        constraint,
        answer,
        arrived,
    };
    Ok((Generation::start(context, serving, admission, job)?, prompt.token_ids))
}

/// How an answer is written.
struct ChatFormat {
    head: Head,
    names: TokenNames,
    has_logprobs: bool,
    /// Some(k): the prompt's are wanted, with the k best.
    prompt_logprobs: Option<usize>,
    /// Present when token ids were asked for.
    prompt_ids: Option<Value>,
    reasoning: Reasoning,
}

async fn whole_reply(generation: Generation, format: ChatFormat) -> Result<Response, ApiError> {
    let ChatFormat { head, names, has_logprobs, prompt_logprobs, prompt_ids, reasoning } = format;
    let (wholes, usage) = generation.collect().await?;
    let of_prompt = prompt_logprobs
        .zip(wholes.first())
        .map(|(top, whole)| names.prompt_logprobs(&whole.prompt_logprobs, top));
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
        let mut choice = json!({
            "index": index,
            "message": message(&whole, reasoning),
            "logprobs": has_logprobs.then(|| names.chat_logprobs(&whole.logprobs)),
        });
        set_finish(&mut choice, whole.finish.as_ref());
        set_token_ids(&mut choice, prompt_ids.as_ref().map(|_| whole.token_ids.as_slice()));
        choice
    });
    let mut reply = head.reply("chat.completion", choices.collect());
    reply["usage"] = usage.to_json();
    if let Some(of_prompt) = of_prompt {
        reply["prompt_logprobs"] = of_prompt;
    }
    if let Some(prompt_ids) = prompt_ids {
        reply["prompt_token_ids"] = prompt_ids;
    }
    Ok(Json(reply).into_response())
}

/// Writes `chat.completion.chunk` objects.
struct ChatChunks {
    format: ChatFormat,
    /// Choices whose first chunk was sent.
    has_role: Vec<bool>,
}

impl ChunkFormat for ChatChunks {
    fn chunks(&mut self, output: Output, _usage: Usage) -> Vec<Value> {
        // A stream never has its prompt's logprobs.
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
            let mut chunk = self.chunk(choice);
            if let Some(prompt_ids) = &self.format.prompt_ids {
                chunk["prompt_token_ids"] = prompt_ids.clone();
            }
            chunks.push(chunk);
        }
        let format = &self.format;
        // They go with the first of the chunks.
        let has_logprobs = format.has_logprobs && !delta.logprobs.is_empty();
        let mut names = has_logprobs.then_some(&format.names);
        let mut token_ids = delta.token_ids.as_slice();
        for content in format.deltas(&delta) {
            let mut choice = json!({
                "index": index,
                "delta": content,
                "logprobs": names.take().map(|names| names.chat_logprobs(&delta.logprobs)),
            });
            set_finish(&mut choice, delta.finish.as_ref());
            let token_ids = std::mem::take(&mut token_ids);
            set_token_ids(&mut choice, format.prompt_ids.as_ref().map(|_| token_ids));
            chunks.push(self.chunk(choice));
        }
        chunks
    }

    fn plain_text<'a>(&self, output: &'a Output) -> Option<PlainText<'a>> {
        let is_shown = |text: &PlainText| {
            text.kind == TextKind::Content || self.format.reasoning == Reasoning::Shown
        };
        output.plain_text().filter(|text| self.has_role[text.index] && is_shown(text))
    }

    fn usage_chunk(&self) -> Option<Value> {
        Some(self.format.head.reply("chat.completion.chunk", Vec::new()))
    }
}

impl ChatChunks {
    fn chunk(&self, choice: Value) -> Value {
        self.format.head.reply("chat.completion.chunk", vec![choice])
    }
}

impl ChatFormat {
    /// What the chunks of one piece say: one chunk for each part.
    fn deltas(&self, delta: &Delta) -> Vec<Value> {
        let parts = delta.parts.iter().filter_map(|part| match part {
            Part::Reasoning(_) if self.reasoning == Reasoning::LeftOut => None,
            Part::Reasoning(text) => Some(json!({"reasoning_content": text, "reasoning": text})),
            Part::Content(text) => Some(json!({"content": text})),
            Part::Call { index, name } => {
                let mut call = tool_call(name, "");
                call["index"] = (*index).into();
                Some(json!({"tool_calls": [call]}))
            }
            Part::Arguments { index, text } => {
                let call = json!({"index": index, "function": {"arguments": text}});
                Some(json!({"tool_calls": [call]}))
            }
        });
        let mut deltas: Vec<Value> = parts.collect();
        // The finish, logprobs and token ids need a chunk to go with.
        let has_more =
            delta.finish.is_some() || !delta.logprobs.is_empty() || !delta.token_ids.is_empty();
        if deltas.is_empty() && has_more {
            deltas.push(json!({}));
        }
        deltas
    }
}

/// The message of a whole answer. Reasoning has two names: `reasoning_content` is the older one.
fn message(whole: &Whole, reasoning: Reasoning) -> Value {
    let only_calls = whole.content.is_empty() && !whole.calls.is_empty();
    let content = (!only_calls).then_some(&whole.content);
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if reasoning == Reasoning::Shown && !whole.reasoning.is_empty() {
        message["reasoning_content"] = whole.reasoning.as_str().into();
        message["reasoning"] = whole.reasoning.as_str().into();
    }
    if !whole.calls.is_empty() {
        let calls = whole.calls.iter().map(|call| tool_call(&call.name, &call.arguments));
        message["tool_calls"] = calls.collect();
    }
    message
}

fn tool_call(name: &str, arguments: &str) -> Value {
    json!({
        "id": format!("call_{}", random_hex()),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    })
}

fn read_template_fields(
    fields: &mut Fields,
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
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
        tools,
        template_kwargs,
        add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        cache_salt: None,
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
