//! How ranks add up their parts, or lay them side by side.

pub mod solo;
pub mod local;
pub mod messages;
pub mod gpus;
pub mod nccl;
#[cfg(feature = "mpi")]
pub mod mpi;

use crate::ops::expect;
use crate::{DType, KernelError, Tensor};
use std::ops::Range;

/// The link between the ranks of one tensor-parallel group, as seen by one rank.
pub trait Communicator: Send {
    fn rank(&self) -> usize;
    fn world_size(&self) -> usize;
    /// Makes room once for exchanges of up to `num_values` of each rank, for devices that cannot do
    /// so in a step.
    fn reserve(&mut self, _num_values: usize) -> Result<(), KernelError> {
        Ok(())
    }
    /// Replaces `x` on every rank by the sum over ranks, added in rank order so that each run gives
    /// the same bits.
    fn all_reduce_sum(&mut self, x: &mut Tensor) -> Result<(), KernelError>;
    /// Puts the columns of all ranks side by side in `out`, on every rank: those of rank r are
    /// `part_range(out.row_len(), r, world_size)`.
    ///
    /// Shapes: `out` [n, len] F32, `part` [n, this rank's columns] F32. Numbers: exact.
    /// Errors: `Shape`, `DType`, and those of `all_reduce_sum`.
    fn all_gather_columns(&mut self, out: &mut Tensor, part: &Tensor) -> Result<(), KernelError>;
}

/// What one rank has of `len` things in a row: a run of neighbours, as equal as they come.
pub fn part_range(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    let start = |rank: usize| len * rank / world_size;
    start(rank)..start(rank + 1)
}

/// The most that any rank has of them.
pub fn part_len_max(len: usize, world_size: usize) -> usize {
    len.div_ceil(world_size)
}

/// The check that every `all_gather_columns` makes.
fn expect_columns(
    out: &Tensor,
    part: &Tensor,
    rank: usize,
    world_size: usize,
) -> Result<(), KernelError> {
    let op = "all_gather_columns";
    expect(op, "out", out, DType::F32, &[out.rows(), out.row_len()])?;
    let columns = part_range(out.row_len(), rank, world_size).len();
    expect(op, "part", part, DType::F32, &[out.rows(), columns])
}
