use crate::Tensor;
use std::ops::Range;

/// Copies the rows in `part`, one after the other, to `columns` of the rows of `out`.
pub fn place_columns(out: &mut Tensor, columns: Range<usize>, part: &[f32]) {
    if columns.is_empty() {
        return;
    }
    let row_len = out.row_len();
    for (out, row) in out.f32_mut().chunks_exact_mut(row_len).zip(part.chunks_exact(columns.len()))
    {
        out[columns.clone()].copy_from_slice(row);
    }
}
