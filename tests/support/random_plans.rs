//! Drives a rank group by plans that no scheduler would make: any batch, any chunk sizes, blocks in
//! any order, sequences thrown back to the start.

use crate::random::Random;
use crate::serving::{Limits, Outcome};
use models::TokenId;
use server::engine::plan::PromptScore;
use server::engine::{
    BlockId, Chunk, ChunkInput, FinishReason, Plan, Request, Runner, SampleStep, SequenceId,
    StepOutput,
};
use std::sync::Arc;

/// How the work is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As many sequences at a time as fit, whole prompts, then one token each.
    Plain,
    /// Random members, random chunk sizes, and now and then all is forgotten.
    Random,
}

/// What happened on the way, so that a test can see that something did.
#[derive(Debug, Default)]
pub struct Seen {
    pub restarts: usize,
    /// Steps that computed a part of a prompt and a generated token.
    pub mixed_steps: usize,
    pub batch_len_max: usize,
}

struct Progress<'a> {
    request: &'a Request,
    token_ids: Vec<TokenId>,
    num_computed: usize,
    block_table: Vec<BlockId>,
    outcome: Outcome,
}

/// Runs all requests to their ends and returns their outcomes in order.
pub fn run(
    group: &mut impl Runner,
    limits: Limits,
    requests: &[Request],
    cut: Cut,
    random: &mut Random,
) -> (Vec<Outcome>, Seen) {
    let mut free: Vec<BlockId> = (0..limits.num_blocks as u32).map(BlockId).collect();
    let mut all: Vec<Progress> = requests.iter().map(Progress::new).collect();
    let mut seen = Seen::default();
    let mut step = 0;
    while all.iter().any(Progress::is_running) {
        let mut order: Vec<usize> = (0..all.len()).filter(|&i| all[i].is_running()).collect();
        if cut == Cut::Random {
            random.shuffle(&mut order);
            order.truncate(1 + random.below(order.len()));
            random.shuffle(&mut free);
            if random.below(8) == 0 {
                all[order[0]].restart(&mut free);
                seen.restarts += 1;
            }
        }
        let mut plan = Plan { step, chunks: Vec::new() };
        let mut members = Vec::new();
        for &index in order.iter().take(limits.max_num_seqs) {
            let budget = limits.max_num_batched_tokens - plan.num_tokens();
            if let Some(chunk) =
                all[index].next_chunk(index, budget, limits, &mut free, cut, random)
            {
                plan.chunks.push(chunk);
                members.push(index);
            }
        }
        if members.is_empty() {
            // The cache is full of half-done sequences: one has to go back to its start.
            let holder = all.iter_mut().find(|p| p.is_running() && !p.block_table.is_empty());
            holder.expect("someone holds the blocks").restart(&mut free);
            seen.restarts += 1;
            continue;
        }
        seen.look_at(&plan, &all, &members);
        group.launch(&plan).unwrap();
        let output = group.collect().unwrap();
        commit(&mut all, &members, &plan, output, &mut free);
        step += 1;
    }
    (all.into_iter().map(|p| p.outcome).collect(), seen)
}

fn commit(
    all: &mut [Progress],
    members: &[usize],
    plan: &Plan,
    output: StepOutput,
    free: &mut Vec<BlockId>,
) {
    assert_eq!(output.chunks.len(), plan.chunks.len());
    for ((&index, chunk), result) in members.iter().zip(&plan.chunks).zip(output.chunks) {
        let progress = &mut all[index];
        progress.num_computed += chunk.num_tokens();
        // After a restart positions are scored again, and must score the same.
        for (place, scored) in result.prompt_logprobs.into_iter().enumerate() {
            let known = &mut progress.outcome.prompt_logprobs;
            match known.get(chunk.start + place) {
                Some(before) => assert_eq!(*before, scored, "position {}", chunk.start + place),
                None => known.push(scored),
            }
        }
        assert_eq!(result.sampled.is_some(), chunk.sample.is_some());
        assert_eq!(result.pooled.is_some(), chunk.pooling.is_some());
        if result.pooled.is_some() {
            progress.outcome.pooled = result.pooled;
            progress.outcome.finish = Some(FinishReason::Stop);
            free.append(&mut progress.block_table);
        }
        if let Some(sampled) = result.sampled {
            let sampling = &progress.request.sampling;
            progress.token_ids.push(sampled.token);
            let stops = sampling.stops_at(sampled.token);
            progress.outcome.tokens.push(sampled);
            if stops || progress.outcome.tokens.len() == sampling.max_new_tokens {
                let reason = if stops { FinishReason::Stop } else { FinishReason::Length };
                progress.outcome.finish = Some(reason);
                free.append(&mut progress.block_table);
            }
        }
    }
}

impl Seen {
    fn look_at(&mut self, plan: &Plan, all: &[Progress], members: &[usize]) {
        let decodes = |(chunk, index): (&Chunk, &usize)| {
            chunk.start >= all[*index].request.prompt.len() && chunk.num_tokens() == 1
        };
        let num_decodes = plan.chunks.iter().zip(members).filter(|&pair| decodes(pair)).count();
        self.mixed_steps += usize::from(0 < num_decodes && num_decodes < plan.chunks.len());
        self.batch_len_max = self.batch_len_max.max(plan.chunks.len());
    }
}

impl<'a> Progress<'a> {
    fn new(request: &'a Request) -> Self {
        let token_ids = request.prompt.clone();
        let (block_table, outcome) = (Vec::new(), Outcome::default());
        Self { request, token_ids, num_computed: 0, block_table, outcome }
    }

    fn is_running(&self) -> bool {
        self.outcome.finish.is_none()
    }

    fn restart(&mut self, free: &mut Vec<BlockId>) {
        self.num_computed = 0;
        free.append(&mut self.block_table);
    }

    /// `None` when budget or blocks do not allow even one token.
    fn next_chunk(
        &mut self,
        index: usize,
        budget: usize,
        limits: Limits,
        free: &mut Vec<BlockId>,
        cut: Cut,
        random: &mut Random,
    ) -> Option<Chunk> {
        let slots = (self.block_table.len() + free.len()) * limits.block_size;
        let missing = self.token_ids.len() - self.num_computed;
        let len_max = missing.min(budget).min(slots - self.num_computed);
        if len_max == 0 {
            return None;
        }
        let len = if cut == Cut::Random { 1 + random.below(len_max) } else { len_max };
        let (start, end) = (self.num_computed, self.num_computed + len);
        while self.block_table.len() * limits.block_size < end {
            self.block_table.push(free.pop().expect("counted above"));
        }
        let sampling = &self.request.sampling;
        let is_last = end == self.token_ids.len();
        let pooling = self.request.pooling.clone().filter(|_| is_last);
        let sample = (is_last && pooling.is_none()).then(|| SampleStep {
            params: Arc::new(sampling.clone()),
            position: end,
            prompt_len: self.request.prompt.len(),
            history: if sampling.needs_history() { self.token_ids.clone() } else { Vec::new() },
            mask: None,
        });
        let prompt = &self.request.prompt;
        let targets = || prompt[prompt.len().min(start + 1)..prompt.len().min(end + 1)].to_vec();
        let score = |top| PromptScore { targets: targets(), top };
        Some(Chunk {
            sequence: SequenceId(index as u64),
            input: ChunkInput::Known(self.token_ids[start..end].to_vec()),
            start,
            block_table: std::sync::Arc::new(self.block_table.clone()),
            sample,
            prompt_logprobs: sampling.prompt_logprobs.map(score),
            pooling,
        })
    }
}
