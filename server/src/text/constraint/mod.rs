//! What a request lets its answer be, as the tokens that may come next: a grammar for what follows
//! the thinking, a budget for the thinking, words that must not appear, tokens that may.

mod workers;
mod intersections;
mod grammar;
mod gbnf;
mod tool_calls;
mod bad_words;
mod sequence;
#[cfg(test)]
mod tests;

pub use bad_words::{BAD_WORD_BYTES_MAX, BAD_WORDS_MAX, BadWords};
pub use gbnf::gbnf_to_lark;
pub use grammar::{
    CHOICES_MAX, Grammar, GrammarError, GrammarSource, Grammars, SOURCE_BYTES_MAX, WHITESPACE,
};
pub use sequence::{Allowed, SequenceConstraint};
pub use tool_calls::{CallsWanted, tool_calls_grammar};

use super::vocabulary::Vocabulary;
use models::TokenId;
use std::sync::Arc;
use workers::Workers;

/// Said before thinking is closed because its budget is spent (Qwen's documentation).
pub(super) const BUDGET_SPENT: &str = "\n\nConsidering the limited time by the user, I have to \
     give the solution based on the thinking directly now.\n</think>\n\n";

/// How an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// It does not think.
    None,
    /// Its first token may open the thinking.
    MayOpen,
    /// The prompt has opened it.
    Open,
}

/// What one request asks for, shared by its answers.
pub struct Constraint {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) workers: Arc<Workers>,
    /// May come where the grammar is complete.
    pub(super) eos: Vec<TokenId>,
    pub(super) thinking: Thinking,
    /// `<think>` and `<tool_call>`, where they are tokens.
    pub(super) open_tag: Option<TokenId>,
    pub(super) call_tag: Option<TokenId>,
    pub(super) budget: Option<ThinkingBudget>,
    pub(super) grammar: Option<Arc<Grammar>>,
    /// One bit for each id.
    pub(super) allowed: Option<Vec<u32>>,
    pub(super) bad_words: Option<Arc<BadWords>>,
}

/// After so many tokens the thinking is closed by these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinkingBudget {
    pub tokens_max: usize,
    pub close: Vec<TokenId>,
}

/// What a request may ask for.
#[derive(Default)]
pub struct ConstraintParts {
    pub grammar: Option<Arc<Grammar>>,
    pub thinking_budget: Option<usize>,
    pub bad_words: Option<Arc<BadWords>>,
    /// Each below the vocabulary size.
    pub allowed_token_ids: Option<Vec<TokenId>>,
}

impl ConstraintParts {
    pub fn is_empty(&self) -> bool {
        self.grammar.is_none()
            && self.thinking_budget.is_none()
            && self.bad_words.is_none()
            && self.allowed_token_ids.is_none()
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint")
            .field("thinking", &self.thinking)
            .field("budget", &self.budget.as_ref().map(|budget| budget.tokens_max))
            .field("has_grammar", &self.grammar.is_some())
            .finish_non_exhaustive()
    }
}

/// Bit `id % 32` of word `id / 32` for each of `ids`.
pub(super) fn bits(ids: impl IntoIterator<Item = TokenId>, num_ids: usize) -> Vec<u32> {
    let mut words = vec![0; num_ids.div_ceil(32)];
    for id in ids {
        if let Some(word) = words.get_mut(id.0 as usize / 32) {
            *word |= 1 << (id.0 % 32);
        }
    }
    words
}
