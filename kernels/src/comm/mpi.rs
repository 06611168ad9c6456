//! The ranks of several processes, started by mpirun or its like, over the MPI that is installed.

use super::messages::{Channel, Messages};
use super::{Communicator, expect_columns, part_range};
use crate::ops::join_columns::reference::place_columns;
use crate::{DType, KernelError, Tensor};
use mpi::Threading;
use mpi::datatype::PartitionMut;
use mpi::environment::{Universe, initialize_with_threading, processor_name};
use mpi::point_to_point::MatchedReceiveVec;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator as _, CommunicatorCollectives, Destination, Source};
use std::sync::Arc;

/// Sums up to this length are gathered whole by every rank, which takes one exchange; longer ones
/// are shared out and gathered, which takes two with fewer bytes.
const GATHER_LEN_MAX: usize = 16 * 1024;
/// Bytes of a machine's name that are compared.
const NAME_BYTES: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MpiError {
    #[error("MPI was started in this process before")]
    Started,
    #[error("this MPI cannot be called by several threads at once; it offers {offered}")]
    Threads { offered: String },
}

/// Membership of this process. Leaving it in order waits for all others.
pub struct MpiProcess {
    universe: Universe,
    messages: Arc<MpiMessages>,
}

impl MpiProcess {
    /// Meets the other processes. Called once, on the main thread.
    pub fn join() -> Result<MpiProcess, MpiError> {
        let (universe, offered) =
            initialize_with_threading(Threading::Multiple).ok_or(MpiError::Started)?;
        if offered != Threading::Multiple {
            let offered = format!("{offered:?}");
            leave_alone(universe);
            return Err(MpiError::Threads { offered });
        }
        let world = SimpleCommunicator::world();
        let (rank, world_size) = (world.rank() as usize, world.size() as usize);
        let (local_rank, local_size) = local_place(&world);
        let messages = MpiMessages { rank, world_size, local_rank, local_size };
        Ok(MpiProcess { universe, messages: Arc::new(messages) })
    }

    pub fn messages(&self) -> Arc<MpiMessages> {
        self.messages.clone()
    }

    /// Waits until every process leaves.
    pub fn leave(self) {
        drop(self.universe);
    }

    /// Leaves the others to themselves: some of them may be lost, and leaving in order would wait
    /// for them.
    pub fn abandon(self) {
        leave_alone(self.universe);
    }
}

fn leave_alone(universe: Universe) {
    std::mem::forget(universe);
}

/// This process's place among those whose machine has the name of this one, and their count.
fn local_place(world: &SimpleCommunicator) -> (usize, usize) {
    let name = processor_name().unwrap_or_default();
    let mut own = [0u8; NAME_BYTES];
    let len = name.len().min(NAME_BYTES);
    own[..len].copy_from_slice(&name.as_bytes()[..len]);
    let mut all = vec![0u8; NAME_BYTES * world.size() as usize];
    world.all_gather_into(&own[..], &mut all[..]);
    let is_here: Vec<bool> = all.chunks_exact(NAME_BYTES).map(|name| name == own).collect();
    let count = |ranks: &[bool]| ranks.iter().filter(|is_here| **is_here).count();
    (count(&is_here[..world.rank() as usize]), count(&is_here))
}

/// Any thread may use it.
pub struct MpiMessages {
    rank: usize,
    world_size: usize,
    local_rank: usize,
    local_size: usize,
}

impl MpiMessages {
    /// The sums of the same processes.
    pub fn communicator(&self) -> MpiCommunicator {
        let (rank, world_size) = (self.rank, self.world_size);
        MpiCommunicator { rank, world_size, sent: Vec::new(), parts: Vec::new(), sums: Vec::new() }
    }
}

fn tag(channel: Channel) -> i32 {
    match channel {
        Channel::Work => 1,
        Channel::Life => 2,
    }
}

impl Messages for MpiMessages {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn send(&self, to: usize, channel: Channel, bytes: &[u8]) {
        let world = SimpleCommunicator::world();
        world.process_at_rank(to as i32).send_with_tag(bytes, tag(channel));
    }

