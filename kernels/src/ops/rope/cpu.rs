use super::RopeTable;
use crate::Tensor;
use crate::device::cpu::CpuDevice;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};

pub fn rope(
    device: &CpuDevice,
    x: &mut Tensor,
    positions: &[u32],
    table: &RopeTable,
    head_dim: usize,
) {
    let row_len = x.row_len();
    if x.is_empty() {
        return;
    }
    device.for_rows(x.f32_mut(), row_len, &|first_row, rows| {
        for (row, &position) in rows.chunks_exact_mut(row_len).zip(&positions[first_row..]) {
            let cos = table.cos.f32_row(position as usize);
            let sin = table.sin.f32_row(position as usize);
            dispatch(device.isa, RotateRow { row, cos, sin, head_dim });
        }
    });
}

/// All heads of one token.
struct RotateRow<'a> {
    row: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    head_dim: usize,
}

impl Kernel for RotateRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let half = self.cos.len();
        let (cos, cos_rest) = self.cos.as_chunks::<LANES>();
        let (sin, sin_rest) = self.sin.as_chunks::<LANES>();
        let (cos_rest, sin_rest) = (simd.load_part(cos_rest), simd.load_part(sin_rest));
        for head in self.row.chunks_exact_mut(self.head_dim) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            let (a, a_rest) = a.as_chunks_mut::<LANES>();
            let (b, b_rest) = b.as_chunks_mut::<LANES>();
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let (cos, sin) = (simd.load(cos), simd.load(sin));
                let (x, y) = rotate(simd, simd.load(a), simd.load(b), cos, sin);
                simd.store(x, a);
                simd.store(y, b);
            }
            let (x, y) = (simd.load_part(a_rest), simd.load_part(b_rest));
            let (x, y) = rotate(simd, x, y, cos_rest, sin_rest);
            simd.store_part(x, a_rest);
            simd.store_part(y, b_rest);
        }
    }
}

#[inline(always)]
fn rotate<S: Simd>(simd: S, a: S::V, b: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    let x = simd.sub(simd.mul(a, cos), simd.mul(b, sin));
    (x, simd.mul_add(b, cos, simd.mul(a, sin)))
}
