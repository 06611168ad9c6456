//! Picks the rows that need logits.

mod cpu;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices, rows_for};
use crate::{Backend, DType, Indices, KernelError, Tensor};

/// out[i] = x[rows[i]].
///
/// Shapes: `x` [n, m]; `out` [rows.len(), m], on a GPU longer for a padded step. Numbers: exact.
/// Errors: `Index`, `Shape`, `DType`.
pub fn gather_rows(
    backend: &Backend,
    out: &mut Tensor,
    x: &Tensor,
    rows: &Indices,
) -> Result<(), KernelError> {
    expect("gather_rows", "x", x, DType::F32, &[x.rows(), x.row_len()])?;
    let out_rows = rows_for(backend, rows, out);
    expect("gather_rows", "out", out, DType::F32, &[out_rows, x.row_len()])?;
    expect_indices("gather_rows", "row", rows, x.rows())?;
    match backend {
        Backend::Reference => reference::gather_rows(out, x, rows),
        Backend::Cpu(device) => cpu::gather_rows(device, out, x, rows),
        Backend::Cuda(device) => cuda::gather_rows(device, out, x, rows)?,
    }
    Ok(())
}
