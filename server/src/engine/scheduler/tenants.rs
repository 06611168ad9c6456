//! Turns of tenants, and what is theirs of places and blocks.
//!
//! While only one tenant has something to compute, all of this says nothing.

use super::Scheduler;
use super::room::{Later, Room};
use crate::engine::policy::Flow;
use crate::engine::request::{Lane, Tenant};
use crate::engine::sequence::Sequence;
use std::time::Instant;

/// Somebody who has something to compute.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    pub flow: Flow,
    tenant: Tenant,
    /// What the running sequences hold.
    held: Holding,
    /// What is theirs by weight among all who have something to compute.
    due: Holding,
}

#[derive(Debug, Clone, Copy, Default)]
struct Holding {
    seqs: usize,
    blocks: usize,
}

impl Turn {
    fn new(sequence: &Sequence) -> Self {
        let everything = Holding { seqs: usize::MAX, blocks: usize::MAX };
        let (flow, tenant) = (sequence.flow(), sequence.tenant());
        Self { flow, tenant, held: Holding::default(), due: everything }
    }

    fn has_too_much(&self) -> bool {
        self.held.seqs > self.due.seqs || self.held.blocks > self.due.blocks
    }

    /// Whether a sequence of so many blocks fits into what is theirs.
    pub fn may_add(&self, num_blocks: usize) -> bool {
        self.held.seqs < self.due.seqs
            && self.held.blocks.saturating_add(num_blocks) <= self.due.blocks
    }

    pub fn add(&mut self, num_blocks: usize) {
        self.held.seqs += 1;
        self.held.blocks += num_blocks;
    }

    fn take_away(&mut self, num_blocks: usize) {
        self.held.seqs -= 1;
        self.held.blocks -= num_blocks;
    }
}

impl Scheduler {
    /// Finds out who has something to compute and in what order: by lane; whoever holds too much
    /// last; then as `FairShare` says. Running sequences are brought into that order.
    pub(super) fn take_turns(&mut self, now: Instant) {
        let mut turns = std::mem::take(&mut self.turns);
        turns.clear();
        turns.extend(self.waiting.heads().map(Turn::new));
        for sequence in &self.running {
            if turns.last().is_none_or(|turn| turn.flow != sequence.flow()) {
                turns.push(Turn::new(sequence));
            }
        }
        turns.sort_by_key(|turn| turn.flow);
        turns.dedup_by_key(|turn| turn.flow);
        self.fair.begin(now);
        for turn in &turns {
            self.fair.see(turn.flow, turn.tenant, now);
        }
        self.share_out(&mut turns);
        turns.sort_by_cached_key(|turn| {
            (turn.flow.lane, turn.has_too_much(), self.fair.had(turn.flow), turn.flow.tenant)
        });
        let mut places: Vec<(Flow, usize)> =
            turns.iter().enumerate().map(|(place, turn)| (turn.flow, place)).collect();
        places.sort_unstable();
        // Those of one flow stand side by side.
        let mut last = places.first().copied();
        for sequence in &mut self.running {
            let flow = sequence.flow();
            let found = last.filter(|(other, _)| *other == flow);
            let (_, place) = *last.insert(found.unwrap_or_else(|| place_of(&places, flow)));
            sequence.turn = place;
        }
        let mut running = std::mem::take(&mut self.running);
        if !running.is_sorted_by_key(|sequence| sequence.turn) {
            running.sort_by_key(|sequence| sequence.turn);
        }
        (self.running, self.turns) = (running, turns);
    }

    /// What each of several that somebody waits for holds, and what is theirs. `turns` are in the
    /// order of their flows.
    fn share_out(&self, turns: &mut [Turn]) {
        let num_interactive = turns.partition_point(|turn| turn.flow.lane == Lane::Interactive);
        let turns = &mut turns[..num_interactive];
        if turns.len() < 2 {
            return;
        }
        let weights: u64 = turns.iter().map(|turn| u64::from(turn.tenant.weight.max(1))).sum();
        for turn in turns.iter_mut() {
            let weight = u64::from(turn.tenant.weight.max(1));
            let part =
                |all: usize| (all as u128 * u128::from(weight) / u128::from(weights)) as usize;
            turn.due.seqs = part(self.config.max_num_seqs).max(1);
            turn.due.blocks = part(self.config.num_blocks);
        }
        for sequence in self.running.iter().filter(|s| s.lane() == Lane::Interactive) {
            let found = turns.binary_search_by_key(&sequence.flow(), |turn| turn.flow);
            let turn = &mut turns[found.expect("whoever runs has a turn")];
            turn.add(sequence.table().len());
        }
    }

    /// Whether others go before the flow of this turn, or were there lately and would.
    pub(super) fn is_later(&self, turn: usize, now: Instant) -> Later {
        let flow = self.turns[turn].flow;
        let has_other_before = turn > 0 && self.turns[turn - 1].flow.lane == flow.lane;
        match has_other_before || self.fair.follows_absent(flow, now) {
            true => Later::Yes,
            false => Later::No,
        }
    }

    /// Who makes way for the next sequence of a flow that lacks a place or blocks and may have
    /// them: the last running one of a flow that has too many.
    pub(super) fn victim_for(&self, turn: &Turn, room: &Room) -> Option<usize> {
        let next = self.waiting.get(turn.flow, 0)?;
        let goes_first = |s: &Sequence| s.lane() == Lane::Background;
        let num_tokens = next.token_ids().len();
        let num_blocks = num_tokens.div_ceil(self.config.block_size);
        let is_alone = turn.due.seqs == usize::MAX;
        if is_alone
            || next.awaits_constraint()
            || !turn.may_add(num_blocks)
            || self.running.last().is_none_or(|last| goes_first(last))
        {
            return None;
        }
        let lacks_place = room.seqs == 0;
        let missing = self.blocks.num_missing(next.table(), num_tokens);
        let lacks_blocks = self.blocks.counts().free < missing + self.running.len();
        let has_too_many = |s: &Sequence| {
            let Turn { held, due, .. } = &self.turns[s.turn];
            (lacks_place && held.seqs > due.seqs) || (lacks_blocks && held.blocks > due.blocks)
        };
        self.running.iter().rposition(|sequence| has_too_many(sequence))
    }

    /// Preempts for the next sequence of each flow that may push others. Nothing is under way.
    pub(super) fn make_way_for_tenants(&mut self, room: &mut Room) {
        for turn in 0..self.turns.len() {
            while let Some(victim) = self.victim_for(&self.turns[turn], room) {
                let sequence = &self.running[victim];
                self.turns[sequence.turn].take_away(sequence.table().len());
                self.preempt(victim);
                room.seqs += 1;
            }
        }
    }
}

fn place_of(places: &[(Flow, usize)], flow: Flow) -> (Flow, usize) {
    let found = places.binary_search_by_key(&flow, |(flow, _)| *flow);
    places[found.expect("whoever runs has a turn")]
}
