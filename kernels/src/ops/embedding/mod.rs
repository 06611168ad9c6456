//! Token ids -> rows of the embedding table.

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices};
use crate::{Backend, DType, KernelError, Tensor};
use bytes::Bytes;

const OP: &str = "embedding";

/// A matrix that is only read by row: it stays as it lies in the checkpoint (mostly a memory map).
#[derive(Debug, Clone)]
pub struct Table {
    pub dtype: DType,
    pub rows: usize,
    pub row_len: usize,
    bytes: Bytes,
}

impl Table {
    /// Errors: `Shape` if `bytes` is not rows * row_len values of `dtype`.
    pub fn new(
        dtype: DType,
        rows: usize,
        row_len: usize,
        bytes: Bytes,
    ) -> Result<Table, KernelError> {
        let expected_len = dtype.row_bytes(row_len).and_then(|n| n.checked_mul(rows));
        if expected_len != Some(bytes.len()) {
            let expected = format!("the bytes of [{rows}, {row_len}] {dtype} values");
            return Err(KernelError::Shape {
                op: OP,
                what: "table",
                got: vec![bytes.len()],
                expected,
            });
        }
        Ok(Table { dtype, rows, row_len, bytes })
    }

    /// The bytes of row `i`.
    pub fn row(&self, i: usize) -> &[u8] {
        let row_bytes = self.bytes.len() / self.rows;
        &self.bytes[i * row_bytes..(i + 1) * row_bytes]
    }
}

/// Copies row `token_ids[t]` of `table`, widened to f32, to row t of `out`.
///
/// Shapes: `out` [num_tokens, row_len] F32. Numbers: exact.
/// Errors: `Index` for an id outside the table, `Shape`, `DType`.
pub fn embedding(
    backend: &Backend,
    out: &mut Tensor,
    table: &Table,
    token_ids: &[u32],
) -> Result<(), KernelError> {
    expect(OP, "out", out, DType::F32, &[token_ids.len(), table.row_len])?;
    expect_indices(OP, "token id", token_ids, table.rows)?;
    match backend {
        Backend::Reference => reference::embedding(out, table, token_ids),
        Backend::Cpu(device) => cpu::embedding(device, out, table, token_ids),
    }
    Ok(())
}
