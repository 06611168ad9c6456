//! The sequences that wait for their turn, or to go on after a preemption.

use crate::engine::plan::SequenceId;
use crate::engine::policy::{Flow, Policy};
use crate::engine::sequence::Sequence;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

/// One queue for each flow that has any, in the policy's order. The flows' order is by lane first.
#[derive(Default)]
pub struct Waiting {
    queues: BTreeMap<Flow, VecDeque<Box<Sequence>>>,
    len: usize,
    num_started: usize,
    num_constrained: usize,
}

impl Waiting {
    pub fn insert(&mut self, sequence: Box<Sequence>, policy: &dyn Policy) {
        self.len += 1;
        self.num_started += usize::from(sequence.is_started());
        self.num_constrained += usize::from(sequence.is_constrained());
        let queue = self.queues.entry(sequence.flow()).or_default();
        let before = |other: &Sequence| policy.compare(other, &sequence) == Ordering::Less;
        let place = queue.partition_point(|other| before(other));
        queue.insert(place, sequence);
    }

    pub fn get(&self, flow: Flow, index: usize) -> Option<&Sequence> {
        self.queues.get(&flow)?.get(index).map(|sequence| &**sequence)
    }

    pub fn get_mut(&mut self, flow: Flow, index: usize) -> Option<&mut Sequence> {
        self.queues.get_mut(&flow)?.get_mut(index).map(|sequence| &mut **sequence)
    }

    pub fn take(&mut self, flow: Flow, index: usize) -> Option<Box<Sequence>> {
        let queue = self.queues.get_mut(&flow)?;
        let sequence = queue.remove(index)?;
        if queue.is_empty() {
            self.queues.remove(&flow);
        }
        self.len -= 1;
        self.num_started -= usize::from(sequence.is_started());
        self.num_constrained -= usize::from(sequence.is_constrained());
        Some(sequence)
    }

    pub fn remove(&mut self, id: SequenceId) -> Option<Box<Sequence>> {
        let place = |(flow, queue): (&Flow, &VecDeque<Box<Sequence>>)| {
            queue.iter().position(|s| s.id() == id).map(|index| (*flow, index))
        };
        let (flow, index) = self.queues.iter().find_map(place)?;
        self.take(flow, index)
    }

    /// The first of each flow.
    pub fn heads(&self) -> impl Iterator<Item = &Sequence> {
        self.queues.values().filter_map(|queue| queue.front().map(|sequence| &**sequence))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.queues.values().flatten().map(|sequence| &**sequence)
    }

    /// Those that their constraints may have to be asked about; none are looked at where none are.
    pub fn constrained(&self) -> impl Iterator<Item = &Sequence> {
        let queues = (self.num_constrained > 0).then(|| self.queues.values());
        queues.into_iter().flatten().flatten().map(|sequence| &**sequence)
    }

    /// The same.
    pub fn constrained_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let queues = (self.num_constrained > 0).then(|| self.queues.values_mut());
        queues.into_iter().flatten().flatten().map(|sequence| &mut **sequence)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Those that were preempted.
    pub fn num_started(&self) -> usize {
        self.num_started
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
        let count = |is: fn(&Sequence) -> bool| self.iter().filter(|s| is(s)).count();
        assert_eq!(self.len, count(|_| true), "all are counted");
        assert_eq!(self.num_started, count(Sequence::is_started), "preempted ones are counted");
        assert_eq!(self.num_constrained, count(Sequence::is_constrained), "and constrained ones");
    }
}
