//! A request in progress.

use super::blocks::{BlockTable, HashChain};
use super::constraint::{Allowed, Constraint, ConstraintError, TokenMask, Wake};
use super::plan::{Chunk, ChunkInput, ChunkOutput, PromptScore, SampleStep, SequenceId};
use super::policy::Flow;
use super::pooling::Pooling;
use super::request::{Event, FinishReason, Lane, Request, SamplingParams, Tenant, TokenLogprobs};
use super::runner::PLANS_UNDER_WAY_MAX;
use models::TokenId;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

/// All that is known of a request in progress. Each step computes some of its tokens, until
/// `num_computed` reaches `token_ids.len()`; then one more token is sampled and appended.
pub struct Sequence {
    id: SequenceId,
    arrival: Instant,
    priority: i32,
    lane: Lane,
    tenant: Tenant,
    /// The place of its flow among all, as of the last plan.
    pub(super) turn: usize,
    /// How many of other flows were let in while there were no blocks for it.
    pub(super) num_passed: u32,
    params: Arc<SamplingParams>,
    pooling: Option<Pooling>,
    prompt_len: usize,
    /// Once it has generated something and is so long, it ends.
    len_max: usize,
    pub(super) token_ids: Vec<TokenId>,
    pub(super) num_computed: usize,
    under_way: Shares,
    pub(super) table: BlockTable,
    pub(super) chain: HashChain,
    /// None once the scores are sent, or if none were asked for.
    prompt_scores: Option<Vec<TokenLogprobs>>,
    start: Start,
    has_ended: bool,
    constraint: Option<Constrained>,
}

/// What a sequence's constraint has said last.
struct Constrained {
    constraint: Box<dyn Constraint>,
    /// How long the sequence is before the token that this is said of.
    answer: Option<(usize, Allowed)>,
}

/// What one step computes of a sequence.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    step: u64,
    num_tokens: usize,
    samples: bool,
    /// Which chunk of that step's plan it is.
    place: usize,
}

/// A sequence's parts in the steps under way, the oldest first, and what they come to.
#[derive(Debug, Default)]
struct Shares {
    all: [Share; PLANS_UNDER_WAY_MAX],
    count: usize,
    num_tokens: usize,
    num_sampled: usize,
}

impl Shares {
    fn push(&mut self, share: Share) {
        self.all[self.count] = share;
        self.count += 1;
        self.num_tokens += share.num_tokens;
        self.num_sampled += usize::from(share.samples);
    }

    fn pop(&mut self) -> Option<Share> {
        let oldest = *self.oldest()?;
        self.all.copy_within(1..self.count, 0);
        self.count -= 1;
        self.num_tokens -= oldest.num_tokens;
        self.num_sampled -= usize::from(oldest.samples);
        Some(oldest)
    }

    fn oldest(&self) -> Option<&Share> {
        self.all[..self.count].first()
    }

    fn newest(&mut self) -> Option<&mut Share> {
        self.all[..self.count].last_mut()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Waiting,
    /// Scheduled for the first time; the client is told with the step's results.
    Scheduled {
        cached_tokens: usize,
    },
    Told,
}

impl Sequence {
    /// `model_len_max` is the most tokens a sequence may have, prompt and output. `wake` is for its
    /// constraint.
    pub fn new(
        id: SequenceId,
        request: Request,
        arrival: Instant,
        model_len_max: usize,
        wake: &Wake,
    ) -> Self {
        assert!(!request.prompt.is_empty(), "a request has at least one prompt token");
        let generates = request.sampling.max_new_tokens > 0;
        assert!(!(generates && request.pooling.is_some()), "a pooled prompt has no answer");
        let wants_scores = request.sampling.prompt_logprobs.is_some();
        let len_wished = request.prompt.len().saturating_add(request.sampling.max_new_tokens);
        Self {
            id,
            arrival,
            priority: request.priority,
            lane: request.lane,
            tenant: request.tenant,
            turn: 0,
            num_passed: 0,
            params: Arc::new(request.sampling),
            pooling: request.pooling,
            prompt_len: request.prompt.len(),
            len_max: len_wished.min(model_len_max),
            token_ids: request.prompt,
            num_computed: 0,
            under_way: Shares::default(),
            table: BlockTable::default(),
            chain: HashChain::new(request.cache_salt),
            prompt_scores: wants_scores.then(Vec::new),
            start: Start::Waiting,
            has_ended: false,
            constraint: request.constraint.map(|source| Constrained {
                constraint: source.start(Arc::clone(wake)),
                answer: None,
            }),
        }
    }

