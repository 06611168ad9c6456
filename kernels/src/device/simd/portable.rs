//! Plain Rust, vectorised by the compiler for the baseline of the target.

use super::{Kernel, LANES, Simd};
use half::f16;
use std::array::from_fn;

#[derive(Clone, Copy)]
pub struct Portable;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Lanes([f32; LANES]);

impl Simd for Portable {
    type V = Lanes;
    const COLUMNS_MAX: usize = 1;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn prefetch<T>(self, _x: &T) {}

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        Lanes([x; LANES])
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Lanes {
        Lanes(*x)
    }

    #[inline(always)]
    fn store(self, v: Lanes, out: &mut [f32; LANES]) {
        *out = v.0;
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Lanes {
        Lanes(from_fn(|i| x[i].to_f32()))
    }

    #[inline(always)]
    fn store_f16(self, v: Lanes, out: &mut [f16; LANES]) {
        *out = from_fn(|i| f16::from_f32(v.0[i]));
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes(from_fn(|i| a.0[i] + b.0[i]))
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes(from_fn(|i| a.0[i] - b.0[i]))
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes(from_fn(|i| a.0[i] * b.0[i]))
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes(from_fn(|i| a.0[i] / b.0[i]))
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Without the instruction a fused product is a library call per value.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            Lanes(from_fn(|i| a.0[i].mul_add(b.0[i], c.0[i])))
        } else {
            Lanes(from_fn(|i| a.0[i] * b.0[i] + c.0[i]))
        }
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes(from_fn(|i| if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] }))
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        Lanes(from_fn(|i| if a.0[i] < b.0[i] { a.0[i] } else { b.0[i] }))
    }

    #[inline(always)]
    fn round(self, x: Lanes) -> Lanes {
        // Adding 1.5 * 2^23 leaves no bits for a fraction; |x| stays far below 2^22 in `exp`.
        const WHOLE: f32 = 12_582_912.0;
        Lanes(from_fn(|i| (x.0[i] + WHOLE) - WHOLE))
    }

    #[inline(always)]
    fn scale_by_power(self, x: Lanes, n: Lanes) -> Lanes {
        // 2^128 is no f32, so one factor of two is left for the end.
        let power = |n: f32| f32::from_bits(((n as i32 + 126) as u32) << 23);
        Lanes(from_fn(|i| x.0[i] * power(n.0[i]) * 2.0))
    }

    #[inline(always)]
    fn zero_where_below(self, v: Lanes, x: Lanes, limit: f32) -> Lanes {
        Lanes(from_fn(|i| if x.0[i] < limit { 0.0 } else { v.0[i] }))
    }

    #[inline(always)]
    fn keep_first(self, v: Lanes, len: usize, rest: f32) -> Lanes {
        Lanes(from_fn(|i| if i < len { v.0[i] } else { rest }))
    }

    #[inline(always)]
    fn sum(self, v: Lanes) -> f32 {
        let eight: [f32; 8] = from_fn(|i| v.0[i] + v.0[i + 8]);
        let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn largest(self, v: Lanes) -> f32 {
        v.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [Lanes; LANES]) {
        let old = *rows;
        for (i, row) in rows.iter_mut().enumerate() {
            row.0 = from_fn(|j| old[j].0[i]);
        }
    }
}
