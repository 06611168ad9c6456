//! Whoever waits for an answer goes before the background.

use super::Policy;
use crate::engine::sequence::Sequence;
use std::cmp::Ordering;

/// By lane, then as the policy within says.
pub struct InteractiveFirst<P: Policy>(pub P);

impl<P: Policy> Policy for InteractiveFirst<P> {
    fn compare(&self, a: &Sequence, b: &Sequence) -> Ordering {
        a.lane().cmp(&b.lane()).then_with(|| self.0.compare(a, b))
    }
}
