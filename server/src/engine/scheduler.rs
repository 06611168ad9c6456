//! Which sequences compute how many tokens in the next step.

use super::blocks::{BlockManager, PrefixCaching, PrefixHit};
use super::constraint::Wake;
use super::plan::{Plan, SequenceId, StepOutput};
use super::policy::{Policy, PolicyKind};
use super::request::{EngineError, Event, FinishReason, Lane, Request};
use super::runner::Overlap;
use super::sequence::Sequence;
use super::stats::EngineStats;
use background::{Background, part_of};
use room::Room;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Instant;

mod background;
mod constraints;
mod room;

/// The engine's limits, checked by whoever made them (see `assert_valid`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Tokens per cache block.
    pub block_size: usize,
    pub num_blocks: usize,
    /// Most sequences in one step.
    pub max_num_seqs: usize,
    /// Most tokens in one step; at least `max_num_seqs`, so that a step can carry every decode.
    pub max_num_batched_tokens: usize,
    /// Most tokens of a sequence, prompt and output.
    pub max_model_len: usize,
    /// Most requests that are admitted and not scheduled yet.
    pub waiting_requests_max: usize,
    /// Most prompt tokens of those.
    pub waiting_tokens_max: usize,
    pub policy: PolicyKind,
    pub prefix_caching: PrefixCaching,
    pub overlap: Overlap,
}

impl EngineConfig {
    pub fn assert_valid(&self) {
        assert!(self.block_size > 0, "block_size is at least 1");
        assert!(self.num_blocks > 0, "num_blocks is at least 1");
        assert!(self.max_num_seqs > 0, "max_num_seqs is at least 1");
        assert!(
            self.max_num_batched_tokens >= self.max_num_seqs,
            "max_num_batched_tokens ({}) is at least max_num_seqs ({})",
            self.max_num_batched_tokens,
            self.max_num_seqs
        );
    }

    /// Whether the request can run at all, at its full length and alone.
    pub fn check(&self, request: &Request) -> Result<(), EngineError> {
        let prompt_len = request.prompt.len();
        if prompt_len > self.max_model_len {
            return Err(EngineError::PromptTooLong {
                tokens: prompt_len,
                tokens_max: self.max_model_len,
            });
        }
        // The last token is sampled but never computed, so it needs no slot.
        let num_uncomputed = request.sampling.max_new_tokens.saturating_sub(1);
        let num_slots = prompt_len.saturating_add(num_uncomputed).min(self.max_model_len);
        let needed = num_slots.div_ceil(self.block_size);
        if needed > self.num_blocks {
            return Err(EngineError::NeverFits { needed, total: self.num_blocks });
        }
        Ok(())
    }
}

/// The state of all requests in progress. It has no clock and draws no numbers: equal calls give
/// equal plans.
pub struct Scheduler {
    config: EngineConfig,
    policy: Box<dyn Policy>,
    blocks: BlockManager,
    /// Both in the policy's order.
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    background: Background,
    /// Scheduled for the first time since `take_started`.
    started: Vec<SequenceId>,
    /// Ended by their constraints since `take_failed`.
    failed: Vec<(SequenceId, Aborted, EngineError)>,
    wake: Wake,
    /// Of the next plan.
    step: u64,
    /// Plans that are not committed yet.
    num_under_way: usize,
    stats: EngineStats,
}

/// How far a sequence was when it was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aborted {
    /// Never scheduled.
    Unstarted,
    Started,
    /// It had ended already, or never was.
    Unknown,
}

/// What becomes of a waiting sequence in this step.
enum Admit {
    /// So many of its prompt tokens are cached.
    Admitted(usize),
    AwaitsPeer,
    /// What it may begin with is being computed.
    AwaitsConstraint,
    NoBlocks,
}

impl Scheduler {
    /// `wake` is called when a sequence that awaited its constraint may go on.
    pub fn new(config: EngineConfig, wake: Wake) -> Self {
        config.assert_valid();
        Self {
            policy: config.policy.build(),
            blocks: BlockManager::new(config.num_blocks, config.block_size, config.prefix_caching),
            waiting: VecDeque::new(),
            running: Vec::new(),
            background: Background::default(),
            started: Vec::new(),
            failed: Vec::new(),
            wake,
            step: 0,
            num_under_way: 0,
            stats: EngineStats::default(),
            config,
        }
    }

    /// Queues a request that has passed `EngineConfig::check`. `id` is new.
    pub fn add(&mut self, id: SequenceId, request: Request, arrival: Instant) {
        let max_model_len = self.config.max_model_len;
        self.wait(Sequence::new(id, request, arrival, max_model_len, &self.wake));
    }

    /// Drops a sequence, wherever it is, and frees its blocks at once.
    pub fn abort(&mut self, id: SequenceId) -> Aborted {
        let aborted = self.remove(id);
        self.stats.aborted += u64::from(aborted != Aborted::Unknown);
        aborted
    }