    pub fn id(&self) -> SequenceId {
        self.id
    }

    pub fn arrival(&self) -> Instant {
        self.arrival
    }

    pub fn priority(&self) -> i32 {
        self.priority
    }

    pub fn lane(&self) -> Lane {
        self.lane
    }

    pub fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// Whose turn it is when it is its turn.
    pub fn flow(&self) -> Flow {
        Flow { lane: self.lane, tenant: self.tenant.id }
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// The prompt and all tokens sampled so far, as far as they are known.
    pub fn token_ids(&self) -> &[TokenId] {
        &self.token_ids
    }

    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Tokens that the next step may compute; a token that is being sampled counts. 0 when the
    /// steps under way are certain to be its last, or when it is not known yet what may come next;
    /// else at least one while it runs and none is under way.
    pub fn num_remaining(&self) -> usize {
        if self.is_ending() {
            return 0;
        }
        // The last of them is the one whose logits are sampled.
        let num_held = usize::from(self.awaits_constraint());
        self.expected_len() - self.num_scheduled() - num_held
    }

    /// Whether the steps under way are certain to be its last.
    pub fn is_ending(&self) -> bool {
        let len = self.expected_len();
        let is_sampling = len > self.token_ids.len();
        // A prompt that is only scored ends when all of it is computed.
        (is_sampling && len >= self.len_max) || len == self.num_scheduled()
    }

    /// Whether anything ever has to be asked of a constraint.
    pub fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Whether its next token cannot be sampled before its constraint has spoken.
    pub fn awaits_constraint(&self) -> bool {
        let len = self.expected_len();
        let is_known = |of: &Constrained| of.answer.as_ref().is_some_and(|(at, _)| *at == len);
        self.constraint.as_ref().is_some_and(|of| !is_known(of)) && self.params.max_new_tokens > 0
    }

    /// Asks the constraint what may come next, if that is not known yet. Errors: the sequence
    /// cannot go on.
    pub(super) fn ask_constraint(&mut self) -> Result<(), ConstraintError> {
        if !self.awaits_constraint() || self.is_ending() {
            return Ok(());
        }
        let len = self.expected_len();
        let num_unknown = len - self.token_ids.len();
        let Some(of) = &mut self.constraint else { return Ok(()) };
        if let Poll::Ready(allowed) = of.constraint.allowed(num_unknown) {
            of.answer = Some((len, allowed?));
        }
        Ok(())
    }

    /// Tokens that are computed once the steps under way have ended.
    pub(super) fn num_scheduled(&self) -> usize {
        self.num_computed + self.under_way.num_tokens
    }

    pub fn is_under_way(&self) -> bool {
        self.under_way.count > 0
    }

    /// Which chunk of `step`, the oldest under way, is its part.
    pub(super) fn place_in(&self, step: u64) -> Option<usize> {
        self.under_way.oldest().filter(|share| share.step == step).map(|share| share.place)
    }

    /// Whether it has been scheduled at least once.
    pub fn is_started(&self) -> bool {
        self.start != Start::Waiting
    }

    /// Whether its last event was emitted.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether logits at prompt positions are still needed: cached blocks have none.
    pub fn scores_prompt(&self) -> bool {
        self.prompt_scores.is_some()
    }

    pub(super) fn set_started(&mut self, cached_tokens: usize) {
        assert!(!self.is_started(), "a sequence starts once");
        self.start = Start::Scheduled { cached_tokens };
    }

    /// Forgets what was computed; the tokens stay, so they are neither sampled nor sent again.
    /// Returns the blocks.
    pub(super) fn reset(&mut self) -> BlockTable {
        assert!(!self.is_under_way(), "a sequence is preempted between steps");
        self.num_computed = 0;
        if let Some(scores) = &mut self.prompt_scores {
            scores.clear();
        }
        std::mem::take(&mut self.table)
    }

    /// Makes its next tokens a part of the step.
    pub(super) fn plan(&mut self, step: u64, num_tokens: usize) {
        assert!(0 < num_tokens && num_tokens <= self.num_remaining(), "only what is left");
        let end = self.num_scheduled() + num_tokens;
        let samples = end == self.expected_len() && self.params.max_new_tokens > 0;
        self.under_way.push(Share { step, num_tokens, samples, place: 0 });
    }

    /// Its part in the newest step as work for the runner, the chunk `place` of the plan; None if
    /// that step leaves it out.
    pub(super) fn chunk(&mut self, step: u64, place: usize) -> Option<Chunk> {
        let share = self.under_way.newest().filter(|share| share.step == step)?;
        share.place = place;
        let share = *share;
        let end = self.num_scheduled();
        let start = end - share.num_tokens;
        let input = match self.token_ids.get(start..end) {
            Some(token_ids) => ChunkInput::Known(token_ids.to_vec()),
            None => {
                let next = (self.token_ids.len(), self.token_ids.len() + 1);
                assert_eq!((start, end), next, "one token is unknown at a time");
                ChunkInput::FromLastStep
            }
        };
        Some(Chunk {
            sequence: self.id,
            input,
            start,
            block_table: self.table.lend(),
            sample: share.samples.then(|| self.sample_step(end)),
            prompt_logprobs: self.prompt_score(start, end),
            pooling: self.pooling.clone().filter(|_| end == self.token_ids.len()),
        })
    }

    /// Takes in what the oldest step under way computed. Returns how the sequence ends, if it does.
    pub(super) fn advance(
        &mut self,
        output: ChunkOutput,
        mut emit: impl FnMut(Event),
    ) -> Option<FinishReason> {
        let share = self.under_way.pop().expect("a step is under way");
        let ChunkOutput { sampled, prompt_logprobs: scores, pooled } = output;
        assert_eq!(share.samples, sampled.is_some(), "sampled as planned");
        self.num_computed += share.num_tokens;
        if let Start::Scheduled { cached_tokens } = self.start {
            self.start = Start::Told;
            emit(Event::Started { cached_tokens });
        }
        self.add_scores(scores, &mut emit);
        let finish = match sampled {
            Some(sampled) => {
                let finish = self.append(sampled.token);
                emit(Event::Token(sampled));
                finish
            }
            None if self.pooling.is_some() => pooled.map(|pooled| {
                assert_eq!(self.num_computed, self.token_ids.len(), "the prompt is whole");
                emit(Event::Pooled(pooled));
                FinishReason::Stop
            }),
            // Without a token to sample, the sequence ends when its prompt is computed.
            None => (self.num_computed == self.token_ids.len()).then_some(FinishReason::Length),
        };
        if let Some(reason) = finish {
            self.has_ended = true;
            emit(Event::Finished { reason });
        }
        finish
    }

    /// Its length once the steps under way have ended, if it goes on by then.
    fn expected_len(&self) -> usize {
        self.token_ids.len() + self.under_way.num_sampled
    }

    fn sample_step(&self, end: usize) -> SampleStep {
        let history = if self.params.needs_history() { self.token_ids.clone() } else { Vec::new() };
        SampleStep {
            params: Arc::clone(&self.params),
            position: end,
            prompt_len: self.prompt_len,
            history,
            mask: self.mask(end),
        }
    }

    fn mask(&self, end: usize) -> Option<Arc<TokenMask>> {
        let (len, allowed) = self.constraint.as_ref()?.answer.as_ref()?;
        assert_eq!(*len, end, "sampled as the constraint has said");
        match allowed {
            Allowed::Any => None,
            Allowed::Only(mask) => Some(Arc::clone(mask)),
        }
    }

    fn prompt_score(&self, start: usize, end: usize) -> Option<PromptScore> {
        self.prompt_scores.as_ref()?;
        let top = self.params.prompt_logprobs?;
        let targets = self.token_ids.get(start + 1..(end + 1).min(self.prompt_len))?;
        (!targets.is_empty()).then(|| PromptScore { targets: targets.to_vec(), top })
    }

    fn add_scores(&mut self, scores: Vec<TokenLogprobs>, emit: &mut impl FnMut(Event)) {
        let Some(all) = &mut self.prompt_scores else { return };
        all.extend(scores);
        if self.num_computed >= self.prompt_len {
            assert_eq!(all.len(), self.prompt_len - 1, "each prompt token but the first is scored");
            let all = self.prompt_scores.take().expect("it is there");
            emit(Event::PromptLogprobs(all));
        }
    }

    fn append(&mut self, token: TokenId) -> Option<FinishReason> {
        self.token_ids.push(token);
        if let Some(of) = &mut self.constraint {
            of.constraint.advance(token);
        }
        if self.params.stops_at(token) {
            return Some(FinishReason::Stop);
        }
        (self.token_ids.len() >= self.len_max).then_some(FinishReason::Length)
    }
}
