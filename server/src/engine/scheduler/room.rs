//! What a plan still has room for.

use crate::engine::request::Lane;
use crate::engine::sequence::Sequence;

/// What is left of the plan being made.
pub struct Room {
    pub tokens: usize,
    /// Tokens of those that the background may have.
    pub background: usize,
    /// Sequences that may still be let in.
    pub seqs: usize,
}

impl Room {
    pub fn tokens_of(&self, lane: Lane) -> usize {
        match lane {
            Lane::Interactive => self.tokens,
            Lane::Background => self.tokens.min(self.background),
        }
    }

    /// As much of the sequence as there are tokens.
    pub fn plan_rest(&mut self, sequence: &mut Sequence, step: u64) {
        let num_tokens = sequence.num_remaining().min(self.tokens_of(sequence.lane()));
        sequence.plan(step, num_tokens);
        self.tokens -= num_tokens;
        if sequence.lane() == Lane::Background {
            self.background -= num_tokens;
        }
    }
}