    fn remove(&mut self, id: SequenceId) -> Aborted {
        let sequence = if let Some(index) = self.running.iter().position(|s| s.id() == id) {
            self.running.remove(index)
        } else if let Some(index) = self.waiting.iter().position(|s| s.id() == id) {
            self.waiting.remove(index).expect("the index was found")
        } else {
            return Aborted::Unknown;
        };
        let aborted = if sequence.is_started() { Aborted::Started } else { Aborted::Unstarted };
        self.blocks.release(sequence.table);
        aborted
    }

    /// Whether there is nothing to compute.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Chooses the next step's work: one token for each decoding sequence, then prefill chunks of
    /// running sequences, then new sequences, each in the policy's order, while tokens and blocks
    /// last. None when idle, or when the results of the plan under way are needed first.
    ///
    /// While a plan is under way, its sequences are taken to go on, but for those that are certain
    /// to end with it: these give up their places already, their blocks when it is committed.
    ///
    /// Sequences in the background get what `Background` gives them, and are preempted where one
    /// that somebody waits for lacks a place or blocks.
    pub fn schedule(&mut self, now: Instant) -> Option<Plan> {
        self.ask_constraints();
        let num_going_on = self.running.iter().filter(|s| !s.is_ending()).count();
        let mut room = Room {
            tokens: self.config.max_num_batched_tokens,
            background: 0,
            seqs: self.config.max_num_seqs - num_going_on,
        };
        // Sequences that end in the plan under way may make room, so nothing is preempted for it.
        let must_preempt = || !self.has_blocks_for_decodes() || self.must_make_way(&room);
        if self.num_under_way > 0 && must_preempt() {
            return None;
        }
        let tokens_max = self.config.max_num_batched_tokens;
        room.background = match self.has_interactive() {
            true => self.background.beside_interactive(tokens_max, now),
            false => self.background.alone(tokens_max, now),
        };
        self.fill(&mut room, now);
        let is_empty = room.tokens == tokens_max && self.num_under_way == 0;
        if is_empty && room.background == 0 {
            // Whoever waits, waits for something in the background.
            room.background = part_of(tokens_max);
            self.fill(&mut room, now);
        }
        let chunks: Vec<_> = self.running.iter().filter_map(|s| s.chunk(self.step)).collect();
        if chunks.is_empty() {
            let may_wait = self.is_idle() || self.num_under_way > 0 || self.awaits_constraints();
            assert!(may_wait, "work is left, but none is planned");
            return None;
        }
        let plan = Plan { step: self.step, chunks };
        self.step += 1;
        self.stats.count_step(plan.num_tokens(), plan.chunks.len());
        self.stats.overlapped_steps += u64::from(self.num_under_way > 0);
        self.num_under_way += 1;
        Some(plan)
    }

    /// Takes in the results of the oldest plan under way: one entry per event, those of a sequence
    /// side by side. Sequences that were aborted since, or ended in the step before, are left out.
    ///
    /// Their blocks were released then, though this plan may have written to them: steps run in
    /// order, so whoever got them since writes later, and only committed contents are cached.
    pub fn commit(&mut self, plan: Plan, output: StepOutput) -> Vec<(SequenceId, Event)> {
        assert_eq!(plan.chunks.len(), output.chunks.len(), "one output for each chunk");
        self.num_under_way -= 1;
        let mut events = Vec::with_capacity(plan.chunks.len());
        let mut num_wasted = plan.num_tokens();
        let mut results = plan.chunks.iter().zip(output.chunks);
        for mut sequence in std::mem::take(&mut self.running) {
            if !sequence.is_in_oldest_step(plan.step) {
                self.running.push(sequence);
                continue;
            }
            let id = sequence.id();
            // Chunks are in the order of the running sequences; those left out are passed over.
            let (chunk, result) =
                results.find(|(chunk, _)| chunk.sequence == id).expect("each planned has a chunk");
            num_wasted -= chunk.num_tokens();
            self.stats.generated_tokens += u64::from(result.sampled.is_some());
            let finish = sequence.advance(result, |event| events.push((id, event)));
            let Sequence { table, chain, token_ids, num_computed, .. } = &mut sequence;
            self.blocks.commit(table, chain, token_ids, *num_computed);
            match finish {
                None => self.running.push(sequence),
                Some(reason) => self.finish(sequence, reason),
            }
        }
        self.stats.wasted_tokens += num_wasted as u64;
        events
    }

    /// Sequences scheduled for the first time since the last call.
    pub fn take_started(&mut self) -> Vec<SequenceId> {
        std::mem::take(&mut self.started)
    }

