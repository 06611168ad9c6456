//! AVX2 with FMA and F16C: two registers are one vector.

use super::{Kernel, LANES, Simd};
use half::f16;
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU must have the features.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// Values 0..8 and 8..16.
#[derive(Clone, Copy)]
pub struct Pair(__m256, __m256);

macro_rules! avx2 {
    ($e:expr) => {
        // SAFETY: a value of `Avx2` exists only where its maker proved the features; pointers come
        // from arrays of 16, offset by 8 at most.
        unsafe { $e }
    };
}

/// The same instruction on both halves.
macro_rules! both {
    ($f:ident, $($v:expr),+) => {
        avx2!(Pair($f($($v.0),+), $f($($v.1),+)))
    };
}

impl Simd for Avx2 {
    type V = Pair;
    const COLUMNS_MAX: usize = 1;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        avx2!(super::run_avx2(kernel))
    }

    #[inline(always)]
    fn prefetch<T>(self, x: &T) {
        avx2!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        avx2!(Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Pair {
        avx2!(Pair(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }

    #[inline(always)]
    fn store(self, v: Pair, out: &mut [f32; LANES]) {
        avx2!({
            _mm256_storeu_ps(out.as_mut_ptr(), v.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v.1);
        })
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Pair {
        avx2!({
            let at = x.as_ptr().cast::<__m128i>();
            Pair(_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))))
        })
    }

    #[inline(always)]
    fn store_f16(self, v: Pair, out: &mut [f16; LANES]) {
        avx2!({
            let at = out.as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(at, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(at.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        })
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: Pair, b: Pair, c: Pair) -> Pair {
        both!(_mm256_fmadd_ps, a, b, c)
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn round(self, x: Pair) -> Pair {
        const TO_NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx2!(Pair(_mm256_round_ps::<TO_NEAREST>(x.0), _mm256_round_ps::<TO_NEAREST>(x.1)))
    }

    #[inline(always)]
    fn scale_by_power(self, x: Pair, n: Pair) -> Pair {
        // 2^128 is no f32, so one factor of two is left for the end.
        let scaled = self.mul(x, Pair(half_power(self, n.0), half_power(self, n.1)));
        self.add(scaled, scaled)
    }

    #[inline(always)]
    fn zero_where_below(self, v: Pair, x: Pair, limit: f32) -> Pair {
        avx2!({
            let limit = _mm256_set1_ps(limit);
            Pair(
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.0, limit), v.0),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.1, limit), v.1),
            )
        })
    }

    #[inline(always)]
    fn keep_first(self, v: Pair, len: usize, rest: f32) -> Pair {
        avx2!({
            let len = _mm256_set1_epi32(len.min(LANES) as i32);
            let first = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let second = _mm256_add_epi32(first, _mm256_set1_epi32(8));
            let rest = _mm256_set1_ps(rest);
            Pair(
                _mm256_blendv_ps(rest, v.0, _mm256_castsi256_ps(_mm256_cmpgt_epi32(len, first))),
                _mm256_blendv_ps(rest, v.1, _mm256_castsi256_ps(_mm256_cmpgt_epi32(len, second))),
            )
        })
    }

    #[inline(always)]
    fn sum(self, v: Pair) -> f32 {
        avx2!({
            let eight = _mm256_add_ps(v.0, v.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn largest(self, v: Pair) -> f32 {
        avx2!({
            let eight = _mm256_max_ps(v.0, v.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [Pair; LANES]) {
        // Four squares of 8 x 8; the two off the diagonal also change places.
        let [mut top_left, mut top_right] = [[rows[0].0; 8]; 2];
        let [mut low_left, mut low_right] = [top_left, top_right];
        for i in 0..8 {
            (top_left[i], top_right[i]) = (rows[i].0, rows[i].1);
            (low_left[i], low_right[i]) = (rows[8 + i].0, rows[8 + i].1);
        }
        let (top_left, top_right) = (transpose_8(self, top_left), transpose_8(self, top_right));
        let (low_left, low_right) = (transpose_8(self, low_left), transpose_8(self, low_right));
        for i in 0..8 {
            rows[i] = Pair(top_left[i], low_left[i]);
            rows[8 + i] = Pair(top_right[i], low_right[i]);
        }
    }
}

/// 2^n / 2, for whole numbers n in -125..=128.
#[inline(always)]
fn half_power(_proof: Avx2, n: __m256) -> __m256 {
    avx2!({
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(126));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
    })
}

#[inline(always)]
fn transpose_8(_proof: Avx2, rows: [__m256; 8]) -> [__m256; 8] {
    avx2!({
        let mut parts = rows;
        for i in [0, 4] {
            let low_a = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            let low_b = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]);
            let high_a = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            let high_b = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
            parts[i] = _mm256_shuffle_ps::<0x44>(low_a, low_b);
            parts[i + 1] = _mm256_shuffle_ps::<0xEE>(low_a, low_b);
            parts[i + 2] = _mm256_shuffle_ps::<0x44>(high_a, high_b);
            parts[i + 3] = _mm256_shuffle_ps::<0xEE>(high_a, high_b);
        }
        let mut columns = parts;
        for i in 0..4 {
            columns[i] = _mm256_permute2f128_ps::<0x20>(parts[i], parts[4 + i]);
            columns[4 + i] = _mm256_permute2f128_ps::<0x31>(parts[i], parts[4 + i]);
        }
        columns
    })
}
