//! POST /v1/completions.

use super::auth::Client;
use super::body::read_fields;
use super::choice::{Output, PlainText, TextKind, TextToken};
use super::constraint::CONSTRAINT_FIELDS;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, out_of_range, show, wrong_type};
use super::fill_in::{SUFFIX, check_fill_in, fill_in, read_suffix};
use super::generation::{Generation, Job, Whole, admit, estimate_tokens, text_error};
use super::limits::HttpConfig;
use super::sampling::{COMMON_FIELDS, Common, read_token_id};
use super::sse::{ChunkFormat, respond};
use super::state::{Context, ServedModel, Serving};
use super::unknown::IgnoredFields;
use super::unsupported::{check_completions, completion_names};
use super::wire::{
    CompletionLogprobs, Head, TokenNames, Usage, numbers, set_finish, set_token_ids,
};
use crate::engine::TokenLogprobs;
use crate::engine::request::TOP_LOGPROBS_MAX;
use crate::text::{AnswerFormat, SpecialTokens};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use models::TokenId;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// As in OpenAI's API.
const MAX_TOKENS_DEFAULT: usize = 16;

pub const PROMPT: Field = Field {
    name: "prompt",
    kind: Kind::Shape(prompt_schema),
    doc: "Text, token ids, or a list of either. Required. No template is applied.",
};
pub const MAX_TOKENS: Field = Field {
    name: "max_tokens",
    kind: Kind::Integer { min: 0, max: i64::MAX },
    doc: "Most tokens to generate; 0 only with `echo`. Default 16.",
};
pub const LOGPROBS: Field = Field {
    name: "logprobs",
    kind: Kind::Integer { min: 0, max: TOP_LOGPROBS_MAX as i64 },
    doc: "Report the log-probability of each token and of so many likeliest ones.",
};
pub const ECHO: Field = Field {
    name: "echo",
    kind: Kind::Boolean,
    doc: "Begin the answer with the prompt, with its logprobs where asked for. Default false.",
};
pub const BEST_OF: Field = Field {
    name: "best_of",
    kind: Kind::Integer { min: 1, max: i64::MAX },
    doc: "Only the value of `n` is served.",
};

/// What only this endpoint reads.
pub const OWN_FIELDS: &[Field] = &[PROMPT, MAX_TOKENS, LOGPROBS, ECHO, BEST_OF, SUFFIX];

/// All fields of the endpoint.
pub fn fields() -> impl Iterator<Item = &'static Field> {
    OWN_FIELDS.iter().chain(COMMON_FIELDS).chain(CONSTRAINT_FIELDS)
}

/// Whether the answer begins with the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echoes {
    Yes,
    No,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    /// Prefix and suffix with the tokens between which the model fills in.
    FillIn(String),
    Tokens(Vec<TokenId>),
}

/// A checked request.
#[derive(Debug)]
pub struct CompletionRequest {
    pub common: Common,
    /// At least one, none of them empty.
    pub prompts: Vec<Prompt>,
    pub max_tokens: usize,
    /// Some(k): logprobs with the k best.
    pub logprobs: Option<usize>,
    pub echo: bool,
}

impl CompletionRequest {
    /// Errors: the first field that is wrong, missing or not supported.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<CompletionRequest, RequestError> {
        check_completions(fields)?;
        let common = Common::read(fields, model, config)?;
        let prompts = read_prompts(fields.take(&PROMPT), model, config)?;
        let num_sequences = prompts.len() * common.n;
        if num_sequences > config.sequences_max {
            return Err(RequestError::OutOfRange {
                field: PROMPT.name.into(),
                value: format!("{} prompts for n = {}", prompts.len(), common.n),
                range: format!("at most {} answers in all", config.sequences_max),
            });
        }
        let max_tokens = fields.count(&MAX_TOKENS)?.unwrap_or(MAX_TOKENS_DEFAULT);
        let logprobs = fields.count(&LOGPROBS)?;
        let echo = fields.boolean(&ECHO)?.unwrap_or(false);
        if max_tokens == 0 && !echo {
            let range = "at least 1 (0 only with 'echo')".into();
            return Err(out_of_range(MAX_TOKENS.name, &json!(0), range));
        }
        match fields.count(&BEST_OF)? {
            Some(best_of) if best_of != common.n => Err(RequestError::Unsupported {
                field: BEST_OF.name.into(),
                value: format!("{best_of} with n = {}", common.n),
            }),
            _ => {
                let prompts = fill_in(
                    prompts,
                    read_suffix(fields, if echo { Echoes::Yes } else { Echoes::No })?,
                )?;
                Ok(CompletionRequest { common, prompts, max_tokens, logprobs, echo })
            }
        }
    }

    /// Over all sequences.
    fn prompt_tokens_estimate(&self, max_model_len: usize) -> usize {
        let lengths = self.prompts.iter().map(|prompt| match prompt {
            Prompt::Text(text) | Prompt::FillIn(text) => {
                estimate_tokens(text.len()).min(max_model_len)
            }
            Prompt::Tokens(ids) => ids.len().min(max_model_len),
        });
        lengths.sum::<usize>() * self.common.n
    }
}

