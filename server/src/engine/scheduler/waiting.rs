//! The sequences that wait for their turn, or to go on after a preemption.

use crate::engine::plan::SequenceId;
use crate::engine::policy::{Flow, Policy};
use crate::engine::sequence::Sequence;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

/// One queue for each flow that has any, in the policy's order. The flows' order is by lane first.
#[derive(Default)]
pub struct Waiting {
    queues: BTreeMap<Flow, VecDeque<Sequence>>,
}

impl Waiting {
    pub fn insert(&mut self, sequence: Sequence, policy: &dyn Policy) {
        let queue = self.queues.entry(sequence.flow()).or_default();
        let before = |other: &Sequence| policy.compare(other, &sequence) == Ordering::Less;
        let place = queue.partition_point(before);
        queue.insert(place, sequence);
    }

    pub fn get(&self, flow: Flow, index: usize) -> Option<&Sequence> {
        self.queues.get(&flow)?.get(index)
    }

    pub fn get_mut(&mut self, flow: Flow, index: usize) -> Option<&mut Sequence> {
        self.queues.get_mut(&flow)?.get_mut(index)
    }

    pub fn take(&mut self, flow: Flow, index: usize) -> Option<Sequence> {
        let queue = self.queues.get_mut(&flow)?;
        let sequence = queue.remove(index);
        if queue.is_empty() {
            self.queues.remove(&flow);
        }
        sequence
    }

    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let place = |(flow, queue): (&Flow, &VecDeque<Sequence>)| {
            queue.iter().position(|s| s.id() == id).map(|index| (*flow, index))
        };
        let (flow, index) = self.queues.iter().find_map(place)?;
        self.take(flow, index)
    }

    /// The first of each flow.
    pub fn heads(&self) -> impl Iterator<Item = &Sequence> {
        self.queues.values().filter_map(VecDeque::front)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.queues.values().flatten()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.queues.values_mut().flatten()
    }

    pub fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Asserts what holds between calls; for tests.
    pub fn assert_sorted(&self, policy: &dyn Policy) {
        for queue in self.queues.values() {
            let is_before = |a: &Sequence, b: &Sequence| policy.compare(a, b) == Ordering::Less;
            assert!(queue.iter().is_sorted_by(|a, b| is_before(a, b)), "queues are in order");
            assert!(!queue.is_empty(), "no empty queue is kept");
        }
    }
}
