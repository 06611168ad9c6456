//! Which sequence goes first.

pub mod fair;
pub mod fcfs;
pub mod priority;
pub mod interactive_first;

pub use fair::{FairShare, Flow};
pub use fcfs::Fcfs;
pub use interactive_first::InteractiveFirst;
pub use priority::Priority;

use super::sequence::Sequence;
use std::cmp::Ordering;

/// The order of one tenant's sequences: the first is admitted first, the last is preempted first.
/// Whose turn it is among tenants, `FairShare` says.
///
/// A total order that never changes while a sequence lives, and never `Equal` for two sequences
/// (ties end at the id): the queues are kept sorted by it.
pub trait Policy: Send {
    fn compare(&self, a: &Sequence, b: &Sequence) -> Ordering;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PolicyKind {
    #[default]
    Fcfs,
    Priority,
}

impl PolicyKind {
    pub fn build(self) -> Box<dyn Policy> {
        match self {
            PolicyKind::Fcfs => Box::new(InteractiveFirst(Fcfs)),
            PolicyKind::Priority => Box::new(InteractiveFirst(Priority)),
        }
    }
}