pub async fn completions(
    State(context): State<Context>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let serving = context.generator()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let request = CompletionRequest::into_request(&mut fields, &serving.model, &context.config)?;
    let ignored = IgnoredFields::of(&fields, &completion_names(), &context.config)?;
    let num_sequences = request.prompts.len() * request.common.n;
    let estimate = request.prompt_tokens_estimate(serving.model.max_model_len);
    let CompletionRequest { mut common, prompts, max_tokens, logprobs, echo } = request;
    let salt = common.cache_salt.as_deref();
    let account = client.open(context.lane(), &common.model, common.priority, salt)?;
    let admission = admit(&context, serving, &account, num_sequences, estimate)?;
    if prompts.iter().any(|prompt| matches!(prompt, Prompt::FillIn(_))) {
        check_fill_in(serving)?;
    }
    let prompts = encode_prompts(&context, serving, prompts).await?;
    let wanted = std::mem::take(&mut common.wanted);
    let constraint = wanted.build(&context, serving, None).await?;
    drop(reservation);
    let format = CompletionFormat {
        head: Head::new("cmpl", &common.model),
        names: match common.tokens_as_ids {
            true => TokenNames::as_ids(&serving.text),
            false => TokenNames::as_text(&serving.text),
        },
        logprobs,
        prompt_logprobs: common.prompt_logprobs,
        n: common.n,
        echoes: if echo { make_echoes(serving, &prompts).await } else { Vec::new() },
        prompt_ids: common
            .returns_token_ids
            .then(|| prompts.iter().map(|prompt| prompt.token_ids.clone()).collect()),
    };
    // The engine generates nothing only where it scores the prompt.
    let of_echo = (echo && (logprobs.is_some() || max_tokens == 0)).then(|| logprobs.unwrap_or(0));
    let prompt_logprobs = of_echo.max(common.prompt_logprobs);
    let stream = common.stream;
    let job = Job {
        account,
        common,
        prompts: prompts.into_iter().map(|prompt| prompt.token_ids).collect(),
        max_tokens: Some(max_tokens),
        prompt_field: PROMPT.name,
        max_tokens_field: MAX_TOKENS.name,
        logprobs,
        prompt_logprobs,
        constraint,
        answer: AnswerFormat::default(),
        arrived,
    };
    let generation = Generation::start(&context, serving, admission, job)?;
    let response = match stream {
        None => whole_reply(generation, &format).await?,
        Some(options) => {
            let opened = vec![false; generation.num_choices()];
            let chunks = CompletionChunks { format, opened };
            respond(generation, chunks, options, context.config.ping_interval).await?
        }
    };
    Ok(ignored.tell(response))
}

async fn whole_reply(
    generation: Generation,
    format: &CompletionFormat,
) -> Result<Response, ApiError> {
    let (wholes, usage) = generation.collect().await?;
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| {
        let echo = format.echo(index);
        let logprobs = format.logprobs(echo, &whole);
        let text = match echo {
            Some(echo) => format!("{}{}", echo.text, whole.content),
            None => whole.content,
        };
        let mut choice = json!({"index": index, "text": text, "logprobs": logprobs});
        set_finish(&mut choice, whole.finish.as_ref());
        set_token_ids(&mut choice, format.prompt_ids.as_ref().map(|_| whole.token_ids.as_slice()));
        format.set_prompt_ids(&mut choice, index);
        if let Some(top) = format.prompt_logprobs {
            choice["prompt_logprobs"] = format.names.prompt_logprobs(&whole.prompt_logprobs, top);
        }
        choice
    });
    let mut reply = format.head.reply("text_completion", choices.collect());
    reply["usage"] = usage.to_json();
    Ok(Json(reply).into_response())
}

/// A prompt as tokens; `text` is what the client sent, where it sent text.
struct TokenPrompt {
    token_ids: Vec<TokenId>,
    text: Option<String>,
}

