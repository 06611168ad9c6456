//! The constraint of one answer: where it is, and what may come next.

use super::bad_words::BadWords;
use super::grammar::REASON_CHARS_MAX;
use super::{Constraint, Thinking, bits};
use llguidance::Matcher;
use models::TokenId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

const CLOSE: &[u8] = b"</think>";
const CALL: &[u8] = b"<tool_call>";

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    Any,
    /// One bit for each id; at least one is set.
    Only(Vec<u32>),
}

/// What one answer may be, token by token.
pub struct SequenceConstraint {
    shared: Arc<Constraint>,
    wake: Arc<dyn Fn() + Send + Sync>,
    phase: Phase,
    /// The end of the text so far, as long as anyone looks for something in it.
    tail: Vec<u8>,
    tail_max: usize,
    /// None where there is no grammar.
    parser: Option<Arc<Place>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet, and thinking may.
    Beginning,
    /// So many tokens of thinking.
    Thinking(usize),
    /// The budget is spent; so many of the closing tokens have come.
    Closing(usize),
    /// The grammar holds.
    Answer,
}

/// Where a grammar's parser will be when its mask is computed.
#[derive(Default)]
struct Place {
    state: Mutex<Option<Parser>>,
    filled: Condvar,
}

struct Parser {
    /// None when it is broken, or was taken to compute the next mask.
    matcher: Option<Box<Matcher>>,
    mask: Result<Vec<u32>, String>,
}

impl SequenceConstraint {
    /// `wake` is called when an answer that was `Pending` may be there.
    pub fn new(shared: Arc<Constraint>, wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        let phase = match shared.thinking {
            Thinking::None => Phase::Answer,
            Thinking::MayOpen if shared.open_tag.is_none() => Phase::Answer,
            Thinking::MayOpen => Phase::Beginning,
            Thinking::Open if shared.budget.as_ref().is_some_and(|of| of.tokens_max == 0) => {
                Phase::Closing(0)
            }
            Thinking::Open => Phase::Thinking(0),
        };
        let bad_words = shared.bad_words.as_deref().map_or(0, BadWords::tail_max);
        let mut constraint = Self {
            phase,
            tail: Vec::new(),
            tail_max: bad_words.max(CALL.len()),
            parser: None,
            shared,
            wake,
        };
        if let Some(grammar) = constraint.shared.grammar.clone() {
            constraint.compute(move || Some(Box::new(grammar.matcher())), None);
        }
        constraint
    }

    /// Takes in the answer's next token. Never waits.
    pub fn advance(&mut self, token: TokenId) {
        if self.shared.eos.contains(&token) {
            // The answer ends here, or goes on as its request wants it to: without a grammar.
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.tail.extend_from_slice(shared.vocabulary.bytes(token));
        let budget = shared.budget.as_ref();
        let ends_thinking = matches!(self.phase, Phase::Thinking(_)) && self.ends_thinking();
        self.phase = match self.phase {
            Phase::Beginning if Some(token) == self.shared.open_tag => Phase::Thinking(0),
            Phase::Beginning | Phase::Answer => {
                self.advance_grammar(token);
                Phase::Answer
            }
            Phase::Thinking(_) if ends_thinking => Phase::Answer,
            Phase::Thinking(tokens) => Phase::Thinking(tokens + 1),
            Phase::Closing(tokens) => {
                let num_closing = budget.map_or(0, |budget| budget.close.len());
                if tokens + 1 < num_closing { Phase::Closing(tokens + 1) } else { Phase::Answer }
            }
        };
        if let (Phase::Thinking(tokens), Some(budget)) = (self.phase, budget)
            && tokens >= budget.tokens_max
        {
            self.phase = Phase::Closing(0);
        }
        let surplus = self.tail.len().saturating_sub(self.tail_max);
        self.tail.drain(..surplus);
    }

    /// What may come after the tokens so far and `num_unknown` more.
    ///
    /// Errors: nothing may, or the grammar has become too much for its bounds.
    pub fn allowed(&mut self, num_unknown: usize) -> Poll<Result<Allowed, String>> {
        if num_unknown > 0 {
            return self.allowed_later(num_unknown);
        }
        if let Some(token) = self.closing_token(0) {
            return Poll::Ready(Ok(self.only(token)));
        }
        let has_grammar = matches!(self.phase, Phase::Answer | Phase::Beginning);
        let grammar = match self.parser.as_ref().filter(|_| has_grammar).map(|at| at.mask()) {
            None => None,
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(Err(reason))) => return Poll::Ready(Err(reason)),
            Some(Poll::Ready(Ok(mut mask))) => {
                if let (Phase::Beginning, Some(TokenId(open))) = (self.phase, self.shared.open_tag)
                {
                    mask[open as usize / 32] |= 1 << (open % 32);
                }
                Some(mask)
            }
        };
        Poll::Ready(self.join(grammar))
    }

    /// With tokens that nobody knows yet, only what does not depend on them can be said.
    fn allowed_later(&self, num_unknown: usize) -> Poll<Result<Allowed, String>> {
        if let Some(token) = self.closing_token(num_unknown) {
            return Poll::Ready(Ok(self.only(token)));
        }
        let shared = &self.shared;
        let spends_budget = shared.budget.as_ref().is_some_and(|budget| match self.phase {
            Phase::Beginning => num_unknown > budget.tokens_max,
            Phase::Thinking(tokens) => tokens + num_unknown >= budget.tokens_max,
            Phase::Closing(_) | Phase::Answer => false,
        });
        if shared.grammar.is_some() || shared.bad_words.is_some() || spends_budget {
            return Poll::Pending;
        }
        Poll::Ready(self.join(None))
    }

