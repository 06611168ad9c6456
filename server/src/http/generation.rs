//! Runs a client's request: `n` sequences per prompt through the engine, their tokens back to text.

use super::choice::{Choice, Finish, Output, Step, TextToken};
use super::constraint::EngineConstraint;
use super::error::{ApiError, RequestError};
use super::sampling::Common;
use super::state::{Context, Serving};
use super::tenants::Account;
use super::wire::Usage;
use crate::engine::{
    Admission, ConstraintSource, EngineHandle, Request, SamplingParams, TokenLogprobs, TokenStream,
};
use crate::text::{AnswerFormat, Constraint, Part, TextError};
use futures_util::stream::{self, SelectAll, Stream};
use models::TokenId;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};
use std::time::Instant;

/// Everything about a request but its shape on the wire.
pub struct Job {
    pub common: Common,
    pub prompts: Vec<Vec<TokenId>>,
    /// None: up to the end of the context.
    pub max_tokens: Option<usize>,
    /// For messages: which field holds the prompt and which the limit.
    pub prompt_field: &'static str,
    pub max_tokens_field: &'static str,
    pub logprobs: Option<usize>,
    pub prompt_logprobs: Option<usize>,
    /// How to take the answers apart.
    pub answer: AnswerFormat,
    pub account: Account,
    pub constraint: Option<Arc<Constraint>>,
    pub arrived: Instant,
}

/// Those that are not finished.
enum Choices {
    /// The only one there is. By far the most requests have no other.
    One(Option<Box<Choice>>),
    Many(SelectAll<Choice>),
}

impl Choices {
    fn new(mut choices: Vec<Choice>) -> Choices {
        match choices.len() {
            1 => Choices::One(choices.pop().map(Box::new)),
            _ => Choices::Many(stream::select_all(choices)),
        }
    }

    fn poll_next(&mut self, task: &mut Task<'_>) -> Poll<Option<Step>> {
        match self {
            Choices::One(None) => Poll::Ready(None),
            Choices::One(Some(choice)) => Pin::new(&mut **choice).poll_next(task),
            Choices::Many(choices) => Pin::new(choices).poll_next(task),
        }
    }

    fn clear(&mut self) {
        *self = Choices::One(None);
    }
}

/// A request under way. Dropping it aborts what still runs.
pub struct Generation {
    choices: Choices,
    n: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: Vec<usize>,
    /// `None`: reasoning is not told apart.
    reasoning_tokens: Option<Vec<usize>>,
    account: Account,
}

impl Generation {
    /// Checks lengths against the context and submits all sequences under one admission.
    ///
    /// Errors: prompt or `max_tokens` too long, `min_tokens` above `max_tokens`; the real prompt
    /// finds no room in the queue.
    pub fn start(
        context: &Context,
        serving: &Serving,
        mut admission: Admission,
        job: Job,
    ) -> Result<Generation, ApiError> {
        let mut max_new_tokens = Vec::with_capacity(job.prompts.len());
        for prompt in &job.prompts {
            max_new_tokens.push(settle_max_tokens(&job, prompt.len(), serving)?);
        }
        context.metrics.observe_request(job.common.n);
        let constraint = job.constraint.as_ref().map(|constraint| {
            Arc::new(EngineConstraint(Arc::clone(constraint))) as Arc<dyn ConstraintSource>
        });
        let n = job.common.n;
        let base_seed = job.common.seed.unwrap_or_else(random_seed);
        let mut choices = Vec::with_capacity(job.prompts.len() * n);
        for (prompt, max_new_tokens) in job.prompts.iter().zip(max_new_tokens) {
            for choice in 0..n {
                let sampling = SamplingParams {
                    max_new_tokens,
                    seed: choice_seed(base_seed, choice),
                    logprobs: job.logprobs,
                    prompt_logprobs: job.prompt_logprobs,
                    ..job.common.params.clone()
                };
                let request = Request {
                    prompt: prompt.clone(),
                    sampling: sampling.clone(),
                    pooling: None,
                    priority: job.account.priority,
                    lane: context.lane(),
                    tenant: job.account.tenant,
                    cache_salt: job.account.cache_salt,
                    constraint: constraint.clone(),
                };
                let stream = submit(context, &serving.engine, &mut admission, request)?;
                let timer = context.metrics.sequence(
                    context.lane(),
                    job.arrived,
                    prompt.len(),
                    max_new_tokens,
                );
                let index = choices.len();
                let (common, answer) = (&job.common, &job.answer);
                choices.push(Choice::new(index, stream, serving, common, answer, sampling, timer));
            }
        }
        let prompt_tokens = job.prompts.iter().map(Vec::len).sum();
        job.account.charge(prompt_tokens);
        Ok(Generation {
            n,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: vec![0; choices.len()],
            reasoning_tokens: job.answer.reasoning.map(|_| vec![0; choices.len()]),
            choices: Choices::new(choices),
            account: job.account,
        })
    }

