//! Sums between the GPUs of one group, queued on their streams.

#![allow(unsafe_code)]

use super::Communicator;
use super::nccl::{Nccl, NcclAborter, NcclId};
use crate::device::cuda::{CudaDevice, DeviceBuffer};
use crate::ops::add;
use crate::{DType, KernelError, Tensor};

/// One rank's link to the others, by its own GPU.
pub struct Gpus {
    nccl: Nccl,
    device: CudaDevice,
    /// F32 [world_size, len]: the parts of all ranks.
    parts: DeviceBuffer,
}

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
        let bytes = num_values * self.world_size() * DType::F32.block_bytes();
        if bytes > self.parts.len() {
            self.parts = DeviceBuffer::uninit(&self.device, bytes)?;
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
}
