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

const OP: &str = "embedding";

/// A matrix that is only read by row. In host memory it stays as it lies in the checkpoint (mostly
/// a memory map); a GPU gets a copy of the same bytes.
#[derive(Debug)]
pub struct Table {
    pub dtype: DType,
    pub rows: usize,
    pub row_len: usize,
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
        let storage = match backend {
            Backend::Cuda(device) => Storage::Cuda(DeviceBuffer::from_bytes(device, &bytes)?),
            Backend::Reference | Backend::Cpu(_) => Storage::Host(bytes),
        };
        Ok(Table { dtype, rows, row_len, storage })
    }

    /// The bytes of row `i`. Panics for a table on a GPU.
    pub fn row(&self, i: usize) -> &[u8] {
        let Storage::Host(bytes) = &self.storage else { panic!("this table lies on a GPU") };
        let row_bytes = bytes.len() / self.rows;
        &bytes[i * row_bytes..(i + 1) * row_bytes]
    }

    /// Address on the GPU. Panics for a table in host memory.
    pub fn device_ptr(&self) -> u64 {
        let Storage::Cuda(buffer) = &self.storage else { panic!("this table is in host memory") };
        buffer.ptr()
    }
}

/// Copies row `token_ids[t]` of `table`, widened to f32, to row t of `out`.
///
/// Shapes: `out` [num_tokens, row_len] F32, on a GPU longer for a padded step. Numbers: exact.
/// Errors: `Index` for an id outside the table, `Shape`, `DType`.
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
