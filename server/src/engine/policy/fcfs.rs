//! First come, first served.

use super::Policy;
use crate::engine::sequence::Sequence;
use std::cmp::Ordering;

/// By arrival, then by id. A preempted sequence keeps its arrival, so it comes back before all that
/// came later.
pub struct Fcfs;

impl Policy for Fcfs {
    fn compare(&self, a: &Sequence, b: &Sequence) -> Ordering {
        a.arrival().cmp(&b.arrival()).then(a.id().cmp(&b.id()))
    }
}
