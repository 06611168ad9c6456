use super::Table;
use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{DType, Indices, KernelError, Tensor};

/// In the order of `DType::ALL`.
pub const KERNELS: &[KernelSpec] = &[
    spec("embedding_f32"),
    spec("embedding_f16"),
    spec("embedding_bf16"),
    spec("embedding_q8_0"),
    spec("embedding_q4_0"),
    spec("embedding_q5_0"),
    spec("embedding_q4_k"),
    spec("embedding_q5_k"),
    spec("embedding_q6_k"),
];

const fn spec(name: &'static str) -> KernelSpec {
    KernelSpec {
        module: "embedding",
        name,
        params: &[Param::Ptr, Param::Ptr, Param::Ptr, Param::U32, Param::U32, Param::U32],
    }
}

pub fn embedding(
    device: &CudaDevice,
    out: &mut Tensor,
    table: &Table,
    token_ids: &Indices,
) -> Result<(), KernelError> {
    if out.is_empty() {
        return Ok(());
    }
    let place = DType::ALL.iter().position(|&d| d == table.dtype).expect("all formats are there");
    let geometry =
        Geometry { grid: [out.rows() as u32, 1, 1], block_threads: 256, shared_bytes: 0 };
    let args = [
        Arg::Ptr(out.device_ptr()),
        Arg::Ptr(table.device_ptr()),
        Arg::Ptr(token_ids.device_ptr()),
        Arg::U32(table.row_len as u32),
        Arg::U32(table.part.start as u32),
        Arg::U32(table.part.len() as u32),
    ];
    device.launch(&KERNELS[place], geometry, &args)
}
