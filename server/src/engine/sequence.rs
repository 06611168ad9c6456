//! A request in progress.

use super::blocks::{BlockTable, HashChain};
use super::plan::{Chunk, PromptScore, SampleStep, SequenceId};
use super::request::{Event, FinishReason, Request, SampledToken, SamplingParams, TokenLogprobs};
use models::TokenId;
use std::sync::Arc;
use std::time::Instant;

/// All that is known of a request in progress. Each step computes some of its tokens, until
/// `num_computed` reaches `token_ids.len()`; then one more token is sampled and appended.
pub struct Sequence {
    id: SequenceId,
    arrival: Instant,
    priority: i32,
    params: Arc<SamplingParams>,
    prompt_len: usize,
    pub(super) token_ids: Vec<TokenId>,
    pub(super) num_computed: usize,
    /// Tokens the step under way computes; 0 if it leaves the sequence out.
    pub(super) num_planned: usize,
    pub(super) table: BlockTable,
    pub(super) chain: HashChain,
    /// None once the scores are sent, or if none were asked for.
    prompt_scores: Option<Vec<TokenLogprobs>>,
    start: Start,
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
    pub fn new(id: SequenceId, request: Request, arrival: Instant) -> Self {
        assert!(!request.prompt.is_empty(), "a request has at least one prompt token");
        let wants_scores = request.sampling.prompt_logprobs.is_some();
        Self {
            id,
            arrival,
            priority: request.priority,
            params: Arc::new(request.sampling),
            prompt_len: request.prompt.len(),
            token_ids: request.prompt,
            num_computed: 0,
            num_planned: 0,
            table: BlockTable::default(),
            chain: HashChain::new(request.cache_salt),
            prompt_scores: wants_scores.then(Vec::new),
            start: Start::Waiting,
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

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// The prompt and all tokens sampled so far.
    pub fn token_ids(&self) -> &[TokenId] {
        &self.token_ids
    }

    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Tokens that are known but not computed; at least one while the sequence runs.
    pub fn num_remaining(&self) -> usize {
        self.token_ids.len() - self.num_computed
    }

    /// Whether it has been scheduled at least once.
    pub fn is_started(&self) -> bool {
        self.start != Start::Waiting
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
        self.num_computed = 0;
        self.num_planned = 0;
        if let Some(scores) = &mut self.prompt_scores {
            scores.clear();
        }
        std::mem::take(&mut self.table)
    }

    /// The planned tokens as work for the runner.
    pub(super) fn chunk(&self) -> Chunk {
        let (start, end) = (self.num_computed, self.num_computed + self.num_planned);
        Chunk {
            sequence: self.id,
            token_ids: self.token_ids[start..end].to_vec(),
            start,
            block_table: self.table.blocks().to_vec(),
            sample: self.sample_step(end),
            prompt_logprobs: self.prompt_score(start, end),
        }
    }

    /// Takes in what the step computed. Returns how the sequence ends, if it does.
    pub(super) fn advance(
        &mut self,
        sampled: Option<SampledToken>,
        scores: Vec<TokenLogprobs>,
        model_len_max: usize,
        mut emit: impl FnMut(Event),
    ) -> Option<FinishReason> {
        self.num_computed += std::mem::take(&mut self.num_planned);
        if let Start::Scheduled { cached_tokens } = self.start {
            self.start = Start::Told;
            emit(Event::Started { cached_tokens });
        }
        self.add_scores(scores, &mut emit);
        let finish = match sampled {
            Some(sampled) => {
                let finish = self.append(sampled.token, model_len_max);
                emit(Event::Token(sampled));
                finish
            }
            // Without a token to sample, the sequence ends when its prompt is computed.
            None => (self.num_remaining() == 0).then_some(FinishReason::Length),
        };
        if let Some(reason) = finish {
            emit(Event::Finished { reason });
        }
        finish
    }

    fn sample_step(&self, end: usize) -> Option<SampleStep> {
        if end < self.token_ids.len() || self.params.max_new_tokens == 0 {
            return None;
        }
        let history = if self.params.needs_history() { self.token_ids.clone() } else { Vec::new() };
        Some(SampleStep {
            params: Arc::clone(&self.params),
            position: end,
            prompt_len: self.prompt_len,
            history,
        })
    }

    fn prompt_score(&self, start: usize, end: usize) -> Option<PromptScore> {
        self.prompt_scores.as_ref()?;
        let top = self.params.prompt_logprobs?;
        let targets = &self.token_ids[start + 1..(end + 1).min(self.prompt_len)];
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

    fn append(&mut self, token: TokenId, model_len_max: usize) -> Option<FinishReason> {
        self.token_ids.push(token);
        if self.params.stops_at(token) {
            return Some(FinishReason::Stop);
        }
        let num_new = self.token_ids.len() - self.prompt_len;
        let is_full =
            num_new >= self.params.max_new_tokens || self.token_ids.len() >= model_len_max;
        is_full.then_some(FinishReason::Length)
    }
}
