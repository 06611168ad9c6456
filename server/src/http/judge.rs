//! How well documents answer queries: what /rerank and /score share.
//!
//! The model is asked, in the words of its card, whether a document meets a query, and the score is
//! how much likelier \"yes\" is than \"no\": p = e^yes / (e^yes + e^no).

use super::embeddings::INSTRUCTION_DEFAULT;
use super::error::ApiError;
use super::pooling;
use super::state::{Context, Serving};
use super::task::Reranker;
use super::tenants::Account;
use crate::engine::{Pooled, Pooling};
use crate::text::{Frame, FramedText};
use std::time::Instant;

const BEFORE: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based \
    on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \
    \"no\".<|im_end|>\n<|im_start|>user\n";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// What stands around `body`.
pub const FRAME: Frame = Frame::Texts { before: BEFORE, after: AFTER };

/// What is judged, as on the model's card.
pub fn body(instruction: &str, query: &str, document: &str) -> String {
    format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}")
}

/// Pairs to judge.
pub struct JudgeJob {
    /// Queries and documents.
    pub pairs: Vec<(String, String)>,
    /// `None`: that of the model's card.
    pub instruction: Option<String>,
    /// For messages: which field holds the documents.
    pub field: &'static str,
    pub tokens_max: Option<usize>,
    pub account: Account,
    pub arrived: Instant,
}

pub struct Judged {
    /// 0 to 1, in the order of the pairs.
    pub scores: Vec<f64>,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
}

/// Errors: as `pooling::run`; a score that is not finite.
pub async fn judge(
    context: &Context,
    serving: &Serving,
    reranker: Reranker,
    job: JudgeJob,
) -> Result<Judged, ApiError> {
    let instruction = job.instruction.as_deref().unwrap_or(INSTRUCTION_DEFAULT);
    let text =
        |(query, document): &(String, String)| FramedText::Text(body(instruction, query, document));
    let job = pooling::Job {
        texts: job.pairs.iter().map(text).collect(),
        frame: FRAME,
        pooling: Pooling::logprobs(&[reranker.no, reranker.yes]),
        field: job.field,
        tokens_max: job.tokens_max,
        account: job.account,
        arrived: job.arrived,
    };
    let pooling::Answers { pooled, prompt_tokens, cached_tokens } =
        pooling::run(context, serving, job).await?;
    let scores = pooled.iter().map(score).collect::<Result<_, _>>()?;
    Ok(Judged { scores, prompt_tokens, cached_tokens })
}

/// Of the log-probabilities of no and yes, whose difference is that of the logits.
pub fn score(pooled: &Pooled) -> Result<f64, ApiError> {
    let Pooled::Logprobs(logprobs) = pooled else { unreachable!("what was asked for") };
    let [no, yes] = &logprobs[..] else { unreachable!("two were asked for") };
    let score = 1.0 / (1.0 + (f64::from(no.logprob) - f64::from(yes.logprob)).exp());
    if score.is_nan() { Err(ApiError::NotFinite) } else { Ok(score) }
}
