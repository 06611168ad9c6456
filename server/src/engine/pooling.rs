//! Requests that generate nothing: their prompt is computed, and the answer is read off its last
//! token.

use super::request::TokenLogprobs;
use models::TokenId;
use serde::{Deserialize, Serialize};

/// Most tokens whose log-probabilities one request asks for: each is a row of logits.
pub const POOLED_TOKENS_MAX: usize = 2;

/// What is read off the last token of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// Its last hidden state, after the final norm: hidden_size values.
    Hidden,
    /// The log-probabilities of these tokens to follow it: 1 to `POOLED_TOKENS_MAX`. They are those
    /// of the model, as in `SamplingParams::logprobs`.
    Logprobs(Vec<TokenId>),
}

/// What was asked for, bit for bit the same alone and in any batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Pooled {
    Hidden(Vec<f32>),
    /// In the order in which they were asked for.
    Logprobs(Vec<TokenLogprobs>),
}

impl Pooling {
    /// Panics when too many tokens are asked for.
    pub fn logprobs(tokens: &[TokenId]) -> Pooling {
        let count = tokens.len();
        assert!((1..=POOLED_TOKENS_MAX).contains(&count), "1 to {POOLED_TOKENS_MAX}, not {count}");
        Pooling::Logprobs(tokens.to_vec())
    }
}
