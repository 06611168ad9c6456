//! AVX-512: one register is one vector.

use super::{Kernel, LANES, Simd};
use half::f16;
use std::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU must have the features.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

macro_rules! avx512 {
    ($e:expr) => {
        // SAFETY: a value of `Avx512` exists only where its maker proved the features; pointers
        // come from arrays of 16.
        unsafe { $e }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    const COLUMNS_MAX: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        avx512!(super::run_avx512(kernel))
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &T) {
        avx512!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        avx512!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        avx512!(_mm512_storeu_ps(out.as_mut_ptr(), v))
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        avx512!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn store_f16(self, v: __m512, out: &mut [f16; LANES]) {
        avx512!({
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves)
        })
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        avx512!(_mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(x))
    }

    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        avx512!(_mm512_scalef_ps(x, n))
    }

    #[inline(always)]
    fn zero_where_below(self, v: __m512, x: __m512, limit: f32) -> __m512 {
        avx512!({
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(limit));
            _mm512_mask_mov_ps(v, below, _mm512_setzero_ps())
        })
    }

    #[inline(always)]
    fn keep_first(self, v: __m512, len: usize, rest: f32) -> __m512 {
        let kept = if len >= LANES { u16::MAX } else { (1 << len) - 1 };
        avx512!(_mm512_mask_mov_ps(_mm512_set1_ps(rest), kept, v))
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        avx512!(_mm512_reduce_add_ps(v))
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        avx512!(_mm512_reduce_max_ps(v))
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; LANES]) {
        avx512!({
            // Within each 128-bit part: 4 x 4 values, first by pairs, then by pairs of pairs.
            let mut parts = *rows;
            for i in (0..LANES).step_by(4) {
                let low_a = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                let low_b = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]);
                let high_a = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
                let high_b = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
                parts[i] = _mm512_shuffle_ps::<0x44>(low_a, low_b);
                parts[i + 1] = _mm512_shuffle_ps::<0xEE>(low_a, low_b);
                parts[i + 2] = _mm512_shuffle_ps::<0x44>(high_a, high_b);
                parts[i + 3] = _mm512_shuffle_ps::<0xEE>(high_a, high_b);
            }
            // Now parts[4 a + i], 128-bit part b, holds column 4 b + i of rows 4 a .. 4 a + 4:
            // transpose the parts.
            for i in 0..4 {
                let (p0, p1) = (parts[i], parts[4 + i]);
                let (p2, p3) = (parts[8 + i], parts[12 + i]);
                let even_a = _mm512_shuffle_f32x4::<0x88>(p0, p1);
                let even_b = _mm512_shuffle_f32x4::<0x88>(p2, p3);
                let odd_a = _mm512_shuffle_f32x4::<0xDD>(p0, p1);
                let odd_b = _mm512_shuffle_f32x4::<0xDD>(p2, p3);
                rows[i] = _mm512_shuffle_f32x4::<0x88>(even_a, even_b);
                rows[4 + i] = _mm512_shuffle_f32x4::<0x88>(odd_a, odd_b);
                rows[8 + i] = _mm512_shuffle_f32x4::<0xDD>(even_a, even_b);
                rows[12 + i] = _mm512_shuffle_f32x4::<0xDD>(odd_a, odd_b);
            }
        })
    }
}
