use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{DType, KernelError, Tensor};

const THREADS: usize = 256;
/// Eight activations a thread.
const BLOCK_LEN: usize = 8 * THREADS;

const PARAMS: &[Param] = &[Param::Ptr, Param::Ptr, Param::Ptr, Param::U64];

/// BF16, F16
pub const KERNELS: &[KernelSpec] = &[
    KernelSpec { module: "silu_mul", name: "silu_mul_bf16", params: PARAMS },
    KernelSpec { module: "silu_mul", name: "silu_mul_f16", params: PARAMS },
];

pub fn silu_mul(
    device: &CudaDevice,
    out: &mut Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(), KernelError> {
    if out.is_empty() {
        return Ok(());
    }
    let kernel = &KERNELS[usize::from(device.activation_dtype() == DType::F16)];
    let grid = [out.len().div_ceil(BLOCK_LEN) as u32, 1, 1];
    let geometry = Geometry { grid, block_threads: THREADS as u32, shared_bytes: 0 };
    let args = [
        Arg::Ptr(out.device_ptr()),
        Arg::Ptr(gate.device_ptr()),
        Arg::Ptr(up.device_ptr()),
        Arg::U64(out.len() as u64),
    ];
    device.launch(kernel, geometry, &args)
}
