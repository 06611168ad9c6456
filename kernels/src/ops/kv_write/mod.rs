//! New keys and values -> their slots in the paged cache.

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices, not_on};
use crate::{Backend, DType, KernelError, Tensor};

const OP: &str = "kv_write";

/// Stores row t of `x` in slot `slots[t]` of `cache`. Called once for keys and once for values.
///
/// cache[slot / block_size, head, slot % block_size, :] = x[t, head * head_dim..]
///
/// Shapes: `cache` [num_blocks, kv_heads, block_size, head_dim], F32 or F16; `x` [num_tokens,
/// kv_heads * head_dim] F32; `slots` [num_tokens], all different. Numbers: rounded once, to nearest
/// even, when the cache is F16.
/// Errors: `Index` for a slot outside the cache, `Shape`, `DType`.
pub fn kv_write(
    backend: &Backend,
    cache: &mut Tensor,
    x: &Tensor,
    slots: &[u32],
) -> Result<(), KernelError> {
    let &[num_blocks, kv_heads, block_size, head_dim] = cache.shape() else {
        let (got, expected) = (cache.shape().to_vec(), "four dimensions".into());
        return Err(KernelError::Shape { op: OP, what: "cache", got, expected });
    };
    if !matches!(cache.dtype(), DType::F32 | DType::F16) {
        let (what, got) = ("cache", cache.dtype().name());
        return Err(KernelError::DType { op: OP, what, got, expected: "F32 or F16" });
    }
    expect(OP, "x", x, DType::F32, &[slots.len(), kv_heads * head_dim])?;
    expect_indices(OP, "slot", slots, num_blocks * block_size)?;
    match backend {
        Backend::Reference => reference::kv_write(cache, x, slots),
        Backend::Cpu(device) => cpu::kv_write(device, cache, x, slots),
        Backend::Cuda(_) => return Err(not_on(OP, backend)),
    }
    Ok(())
}
