use crate::comm::part_len_max;
use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{KernelError, Tensor};

const THREADS: usize = 256;
/// One vector of f32 a thread.
const BLOCK_LEN: usize = 4 * THREADS;

pub const KERNELS: &[KernelSpec] = &[KernelSpec {
    module: "join_columns",
    name: "join_columns_f32",
    params: &[Param::Ptr, Param::Ptr, Param::U64, Param::U64],
}];

/// `parts`: device address of `num_parts` parts, `part_stride` values from one to the next.
pub fn join_columns(
    device: &CudaDevice,
    out: &mut Tensor,
    parts: u64,
    num_parts: usize,
    part_stride: usize,
) -> Result<(), KernelError> {
    if out.is_empty() {
        return Ok(());
    }
    let num_blocks = part_len_max(out.row_len(), num_parts).div_ceil(BLOCK_LEN);
    let grid = [num_blocks, num_parts, out.rows()].map(|n| n as u32);
    let geometry = Geometry { grid, block_threads: THREADS as u32, shared_bytes: 0 };
    let pointers = [out.device_ptr(), parts].map(Arg::Ptr);
    let numbers = [out.row_len(), part_stride].map(|n| Arg::U64(n as u64));
    device.launch(&KERNELS[0], geometry, &[&pointers[..], &numbers].concat())
}
