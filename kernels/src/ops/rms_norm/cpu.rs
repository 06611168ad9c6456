use crate::device::cpu::CpuDevice;
use crate::device::simd::{Kernel, LANES, Simd, dispatch};

pub fn rms_norm(device: &CpuDevice, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    device.for_rows(out, weight.len(), &|first_row, out| {
        let start = first_row * weight.len();
        let x = &x[start..start + out.len()];
        dispatch(device.isa, RmsNorm { out, x, weight, eps });
    });
}

pub fn rms_norm_in_place(device: &CpuDevice, x: &mut [f32], weight: &[f32], eps: f32) {
    device.for_rows(x, weight.len(), &|_, x| {
        dispatch(device.isa, RmsNormInPlace { x, weight, eps });
    });
}

struct RmsNorm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let n = self.weight.len();
        let (weight, weight_rest) = self.weight.as_chunks::<LANES>();
        for (out, x) in self.out.chunks_exact_mut(n).zip(self.x.chunks_exact(n)) {
            let scale = simd.splat(scale_of_row(simd, x, self.eps));
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            let (x, x_rest) = x.as_chunks::<LANES>();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                simd.store(scaled(simd, simd.load(x), simd.load(weight), scale), out);
            }
            let (x, weight) = (simd.load_part(x_rest), simd.load_part(weight_rest));
            simd.store_part(scaled(simd, x, weight, scale), out_rest);
        }
    }
}

struct RmsNormInPlace<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (weight, weight_rest) = self.weight.as_chunks::<LANES>();
        for x in self.x.chunks_exact_mut(self.weight.len()) {
            let scale = simd.splat(scale_of_row(simd, x, self.eps));
            let (x, x_rest) = x.as_chunks_mut::<LANES>();
            for (x, weight) in x.iter_mut().zip(weight) {
                simd.store(scaled(simd, simd.load(x), simd.load(weight), scale), x);
            }
            let last = scaled(simd, simd.load_part(x_rest), simd.load_part(weight_rest), scale);
            simd.store_part(last, x_rest);
        }
    }
}

#[inline(always)]
fn scaled<S: Simd>(simd: S, x: S::V, weight: S::V, scale: S::V) -> S::V {
    simd.mul(simd.mul(x, scale), weight)
}

/// 1 / sqrt(mean of x^2 + eps). Four sums side by side: one alone would wait for each addition to
/// finish.
#[inline(always)]
fn scale_of_row<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (fours, chunks_rest) = chunks.as_chunks::<4>();
    for four in fours {
        for (sum, x) in sums.iter_mut().zip(four) {
            let x = simd.load(x);
            *sum = simd.mul_add(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(chunks_rest) {
        let x = simd.load(x);
        *sum = simd.mul_add(x, x, *sum);
    }
    let rest = simd.load_part(rest);
    sums[3] = simd.mul_add(rest, rest, sums[3]);
    let sum = simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]));
    1.0 / (simd.sum(sum) / x.len() as f32 + eps).sqrt()
}
