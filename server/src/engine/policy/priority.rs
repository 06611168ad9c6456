//! The smallest priority number first.

use super::{Fcfs, Policy};
use crate::engine::sequence::Sequence;
use std::cmp::Ordering;

/// By `Request::priority`, smaller first; within one priority first come, first served.
pub struct Priority;

impl Policy for Priority {
    fn compare(&self, a: &Sequence, b: &Sequence) -> Ordering {
        a.priority().cmp(&b.priority()).then_with(|| Fcfs.compare(a, b))
    }
}