    /// Counters and gauges of what the scheduler sees; those of the handle are 0.
    pub fn stats(&self) -> EngineStats {
        let blocks = self.blocks.counts();
        EngineStats {
            running: self.running.len(),
            waiting_preempted: self.waiting.iter().filter(|s| s.is_started()).count(),
            blocks_total: blocks.total,
            blocks_free: blocks.free,
            blocks_cached: blocks.cached,
            evicted_blocks: blocks.evicted,
            ..self.stats.clone()
        }
    }

    /// Asserts what holds between calls; for tests, since it looks at every block.
    pub fn assert_consistent(&self) {
        let sequences = || self.waiting.iter().chain(&self.running);
        self.blocks.assert_consistent(sequences().map(Sequence::table));
        let num_going_on = self.running.iter().filter(|s| !s.is_ending()).count();
        assert!(num_going_on <= self.config.max_num_seqs, "max_num_seqs holds");
        assert!(
            self.running.is_sorted_by(|a, b| self.policy.compare(a, b) == Ordering::Less),
            "running sequences are in the policy's order"
        );
        for sequence in &self.waiting {
            assert!(sequence.table().blocks().is_empty(), "waiting sequences hold no blocks");
            assert!(!sequence.is_under_way(), "waiting sequences are in no plan");
        }
        for sequence in &self.running {
            let has_work = sequence.num_remaining() > 0
                || sequence.is_under_way()
                || sequence.awaits_constraint();
            assert!(has_work, "running sequences have something to compute");
            let is_planned = !sequence.is_under_way() || self.num_under_way > 0;
            assert!(is_planned, "what is under way is in a plan");
        }
    }

    /// Plans what there is room for.
    fn fill(&mut self, room: &mut Room, now: Instant) {
        let num_preempted = self.plan_decodes(room);
        self.plan_prefills(room);
        // After a preemption blocks are short: a sequence let in now would be the next victim.
        if num_preempted == 0 {
            self.admit_waiting(room, now);
        }
    }

    /// Whether there is anything that somebody waits for. Both queues begin with it.
    fn has_interactive(&self) -> bool {
        let mut first = self.running.first().into_iter().chain(self.waiting.front());
        first.any(|sequence| sequence.lane() == Lane::Interactive)
    }

    /// Whether the next sequence that somebody waits for lacks a place or blocks which one in the
    /// background has. Blocks that it may find in the prefix cache are not considered.
    fn must_make_way(&self, room: &Room) -> bool {
        let Some(next) = self.waiting.front() else { return false };
        let is_held_up = next.lane() == Lane::Interactive
            && self.running.last().is_some_and(|s| s.lane() == Lane::Background);
        let missing = || self.blocks.num_missing(next.table(), next.token_ids().len());
        let has_blocks = || self.blocks.counts().free >= missing() + self.running.len();
        is_held_up && (room.seqs == 0 || !has_blocks())
    }

    /// Preempts the last sequence of the background for one that somebody waits for. False where
    /// there is none, or it is in a plan.
    fn make_way(&mut self, room: &mut Room) -> bool {
        let can_go = |s: &Sequence| s.lane() == Lane::Background && !s.is_under_way();
        if !self.running.last().is_some_and(can_go) {
            return false;
        }
        self.preempt_last();
        room.seqs += 1;
        true
    }

    /// Whether `plan_decodes` would preempt nothing.
    fn has_blocks_for_decodes(&self) -> bool {
        let last_lane = match self.has_interactive() {
            true => Lane::Interactive,
            false => Lane::Background,
        };
        let planned = self.running.iter().filter(|s| s.lane() <= last_lane);
        let decodes = planned.filter(|s| s.num_remaining() == 1);
        let missing = decodes.map(|s| self.blocks.num_missing(s.table(), s.num_scheduled() + 1));
        missing.sum::<usize>() <= self.blocks.counts().free
    }

