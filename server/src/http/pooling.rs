//! Runs prompts through the engine for what their last token shows; nothing is generated.

use super::auth::Client;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, out_of_range};
use super::generation::{admit, estimate_tokens, text_error};
use super::sampling::{CACHE_SALT, MODEL, PRIORITY, USER, read_model};
use super::state::{Context, ServedModel, Serving};
use super::tenants::Account;
use crate::engine::{Admission, Event, Pooled, Pooling, Request, SamplingParams, TokenStream};
use crate::metrics::SequenceTimer;
use crate::text::{Frame, FramedText, TextError};
use models::TokenId;
use serde_json::json;
use std::time::Instant;

pub const TRUNCATE_PROMPT_TOKENS: Field = Field {
    name: "truncate_prompt_tokens",
    kind: Kind::Integer { min: -1, max: i64::MAX },
    doc: "Cut longer texts at their end to so many tokens, with what the model puts around them; \
          -1: to the model's context. Default: they are refused.",
};

/// What all endpoints that pool read.
pub const COMMON_FIELDS: &[Field] = &[MODEL, TRUNCATE_PROMPT_TOKENS, PRIORITY, CACHE_SALT, USER];

/// The checked values of `COMMON_FIELDS`.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// The name to answer with.
    pub model: String,
    /// `None`: longer texts are refused.
    pub tokens_max: Option<usize>,
    pub priority: i32,
    pub cache_salt: Option<String>,
}

impl Common {
    /// Errors: what the client's tenant may not ask for, or not now.
    pub fn open(&self, context: &Context, client: &Client) -> Result<Account, ApiError> {
        client.open(context.lane(), &self.model, self.priority, self.cache_salt.as_deref())
    }

    /// Errors: each field outside its type or range, an unknown model.
    pub fn read(fields: &mut Fields, model: &ServedModel) -> Result<Common, RequestError> {
        let name = read_model(fields, model)?;
        let len_max = model.max_model_len;
        let tokens_max = match fields.integer(&TRUNCATE_PROMPT_TOKENS)? {
            None => None,
            Some(-1) => Some(len_max),
            Some(tokens) if tokens >= 1 && tokens as u64 <= len_max as u64 => Some(tokens as usize),
            Some(other) => {
                let range = format!("-1, or an integer from 1 to {len_max}");
                return Err(out_of_range(TRUNCATE_PROMPT_TOKENS.name, &json!(other), range));
            }
        };
        let priority = fields.integer(&PRIORITY)?.unwrap_or(0) as i32;
        let cache_salt = fields.name(&CACHE_SALT)?;
        fields.name(&USER)?;
        Ok(Common { model: name, tokens_max, priority, cache_salt })
    }
}

/// Texts and what is to be read off them.
pub struct Job {
    pub texts: Vec<FramedText>,
    pub frame: Frame,
    pub pooling: Pooling,
    /// For messages: which field holds the texts.
    pub field: &'static str,
    pub tokens_max: Option<usize>,
    pub account: Account,
    pub arrived: Instant,
}

/// One result for each text, in their order.
pub struct Answers {
    pub pooled: Vec<Pooled>,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
}

/// Reserves places, encodes, checks lengths, computes. When this is dropped all is aborted.
///
/// Errors: no room in the queue; a text that is empty or too long; the engine lost a sequence.
pub async fn run(context: &Context, serving: &Serving, job: Job) -> Result<Answers, ApiError> {
    let max_model_len = serving.model.max_model_len;
    let estimate = |text: &FramedText| match text {
        FramedText::Text(text) => estimate_tokens(text.len()).min(max_model_len),
        FramedText::Tokens(ids) => ids.len().min(max_model_len),
    };
    let estimate = job.texts.iter().map(estimate).sum();
    let mut admission = admit(context, serving, &job.account, job.texts.len(), estimate)?;
    let Job { texts, frame, pooling, field, tokens_max, account, arrived } = job;
    let prompts = serving.text.encode_framed(frame, texts, tokens_max).await;
    let prompts = prompts.map_err(|error| match error {
        TextError::NoRoom { .. } => text_error(context, TRUNCATE_PROMPT_TOKENS.name, error),
        error => text_error(context, field, error),
    })?;
    check_lengths(field, &prompts, max_model_len)?;
    context.metrics.observe_request(1);
    let mut sequences = Vec::with_capacity(prompts.len());
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    account.charge(prompt_tokens);
    for prompt in prompts {
        let timer = context.metrics.sequence(context.lane(), arrived, prompt.len(), 0);
        let sampling = SamplingParams { max_new_tokens: 0, ..SamplingParams::default() };
        let pooling = Some(pooling.clone());
        let request = Request {
            prompt,
            sampling,
            pooling,
            priority: account.priority,
            lane: context.lane(),
            tenant: account.tenant,
            cache_salt: account.cache_salt,
            constraint: None,
        };
        let stream = submit(context, serving, &mut admission, request)?;
        sequences.push(Sequence { stream, timer });
    }
    let mut answers =
        Answers { pooled: Vec::with_capacity(sequences.len()), prompt_tokens, cached_tokens: 0 };
    for sequence in sequences {
        let (pooled, cached_tokens) = sequence.collect().await?;
        answers.pooled.push(pooled);
        answers.cached_tokens += cached_tokens;
    }
    Ok(answers)
}

fn submit(
    context: &Context,
    serving: &Serving,
    admission: &mut Admission,
    request: Request,
) -> Result<TokenStream, ApiError> {
    let retry_after_s = context.retry_after_s();
    serving
        .engine
        .submit(admission, request)
        .map_err(|reason| ApiError::Busy { reason, retry_after_s })
}

fn check_lengths(
    field: &'static str,
    prompts: &[Vec<TokenId>],
    max_model_len: usize,
) -> Result<(), RequestError> {
    for (index, prompt) in prompts.iter().enumerate() {
        let tokens = prompt.len();
        let place = || if prompts.len() > 1 { format!("{field}[{index}]") } else { field.into() };
        if tokens == 0 {
            let range = "at least one token".into();
            return Err(RequestError::OutOfRange { field: place(), value: "empty".into(), range });
        }
        if tokens > max_model_len {
            return Err(RequestError::InputTooLong { field: place(), tokens, max_model_len });
        }
    }
    Ok(())
}

/// One text on its way.
struct Sequence {
    stream: TokenStream,
    timer: SequenceTimer,
}

impl Sequence {
    /// What was asked for, and how many of its tokens the prefix cache had.
    async fn collect(mut self) -> Result<(Pooled, usize), ApiError> {
        let (mut pooled, mut cached) = (None, 0);
        while let Some(event) = self.stream.next().await {
            match event {
                Event::Started { cached_tokens } => {
                    self.timer.started();
                    cached = cached_tokens;
                }
                Event::Pooled(value) => pooled = Some(value),
                Event::PromptLogprobs(_) | Event::Token(_) => {}
                Event::Finished { .. } => self.timer.ended("stop"),
                Event::Failed(error) => {
                    self.timer.ended("error");
                    return Err(error.into());
                }
            }
        }
        Ok((pooled.ok_or(ApiError::EngineStopped)?, cached))
    }
}