    /// The token that must come, where the thinking is being closed.
    fn closing_token(&self, num_unknown: usize) -> Option<TokenId> {
        let Phase::Closing(tokens) = self.phase else { return None };
        self.shared.budget.as_ref()?.close.get(tokens + num_unknown).copied()
    }

    fn only(&self, token: TokenId) -> Allowed {
        Allowed::Only(bits([token], self.shared.vocabulary.num_ids()))
    }

    /// The grammar's tokens, without those that the request does not want.
    fn join(&self, grammar: Option<Vec<u32>>) -> Result<Allowed, String> {
        let shared = &self.shared;
        let mut mask = match (grammar, &shared.allowed) {
            (Some(mut mask), Some(allowed)) => {
                mask.iter_mut().zip(allowed).for_each(|(word, allowed)| *word &= allowed);
                Some(mask)
            }
            (mask, allowed) => mask.or_else(|| allowed.clone()),
        };
        let is_empty = |mask: &[u32]| mask.iter().all(|&word| word == 0);
        if mask.as_deref().is_some_and(is_empty) {
            return Err("none of 'allowed_token_ids' fits what the answer must be".into());
        }
        if let Some(bad_words) = &shared.bad_words {
            let num_ids = shared.vocabulary.num_ids();
            let before = mask.unwrap_or_else(|| bits((0..num_ids as u32).map(TokenId), num_ids));
            let mut left = before.clone();
            bad_words.remove(&self.tail, &mut left);
            // Bans that leave nothing are void.
            mask = Some(if is_empty(&left) { before } else { left });
        }
        Ok(mask.map_or(Allowed::Any, Allowed::Only))
    }

    /// Whether the thinking is over; a call begins within the grammar.
    fn ends_thinking(&mut self) -> bool {
        let ends_with = |tag: &[u8]| {
            // The token may have more bytes behind the tag.
            self.tail.windows(tag.len()).any(|window| window == tag)
        };
        if ends_with(CLOSE) {
            return true;
        }
        match self.shared.call_tag {
            Some(tag) if self.parser.is_some() && ends_with(CALL) => {
                self.advance_grammar(tag);
                true
            }
            _ => false,
        }
    }

    fn advance_grammar(&mut self, token: TokenId) {
        if let Some(before) = self.parser.take() {
            self.compute(move || before.wait(), Some(token));
        }
    }

    /// Has the mask computed that holds after `token`.
    fn compute(
        &mut self,
        matcher: impl FnOnce() -> Option<Box<Matcher>> + Send + 'static,
        token: Option<TokenId>,
    ) {
        let place = Arc::<Place>::default();
        self.parser = Some(Arc::clone(&place));
        let (shared, wake) = (Arc::clone(&self.shared), Arc::clone(&self.wake));
        self.shared.workers.add(move || {
            // The answer is over, and nobody can ask any more.
            if Arc::strong_count(&place) == 1 {
                return;
            }
            let compute = || {
                let mut matcher = matcher().ok_or("its grammar has failed before")?;
                let num_ids = shared.vocabulary.num_ids();
                let mask = next_mask(&mut matcher, token, &shared.eos, num_ids);
                Ok(Parser { matcher: Some(matcher), mask })
            };
            let parser = catch_unwind(AssertUnwindSafe(compute))
                .unwrap_or_else(|_| Err("its grammar cannot be followed".into()));
            place.fill(parser.unwrap_or_else(|reason: String| Parser::broken(reason)));
            wake();
        });
    }
}

impl Place {
    fn fill(&self, parser: Parser) {
        *self.lock() = Some(parser);
        self.filled.notify_one();
    }

    /// Takes the parser, which an older job puts here: jobs begin in order, so it has begun.
    fn wait(&self) -> Option<Box<Matcher>> {
        let mut state = self.lock();
        loop {
            if let Some(parser) = state.as_mut() {
                return parser.matcher.take();
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn mask(&self) -> Poll<Result<Vec<u32>, String>> {
        self.lock().as_ref().map_or(Poll::Pending, |parser| Poll::Ready(parser.mask.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Parser>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parser {
    fn broken(reason: String) -> Parser {
        Parser { matcher: None, mask: Err(reason) }
    }
}

/// The tokens that may come after `token`; end tokens where the grammar may be complete.
fn next_mask(
    matcher: &mut Matcher,
    token: Option<TokenId>,
    eos: &[TokenId],
    vocab_size: usize,
) -> Result<Vec<u32>, String> {
    let failed = |matcher: &Matcher| {
        let reason = matcher.get_error().unwrap_or_default();
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        format!("its grammar cannot be followed any further: {reason}")
    };
    if let Some(token) = token {
        matcher.consume_token(token.0).map_err(|_| failed(matcher))?;
    }
    let is_over = matcher.is_stopped() && !matcher.is_error();
    let mut mask = match is_over {
        true => vec![0; vocab_size.div_ceil(32)],
        false => matcher.compute_mask().map_err(|_| failed(matcher))?.as_slice().to_vec(),
    };
    // Beyond the vocabulary is the parser's own end of text.
    mask.resize(vocab_size.div_ceil(32), 0);
    if let (Some(last), rest @ 1..) = (mask.last_mut(), vocab_size % 32) {
        *last &= (1 << rest) - 1;
    }
    if is_over || matcher.is_accepting().map_err(|_| failed(matcher))? {
        for token in eos.iter().filter(|token| (token.0 as usize) < vocab_size) {
            mask[token.0 as usize / 32] |= 1 << (token.0 % 32);
        }
    }
    match mask.iter().all(|&word| word == 0) {
        true => Err("the grammar leaves no token".into()),
        false => Ok(mask),
    }
}
