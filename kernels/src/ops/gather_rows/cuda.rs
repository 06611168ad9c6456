use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{Indices, KernelError, Tensor};

pub const KERNELS: &[KernelSpec] = &[KernelSpec {
    module: "gather_rows",
    name: "gather_rows_f32",
    params: &[Param::Ptr, Param::Ptr, Param::Ptr, Param::U32],
}];

pub fn gather_rows(
    device: &CudaDevice,
    out: &mut Tensor,
    x: &Tensor,
    rows: &Indices,
) -> Result<(), KernelError> {
    if out.is_empty() {
        return Ok(());
    }
    let geometry =
        Geometry { grid: [out.rows() as u32, 1, 1], block_threads: 256, shared_bytes: 0 };
    let args = [
        Arg::Ptr(out.device_ptr()),
        Arg::Ptr(x.device_ptr()),
        Arg::Ptr(rows.device_ptr()),
        Arg::U32(x.row_len() as u32),
    ];
    device.launch(&KERNELS[0], geometry, &args)
}
