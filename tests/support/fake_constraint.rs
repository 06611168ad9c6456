//! A constraint whose masks depend on the sequence's tokens alone, and come late.

use crate::fake_runner::{VOCAB_SIZE, scatter};
use models::TokenId;
use server::engine::{Allowed, Constraint, ConstraintError, ConstraintSource, TokenMask, Wake};
use std::sync::Arc;
use std::task::Poll;

/// What a request of the simulation may sample.
#[derive(Debug, Clone, Copy)]
pub struct FakeConstraint {
    pub seed: u64,
    /// So many times it is asked in vain before each answer.
    pub delay: u64,
    /// The same set at each place, so that it is known in advance.
    pub is_constant: bool,
    /// It cannot be followed further than this.
    pub tokens_max: Option<usize>,
}

impl FakeConstraint {
    /// What may come after `tokens`, without any delay.
    pub fn allowed(&self, tokens: &[TokenId]) -> Result<Allowed, ConstraintError> {
        if self.tokens_max.is_some_and(|tokens_max| tokens.len() >= tokens_max) {
            return Err(ConstraintError { reason: "too long".into() });
        }
        let of_tokens = tokens.iter().fold(self.seed, |x, t| scatter(x ^ u64::from(t.0 + 1)));
        let bits = scatter(if self.is_constant { self.seed } else { of_tokens });
        if bits.is_multiple_of(4) {
            return Ok(Allowed::Any);
        }
        let word = (bits >> 8) as u32 & (bits >> 36) as u32 & ((1 << VOCAB_SIZE) - 1);
        // The end is not always allowed.
        Ok(Allowed::Only(Arc::new(TokenMask::new(vec![word | 1 << (2 + bits % 8)]).unwrap())))
    }
}

impl ConstraintSource for FakeConstraint {
    fn start(&self, _wake: Wake) -> Box<dyn Constraint> {
        Box::new(Following { of: *self, tokens: Vec::new(), asked: 0 })
    }
}

struct Following {
    of: FakeConstraint,
    tokens: Vec<TokenId>,
    asked: u64,
}

impl Constraint for Following {
    fn advance(&mut self, token: TokenId) {
        let allows = match self.of.allowed(&self.tokens) {
            Ok(Allowed::Any) => true,
            Ok(Allowed::Only(mask)) => mask.contains(token),
            Err(_) => false,
        };
        assert!(allows, "{token:?} was not allowed after {:?}", self.tokens);
        self.tokens.push(token);
        self.asked = 0;
    }

    fn allowed(&mut self, num_unknown: usize) -> Poll<Result<Allowed, ConstraintError>> {
        let is_known = num_unknown == 0 || self.of.is_constant && self.of.tokens_max.is_none();
        self.asked += 1;
        match is_known && self.asked > self.of.delay {
            true => Poll::Ready(self.of.allowed(&self.tokens)),
            false => Poll::Pending,
        }
    }
}
