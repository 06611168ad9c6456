use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{DType, KernelError, Tensor};

/// Rows are read in vectors of so many values.
pub const VECTOR_LEN: usize = 4;

const NORM: &[Param] = &[Param::Ptr, Param::Ptr, Param::Ptr, Param::U32, Param::F32];
const ADD_NORM: &[Param] =
    &[Param::Ptr, Param::Ptr, Param::Ptr, Param::Ptr, Param::U32, Param::F32];

/// BF16, F16; then the same with the addition.
pub const KERNELS: &[KernelSpec] = &[
    KernelSpec { module: "rms_norm", name: "rms_norm_bf16", params: NORM },
    KernelSpec { module: "rms_norm", name: "rms_norm_f16", params: NORM },
    KernelSpec { module: "rms_norm", name: "add_rms_norm_bf16", params: ADD_NORM },
    KernelSpec { module: "rms_norm", name: "add_rms_norm_f16", params: ADD_NORM },
];

pub fn add_rms_norm(
    device: &CudaDevice,
    hidden: &mut Tensor,
    delta: Option<&Tensor>,
    out: &mut Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(), KernelError> {
    if out.is_empty() {
        return Ok(());
    }
    let format = usize::from(device.activation_dtype() == DType::F16);
    let geometry =
        Geometry { grid: [out.rows() as u32, 1, 1], block_threads: 256, shared_bytes: 0 };
    let [hidden, out, weight_ptr] =
        [hidden.device_ptr(), out.device_ptr(), weight.device_ptr()].map(Arg::Ptr);
    let (n, eps) = (Arg::U32(weight.len() as u32), Arg::F32(eps));
    match delta {
        None => device.launch(&KERNELS[format], geometry, &[out, hidden, weight_ptr, n, eps]),
        Some(delta) => {
            let args = [hidden, Arg::Ptr(delta.device_ptr()), out, weight_ptr, n, eps];
            device.launch(&KERNELS[2 + format], geometry, &args)
        }
    }
}
