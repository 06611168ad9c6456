//! How ranks add up their parts.

pub mod solo;
pub mod local;
pub mod messages;
pub mod gpus;
pub mod nccl;
#[cfg(feature = "mpi")]
pub mod mpi;

use crate::{KernelError, Tensor};

/// The link between the ranks of one tensor-parallel group, as seen by one rank.
pub trait Communicator: Send {
    fn rank(&self) -> usize;
    fn world_size(&self) -> usize;
    /// Makes room once for sums of up to `num_values`, for devices that cannot do so in a step.
    fn reserve(&mut self, _num_values: usize) -> Result<(), KernelError> {
        Ok(())
    }
    /// Replaces `x` on every rank by the sum over ranks, added in rank order so that each run gives
    /// the same bits.
    fn all_reduce_sum(&mut self, x: &mut Tensor) -> Result<(), KernelError>;
}
