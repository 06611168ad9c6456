use super::Table;
use crate::Tensor;
use crate::ops::dequantize;

pub fn embedding(out: &mut Tensor, table: &Table, token_ids: &[u32]) {
    for (out, &id) in out.f32_mut().chunks_exact_mut(table.row_len).zip(token_ids) {
        dequantize::reference::dequantize(table.dtype, table.row(id as usize), out);
    }
}
