//! Which sequences compute how many tokens in the next step.

use super::blocks::{BlockManager, PrefixCaching};
use super::constraint::Wake;
use super::plan::{Chunk, ChunkOutput, Plan, SequenceId, StepOutput};
use super::policy::{FairShare, Flow, Policy, PolicyKind};
use super::request::{EngineError, Event, FinishReason, Lane, Request};
use super::runner::Overlap;
use super::sequence::Sequence;
use super::stats::EngineStats;
use background::{Background, part_of};
use room::{Later, Room};
use std::cmp::Ordering;
use std::time::Instant;
use tenants::Turn;
use waiting::Waiting;

mod admission;
mod background;
mod constraints;
mod room;
mod tenants;
mod waiting;

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
    /// A token that attends to so many others takes twice the time of one that attends to none.
    pub double_cost_context: usize,
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
    fair: FairShare,
    /// Who had something to compute when the last plan was made, in their order.
    turns: Vec<Turn>,
    blocks: BlockManager,
    waiting: Waiting,
    /// By turn, then in the policy's order.
    #[expect(clippy::vec_box, reason = "sequences are large, and change places")]
    running: Vec<Box<Sequence>>,
    /// Of the running ones, those with a constraint.
    num_constrained: usize,
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
    /// Room for the chunks of the next plan.
    spare_chunks: Vec<Chunk>,
    stats: EngineStats,
}

/// Whether any running sequence has more than one token left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompts {
    None,
    Some,
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

impl Scheduler {
    /// `wake` is called when a sequence that awaited its constraint may go on.
    pub fn new(config: EngineConfig, wake: Wake) -> Self {
        config.assert_valid();
        Self {
            policy: config.policy.build(),
            fair: FairShare::new(config.max_num_batched_tokens),
            turns: Vec::new(),
            blocks: BlockManager::new(config.num_blocks, config.block_size, config.prefix_caching),
            waiting: Waiting::default(),
            running: Vec::new(),
            num_constrained: 0,
            background: Background::default(),
            started: Vec::new(),
            failed: Vec::new(),
            wake,
            step: 0,
            num_under_way: 0,
            spare_chunks: Vec::new(),
            stats: EngineStats::default(),
            config,
        }
    }

    /// Queues a request that has passed `EngineConfig::check`. `id` is new.
    pub fn add(&mut self, id: SequenceId, request: Request, arrival: Instant) {
        let max_model_len = self.config.max_model_len;
        let sequence = Sequence::new(id, request, arrival, max_model_len, &self.wake);
        self.waiting.insert(Box::new(sequence), &*self.policy);
    }

    /// Drops a sequence, wherever it is, and frees its blocks at once.
    pub fn abort(&mut self, id: SequenceId) -> Aborted {
        let aborted = self.remove(id);
        self.stats.aborted += u64::from(aborted != Aborted::Unknown);
        aborted
    }

