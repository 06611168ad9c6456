//! What a plan still has room for.

use crate::engine::request::Lane;
use crate::engine::sequence::Sequence;

/// Of a step's tokens, the prompts of those who have had more than others get one part in so many:
/// a request that comes meanwhile waits a fraction of a step.
const LATER_PARTS: usize = 4;

/// What is left of the plan being made.
pub struct Room {
    pub tokens: usize,
    /// Tokens of those that the background may have.
    pub background: usize,
    /// Tokens of those that the prompts of whoever comes later may have.
    pub later: usize,
    /// Whether that is whose turn it is.
    pub is_later: Later,
    /// Sequences that may still be let in.
    pub seqs: usize,
    /// See `EngineConfig`; `None` while nobody else is there whom a long step would keep waiting.
    pub double_cost_context: Option<usize>,
}

/// Whether others go first, or were there lately and would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    No,
    Yes,
}

impl Room {
    pub fn tokens_of(&self, lane: Lane) -> usize {
        match lane {
            Lane::Interactive => self.tokens,
            Lane::Background => self.tokens.min(self.background),
        }
    }

    /// The same for prompts.
    pub fn prompt_tokens_of(&self, lane: Lane) -> usize {
        match self.is_later {
            Later::No => self.tokens_of(lane),
            Later::Yes => self.tokens_of(lane).min(self.later),
        }
    }

    /// The one token that the sequence has left.
    pub fn plan_token(&mut self, sequence: &mut Sequence, step: u64) {
        sequence.plan(step, 1);
        self.take(sequence.lane(), 1);
    }

    /// As much of the sequence as there is room for. Tokens that attend to many others count more,
    /// so that a step takes no longer than others of its kind.
    pub fn plan_prompt(&mut self, sequence: &mut Sequence, step: u64) {
        let most = self.prompt_tokens_of(sequence.lane());
        let num_wanted = sequence.num_remaining().min(most);
        let (num_tokens, cost) = match self.double_cost_context {
            None => (num_wanted, num_wanted),
            Some(double) => within(most, num_wanted, sequence.num_scheduled(), double),
        };
        sequence.plan(step, num_tokens);
        self.take(sequence.lane(), cost);
        if self.is_later == Later::Yes {
            self.later -= cost;
        }
    }

    fn take(&mut self, lane: Lane, cost: usize) {
        self.tokens -= cost;
        if lane == Lane::Background {
            self.background -= cost;
        }
    }
}

pub fn later_part_of(tokens_max: usize) -> usize {
    tokens_max.div_ceil(LATER_PARTS)
}

/// What tokens behind `context` others count, where one behind `double` counts as two.
pub fn cost_of(num_tokens: usize, context: usize, double: usize) -> usize {
    let attended = num_tokens as u128 * context as u128 / double.max(1) as u128;
    num_tokens.saturating_add(attended.min(usize::MAX as u128) as usize)
}

/// How many of `num_wanted` tokens behind `context` others cost no more than `most`, at least one,
/// and what they cost.
fn within(most: usize, num_wanted: usize, context: usize, double: usize) -> (usize, usize) {
    let cost = cost_of(num_wanted, context, double);
    if cost <= most {
        return (num_wanted, cost);
    }
    let share = most as u128 * double as u128 / (double as u128 + context as u128);
    // What is left would not do for one more.
    ((share as usize).clamp(1, num_wanted), most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_deep_in_a_context_count_more() {
        let cases = [
            ((256, 256, 0, 1000), (256, 256)),
            ((256, 100, 1000, 1000), (100, 200)),
            ((256, 200, 1000, 1000), (128, 256)),
            ((256, 256, 3000, 1000), (64, 256)),
            ((256, 256, 1_000_000, 1000), (1, 256)),
            ((256, 256, 1_000_000, usize::MAX), (256, 256)),
            ((1, 5, 10, 1), (1, 1)),
        ];
        for ((most, wanted, context, double), expected) in cases {
            let found = within(most, wanted, context, double);
            assert_eq!(found, expected, "{most} {wanted} {context} {double}");
        }
    }
}
