//! One vector type for all instruction sets: 16 f32 values, as one, two or sixteen registers. An op
//! writes its loop once, as a `Kernel`, and `dispatch` compiles it for each instruction set. The
//! order of additions is the same on all of them; results differ between instruction sets only
//! where one of them fuses a product with a sum.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::cpu::Isa;
use half::f16;

/// Values of one vector.
pub const LANES: usize = 16;

/// A loop over vectors, with its arguments as fields.
pub trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, and so must be what it calls with `simd`: only what ends up
    /// inside `dispatch` is compiled for the chosen instructions. A closure is inlined only where
    /// the compiler likes to, so it must not hold vectors.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` with the instructions of `isa`, or the best this machine has below it.
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.min(Isa::hardware()) {
        Isa::Portable => kernel.run(portable::Portable),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::hardware`, the upper bound two lines above, found AVX2, FMA and F16C.
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::hardware` found AVX-512 F, BW, DQ and VL on top of the AVX2 set.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { run_avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel.run(portable::Portable),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function itself is only entered with these features.
    kernel.run(unsafe { avx2::Avx2::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function itself is only entered with these features.
    kernel.run(unsafe { avx512::Avx512::new() })
}

/// Below this `exp` gives 0: the next smaller results are no normal f32.
const EXP_MIN: f32 = -86.6;
/// At and above this `exp` gives about `f32::MAX`.
const EXP_MAX: f32 = 88.72;
/// ln 2 in two parts, the first with so few bits that any exponent times it is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2: p interpolated at Chebyshev nodes, relative
/// error 1.1e-8 before rounding.
const EXP_P: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_556, 0.008_363_203, 0.001_392_621_3];

/// The operations of one instruction set. A value of the type is the proof that the CPU has it, so
/// the methods are safe.
pub trait Simd: Copy {
    /// 16 f32 values.
    type V: Copy;
    /// How many vectors a row of accumulators in registers may have when there are 6 rows.
    const COLUMNS_MAX: usize;

    /// Runs `kernel` in a function of its own, for loops that are too large to be inlined often.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;
    /// Asks for the cache line at `x`, which will be read soon.
    fn prefetch<T>(self, x: &T);
    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    /// Rounds to nearest, ties to even.
    fn store_f16(self, v: Self::V, out: &mut [f16; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c, with one rounding where the hardware has it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller one; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn round(self, x: Self::V) -> Self::V;
    /// x * 2^n for whole numbers n in -125..=128.
    fn scale_by_power(self, x: Self::V, n: Self::V) -> Self::V;
    /// 0 where x < limit, else v.
    fn zero_where_below(self, v: Self::V, x: Self::V, limit: f32) -> Self::V;
    /// The first `len` values of v, then `rest`.
    fn keep_first(self, v: Self::V, len: usize, rest: f32) -> Self::V;
    /// Adds up all values, in an order fixed for the instruction set.
    fn sum(self, v: Self::V) -> f32;
    fn largest(self, v: Self::V) -> f32;
    /// Turns 16 rows into 16 columns.
    fn transpose(self, rows: &mut [Self::V; LANES]);

    /// `load` of at most 16 values, then zeros.
    #[inline(always)]
    fn load_part(self, x: &[f32]) -> Self::V {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// `store` of the first out.len() values, at most 16.
    #[inline(always)]
    fn store_part(self, v: Self::V, out: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }

    /// e^x within 2 ulp; 0 below `EXP_MIN`, near `f32::MAX` from `EXP_MAX` on, NaN for NaN.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let clamped = self.max(self.splat(EXP_MIN), self.min(self.splat(EXP_MAX), x));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-LN_2_HIGH), clamped);
        let r = self.mul_add(n, self.splat(-LN_2_LOW), r);
        let mut p = self.splat(EXP_P[4]);
        p = self.mul_add(p, r, self.splat(EXP_P[3]));
        p = self.mul_add(p, r, self.splat(EXP_P[2]));
        p = self.mul_add(p, r, self.splat(EXP_P[1]));
        p = self.mul_add(p, r, self.splat(EXP_P[0]));
        let y = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        self.zero_where_below(self.scale_by_power(y, n), x, EXP_MIN)
    }
}

#[cfg(test)]
mod tests;
