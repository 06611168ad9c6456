use crate::device::cpu::CpuDevice;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};

pub fn add_assign(device: &CpuDevice, x: &mut [f32], y: &[f32]) {
    device.for_rows(x, 1, &|start, x| {
        let y = &y[start..start + x.len()];
        dispatch(device.isa, AddAssign { x, y });
    });
}

struct AddAssign<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Kernel for AddAssign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (x, x_rest) = self.x.as_chunks_mut::<LANES>();
        let (y, y_rest) = self.y.as_chunks::<LANES>();
        for (x, y) in x.iter_mut().zip(y) {
            simd.store(simd.add(simd.load(x), simd.load(y)), x);
        }
        for (x, y) in x_rest.iter_mut().zip(y_rest) {
            *x += y;
        }
    }
}