    /// The next output of any choice; None when all have finished. May be dropped while waiting.
    ///
    /// Errors: the engine lost the request; nothing comes after it.
    pub async fn next(&mut self) -> Option<Result<Output, ApiError>> {
        poll_fn(|task| self.poll_next(task)).await
    }

    /// As `next`.
    pub fn poll_next(&mut self, task: &mut Task<'_>) -> Poll<Option<Result<Output, ApiError>>> {
        loop {
            let Some(step) = ready!(self.choices.poll_next(task)) else {
                return Poll::Ready(None);
            };
            match step {
                // All choices of a prompt share what the cache had; it counts once, as the prompt.
                Step::Started { index, cached_tokens } if index % self.n == 0 => {
                    self.cached_tokens += cached_tokens;
                }
                Step::Started { .. } => {}
                Step::Output(output) => {
                    if let Output::Delta(delta) = &output {
                        self.completion_tokens[delta.index] = delta.completion_tokens;
                        if let Some(tokens) = &mut self.reasoning_tokens {
                            tokens[delta.index] = delta.reasoning_tokens;
                        }
                    }
                    return Poll::Ready(Some(Ok(output)));
                }
                Step::Failed(error) => {
                    self.choices.clear();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    pub fn num_choices(&self) -> usize {
        self.completion_tokens.len()
    }

    /// Tokens so far; complete at the end.
    pub fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens.iter().sum(),
            cached_tokens: self.cached_tokens,
            reasoning_tokens: self.reasoning_tokens.as_ref().map(|tokens| tokens.iter().sum()),
        }
    }

    /// Waits for the end. Errors: as `next`.
    pub async fn collect(mut self) -> Result<(Vec<Whole>, Usage), ApiError> {
        let mut choices: Vec<Whole> = Vec::new();
        choices.resize_with(self.num_choices(), Whole::default);
        while let Some(output) = self.next().await {
            match output? {
                Output::Prompt { index, logprobs } => choices[index].prompt_logprobs = logprobs,
                Output::Delta(delta) => {
                    let choice = &mut choices[delta.index];
                    delta.parts.into_iter().for_each(|part| choice.add(part));
                    choice.logprobs.extend(delta.logprobs);
                    choice.token_ids.extend(delta.token_ids);
                    choice.finish = delta.finish.or(choice.finish.take());
                }
            }
        }
        Ok((choices, self.usage()))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.account.charge(self.completion_tokens.iter().sum());
    }
}

/// A choice's complete answer.
#[derive(Debug, Default)]
pub struct Whole {
    /// All of it where the answer is not taken apart.
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub logprobs: Vec<TextToken>,
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Empty where the client does not want them.
    pub token_ids: Vec<TokenId>,
    pub finish: Option<Finish>,
}

/// A complete call of a tool.
#[derive(Debug, Default)]
pub struct Call {
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}

impl Whole {
    fn add(&mut self, part: Part) {
        match part {
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Content(text) => self.content.push_str(&text),
            Part::Call { name, .. } => self.calls.push(Call { name, arguments: String::new() }),
            Part::Arguments { index, text } => self.calls[index].arguments.push_str(&text),
        }
    }
}

/// Reserves places in the context's lane before anything is rendered. `prompt_tokens_estimate` is
/// over all sequences.
///
/// Errors: 429 with `Retry-After`, or 503 when the server is ending.
pub fn admit(
    context: &Context,
    serving: &Serving,
    account: &Account,
    num_sequences: usize,
    prompt_tokens_estimate: usize,
) -> Result<Admission, ApiError> {
    let (tenant, lane) = (account.tenant, context.lane());
    let admitted = serving.engine.admit_for(tenant, lane, num_sequences, prompt_tokens_estimate);
    admitted.map_err(|reason| {
        let retry_after_s = context.retry_after_s();
        ApiError::Busy { reason, retry_after_s }
    })
}

/// Text is about four bytes to a token in English and three in Chinese.
pub fn estimate_tokens(text_bytes: usize) -> usize {
    text_bytes.div_ceil(4)
}

/// Errors of the text stage, as the client sees them.
pub fn text_error(context: &Context, field: &'static str, error: TextError) -> ApiError {
    let invalid = |reason: String| RequestError::Invalid { field: field.into(), reason };
    match error {
        TextError::Busy { jobs, jobs_max, .. } => {
            ApiError::TokenizerBusy { jobs, jobs_max, retry_after_s: context.retry_after_s() }
        }
        TextError::Crashed { .. } | TextError::Stopped => {
            tracing::error!(%error, "the text stage failed");
            ApiError::TextStage
        }
        TextError::Template { message } => RequestError::Template { reason: message }.into(),
        other => invalid(other.to_string()).into(),
    }
}

fn submit(
    context: &Context,
    engine: &EngineHandle,
    admission: &mut Admission,
    request: Request,
) -> Result<TokenStream, ApiError> {
    engine.submit(admission, request).map_err(|reason| {
        let retry_after_s = context.retry_after_s();
        ApiError::Busy { reason, retry_after_s }
    })
}

fn settle_max_tokens(
    job: &Job,
    prompt_tokens: usize,
    serving: &Serving,
) -> Result<usize, RequestError> {
    let max_model_len = serving.model.max_model_len;
    let field = job.prompt_field;
    // A prompt that is only scored may fill the context.
    let only_scored = job.max_tokens == Some(0) && prompt_tokens == max_model_len;
    if prompt_tokens >= max_model_len && !only_scored {
        return Err(RequestError::PromptTooLong { field, prompt_tokens, max_model_len });
    }
    let room = max_model_len - prompt_tokens;
    let max_tokens = job.max_tokens.unwrap_or(room);
    if max_tokens > room {
        let field = job.max_tokens_field;
        return Err(RequestError::MaxTokensTooLarge {
            field,
            max_tokens,
            prompt_tokens,
            max_model_len,
        });
    }
    let min_tokens = job.common.params.min_tokens;
    if min_tokens > max_tokens {
        return Err(RequestError::OutOfRange {
            field: "min_tokens".into(),
            value: min_tokens.to_string(),
            range: format!("at most '{}', which is {max_tokens}", job.max_tokens_field),
        });
    }
    Ok(max_tokens)
}

fn random_seed() -> u64 {
    // Without randomness from the system the server could not make ids either: it does not start.
    getrandom::u64().expect("the system gives random numbers")
}

/// The first choice has the seed itself, so that it is the answer that n = 1 gives; the others' are
/// mixed from it by the finaliser of SplitMix64, so that near seeds do not share choices.
fn choice_seed(seed: u64, choice: usize) -> u64 {
    if choice == 0 {
        return seed;
    }
    let mut x = seed.wrapping_add((choice as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
