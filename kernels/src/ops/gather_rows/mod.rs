//! Picks the rows that need logits.

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices, not_on};
use crate::{Backend, DType, Indices, KernelError, Tensor};

/// out[i] = x[rows[i]].
///
/// Shapes: `x` [n, m]; `out` [rows.len(), m]. Numbers: exact. Errors: `Index`, `Shape`, `DType`.
pub fn gather_rows(
    backend: &Backend,
    out: &mut Tensor,
    x: &Tensor,
    rows: &Indices,
) -> Result<(), KernelError> {
    expect("gather_rows", "x", x, DType::F32, &[x.rows(), x.row_len()])?;
    expect("gather_rows", "out", out, DType::F32, &[rows.len(), x.row_len()])?;
    expect_indices("gather_rows", "row", rows, x.rows())?;
    match backend {
        Backend::Reference => reference::gather_rows(out, x, rows),
        Backend::Cpu(device) => cpu::gather_rows(device, out, x, rows),
        Backend::Cuda(_) => return Err(not_on("gather_rows", backend)),
    }
    Ok(())
}
