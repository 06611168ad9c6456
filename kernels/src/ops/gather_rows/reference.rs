use crate::Tensor;

pub fn gather_rows(out: &mut Tensor, x: &Tensor, rows: &[u32]) {
    let n = x.row_len();
    for (out, &row) in out.f32_mut().chunks_exact_mut(n).zip(rows) {
        out.copy_from_slice(x.f32_row(row as usize));
    }
}