    fn remove(&mut self, id: SequenceId) -> Aborted {
        let index = self.running.iter().position(|s| s.id() == id);
        let running = index.map(|index| self.stop_running(index));
        let Some(sequence) = running.or_else(|| self.waiting.remove(id)) else {
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

    /// Chooses the next step's work: one token for each decoding sequence; then, tenant by tenant
    /// in the order that `FairShare` says, prefill chunks of running sequences and new sequences,
    /// each in the policy's order, while tokens and blocks last. None when idle, or when the
    /// results of the plan under way are needed first.
    ///
    /// While a plan is under way, its sequences are taken to go on, but for those that are certain
    /// to end with it: these give up their places already, their blocks when it is committed.
    ///
    /// Sequences in the background get what `Background` gives them, and are preempted where one
    /// that somebody waits for lacks a place or blocks; so are those of a tenant who has more than
    /// their share of these, for one who has less.
    pub fn schedule(&mut self, now: Instant) -> Option<Plan> {
        self.ask_constraints();
        self.take_turns(now);
        let mut room = self.room(now);
        // Sequences that end in the plan under way may make room, so nothing is preempted for it.
        let must_preempt = || {
            !self.has_blocks_for_decodes()
                || self.must_make_way(&room)
                || self.turns.iter().any(|turn| self.victim_for(turn, &room).is_some())
        };
        // Whoever comes meanwhile waits for one small step of the background, not for two.
        let must_wait = || !self.has_interactive() && !self.background.is_quiet(now);
        if self.num_under_way > 0 && (must_wait() || must_preempt()) {
            return None;
        }
        if self.num_under_way == 0 {
            self.make_way_for_tenants(&mut room);
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
        let plan = self.plan();
        if plan.chunks.is_empty() {
            let may_wait = self.is_idle() || self.num_under_way > 0 || self.awaits_constraints();
            assert!(may_wait, "work is left, but none is planned");
            return None;
        }
        self.step += 1;
        self.stats.count_step(plan.num_tokens(), plan.chunks.len());
        self.stats.overlapped_steps += u64::from(self.num_under_way > 0);
        self.num_under_way += 1;
        Some(plan)
    }

    /// What running sequences compute in the step being planned, put to their tenants' accounts.
    fn plan(&mut self) -> Plan {
        let double = self.config.double_cost_context;
        let mut chunks = std::mem::take(&mut self.spare_chunks);
        // Sequences of one flow stand side by side, and are charged together.
        let mut charged: Option<(Flow, usize)> = None;
        for sequence in &mut self.running {
            let Some(chunk) = sequence.chunk(self.step, chunks.len()) else { continue };
            let cost = room::cost_of(chunk.num_tokens(), chunk.start, double);
            chunks.push(chunk);
            match &mut charged {
                Some((flow, sum)) if *flow == sequence.flow() => *sum = sum.saturating_add(cost),
                _ => {
                    if let Some((flow, sum)) = charged.replace((sequence.flow(), cost)) {
                        self.fair.charge(flow, sum);
                    }
                }
            }
        }
        if let Some((flow, sum)) = charged {
            self.fair.charge(flow, sum);
        }
        Plan { step: self.step, chunks }
    }

    /// Takes in the results of the oldest plan under way: one entry per event, those of a sequence
    /// side by side. Sequences that were aborted since, or ended in the step before, are left out.
    ///
    /// Their blocks were released then, though this plan may have written to them: steps run in
    /// order, so whoever got them since writes later, and only committed contents are cached.
    pub fn commit(&mut self, plan: Plan, mut output: StepOutput) -> Vec<(SequenceId, Event)> {
        let mut events = Vec::with_capacity(plan.chunks.len());
        self.commit_into(&mut events, plan, &mut output.chunks);
        events
    }

    /// As `commit`, with the results of the plan's chunks; what is left of them means nothing.
    pub fn commit_into(
        &mut self,
        events: &mut Vec<(SequenceId, Event)>,
        plan: Plan,
        results: &mut [ChunkOutput],
    ) {
        assert_eq!(plan.chunks.len(), results.len(), "one output for each chunk");
        self.num_under_way -= 1;
        let mut num_wasted = plan.num_tokens();
        // Turns may have changed since it was made, so those that run may stand in another order.
        let mut num_ended = 0;
        for sequence in &mut self.running {
            let Some(place) = sequence.place_in(plan.step) else { continue };
            let id = sequence.id();
            let (chunk, result) = (&plan.chunks[place], std::mem::take(&mut results[place]));
            assert_eq!(chunk.sequence, id, "each planned sequence has its chunk");
            num_wasted -= chunk.num_tokens();
            self.stats.generated_tokens += u64::from(result.sampled.is_some());
            let finish = sequence.advance(result, |event| events.push((id, event)));
            let Sequence { table, chain, token_ids, num_computed, .. } = &mut **sequence;
            self.blocks.commit(table, chain, token_ids, *num_computed);
            let Some(reason) = finish else { continue };
            num_ended += 1;
            self.num_constrained -= usize::from(sequence.is_constrained());
            self.blocks.release(std::mem::take(&mut sequence.table));
            match reason {
                FinishReason::Stop => self.stats.finished_stop += 1,
                FinishReason::Length => self.stats.finished_length += 1,
            }
        }
        if num_ended > 0 {
            self.running.retain(|sequence| !sequence.has_ended());
        }
        self.stats.wasted_tokens += num_wasted as u64;
        self.spare_chunks = plan.chunks;
        self.spare_chunks.clear();
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
            waiting_preempted: self.waiting.num_started(),
            blocks_total: blocks.total,
            blocks_free: blocks.free,
            blocks_cached: blocks.cached,
            evicted_blocks: blocks.evicted,
            ..self.stats.clone()
        }
    }

    /// Asserts what holds between calls; for tests, since it looks at every block.
    pub fn assert_consistent(&self) {
        let running = || self.running.iter().map(|sequence| &**sequence);
        let sequences = || self.waiting.iter().chain(running());
        let num_constrained = running().filter(|s| s.is_constrained()).count();
        assert_eq!(self.num_constrained, num_constrained, "constrained ones are counted");
        self.waiting.assert_sorted(&*self.policy);
        self.blocks.assert_consistent(sequences().map(Sequence::table));
        let num_going_on = self.running.iter().filter(|s| !s.is_ending()).count();
        assert!(num_going_on <= self.config.max_num_seqs, "max_num_seqs holds");
        assert!(
            self.running.is_sorted_by(|a, b| self.compare(a, b) == Ordering::Less),
            "running sequences are in their order"
        );
        for sequence in self.waiting.iter() {
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

    /// By turn, then as the policy says. Sequences of different flows have different turns.
    fn compare(&self, a: &Sequence, b: &Sequence) -> Ordering {
        a.turn.cmp(&b.turn).then_with(|| self.policy.compare(a, b))
    }

    /// What the next plan has room for, without the background.
    fn room(&self, now: Instant) -> Room {
        // Nobody asks for places where nobody waits.
        let num_going_on = match self.waiting.is_empty() {
            true => self.config.max_num_seqs,
            false => self.running.iter().filter(|s| !s.is_ending()).count(),
        };
        let has_company = self.running.len() + self.waiting.len() > 1
            || self.turns.iter().any(|turn| self.fair.has_company(turn.flow, now));
        Room {
            tokens: self.config.max_num_batched_tokens,
            background: 0,
            later: room::later_part_of(self.config.max_num_batched_tokens),
            is_later: Later::No,
            seqs: self.config.max_num_seqs - num_going_on,
            double_cost_context: has_company.then_some(self.config.double_cost_context),
        }
    }

    /// Plans what there is room for.
    fn fill(&mut self, room: &mut Room, now: Instant) {
        let (num_preempted, prompts) = self.plan_decodes(room);
        let mut blocked = Vec::new();
        for turn in 0..self.turns.len() {
            room.is_later = self.is_later(turn, now);
            if prompts == Prompts::Some {
                self.plan_prefills(turn, room);
            }
            // After a preemption blocks are short: a sequence let in now would be the next victim.
            if num_preempted == 0 {
                self.admit_waiting(turn, room, &mut blocked, now);
            }
        }
    }

    /// Whether there is anything that somebody waits for.
    fn has_interactive(&self) -> bool {
        self.turns.first().is_some_and(|turn| turn.flow.lane == Lane::Interactive)
    }

    /// Whether `plan_decodes` would preempt nothing.
    fn has_blocks_for_decodes(&self) -> bool {
        // None takes more than one, so that as a rule nobody has to be asked.
        if self.blocks.counts().free >= self.running.len() {
            return true;
        }
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
    /// running sequence makes room. Returns how many were preempted, and whether others may have
    /// more than one token left.
    fn plan_decodes(&mut self, room: &mut Room) -> (usize, Prompts) {
        let mut num_preempted = 0;
        let mut prompts = Prompts::None;
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let num_remaining = sequence.num_remaining();
            if num_remaining > 1 {
                prompts = Prompts::Some;
            }
            if num_remaining != 1 || room.tokens_of(sequence.lane()) == 0 {
                index += 1;
                continue;
            }
            let num_tokens = sequence.num_scheduled() + 1;
            if self.blocks.try_grow(&mut sequence.table, num_tokens) {
                room.plan_token(sequence, self.step);
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
        (num_preempted, prompts)
    }

    /// The prompts of one flow. Running sequences have had blocks for their whole prompt since they
    /// were admitted.
    fn plan_prefills(&mut self, turn: usize, room: &mut Room) {
        let start = self.running.partition_point(|s| s.turn < turn);
        let of_flow = self.running[start..].iter_mut().take_while(|s| s.turn == turn);
        for sequence in of_flow.filter(|s| s.num_remaining() > 1) {
            if room.prompt_tokens_of(sequence.lane()) > 0 {
                room.plan_prompt(sequence, self.step);
            }
        }
    }

    fn run(&mut self, sequence: Box<Sequence>) {
        self.num_constrained += usize::from(sequence.is_constrained());
        let before = |other: &Sequence| self.compare(other, &sequence) == Ordering::Less;
        let place = self.running.partition_point(|other| before(other));
        self.running.insert(place, sequence);
    }

    fn stop_running(&mut self, index: usize) -> Box<Sequence> {
        let sequence = self.running.remove(index);
        self.num_constrained -= usize::from(sequence.is_constrained());
        sequence
    }

    fn preempt(&mut self, index: usize) {
        let mut sequence = self.stop_running(index);
        let table = sequence.reset();
        self.blocks.release(table);
        self.stats.preemptions += 1;
        self.waiting.insert(sequence, &*self.policy);
    }

    fn preempt_last(&mut self) {
        self.preempt(self.running.len().checked_sub(1).expect("only running ones need blocks"));
    }
}

#[cfg(test)]
mod tests;
