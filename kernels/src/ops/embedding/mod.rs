//! Token ids -> rows of the embedding table.

mod cpu;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, expect_indices, rows_for};
use crate::device::cuda::DeviceBuffer;
use crate::{Backend, DType, Indices, KernelError, Tensor};
use bytes::Bytes;
use std::ops::Range;

const OP: &str = "embedding";

/// A matrix that is only read by row, or one rank's run of its rows. In host memory it stays as it
/// lies in the checkpoint (mostly a memory map); a GPU gets a copy of the same bytes.
#[derive(Debug)]
pub struct Table {
    pub dtype: DType,
    /// Of the whole matrix.
    pub rows: usize,
    pub row_len: usize,
    /// The rows that are here.
    part: Range<usize>,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Host(Bytes),
    Cuda(DeviceBuffer),
}

impl Table {
    /// Errors: `Shape` if `bytes` is not rows * row_len values of `dtype`; `OutOfMemory`.
    pub fn load(
        backend: &Backend,
        dtype: DType,
        rows: usize,
        row_len: usize,
        bytes: Bytes,
    ) -> Result<Table, KernelError> {
        Self::load_part(backend, dtype, rows, 0..rows, row_len, bytes)
    }

    /// The rows `part` of a matrix that has `rows`.
    ///
    /// Errors: `Shape` if `bytes` is not part.len() * row_len values of `dtype`; `OutOfMemory`.
    pub fn load_part(
        backend: &Backend,
        dtype: DType,
        rows: usize,
        part: Range<usize>,
        row_len: usize,
        bytes: Bytes,
    ) -> Result<Table, KernelError> {
        assert!(part.end <= rows, "rows {part:?} of {rows}");
        let expected_len = dtype.row_bytes(row_len).and_then(|n| n.checked_mul(part.len()));
        if expected_len != Some(bytes.len()) {
            let expected = format!("the bytes of [{}, {row_len}] {dtype} values", part.len());
            return Err(KernelError::Shape {
                op: OP,
                what: "table",
                got: vec![bytes.len()],
                expected,
            });
        }
        let storage = match backend {
            Backend::Cuda(device) => Storage::Cuda(DeviceBuffer::from_bytes(device, &bytes)?),
            Backend::Reference | Backend::Cpu(_) => Storage::Host(bytes),
        };
        Ok(Table { dtype, rows, row_len, part, storage })
    }

    /// The bytes of row `i`, if it is here. Panics for a table on a GPU.
    pub fn row(&self, i: usize) -> Option<&[u8]> {
        let Storage::Host(bytes) = &self.storage else { panic!("this table lies on a GPU") };
        let place = self.part.contains(&i).then(|| i - self.part.start)?;
        let row_bytes = bytes.len() / self.part.len();
        Some(&bytes[place * row_bytes..(place + 1) * row_bytes])
    }

    /// Address on the GPU. Panics for a table in host memory.
    pub fn device_ptr(&self) -> u64 {
        let Storage::Cuda(buffer) = &self.storage else { panic!("this table is in host memory") };
        buffer.ptr()
    }
}

/// Copies row `token_ids[t]` of `table`, widened to f32, to row t of `out`. A row that another rank
/// has gives zeros, so that the sum over ranks is the row (and a zero loses its sign).
///
/// Shapes: `out` [num_tokens, row_len] F32, on a GPU longer for a padded step. Numbers: exact.
/// Errors: `Index` for an id outside the whole table, `Shape`, `DType`.
pub fn embedding(
    backend: &Backend,
    out: &mut Tensor,
    table: &Table,
    token_ids: &Indices,
) -> Result<(), KernelError> {
    let rows = rows_for(backend, token_ids, out);
    expect(OP, "out", out, DType::F32, &[rows, table.row_len])?;
    expect_indices(OP, "token id", token_ids, table.rows)?;
    match backend {
        Backend::Reference => reference::embedding(out, table, token_ids),
        Backend::Cpu(device) => cpu::embedding(device, out, table, token_ids),
        Backend::Cuda(device) => cuda::embedding(device, out, table, token_ids)?,
    }
    Ok(())
}
