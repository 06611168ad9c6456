use super::{Heads, Positions};
use crate::device::cuda::{Arg, CudaDevice, Geometry, KernelSpec, Param};
use crate::{DType, KernelError, Tensor};

/// What the kernel has room for.
pub const HEAD_DIM_MAX: usize = 256;
/// Values that a lane reads at once, where heads allow it.
const VECTOR_LEN: usize = 8;
const LANES: usize = 32;

/// BF16, F16; then the same for heads that do not come in runs of eight values.
pub const KERNELS: &[KernelSpec] = &[
    spec("qkv_rope_write_bf16"),
    spec("qkv_rope_write_f16"),
    spec("qkv_rope_write_bf16_any"),
    spec("qkv_rope_write_f16_any"),
];

const fn spec(name: &'static str) -> KernelSpec {
    use Param::{F32, Ptr, U32};
    let params =
        &[Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, Ptr, U32, U32, U32, U32, U32, U32, F32];
    KernelSpec { module: "qkv_rope_write", name, params }
}

pub fn qkv_rope_write(
    device: &CudaDevice,
    q: &mut Tensor,
    k: &Tensor,
    v: &Tensor,
    caches: [&mut Tensor; 2],
    positions: &Positions,
    heads: &Heads,
) -> Result<(), KernelError> {
    if q.is_empty() {
        return Ok(());
    }
    let &[_, kv_heads, block_size, head_dim] = caches[0].shape() else { unreachable!("checked") };
    let rotary_dim = 2 * positions.table.cos.row_len();
    let is_vector = |len: usize| len.is_multiple_of(2 * VECTOR_LEN);
    let in_vectors = is_vector(rotary_dim) && is_vector(head_dim - rotary_dim);
    // A lane takes a run of values and its partners.
    let unit = if in_vectors { 2 * VECTOR_LEN } else { 2 };
    let group = (head_dim / unit).next_power_of_two().min(LANES);
    let is_f16 = device.activation_dtype() == DType::F16;
    let kernel = &KERNELS[usize::from(is_f16) + if in_vectors { 0 } else { 2 }];
    let (q_weight, k_weight, eps) = heads.norm.map_or((0, 0, 0.0), |norm| {
        (norm.q_weight.device_ptr(), norm.k_weight.device_ptr(), norm.eps)
    });
    let pointers = [
        q.device_ptr(),
        caches[0].device_ptr(),
        caches[1].device_ptr(),
        k.device_ptr(),
        v.device_ptr(),
        q_weight,
        k_weight,
        positions.table.cos.device_ptr(),
        positions.table.sin.device_ptr(),
        positions.positions.device_ptr(),
        positions.slots.device_ptr(),
    ];
    let num_heads = q.row_len() / head_dim;
    let numbers = [num_heads, kv_heads, head_dim, rotary_dim, block_size, group];
    let mut args: Vec<Arg> = pointers.into_iter().map(Arg::Ptr).collect();
    args.extend(numbers.map(|n| Arg::U32(n as u32)));
    args.push(Arg::F32(eps));
    let geometry = Geometry { grid: [q.rows() as u32, 1, 1], block_threads: 256, shared_bytes: 0 };
    device.launch(kernel, geometry, &args)
}
