use super::Table;
use crate::Tensor;
use crate::ops::dequantize;

pub fn embedding(out: &mut Tensor, table: &Table, token_ids: &[u32]) {
    for (out, &id) in out.f32_mut().chunks_exact_mut(table.row_len).zip(token_ids) {
        copy_row(out, table, id);
    }
}

/// One row, zeros if it is not here.
pub fn copy_row(out: &mut [f32], table: &Table, id: u32) {
    match table.row(id as usize) {
        Some(row) => dequantize::reference::dequantize(table.dtype, row, out),
        None => out.fill(0.0),
    }
}
