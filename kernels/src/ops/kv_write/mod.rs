//! New keys and values -> their slots in the paged cache.

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices, not_on};
use crate::device::simd::LANES;
use crate::{Backend, DType, KernelError, Tensor};

const OP: &str = "kv_write";

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Keys,
    Values,
}

/// How one head's part of a block lies in a BF16 cache in host memory. The instruction that
/// multiplies bf16 numbers takes them in pairs, 16 pairs at a time: dimensions of keys are paired
/// for 16 keys side by side, values of two tokens for 16 dimensions side by side, so that attention
/// reads the cache as it is.
///
/// Keys: [head_dim / 2, block_size, 2]. Values: [block_size / 2, head_dim, 2].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairedBlock {
    pub block_size: usize,
    pub head_dim: usize,
}

impl PairedBlock {
    /// Where dimension `d` of the key in place `offset` of the block lies.
    #[inline(always)]
    pub fn key_at(self, offset: usize, d: usize) -> usize {
        (d / 2 * self.block_size + offset) * 2 + d % 2
    }

    /// Where dimension `d` of the value in place `offset` of the block lies.
    #[inline(always)]
    pub fn value_at(self, offset: usize, d: usize) -> usize {
        (offset / 2 * self.head_dim + d) * 2 + offset % 2
    }

    #[inline(always)]
    pub fn at(self, kind: Kind, offset: usize, d: usize) -> usize {
        match kind {
            Kind::Keys => self.key_at(offset, d),
            Kind::Values => self.value_at(offset, d),
        }
    }
}

/// Stores row t of `x` in slot `slots[t]` of `cache`, which holds keys or values.
///
/// cache[slot / block_size, head, slot % block_size, :] = x[t, head * head_dim..]
///
/// Shapes: `cache` [num_blocks, kv_heads, block_size, head_dim], F32, F16 or BF16; of a BF16 cache
/// each head's part of a block lies as `PairedBlock` has it, block_size is a multiple of 16 and
/// head_dim even. `x` [num_tokens, kv_heads * head_dim] F32; `slots` [num_tokens], all different.
/// Numbers: rounded once, to nearest even, when the cache is F16 or BF16.
/// Errors: `Index` for a slot outside the cache, `Shape`, `DType`.
pub fn kv_write(
    backend: &Backend,
    kind: Kind,
    cache: &mut Tensor,
    x: &Tensor,
    slots: &[u32],
) -> Result<(), KernelError> {
    let &[num_blocks, kv_heads, block_size, head_dim] = cache.shape() else {
        let (got, expected) = (cache.shape().to_vec(), "four dimensions".into());
        return Err(KernelError::Shape { op: OP, what: "cache", got, expected });
    };
    expect_cache_dtype(OP, "cache", cache)?;
    expect(OP, "x", x, DType::F32, &[slots.len(), kv_heads * head_dim])?;
    expect_indices(OP, "slot", slots, num_blocks * block_size)?;
    match backend {
        Backend::Reference => reference::kv_write(kind, cache, x, slots),
        Backend::Cpu(device) => cpu::kv_write(device, kind, cache, x, slots),
        Backend::Cuda(_) => return Err(not_on(OP, backend)),
    }
    Ok(())
}

/// The check of ops on caches in host memory.
pub(super) fn expect_cache_dtype(
    op: &'static str,
    what: &'static str,
    cache: &Tensor,
) -> Result<(), KernelError> {
    let shape = cache.shape();
    match cache.dtype() {
        DType::F32 | DType::F16 => Ok(()),
        DType::BF16 if shape[2].is_multiple_of(LANES) && shape[3].is_multiple_of(2) => Ok(()),
        DType::BF16 => {
            let expected = "a block_size in sixteens, an even head_dim".into();
            Err(KernelError::Shape { op, what, got: shape.to_vec(), expected })
        }
        other => {
            let (got, expected) = (other.name(), "F32, F16 or BF16");
            Err(KernelError::DType { op, what, got, expected })
        }
    }
}
