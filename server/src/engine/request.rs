//! All that crosses the engine's border.

use super::constraint::ConstraintSource;
use super::pooling::{Pooled, Pooling};
use models::TokenId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Most alternatives a request may ask for beside each token.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// Keeps the prefix caches of different API keys apart: blocks are shared only under equal salts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CacheSalt(pub [u8; 32]);

/// Who waits for the answer. What runs in the background makes way for the rest, whatever the
/// policy says, and has places of its own in the waiting queue, so that it crowds nobody out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Lane {
    /// A client that is there.
    #[default]
    Interactive,
    /// Nobody for now, as with the rows of a batch job.
    Background,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TenantId(pub u32);

/// On whose account a request runs. Whatever is short is shared between tenants by their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    pub id: TenantId,
    /// At least 1.
    pub weight: u32,
    /// Of all tenants there are, this one included.
    pub weights: u32,
}

impl Default for Tenant {
    /// The only one.
    fn default() -> Self {
        Self { id: TenantId::default(), weight: 1, weights: 1 }
    }
}

/// One sequence to generate, checked by whoever made it. A client's `n` choices are n requests with
/// n seeds.
#[derive(Debug, Clone)]
pub struct Request {
    /// At least one token, each below the vocabulary size; prompt + max_new_tokens fits the model's
    /// context.
    pub prompt: Vec<TokenId>,
    pub sampling: SamplingParams,
    /// In place of an answer; `sampling.max_new_tokens` is 0 then.
    pub pooling: Option<Pooling>,
    /// Smaller is sooner, as in vLLM; used by the priority policy.
    pub priority: i32,
    pub lane: Lane,
    pub tenant: Tenant,
    pub cache_salt: CacheSalt,
    /// What may be sampled; None: anything.
    pub constraint: Option<Arc<dyn ConstraintSource>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// At least 1, but 0 is allowed together with `prompt_logprobs` or `pooling`: then the prompt
    /// is only computed.
    pub max_new_tokens: usize,
    /// Until so many tokens are generated, `eos_token_ids` and `stop_token_ids` cannot be sampled.
    pub min_tokens: usize,
    /// 0 is greedy: the highest logit, the lowest id on a tie.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// Over prompt and output; 1: off.
    pub repetition_penalty: f32,
    /// Over the output; 0: off.
    pub presence_penalty: f32,
    /// Over the output; 0: off.
    pub frequency_penalty: f32,
    /// Added to logits; sorted by id, each id once.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The draw behind a token depends on this and its position alone.
    pub seed: u64,
    /// Empty when the request ignores them.
    pub eos_token_ids: Vec<TokenId>,
    pub stop_token_ids: Vec<TokenId>,
    /// Some(k): report each sampled token's log-probability and the k best (k <= TOP_LOGPROBS_MAX).
    /// They are those of the model (log-softmax of the raw logits), before penalties, bias and
    /// temperature.
    pub logprobs: Option<usize>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    /// Greedy, 16 tokens, nothing else.
    fn default() -> Self {
        Self {
            max_new_tokens: 16,
            min_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            eos_token_ids: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether sampling looks at the tokens so far.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Whether generating `token` ends the sequence.
    pub fn stops_at(&self, token: TokenId) -> bool {
        self.eos_token_ids.contains(&token) || self.stop_token_ids.contains(&token)
    }
}

/// Log-probability of one token and of its best alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    pub token: TokenId,
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    /// Best first, lowest id first on a tie.
    pub top: Vec<(TokenId, f32)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub token: TokenId,
    pub logprobs: Option<TokenLogprobs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-sequence or stop token, which is the last token sent.
    Stop,
    /// max_new_tokens or the end of the context.
    Length,
}

/// What a client's stream receives, in this order: Started, PromptLogprobs and Pooled if asked for,
/// Token..., then Finished or Failed.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// First scheduled; so many prompt tokens came out of the prefix cache. Sent once, also when
    /// preempted later.
    Started {
        cached_tokens: usize,
    },
    /// One entry for each prompt token but the first.
    PromptLogprobs(Vec<TokenLogprobs>),
    Pooled(Pooled),
    Token(SampledToken),
    Finished {
        reason: FinishReason,
    },
    Failed(EngineError),
}

/// The load is too high: the client may retry (429, or 503 while ending).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("{waiting} requests are waiting, the limit is {waiting_max}")]
    QueueFull { waiting: usize, waiting_max: usize },
    #[error("{tokens} prompt tokens are waiting, the limit is {tokens_max}")]
    TooManyTokens { tokens: usize, tokens_max: usize },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the engine has stopped")]
    EngineStopped,
}

/// One request is lost; others go on (500), or the device is (503).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("the request needs {needed} cache blocks, the cache has {total}")]
    NeverFits { needed: usize, total: usize },
    #[error("the prompt has {tokens} tokens, the limit is {tokens_max}")]
    PromptTooLong { tokens: usize, tokens_max: usize },
    /// What the client asked for turned out to be more than can be held.
    #[error("the output cannot be constrained further: {reason}")]
    Constraint { reason: String },
    #[error("the compute device was lost: {0}")]
    DeviceLost(String),
}
