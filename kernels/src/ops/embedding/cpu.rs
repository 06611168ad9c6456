use super::Table;
use super::reference::copy_row;
use crate::Tensor;
use crate::device::cpu::CpuDevice;

/// The plain loop of `dequantize`, on all threads when there are many tokens: one row a token is
/// far below the cost of anything else in a step.
pub fn embedding(device: &CpuDevice, out: &mut Tensor, table: &Table, token_ids: &[u32]) {
    if out.is_empty() {
        return;
    }
    device.for_rows(out.f32_mut(), table.row_len, &|first_row, out| {
        for (out, &id) in out.chunks_exact_mut(table.row_len).zip(&token_ids[first_row..]) {
            copy_row(out, table, id);
        }
    });
}