/// A prompt as it is repeated in the answer.
struct Echo {
    text: String,
    num_chars: usize,
    token_ids: Vec<TokenId>,
    /// Characters before each token.
    offsets: Vec<usize>,
}

struct CompletionFormat {
    head: Head,
    names: TokenNames,
    /// Some(k): with the k best.
    logprobs: Option<usize>,
    /// The same for vLLM's list of the prompt's tokens.
    prompt_logprobs: Option<usize>,
    n: usize,
    /// One for each prompt; empty when nothing is echoed.
    echoes: Vec<Arc<Echo>>,
    /// One for each prompt; present when token ids were asked for.
    prompt_ids: Option<Vec<Vec<TokenId>>>,
}

impl CompletionFormat {
    fn set_prompt_ids(&self, choice: &mut Value, index: usize) {
        if let Some(prompts) = &self.prompt_ids {
            choice["prompt_token_ids"] = numbers(&prompts[index / self.n]);
        }
    }

    fn echo(&self, index: usize) -> Option<&Echo> {
        self.echoes.get(index / self.n).map(Arc::as_ref)
    }

    /// Of the echoed prompt, then of the answer.
    fn logprobs(&self, echo: Option<&Echo>, whole: &Whole) -> Value {
        let Some(top) = self.logprobs else { return Value::Null };
        let mut lists = CompletionLogprobs::default();
        if let Some(echo) = echo {
            self.push_prompt(&mut lists, top, echo, &whole.prompt_logprobs);
        }
        let before = echo.map_or(0, |echo| echo.num_chars);
        self.push_tokens(&mut lists, top, &whole.logprobs, before);
        lists.to_json()
    }

    fn push_prompt(
        &self,
        lists: &mut CompletionLogprobs,
        top: usize,
        echo: &Echo,
        logprobs: &[TokenLogprobs],
    ) {
        lists.push_first(&self.names, echo.token_ids[0]);
        for (logprobs, offset) in logprobs.iter().zip(&echo.offsets[1..]) {
            lists.push(&self.names, logprobs, top, *offset);
        }
    }

    fn push_tokens(
        &self,
        lists: &mut CompletionLogprobs,
        top: usize,
        tokens: &[TextToken],
        chars_before: usize,
    ) {
        for token in tokens {
            lists.push(&self.names, &token.logprobs, top, chars_before + token.text_offset);
        }
    }
}

/// Writes `text_completion` chunks.
struct CompletionChunks {
    format: CompletionFormat,
    /// Choices whose echo was sent.
    opened: Vec<bool>,
}

impl CompletionChunks {
    /// The echoed prompt, once for each choice, before anything of its answer.
    fn opening(&mut self, index: usize, logprobs: &[TokenLogprobs]) -> Option<Value> {
        if std::mem::replace(&mut self.opened[index], true) {
            return None;
        }
        let echo = self.format.echo(index)?;
        let lists = self.format.logprobs.map(|top| {
            let mut lists = CompletionLogprobs::default();
            self.format.push_prompt(&mut lists, top, echo, logprobs);
            lists.to_json()
        });
        Some(json!({"index": index, "text": echo.text, "logprobs": lists}))
    }

    /// The choices of the chunks that an output gives.
    fn choices(&mut self, output: Output) -> Vec<Value> {
        let delta = match output {
            Output::Prompt { index, logprobs } => {
                let mut choice = self.opening(index, &logprobs);
                choice.iter_mut().for_each(|choice| set_finish(choice, None));
                return choice.into_iter().collect();
            }
            Output::Delta(delta) => delta,
        };
        let mut choices: Vec<Value> = self.opening(delta.index, &[]).into_iter().collect();
        choices.iter_mut().for_each(|choice| set_finish(choice, None));
        let before = self.format.echo(delta.index).map_or(0, |echo| echo.num_chars);
        let top = self.format.logprobs.filter(|_| !delta.logprobs.is_empty());
        let lists = top.map(|top| {
            let mut lists = CompletionLogprobs::default();
            self.format.push_tokens(&mut lists, top, &delta.logprobs, before);
            lists.to_json()
        });
        let mut choice = json!({"index": delta.index, "text": delta.text(), "logprobs": lists});
        set_finish(&mut choice, delta.finish.as_ref());
        let token_ids = self.format.prompt_ids.as_ref().map(|_| delta.token_ids.as_slice());
        set_token_ids(&mut choice, token_ids);
        choices.push(choice);
        choices
    }
}

