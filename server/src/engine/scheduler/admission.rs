//! Waiting sequences are let in.

use super::room::Room;
use super::{PrefixCaching, Scheduler};
use crate::engine::blocks::PrefixHit;
use crate::engine::policy::Flow;
use crate::engine::request::Lane;
use crate::engine::sequence::Sequence;
use std::time::Instant;

/// So many sequences of other flows may pass one for which there are no blocks. Then nobody is let
/// in before it.
pub const PASSES_MAX: u32 = 64;

/// What becomes of a waiting sequence in this step.
enum Admit {
    /// So many of its prompt tokens are cached.
    Admitted(usize),
    AwaitsPeer,
    /// What it may begin with is being computed.
    AwaitsConstraint,
    NoBlocks,
}

/// A waiting sequence for which there were no blocks, by its place in its flow's queue.
pub struct Blocked {
    flow: Flow,
    index: usize,
}

impl Scheduler {
    /// Admits sequences of one flow in the policy's order. One whose next prefix block is being
    /// computed is passed over, and that wait is short: within a flow, tokens are left to admit
    /// with only when every running prompt ends in this step or has had its part of it, so once it
    /// is committed the block is cached, or nobody computes it. That is the next step; with a plan
    /// under way, the one after.
    pub(super) fn admit_waiting(
        &mut self,
        turn: usize,
        room: &mut Room,
        blocked: &mut Vec<Blocked>,
        now: Instant,
    ) {
        if turn == 0 {
            self.stats.waiting_for_prefix = 0;
            if room.tokens > 0 {
                self.background.look_again();
            }
        }
        let flow = self.turns[turn].flow;
        let may_push = flow.lane == Lane::Interactive;
        let mut index = 0;
        while let Some(next) = self.waiting.get(flow, index) {
            if room.prompt_tokens_of(flow.lane) == 0 || !self.may_pass(blocked, turn, next) {
                break;
            }
            if room.seqs == 0 && !(may_push && self.make_way(room)) {
                break;
            }
            match self.admit(flow, index) {
                Admit::Admitted(cached_tokens) => {
                    self.let_in(flow, index, turn, room, cached_tokens, now);
                    self.count_passes(blocked);
                }
                Admit::AwaitsConstraint => index += 1,
                Admit::AwaitsPeer => {
                    self.stats.waiting_for_prefix += 1;
                    if flow.lane == Lane::Interactive {
                        self.background.await_prefix();
                    }
                    index += 1;
                }
                Admit::NoBlocks if may_push && self.make_way(room) => {}
                // Those behind could fit, but if they passed, a long request might never.
                Admit::NoBlocks => {
                    blocked.push(Blocked { flow, index });
                    break;
                }
            }
        }
    }

    /// Whether the sequence of that turn may be let in before those for which there were no blocks:
    /// not for long, and only within what is its tenant's.
    fn may_pass(&self, blocked: &[Blocked], turn: usize, sequence: &Sequence) -> bool {
        let num_blocks = sequence.token_ids().len().div_ceil(self.config.block_size);
        blocked.iter().all(|Blocked { flow, index }| {
            let turn = &self.turns[turn];
            let passed = self.waiting.get(*flow, *index).map_or(0, |s| s.num_passed);
            flow.lane == turn.flow.lane && passed < PASSES_MAX && turn.may_add(num_blocks)
        })
    }

    fn count_passes(&mut self, blocked: &[Blocked]) {
        for Blocked { flow, index } in blocked {
            if let Some(sequence) = self.waiting.get_mut(*flow, *index) {
                sequence.num_passed += 1;
            }
        }
    }

    /// Whether the next sequence that somebody waits for lacks a place or blocks which one in the
    /// background has. Blocks that it may find in the prefix cache are not considered.
    pub(super) fn must_make_way(&self, room: &Room) -> bool {
        let has_background = self.running.last().is_some_and(|s| s.lane() == Lane::Background);
        let free = self.blocks.counts().free;
        let is_held_up = |next: &Sequence| {
            let missing = || self.blocks.num_missing(next.table(), next.token_ids().len());
            next.lane() == Lane::Interactive
                && (room.seqs == 0 || free < missing() + self.running.len())
        };
        has_background && self.waiting.heads().any(is_held_up)
    }

    /// Preempts the last sequence of the background for one that somebody waits for. False where
    /// there is none, or it is in a plan.
    fn make_way(&mut self, room: &mut Room) -> bool {
        let can_go = |s: &Sequence| s.lane() == Lane::Background && !s.is_under_way();
        if !self.running.last().is_some_and(|last| can_go(last)) {
            return false;
        }
        self.preempt_last();
        room.seqs += 1;
        true
    }

    fn let_in(
        &mut self,
        flow: Flow,
        index: usize,
        turn: usize,
        room: &mut Room,
        cached_tokens: usize,
        now: Instant,
    ) {
        let mut sequence = self.waiting.take(flow, index).expect("it is there");
        (sequence.turn, sequence.num_passed) = (turn, 0);
        self.turns[turn].add(sequence.table().len());
        room.plan_prompt(&mut sequence, self.step);
        room.seqs -= 1;
        if !sequence.is_started() {
            self.start(&mut sequence, cached_tokens, now);
        }
        self.run(sequence);
    }

    /// Gives the waiting sequence its blocks for all its tokens, cached ones first.
    fn admit(&mut self, flow: Flow, index: usize) -> Admit {
        let sequence = self.waiting.get_mut(flow, index).expect("it is there");
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
}
