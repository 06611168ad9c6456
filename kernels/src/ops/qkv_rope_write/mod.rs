//! From the projections to attention: norms of heads, rotary positions, keys and values to the
//! cache.

pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{RopeTable, expect, expect_indices, rows_for};
use crate::{Backend, DType, Indices, KernelError, Tensor};

const OP: &str = "qkv_rope_write";

/// Where each token stands.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// [num_tokens]: place in the sequence.
    pub positions: &'a Indices,
    /// [num_tokens]: slot in the cache, all different. Only padding on a GPU has none (u32::MAX).
    pub slots: &'a Indices,
    pub table: &'a RopeTable,
}

/// What is done to each head of the queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    pub head_dim: usize,
    pub norm: Option<HeadNorm<'a>>,
}

/// The norm of Qwen3: each head by itself, one weight for all heads.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorm<'a> {
    /// [head_dim]
    pub q_weight: &'a Tensor,
    /// [head_dim]
    pub k_weight: &'a Tensor,
    pub eps: f32,
}

/// Norms (if there are weights) and rotates the heads of `q` and `k`, then stores keys and values
/// in their slots: `rms_norm_in_place`, `rope` and `kv_write` in one.
///
/// Shapes: `q` [num_tokens, heads * head_dim], `k`, `v` [num_tokens, kv_heads * head_dim], in the
/// backend's activation format, on a GPU longer for a padded step; `caches`: of keys and of values,
/// [num_blocks, kv_heads, block_size, head_dim] each. `k` is spent: what it holds afterwards
/// depends on the backend. Memory: on a GPU each row is read and written once. Numbers: those of
/// the three ops; on a GPU f32, rounded once to the format of `q` and of the caches. Errors:
/// `Index` for a position outside the table or a slot outside the cache, `Shape`, `DType`.
pub fn qkv_rope_write(
    backend: &Backend,
    q: &mut Tensor,
    k: &mut Tensor,
    v: &Tensor,
    caches: [&mut Tensor; 2],
    positions: &Positions,
    heads: &Heads,
) -> Result<(), KernelError> {
    if let Backend::Cuda(device) = backend {
        check_on_gpu(backend, [q, k, v], [&*caches[0], &*caches[1]], positions, heads)?;
        return cuda::qkv_rope_write(device, q, k, v, caches, positions, heads);
    }
    reference::qkv_rope_write(backend, [q, k], v, caches, positions, heads)
}

fn check_on_gpu(
    backend: &Backend,
    [q, k, v]: [&Tensor; 3],
    caches: [&Tensor; 2],
    positions: &Positions,
    heads: &Heads,
) -> Result<(), KernelError> {
    let dtype = backend.activation_dtype();
    let (head_dim, table) = (heads.head_dim, positions.table);
    let shape_error = |what, got: &[usize], expected: String| {
        Err(KernelError::Shape { op: OP, what, got: got.to_vec(), expected })
    };
    let &[num_blocks, kv_heads, block_size, cache_dim] = caches[0].shape() else {
        return shape_error("cache", caches[0].shape(), "four dimensions".into());
    };
    for cache in caches {
        expect(OP, "cache", cache, dtype, &[num_blocks, kv_heads, block_size, head_dim])?;
    }
    let rotary_dim = 2 * table.cos.row_len();
    let is_even = head_dim.is_multiple_of(2) && head_dim <= cuda::HEAD_DIM_MAX;
    if cache_dim != head_dim || !is_even || rotary_dim > head_dim {
        let expected = format!("even, {rotary_dim} to {} values a head", cuda::HEAD_DIM_MAX);
        return shape_error("head", &[head_dim], expected);
    }
    let num_rows = rows_for(backend, positions.positions, q);
    expect(OP, "k", k, dtype, &[num_rows, kv_heads * head_dim])?;
    expect(OP, "v", v, dtype, &[num_rows, kv_heads * head_dim])?;
    expect(OP, "q", q, dtype, &[num_rows, q.row_len() / head_dim * head_dim])?;
    expect(OP, "sin", &table.sin, DType::F32, table.cos.shape())?;
    if positions.slots.len() != positions.positions.len() {
        let expected = format!("[{}]", positions.positions.len());
        return shape_error("slots", &[positions.slots.len()], expected);
    }
    expect_indices(OP, "position", positions.positions, table.cos.rows())?;
    expect_indices(OP, "slot", positions.slots, num_blocks * block_size)?;
    if let Some(norm) = &heads.norm {
        expect(OP, "q weight", norm.q_weight, DType::F32, &[head_dim])?;
        expect(OP, "k weight", norm.k_weight, DType::F32, &[head_dim])?;
    }
    Ok(())
}
