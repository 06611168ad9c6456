//! What a request allows to come next, decided outside the engine token by token.

use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::sync::Arc;
use std::task::Poll;

use models::TokenId;

/// Called from any thread when an answer that was `Pending` may be there.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A request's constraint, shared by its sequences.
pub trait ConstraintSource: Debug + Send + Sync {
    /// A sequence is about to begin. Never waits.
    fn start(&self, wake: Wake) -> Box<dyn Constraint>;
}

/// The constraint of one sequence. What it allows is a function of the sequence's tokens alone.
pub trait Constraint: Send {
    /// Takes in the next token, one that was allowed. Never waits: what takes time is done
    /// elsewhere, and `Wake` called when it is done.
    fn advance(&mut self, token: TokenId);

    /// What may come after the tokens so far and `num_unknown` more that nobody knows yet.
    /// `Pending`: not known yet; with `num_unknown` above 0 it may never be.
    ///
    /// Errors: no more can be said; the request ends.
    fn allowed(&mut self, num_unknown: usize) -> Poll<Result<Allowed, ConstraintError>>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    Any,
    Only(Arc<TokenMask>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConstraintError {
    pub reason: String,
}

/// A set of tokens: one bit for each id; ids beyond it are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// Bit `i % 32` of word `i / 32` says whether id i is in the set. A set without a single token
    /// would leave nothing to sample: None.
    pub fn new(words: Vec<u32>) -> Option<TokenMask> {
        words.iter().any(|&word| word != 0).then_some(TokenMask { words })
    }

    pub fn words(&self) -> &[u32] {
        &self.words
    }

    pub fn contains(&self, token: TokenId) -> bool {
        let word = self.words.get(token.0 as usize / 32).copied().unwrap_or(0);
        word >> (token.0 % 32) & 1 == 1
    }

    /// Sets the logits of all other tokens to -inf.
    ///
    /// Shapes: `row` [vocab]. Memory: reads the mask once, writes where a bit is 0.
    pub fn apply(&self, row: &mut [f32]) {
        let mut words = self.words.iter();
        for logits in row.chunks_mut(32) {
            match words.next().copied().unwrap_or(0) {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_leaves_its_tokens_and_no_others() {
        let mask = TokenMask::new(vec![0b1001, 0, u32::MAX]).unwrap();
        let mut row: Vec<f32> = (0..110).map(|i| i as f32).collect();
        mask.apply(&mut row);
        for (id, &logit) in row.iter().enumerate() {
            let is_in = id == 0 || id == 3 || (64..96).contains(&id);
            assert_eq!(mask.contains(TokenId(id as u32)), is_in, "id {id}");
            assert_eq!(logit, if is_in { id as f32 } else { f32::NEG_INFINITY });
        }
        assert_eq!(TokenMask::new(vec![0; 9]), None);
    }
}
