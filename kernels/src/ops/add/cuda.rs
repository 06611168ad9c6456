use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{KernelError, Tensor};

const THREADS: usize = 256;
/// One vector of f32 a thread.
const BLOCK_LEN: usize = 4 * THREADS;

pub const KERNELS: &[KernelSpec] = &[
    KernelSpec {
        module: "add",
        name: "add_assign_f32",
        params: &[Param::Ptr, Param::Ptr, Param::U64],
    },
    KernelSpec {
        module: "add",
        name: "sum_parts_f32",
        params: &[Param::Ptr, Param::Ptr, Param::U64, Param::U32],
    },
];

pub fn add_assign(device: &CudaDevice, x: &mut Tensor, y: &Tensor) -> Result<(), KernelError> {
    if x.is_empty() {
        return Ok(());
    }
    let grid = [x.len().div_ceil(BLOCK_LEN) as u32, 1, 1];
    let geometry = Geometry { grid, block_threads: THREADS as u32, shared_bytes: 0 };
    let args = [Arg::Ptr(x.device_ptr()), Arg::Ptr(y.device_ptr()), Arg::U64(x.len() as u64)];
    device.launch(&KERNELS[0], geometry, &args)
}

/// x = parts[0] + parts[1] + ..., added in this order; each part is as long as `x`, one behind the
/// other from device address `parts` on.
pub fn sum_parts(
    device: &CudaDevice,
    x: &mut Tensor,
    parts: u64,
    num_parts: usize,
) -> Result<(), KernelError> {
    if x.is_empty() {
        return Ok(());
    }
    let grid = [x.len().div_ceil(BLOCK_LEN) as u32, 1, 1];
    let geometry = Geometry { grid, block_threads: THREADS as u32, shared_bytes: 0 };
    let pointers = [x.device_ptr(), parts].map(Arg::Ptr);
    let numbers = [Arg::U64(x.len() as u64), Arg::U32(num_parts as u32)];
    device.launch(&KERNELS[1], geometry, &[&pointers[..], &numbers].concat())
}
