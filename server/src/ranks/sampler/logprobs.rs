//! Log-probabilities of the model's own distribution: log-softmax of the logits before any request
//! changes them.

use super::SampleError;
use super::filter::{Candidate, select_top_k};
use super::softmax::{argmax, sum_weights};
use crate::engine::TokenLogprobs;
use models::TokenId;

/// What has to be kept of a row before it is changed.
#[derive(Debug)]
pub struct RawDistribution {
    /// Logarithm of the sum of exponentials.
    log_sum: f64,
    top: Vec<(TokenId, f32)>,
}

impl RawDistribution {
    /// Errors: `NoFiniteLogit`.
    pub fn of(row: &[f32], top: usize, work: &mut Vec<Candidate>) -> Result<Self, SampleError> {
        let max = argmax(row).logit;
        if max == f32::NEG_INFINITY {
            return Err(SampleError::NoFiniteLogit { vocab: row.len() });
        }
        let log_sum = f64::from(max) + sum_weights(row, max, 1.0).ln();
        select_top_k(row, f32::NEG_INFINITY, top, work);
        work.sort_unstable_by(Candidate::order);
        let logprob = |c: &Candidate| (TokenId(c.id), (f64::from(c.logit) - log_sum) as f32);
        Ok(Self { log_sum, top: work.iter().map(logprob).collect() })
    }

    /// `row` as it was for `of`. A token outside it, or without a finite logit, has probability 0
    /// and the last rank.
    pub fn score(self, row: &[f32], token: TokenId) -> TokenLogprobs {
        let place = token.0 as usize;
        let logit = row.get(place).copied().unwrap_or(f32::NEG_INFINITY);
        let higher = row.iter().map(|&x| u32::from(x > logit)).sum::<u32>();
        let equal = row.iter().take(place).map(|&x| u32::from(x == logit)).sum::<u32>();
        TokenLogprobs {
            token,
            logprob: (f64::from(logit) - self.log_sum) as f32,
            rank: 1 + higher + equal,
            top: self.top,
        }
    }
}