impl ChunkFormat for CompletionChunks {
    fn chunks(&mut self, output: Output, _usage: Usage) -> Vec<Value> {
        let index = output.index();
        let is_first = !self.opened[index];
        let mut choices = self.choices(output);
        if let Some(first) = choices.first_mut().filter(|_| is_first) {
            self.format.set_prompt_ids(first, index);
        }
        let chunk = |choice| self.format.head.reply("text_completion", vec![choice]);
        choices.into_iter().map(chunk).collect()
    }

    fn plain_text<'a>(&self, output: &'a Output) -> Option<PlainText<'a>> {
        let is_open = |text: &PlainText| text.kind == TextKind::Content && self.opened[text.index];
        output.plain_text().filter(is_open)
    }

    fn usage_chunk(&self) -> Option<Value> {
        Some(self.format.head.reply("text_completion", Vec::new()))
    }
}

async fn encode_prompts(
    context: &Context,
    serving: &Serving,
    prompts: Vec<Prompt>,
) -> Result<Vec<TokenPrompt>, ApiError> {
    let mut encoded = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        encoded.push(match prompt {
            Prompt::Tokens(token_ids) => TokenPrompt { token_ids, text: None },
            Prompt::Text(text) | Prompt::FillIn(text) => {
                let result = serving.text.encode_text(text).await;
                let prompt = result.map_err(|e| text_error(context, PROMPT.name, e))?;
                TokenPrompt { token_ids: prompt.token_ids, text: Some(prompt.text) }
            }
        });
    }
    match encoded.iter().any(|prompt| prompt.token_ids.is_empty()) {
        true => Err(empty_prompt().into()),
        false => Ok(encoded),
    }
}

async fn make_echoes(serving: &Serving, prompts: &[TokenPrompt]) -> Vec<Arc<Echo>> {
    let mut echoes = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let token_ids = prompt.token_ids.clone();
        let text = match &prompt.text {
            Some(text) => text.clone(),
            None => serving.text.decode(token_ids.clone(), SpecialTokens::Keep).await,
        };
        let mut decoder = serving.text.decoder(SpecialTokens::Keep);
        let mut num_chars = 0;
        let mut offsets = Vec::with_capacity(token_ids.len());
        for token in &token_ids {
            offsets.push(num_chars);
            num_chars += decoder.push(*token).map_or(0, |text| text.chars().count());
        }
        let num_chars = text.chars().count();
        echoes.push(Arc::new(Echo { text, num_chars, token_ids, offsets }));
    }
    echoes
}

fn read_prompts(
    value: Option<Value>,
    model: &ServedModel,
    config: &HttpConfig,
) -> Result<Vec<Prompt>, RequestError> {
    let list = match value {
        None => return Err(RequestError::Missing { field: PROMPT.name.into() }),
        Some(Value::String(text)) if text.is_empty() => return Err(empty_prompt()),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(PROMPT.name, &other, EXPECTED)),
    };
    if matches!(list.first(), Some(Value::Number(_))) {
        return Ok(vec![Prompt::Tokens(read_token_ids(PROMPT.name, &list, model)?)]);
    }
    if list.is_empty() || list.len() > config.prompts_max {
        return Err(RequestError::OutOfRange {
            field: PROMPT.name.into(),
            value: format!("a list of {}", list.len()),
            range: format!("1 to {} prompts", config.prompts_max),
        });
    }
    let prompts = list.into_iter().enumerate().map(|(i, value)| match value {
        Value::String(text) if text.is_empty() => Err(empty_prompt()),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err(empty_prompt()),
        Value::Array(ids) => {
            Ok(Prompt::Tokens(read_token_ids(&format!("prompt[{i}]"), &ids, model)?))
        }
        other => Err(wrong_type(&format!("prompt[{i}]"), &other, EXPECTED)),
    });
    prompts.collect()
}

const EXPECTED: &str = "a string, a list of token ids, or a list of either";

fn read_token_ids(
    field: &str,
    ids: &[Value],
    model: &ServedModel,
) -> Result<Vec<TokenId>, RequestError> {
    ids.iter().map(|id| read_token_id(field, id, model)).collect()
}

fn empty_prompt() -> RequestError {
    let range = "at least one token".into();
    RequestError::OutOfRange { field: PROMPT.name.into(), value: show(&json!("")), range }
}

fn prompt_schema() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let ids = json!({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1});
    json!({"anyOf": [
        text,
        ids,
        {"type": "array", "items": text, "minItems": 1},
        {"type": "array", "items": ids, "minItems": 1},
    ]})
}
