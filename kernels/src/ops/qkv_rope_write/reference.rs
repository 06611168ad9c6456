use super::{Heads, Positions};
use crate::ops::kv_write::Kind;
use crate::ops::rms_norm::rms_norm_in_place;
use crate::ops::{kv_write, rope};
use crate::{Backend, KernelError, Tensor};

/// The definition: three ops one after the other, each on `backend`. The CPU runs it as it is.
pub fn qkv_rope_write(
    backend: &Backend,
    [q, k]: [&mut Tensor; 2],
    v: &Tensor,
    caches: [&mut Tensor; 2],
    positions: &Positions,
    heads: &Heads,
) -> Result<(), KernelError> {
    if let Some(norm) = &heads.norm {
        rms_norm_in_place(backend, q, norm.q_weight, norm.eps)?;
        rms_norm_in_place(backend, k, norm.k_weight, norm.eps)?;
    }
    rope(backend, q, positions.positions, positions.table, heads.head_dim)?;
    rope(backend, k, positions.positions, positions.table, heads.head_dim)?;
    let [k_cache, v_cache] = caches;
    kv_write(backend, Kind::Keys, k_cache, k, positions.slots)?;
    kv_write(backend, Kind::Values, v_cache, v, positions.slots)
}
