//! A runner whose tokens depend on the KV slots it really read, and what each request must give.
//!
//! A slot holds a token, its position, and a digest of all slots that were read when it was
//! written, like the keys and values of a real model's deeper layers. The next token is a hash of
//! all slots up to the sequence's end. So a slot that is read before it was written, after it was
//! overwritten, or at the wrong place gives another token than the request gets alone.

use models::TokenId;
use server::engine::{
    Allowed, BlockId, CacheSalt, Chunk, ChunkInput, ChunkOutput, Constraint, ConstraintError,
    EngineError, Event, FinishReason, LastStep, PLANS_UNDER_WAY_MAX, Plan, Pooled, Pooling,
    Request, Runner, RunnerError, SampleStep, SampledToken, SamplingParams, SequenceId, StepOutput,
    TokenLogprobs, TokenMask,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Poll;

/// Token ids are below this.
pub const VOCAB_SIZE: u32 = 24;
/// Sequences carry their salt in their id, so that the runner can tell whose slots it reads.
pub const NUM_SALTS: u64 = 3;

/// The number of a sequence's salt.
pub fn salt_index(id: SequenceId) -> u64 {
    id.0 % NUM_SALTS
}

pub fn salt(index: u64) -> CacheSalt {
    CacheSalt([index as u8; 32])
}

/// A bijection on 64-bit numbers that scatters its input (the finaliser of SplitMix64).
pub fn scatter(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SlotContents {
    token: TokenId,
    position: usize,
    /// Digest of the slots before it, as they were read when this one was written.
    context: u64,
    writer: SequenceId,
}

/// Folds the slots of a sequence in order of position.
#[derive(Debug, Clone, Copy, Default)]
struct Digest(u64);

impl Digest {
    fn read(self, token: TokenId, position: usize, context: u64) -> Digest {
        let x = scatter(self.0 ^ scatter(context.wrapping_add(1)));
        Digest(scatter(x ^ ((u64::from(token.0) << 32) | position as u64)))
    }

    /// The digest after a slot that is written in the context of this one.
    fn extend(self, token: TokenId, position: usize) -> Digest {
        self.read(token, position, self.0)
    }
}

pub struct FakeRunner {
    block_size: usize,
    slots: Vec<Option<SlotContents>>,
    under_way: VecDeque<Plan>,
    last_step: LastStep,
    /// Places of the tokens in `last_step`.
    last_positions: BTreeMap<SequenceId, usize>,
    fault: Option<Fault>,
    num_collected: u64,
    num_from_last_step: u64,
}

/// The device is lost in this step.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub step: u64,
    pub at: FaultAt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAt {
    Launch,
    Collect,
}

impl FakeRunner {
    pub fn new(num_blocks: usize, block_size: usize, fault: Option<Fault>) -> Self {
        Self {
            block_size,
            slots: vec![None; num_blocks * block_size],
            under_way: VecDeque::new(),
            last_step: LastStep::default(),
            last_positions: BTreeMap::new(),
            fault,
            num_collected: 0,
            num_from_last_step: 0,
        }
    }

    /// Steps whose results were asked for.
    pub fn num_collected(&self) -> u64 {
        self.num_collected
    }

    /// Whether a plan that is not collected computes a part of the sequence.
    pub fn is_under_way(&self, id: SequenceId) -> bool {
        self.under_way.iter().flat_map(|plan| &plan.chunks).any(|chunk| chunk.sequence == id)
    }

    /// Chunks whose token was left to the step before.
    pub fn num_from_last_step(&self) -> u64 {
        self.num_from_last_step
    }

    fn fail_at(&self, step: u64, at: FaultAt) -> Result<(), RunnerError> {
        match self.fault {
            Some(fault) if (fault.step, fault.at) == (step, at) => {
                let reason = String::from("planned by the test");
                Err(RunnerError::RankFailed { rank: 0, reason })
            }
            _ => Ok(()),
        }
    }

    fn slot_index(&self, chunk: &Chunk, position: usize) -> usize {
        let block = chunk.block_table[position / self.block_size];
        block.0 as usize * self.block_size + position % self.block_size
    }

    fn compute(&mut self, chunk: &Chunk) -> ChunkOutput {
        let mut digest = Digest::default();
        for position in 0..chunk.start {
            digest = match &self.slots[self.slot_index(chunk, position)] {
                Some(slot) => {
                    let same_salt = salt_index(slot.writer) == salt_index(chunk.sequence);
                    assert!(same_salt, "{:?} reads what {:?} wrote", chunk.sequence, slot.writer);
                    digest.read(slot.token, slot.position, slot.context)
                }
                // As on a real device, nobody is told that these are another's leftovers.
                None => digest.read(TokenId(0), usize::MAX, 0),
            };
        }
        if chunk.input == ChunkInput::FromLastStep {
            let position = self.last_positions.get(&chunk.sequence);
            assert_eq!(position, Some(&chunk.start), "the last step's token comes next");
            self.num_from_last_step += 1;
        }
        let token_ids = self.last_step.token_ids(chunk).to_vec();
        let mut digests = Vec::with_capacity(token_ids.len());
        for (offset, token) in token_ids.iter().enumerate() {
            let position = chunk.start + offset;
            let index = self.slot_index(chunk, position);
            self.check_writer(chunk, position, index);
            let writer = chunk.sequence;
            self.slots[index] =
                Some(SlotContents { token: *token, position, context: digest.0, writer });
            digest = digest.extend(*token, position);
            digests.push(digest);
        }
        let scores = chunk.prompt_logprobs.iter().flat_map(|score| {
            score.targets.iter().zip(&digests).map(|(target, digest)| score_of(*digest, *target))
        });
        ChunkOutput {
            sampled: self.last_step.sample_step(chunk).map(|step| sample_step(digest, &step)),
            prompt_logprobs: scores.collect(),
            pooled: chunk.pooling.as_ref().map(|pooling| pool(digest, pooling)),
        }
    }

    /// A block is filled from its first slot on, by one sequence.
    fn check_writer(&self, chunk: &Chunk, position: usize, index: usize) {
        if position.is_multiple_of(self.block_size) {
            return;
        }
        let before = self.slots[index - 1].expect("blocks are filled in order");
        assert_eq!(before.writer, chunk.sequence, "two sequences write the same block");
        assert_eq!(before.position + 1, position, "blocks are filled in order");
    }

    /// What is written in this step is seen by its writer alone; each table is well formed.
    fn check_plan(&self, plan: &Plan) {
        let mut writers = BTreeMap::new();
        let mut sequences = BTreeSet::new();
        for chunk in &plan.chunks {
            let end = chunk.start + chunk.num_tokens();
            assert!(chunk.num_tokens() > 0, "a chunk has a token");
            assert!(sequences.insert(chunk.sequence), "a sequence has one chunk in a step");
            assert!(chunk.block_table.len() * self.block_size >= end, "the table is long enough");
            let distinct: BTreeSet<&BlockId> = chunk.block_table.iter().collect();
            assert_eq!(distinct.len(), chunk.block_table.len(), "a table names a block once");
            for index in chunk.start / self.block_size..end.div_ceil(self.block_size) {
                let other = writers.insert(chunk.block_table[index], chunk.sequence);
                assert_eq!(other, None, "a block has one writer");
            }
        }
        for chunk in &plan.chunks {
            for block in chunk.block_table.iter() {
                let writer = writers.get(block).copied().unwrap_or(chunk.sequence);
                assert_eq!(writer, chunk.sequence, "a block is read while another writes it");
            }
        }
    }
}

impl Runner for FakeRunner {
    fn launch(&mut self, plan: &Plan) -> Result<(), RunnerError> {
        assert!(self.under_way.len() < PLANS_UNDER_WAY_MAX, "too many plans are under way");
        assert!(!plan.chunks.is_empty(), "a plan has work");
        self.check_plan(plan);
        self.fail_at(plan.step, FaultAt::Launch)?;
        self.under_way.push_back(plan.clone());
        Ok(())
    }

    fn collect(&mut self) -> Result<StepOutput, RunnerError> {
        let plan = self.under_way.pop_front().expect("collect follows launch");
        self.fail_at(plan.step, FaultAt::Collect)?;
        self.num_collected += 1;
        let chunks = plan.chunks.iter().map(|chunk| self.compute(chunk)).collect();
        let output = StepOutput { chunks };
        self.last_step.remember(&plan, &output);
        let positions = plan
            .chunks
            .iter()
            .filter_map(|chunk| chunk.sample.as_ref().map(|step| (chunk.sequence, step.position)));
        self.last_positions = positions.collect();
        Ok(output)
    }
}

/// All events the request must get, whatever else runs. Started has no cached tokens.
pub fn events_alone(request: &Request, model_len_max: usize) -> Vec<Event> {
    let params = &request.sampling;
    let mut events = vec![Event::Started { cached_tokens: 0 }];
    let mut token_ids = request.prompt.clone();
    let mut digest = Digest::default();
    let mut scores = Vec::new();
    for (position, token) in token_ids.iter().enumerate() {
        digest = digest.extend(*token, position);
        scores.extend(token_ids.get(position + 1).map(|target| score_of(digest, *target)));
    }
    if params.prompt_logprobs.is_some() {
        events.push(Event::PromptLogprobs(scores));
    }
    if let Some(pooling) = &request.pooling {
        events.push(Event::Pooled(pool(digest, pooling)));
        events.push(Event::Finished { reason: FinishReason::Stop });
        return events;
    }
    let mut reason = FinishReason::Length;
    let source = request.constraint.as_ref();
    let mut constraint = source.map(|source| source.start(Arc::new(|| ())));
    for _ in 0..params.max_new_tokens {
        let mask = match constraint.as_mut().map(|of| ask(of.as_mut())) {
            None | Some(Ok(Allowed::Any)) => None,
            Some(Ok(Allowed::Only(mask))) => Some(mask),
            Some(Err(error)) => {
                if token_ids.len() == request.prompt.len() {
                    // It never began.
                    events.clear();
                }
                events.push(Event::Failed(EngineError::Constraint { reason: error.reason }));
                return events;
            }
        };
        let history = if params.needs_history() { token_ids.clone() } else { Vec::new() };
        let mask = mask.as_deref();
        let sampled = sample(digest, params, token_ids.len(), request.prompt.len(), &history, mask);
        let token = sampled.token;
        if let Some(constraint) = &mut constraint {
            constraint.advance(token);
        }
        events.push(Event::Token(sampled));
        digest = digest.extend(token, token_ids.len());
        token_ids.push(token);
        if params.stops_at(token) {
            reason = FinishReason::Stop;
            break;
        }
        if token_ids.len() >= model_len_max {
            break;
        }
    }
    events.push(Event::Finished { reason });
    events
}

/// Until it answers.
fn ask(constraint: &mut dyn Constraint) -> Result<Allowed, ConstraintError> {
    loop {
        if let Poll::Ready(allowed) = constraint.allowed(0) {
            return allowed;
        }
    }
}

fn sample_step(digest: Digest, step: &SampleStep) -> SampledToken {
    let history_len = if step.params.needs_history() { step.position } else { 0 };
    assert_eq!(step.history.len(), history_len, "the history is whole");
    let mask = step.mask.as_deref();
    sample(digest, &step.params, step.position, step.prompt_len, &step.history, mask)
}

/// Greedy or drawn by seed and position; looks at the history if it is there.
fn sample(
    digest: Digest,
    params: &SamplingParams,
    position: usize,
    prompt_len: usize,
    history: &[TokenId],
    mask: Option<&TokenMask>,
) -> SampledToken {
    let mut hash = scatter(digest.0 ^ scatter((prompt_len as u64) << 32 | position as u64));
    if params.temperature > 0.0 {
        hash = scatter(hash ^ scatter(params.seed.wrapping_add(position as u64)));
    }
    for token in history {
        hash = scatter(hash ^ u64::from(token.0 + 1));
    }
    let first = (hash % u64::from(VOCAB_SIZE)) as u32;
    let in_order = (0..VOCAB_SIZE).map(|i| TokenId((first + i) % VOCAB_SIZE));
    let mut allowed = in_order.filter(|token| mask.is_none_or(|mask| mask.contains(*token)));
    let token = allowed.next().expect("a mask has a token");
    SampledToken { token, logprobs: params.logprobs.map(|_| score_of(digest, token)) }
}

fn pool(digest: Digest, pooling: &Pooling) -> Pooled {
    match pooling {
        // Halves of 16 bits are exact in F32.
        Pooling::Hidden => {
            Pooled::Hidden(vec![digest.0 as u16 as f32, (digest.0 >> 16) as u16 as f32])
        }
        Pooling::Logprobs(tokens) => {
            Pooled::Logprobs(tokens.iter().map(|token| score_of(digest, *token)).collect())
        }
    }
}

fn score_of(digest: Digest, token: TokenId) -> TokenLogprobs {
    let hash = scatter(digest.0 ^ u64::from(token.0));
    TokenLogprobs { token, logprob: -((hash % 1000) as f32), rank: 1, top: Vec::new() }
}
