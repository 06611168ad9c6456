//! Exchanges between the GPUs of one group, queued on their streams.

#![allow(unsafe_code)]

use super::nccl::{Nccl, NcclAborter, NcclId};
use super::{Communicator, expect_columns, part_len_max};
use crate::device::cuda::{CudaDevice, DeviceBuffer};
use crate::ops::{add, join_columns};
use crate::{DType, KernelError, Tensor};

/// One rank's link to the others, by its own GPU.
pub struct Gpus {
    nccl: Nccl,
    device: CudaDevice,
    /// F32 [world_size, len]: the parts of all ranks.
    parts: DeviceBuffer,
}

/// Values of one vector access.
const PART_UNIT: usize = 4;

impl Gpus {
    /// Waits until all ranks have come. Errors: `Device`.
    pub fn join(
        device: &CudaDevice,
        id: &NcclId,
        rank: usize,
        world_size: usize,
    ) -> Result<Gpus, KernelError> {
        device.bind()?;
        let nccl = Nccl::join(id, rank, world_size)?;
        Ok(Gpus { nccl, device: device.clone(), parts: DeviceBuffer::uninit(device, 0)? })
    }

    pub fn aborter(&self) -> NcclAborter {
        self.nccl.aborter()
    }
}

impl Communicator for Gpus {
    fn rank(&self) -> usize {
        self.nccl.rank()
    }

    fn world_size(&self) -> usize {
        self.nccl.world_size()
    }

    fn reserve(&mut self, num_values: usize) -> Result<(), KernelError> {
        let num_values = num_values.next_multiple_of(PART_UNIT) * self.world_size();
        let bytes = num_values * DType::F32.block_bytes();
        if bytes > self.parts.len() {
            // Ranks with fewer columns than others send what lies behind theirs, too.
            self.parts = DeviceBuffer::zeroed(&self.device, bytes)?;
        }
        Ok(())
    }

    /// The parts of all ranks come to each, which adds them up in rank order: the library's own
    /// sums depend on a value's place, and so a row's bits would on its neighbours.
    fn all_reduce_sum(&mut self, x: &mut Tensor) -> Result<(), KernelError> {
        self.reserve(x.len())?;
        let len = x.len();
        let (stream, parts) = (self.device.stream().cast(), self.parts.ptr());
        assert_eq!(x.dtype(), DType::F32, "what layers add to the hidden state is F32");
        // SAFETY: `x` has `len` values, and `parts` has room for those of every rank (`reserve`);
        // both live on this rank's device, whose stream it is, and are freed only after it has
        // passed.
        unsafe { self.nccl.all_gather(parts, x.device_ptr(), len, x.dtype(), stream)? };
        add::cuda::sum_parts(&self.device, x, parts, self.world_size())
    }

    /// Every rank sends as many values as the one with the most columns has: the library's gather
    /// knows one length only.
    fn all_gather_columns(&mut self, out: &mut Tensor, part: &Tensor) -> Result<(), KernelError> {
        let (rank, world_size) = (self.rank(), self.world_size());
        expect_columns(out, part, rank, world_size)?;
        let len = out.rows() * part_len_max(out.row_len(), world_size);
        // Parts of whole vectors, so that each begins where vectors do.
        let len = len.next_multiple_of(PART_UNIT);
        if len == 0 {
            return Ok(());
        }
        self.reserve(len)?;
        let value_bytes = DType::F32.block_bytes();
        let own_offset = rank * len * value_bytes;
        let part_bytes = part.len() * value_bytes;
        self.parts.copy_part(own_offset, part.device_buffer(), part_bytes)?;
        let (stream, parts) = (self.device.stream().cast(), self.parts.ptr());
        let own = parts + own_offset as u64;
        // SAFETY: `parts` has room for `len` values of every rank (`reserve`), of which `own` are
        // this rank's, where an exchange in place wants them; they live on this rank's device,
        // whose stream it is, and are freed only after it has passed.
        unsafe { self.nccl.all_gather(parts, own, len, DType::F32, stream)? };
        join_columns::cuda::join_columns(&self.device, out, parts, world_size, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::part_range;
    use crate::device::cuda::{Graph, device_count, images};
    use crate::ops::testing::*;

    /// Runs `work` on a rank for each of the first `world_size` GPUs.
    fn on_ranks(world_size: usize, work: impl Fn(&CudaDevice, Gpus) + Sync) {
        let id = NcclId::new().expect("NCCL is there");
        std::thread::scope(|scope| {
            for rank in 0..world_size {
                let (id, work) = (&id, &work);
                scope.spawn(move || {
                    let device = CudaDevice::open(rank).expect("the driver shows it");
                    work(&device, Gpus::join(&device, id, rank, world_size).expect("all come"));
                });
            }
        });
    }

    #[test]
    fn columns_of_unequal_ranks_come_side_by_side_also_in_a_recording() {
        let count = device_count();
        if count < 2 || !images::has_kernels() {
            return;
        }
        for world_size in 2..=count.min(4) {
            on_ranks(world_size, |device, mut link| {
                let backend = crate::Backend::Cuda(device.clone());
                crate::ops::prepare_all(device).expect("kernels load");
                link.reserve(3 * 2000).expect("memory");
                for [num_rows, len] in [[1, 8], [3, 7], [2, 1025], [3, 4001], [0, 9]] {
                    let whole = tensor(7, &[num_rows, len], 3.0);
                    let columns = part_range(len, link.rank(), world_size);
                    let part: Vec<f32> = (0..num_rows)
                        .flat_map(|row| &whole.f32_row(row)[columns.clone()])
                        .copied()
                        .collect();
                    let part = on_device(device, DType::F32, &[num_rows, columns.len()], &part);
                    let zeros = || Tensor::zeros_on(&backend, DType::F32, &[num_rows, len]);
                    let (mut out, mut recorded) = (zeros().unwrap(), zeros().unwrap());
                    link.all_gather_columns(&mut out, &part).expect("all come");
                    assert_same_bits(&out.to_f32().unwrap(), whole.f32(), "at once");
                    let work = || link.all_gather_columns(&mut recorded, &part);
                    let graph = Graph::record(device, work).expect("it can be recorded");
                    graph.launch().expect("all come");
                    assert_same_bits(&recorded.to_f32().unwrap(), whole.f32(), "recorded");
                }
            });
        }
    }
}