    fn try_receive(&self, channel: Channel) -> Option<(usize, Vec<u8>)> {
        let world = SimpleCommunicator::world();
        let found = world.any_process().immediate_matched_probe_with_tag(tag(channel))?;
        let (bytes, status) = found.matched_receive_vec::<u8>();
        Some((status.source_rank() as usize, bytes))
    }
}

/// Sums over the processes of a group.
pub struct MpiCommunicator {
    rank: usize,
    world_size: usize,
    /// This rank's values, filled up to equal shares.
    sent: Vec<f32>,
    /// What the others sent, in rank order.
    parts: Vec<f32>,
    sums: Vec<f32>,
}

impl Communicator for MpiCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    /// Numbers: added in rank order for every value, so the same bits on every rank in every run,
    /// and those of `comm::local`.
    /// Errors: `DType` unless F32. Waits for ever for a rank that is lost: the processes are
    /// watched from outside.
    fn all_reduce_sum(&mut self, x: &mut Tensor) -> Result<(), KernelError> {
        if x.dtype() != DType::F32 {
            let (op, what) = ("all_reduce_sum", "x");
            let (got, expected) = (x.dtype().name(), "F32");
            return Err(KernelError::DType { op, what, got, expected });
        }
        let values = x.f32_mut();
        match values.len() <= GATHER_LEN_MAX || self.world_size == 2 {
            true => self.gather(values),
            false => self.share_out(values),
        }
        Ok(())
    }

    /// Errors: `Shape`, `DType`. Waits as `all_reduce_sum` does.
    fn all_gather_columns(&mut self, out: &mut Tensor, part: &Tensor) -> Result<(), KernelError> {
        expect_columns(out, part, self.rank, self.world_size)?;
        let columns = |rank| part_range(out.row_len(), rank, self.world_size);
        let value_count = |rank| out.rows() * columns(rank).len();
        let ranks = 0..self.world_size;
        let counts: Vec<i32> = ranks.map(|rank| value_count(rank) as i32).collect();
        let starts: Vec<i32> = counts
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end - count)
            })
            .collect();
        self.parts.resize(self.parts.len().max(out.len()), 0.0);
        let parts = &mut self.parts[..out.len()];
        let mut gathered = PartitionMut::new(parts, counts, &starts[..]);
        SimpleCommunicator::world().all_gather_varcount_into(part.f32(), &mut gathered);
        for (rank, &start) in starts.iter().enumerate() {
            let columns = part_range(out.row_len(), rank, self.world_size);
            let len = out.rows() * columns.len();
            place_columns(out, columns, &self.parts[start as usize..][..len]);
        }
        Ok(())
    }
}

impl MpiCommunicator {
    fn gather(&mut self, values: &mut [f32]) {
        let len = values.len();
        self.parts.resize(len * self.world_size, 0.0);
        let parts = &mut self.parts[..len * self.world_size];
        SimpleCommunicator::world().all_gather_into(&*values, parts);
        add_in_order(values, parts);
    }

    /// Each rank adds one share and hands it to all.
    fn share_out(&mut self, values: &mut [f32]) {
        let world = SimpleCommunicator::world();
        let share = values.len().div_ceil(self.world_size);
        self.sent.clear();
        self.sent.extend_from_slice(values);
        self.sent.resize(share * self.world_size, 0.0);
        self.parts.resize(share * self.world_size, 0.0);
        let parts = &mut self.parts[..share * self.world_size];
        world.all_to_all_into(&self.sent[..], parts);
        self.sums.resize(share, 0.0);
        add_in_order(&mut self.sums[..share], parts);
        world.all_gather_into(&self.sums[..share], parts);
        values.copy_from_slice(&parts[..values.len()]);
    }
}

fn add_in_order(out: &mut [f32], parts: &[f32]) {
    let mut parts = parts.chunks_exact(out.len().max(1));
    if let Some(first) = parts.next() {
        out.copy_from_slice(first);
    }
    for part in parts {
        out.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
}
