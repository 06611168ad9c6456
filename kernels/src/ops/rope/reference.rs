use super::RopeTable;
use crate::Tensor;

pub fn rope(x: &mut Tensor, positions: &[u32], table: &RopeTable, head_dim: usize) {
    let (half, row_len) = (table.cos.row_len(), x.row_len());
    for (row, &position) in x.f32_mut().chunks_exact_mut(row_len).zip(positions) {
        let (cos, sin) =
            (table.cos.f32_row(position as usize), table.sin.f32_row(position as usize));
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos[i] - b * sin[i];
                head[i + half] = b * cos[i] + a * sin[i];
            }
        }
    }
}