    /// One token for each sequence that has only one left. If blocks run out, the policy's last
    /// running sequence makes room. Returns how many were preempted.
    fn plan_decodes(&mut self, room: &mut Room) -> usize {
        let mut num_preempted = 0;
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.num_remaining() != 1 || room.tokens_of(sequence.lane()) == 0 {
                index += 1;
                continue;
            }
            let num_tokens = sequence.num_scheduled() + 1;
            if self.blocks.try_grow(&mut sequence.table, num_tokens) {
                room.plan_rest(sequence, self.step);
                index += 1;
            } else if sequence.lane() == Lane::Background && self.num_under_way > 0 {
                // It can wait until the plan under way has ended.
                index += 1;
            } else {
                // Nothing is planned yet for the last one, which may be this one itself.
                self.preempt_last();
                num_preempted += 1;
            }
        }
        num_preempted
    }

    /// Running sequences have had blocks for their whole prompt since they were admitted.
    fn plan_prefills(&mut self, room: &mut Room) {
        for sequence in self.running.iter_mut().filter(|s| s.num_remaining() > 1) {
            if room.tokens_of(sequence.lane()) > 0 {
                room.plan_rest(sequence, self.step);
            }
        }
    }

    /// Admits sequences in the policy's order. One whose next prefix block is being computed is
    /// passed over, and that wait is short: tokens are left to admit with only when every running
    /// prompt ends in this step, so once it is committed the block is cached, or nobody computes
    /// it. That is the next step; with a plan under way, the one after.
    fn admit_waiting(&mut self, room: &mut Room, now: Instant) {
        self.stats.waiting_for_prefix = 0;
        if room.tokens > 0 {
            self.background.look_again();
        }
        let mut index = 0;
        while index < self.waiting.len() {
            let lane = self.waiting[index].lane();
            let may_push = lane == Lane::Interactive;
            if room.tokens_of(lane) == 0 || (room.seqs == 0 && !(may_push && self.make_way(room))) {
                break;
            }
            match self.admit(index) {
                Admit::Admitted(cached_tokens) => {
                    let mut sequence = self.waiting.remove(index).expect("it is there");
                    room.plan_rest(&mut sequence, self.step);
                    room.seqs -= 1;
                    if !sequence.is_started() {
                        self.start(&mut sequence, cached_tokens, now);
                    }
                    self.run(sequence);
                }
                Admit::AwaitsConstraint => index += 1,
                Admit::AwaitsPeer => {
                    self.stats.waiting_for_prefix += 1;
                    if lane == Lane::Interactive {
                        self.background.await_prefix();
                    }
                    index += 1;
                }
                Admit::NoBlocks if may_push && self.make_way(room) => {}
                // Those behind could fit, but if they passed, a long request might never.
                Admit::NoBlocks => break,
            }
        }
    }

    /// Gives the waiting sequence its blocks for all its tokens, cached ones first.
    fn admit(&mut self, index: usize) -> Admit {
        let sequence = &mut self.waiting[index];
        if sequence.awaits_constraint() {
            return Admit::AwaitsConstraint;
        }
        // The last token is left out: the cache holds keys and values, but to choose the next token
        // we need the last one's logits, so it must be computed.
        let token_ids = sequence.token_ids();
        let looked_up = if sequence.scores_prompt() { 0 } else { token_ids.len() - 1 };
        let Sequence { chain, token_ids, .. } = sequence;
        let hit = self.blocks.match_prefix(chain, &token_ids[..looked_up]);
        let mut table = match hit {
            PrefixHit::Table(table) => table,
            PrefixHit::BeingComputed => return Admit::AwaitsPeer,
        };
        let num_cached = table.blocks().len() * self.config.block_size;
        // One block for each running sequence stays free, or the next decodes would preempt.
        let has_room = self.blocks.try_grow(&mut table, token_ids.len())
            && self.blocks.counts().free >= self.running.len();
        if !has_room {
            self.blocks.release(table);
            return Admit::NoBlocks;
        }
        self.blocks.announce(&mut table, chain, token_ids);
        sequence.table = table;
        sequence.num_computed = num_cached;
        Admit::Admitted(num_cached.min(sequence.prompt_len()))
    }

    fn start(&mut self, sequence: &mut Sequence, cached_tokens: usize, now: Instant) {
        let prompt_len = sequence.prompt_len() as u64;
        self.stats.started += 1;
        self.stats.prompt_tokens += prompt_len;
        if !sequence.scores_prompt() && self.config.prefix_caching == PrefixCaching::Enabled {
            self.stats.prefix_query_tokens += prompt_len;
            self.stats.prefix_hit_tokens += cached_tokens as u64;
        }
        self.stats.queue_time += now.saturating_duration_since(sequence.arrival());
        self.started.push(sequence.id());
        sequence.set_started(cached_tokens);
    }

    fn wait(&mut self, sequence: Sequence) {
        let policy = &self.policy;
        let place = self
            .waiting
            .partition_point(|other| policy.compare(other, &sequence) == Ordering::Less);
        self.waiting.insert(place, sequence);
    }

    fn run(&mut self, sequence: Sequence) {
        let policy = &self.policy;
        let place = self
            .running
            .partition_point(|other| policy.compare(other, &sequence) == Ordering::Less);
        self.running.insert(place, sequence);
    }

    fn preempt_last(&mut self) {
        let mut sequence = self.running.pop().expect("only running sequences need blocks");
        let table = sequence.reset();
        self.blocks.release(table);
        self.stats.preemptions += 1;
        self.wait(sequence);
    }

    fn finish(&mut self, sequence: Sequence, reason: FinishReason) {
        self.blocks.release(sequence.table);
        match reason {
            FinishReason::Stop => self.stats.finished_stop += 1,
            FinishReason::Length => self.stats.finished_length += 1,
        }
    }
}

#[cfg(test)]
mod tests;
