//! Rotary position embedding, "rotate half" style.

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices, not_on};
use crate::{Backend, DType, KernelError, Tensor};

const OP: &str = "rope";

/// Cosine and sine of every position, in f32: [positions, rotary_dim / 2] each, with any YaRN
/// factor already multiplied in.
#[derive(Debug)]
pub struct RopeTable {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Rotates the first R = 2 * table.cos.row_len() values of each head of `x`, in place; the rest
/// pass through.
///
/// x'[i] = x[i] cos[p, i] - x[i + R/2] sin[p, i]
/// x'[i + R/2] = x[i + R/2] cos[p, i] + x[i] sin[p, i], with p = positions[t]
///
/// Shapes: `x` [num_tokens, heads * head_dim]; `positions` [num_tokens]. Numbers: f32.
/// Errors: `Index` for a position outside the table, `Shape`, `DType`.
/// Source: Su et al., "RoFormer", 2021, in the layout of GPT-NeoX.
pub fn rope(
    backend: &Backend,
    x: &mut Tensor,
    positions: &[u32],
    table: &RopeTable,
    head_dim: usize,
) -> Result<(), KernelError> {
    let half = table.cos.row_len();
    expect(OP, "x", x, DType::F32, &[positions.len(), x.row_len()])?;
    expect(OP, "sin", &table.sin, DType::F32, table.cos.shape())?;
    if head_dim == 0 || 2 * half > head_dim || !x.row_len().is_multiple_of(head_dim) {
        let expected = format!("[_, heads * {head_dim}], head_dim at least {}", 2 * half);
        return Err(KernelError::Shape { op: OP, what: "x", got: x.shape().to_vec(), expected });
    }
    expect_indices(OP, "position", positions, table.cos.rows())?;
    match backend {
        Backend::Reference => reference::rope(x, positions, table, head_dim),
        Backend::Cpu(device) => cpu::rope(device, x, positions, table, head_dim),
        Backend::Cuda(_) => return Err(not_on(OP, backend)),
    }
    Ok(())
}
