//! Tensor-core instructions: fragments as the PTX ISA lays them out over the lanes ("Matrix
//! fragments for mma").
//!
//! `group` is lane / 4, `within` is lane % 4. Accumulation: f32, ascending k, one fused
//! multiply-add each. Hardware sums in another order with wider, truncated alignment, so last bits
//! may differ.

use super::float::{f16_to_f32, f32_to_f16, half_to_f32};

pub type Lanes = [u32; 32];

/// The 64 16-bit numbers of a register over the lanes, in the order of memory.
///
/// Number 2 * lane + half belongs to (group, 2 * within + half), so this is an 8 x 8 matrix row by
/// row.
#[inline(always)]
fn numbers(bf16: bool, lanes: &Lanes) -> [f32; 64] {
    let mut low = [0f32; 32];
    let mut high = [0f32; 32];
    for lane in 0..32 {
        low[lane] = half_to_f32(bf16, lanes[lane] as u16);
        high[lane] = half_to_f32(bf16, (lanes[lane] >> 16) as u16);
    }
    let mut out = [0.0; 64];
    for lane in 0..32 {
        out[2 * lane] = low[lane];
        out[2 * lane + 1] = high[lane];
    }
    out
}

/// d = a * b + c, m16n8k(K), f32 accumulators.
///
/// Register r of a is the 8 x 8 matrix of rows 8 * (r % 2) and columns 8 * (r / 2); register r of b
/// is the transpose of rows 8 * r; registers 0 and 1 of c and d hold the even and odd columns of
/// rows 0 to 7, 2 and 3 of rows 8 to 15.
#[cfg_attr(target_arch = "x86_64", allow(dead_code))]
pub(super) fn mma_f32_portable<const K: usize>(
    bf16: bool,
    a: &[&Lanes],
    b: &[&Lanes],
    c: &[&Lanes; 4],
) -> [Lanes; 4] {
    let mut right = [[0f32; 8]; K];
    for (r, lanes) in b.iter().enumerate() {
        let transposed = numbers(bf16, lanes);
        for k in 0..8 {
            for column in 0..8 {
                right[8 * r + k][column] = transposed[8 * column + k];
            }
        }
    }
    let mut d = [[0; 32]; 4];
    for half in 0..2 {
        let mut sums = [0f32; 64];
        for lane in 0..32 {
            sums[2 * lane] = f32::from_bits(c[2 * half][lane]);
            sums[2 * lane + 1] = f32::from_bits(c[2 * half + 1][lane]);
        }
        for part in 0..K / 8 {
            let left = numbers(bf16, a[2 * part + half]);
            for row in 0..8 {
                let mut sum = [0f32; 8];
                sum.copy_from_slice(&sums[8 * row..8 * row + 8]);
                for k in 0..8 {
                    for column in 0..8 {
                        sum[column] =
                            left[8 * row + k].mul_add(right[8 * part + k][column], sum[column]);
                    }
                }
                sums[8 * row..8 * row + 8].copy_from_slice(&sum);
            }
        }
        for lane in 0..32 {
            d[2 * half][lane] = sums[2 * lane].to_bits();
            d[2 * half + 1][lane] = sums[2 * lane + 1].to_bits();
        }
    }
    d
}

/// `mma_f32_portable`, faster where the CPU allows it; the same operations in the same order.
#[inline(always)]
pub(super) fn mma_f32<const K: usize>(
    bf16: bool,
    a: &[&Lanes],
    b: &[&Lanes],
    c: &[&Lanes; 4],
) -> [Lanes; 4] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `Warp::run` made sure of AVX2, FMA and F16C before the first instruction.
    return unsafe { avx2::mma_f32::<K>(bf16, a, b, c) };
    #[cfg(not(target_arch = "x86_64"))]
    mma_f32_portable::<K>(bf16, a, b, c)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Row `row` of an 8 x 8 matrix in a register over the lanes: four lanes of two numbers.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn row_of(bf16: bool, lanes: &Lanes, row: usize) -> __m256 {
        // SAFETY: 16 bytes of the 128 of `lanes`, for row < 8.
        let halves = unsafe { _mm_loadu_si128(lanes.as_ptr().add(4 * row).cast()) };
        if bf16 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
        } else {
            _mm256_cvtph_ps(halves)
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn transposed(r: [__m256; 8]) -> [__m256; 8] {
        let mut pairs = r;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut fours = pairs;
        for i in 0..2 {
            for k in 0..2 {
                let (x, y) = (pairs[4 * i + k], pairs[4 * i + 2 + k]);
                fours[4 * i + 2 * k] = _mm256_shuffle_ps::<0x44>(x, y);
                fours[4 * i + 2 * k + 1] = _mm256_shuffle_ps::<0xEE>(x, y);
            }
        }
        let mut out = fours;
        for k in 0..4 {
            out[k] = _mm256_permute2f128_ps::<0x20>(fours[k], fours[4 + k]);
            out[4 + k] = _mm256_permute2f128_ps::<0x31>(fours[k], fours[4 + k]);
        }
        out
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn mma_f32<const K: usize>(
        bf16: bool,
        a: &[&Lanes],
        b: &[&Lanes],
        c: &[&Lanes; 4],
    ) -> [Lanes; 4] {
        let mut d = [[0; 32]; 4];
        let zero = _mm256_setzero_ps();
        let mut right = [[zero; 8]; 2];
        for part in 0..K / 8 {
            let mut columns = [zero; 8];
            for (row, column) in columns.iter_mut().enumerate() {
                *column = row_of(bf16, b[part], row);
            }
            right[part] = transposed(columns);
        }
        for half in 0..2 {
            let (even, odd) = (c[2 * half], c[2 * half + 1]);
            let mut sums = [zero; 8];
            for i in 0..4 {
                // SAFETY: 8 of 32 lanes, for i < 4.
                let (even, odd) = unsafe {
                    (
                        _mm256_loadu_ps(even.as_ptr().add(8 * i).cast()),
                        _mm256_loadu_ps(odd.as_ptr().add(8 * i).cast()),
                    )
                };
                let low = _mm256_unpacklo_ps(even, odd);
                let high = _mm256_unpackhi_ps(even, odd);
                sums[2 * i] = _mm256_permute2f128_ps::<0x20>(low, high);
                sums[2 * i + 1] = _mm256_permute2f128_ps::<0x31>(low, high);
            }
            for part in 0..K / 8 {
                let mut left = [[0f32; 8]; 8];
                for (row, numbers) in left.iter_mut().enumerate() {
                    // SAFETY: eight floats.
                    unsafe {
                        let values = row_of(bf16, a[2 * part + half], row);
                        _mm256_storeu_ps(numbers.as_mut_ptr(), values);
                    }
                }
                for k in 0..8 {
                    for row in 0..8 {
                        let factor = _mm256_set1_ps(left[row][k]);
                        sums[row] = _mm256_fmadd_ps(factor, right[part][k], sums[row]);
                    }
                }
            }
            for i in 0..4 {
                let (x, y) = (sums[2 * i], sums[2 * i + 1]);
                let low = _mm256_permute2f128_ps::<0x20>(x, y);
                let high = _mm256_permute2f128_ps::<0x31>(x, y);
                // SAFETY: 8 of 32 lanes, for i < 4.
                unsafe {
                    let even = d[2 * half].as_mut_ptr().add(8 * i).cast();
                    _mm256_storeu_ps(even, _mm256_shuffle_ps::<0x88>(low, high));
                    let odd = d[2 * half + 1].as_mut_ptr().add(8 * i).cast();
                    _mm256_storeu_ps(odd, _mm256_shuffle_ps::<0xDD>(low, high));
                }
            }
        }
        d
    }
}

/// f16 accumulators: two registers of two neighbours each.
pub fn mma_f16(a: &[&Lanes; 4], b: &[&Lanes; 2], c: &[&Lanes; 2]) -> [Lanes; 2] {
    let mut wide = [[0; 32]; 4];
    for lane in 0..32 {
        for r in 0..4 {
            let half = (c[r / 2][lane] >> (16 * (r % 2))) as u16;
            wide[r][lane] = f16_to_f32(half).to_bits();
        }
    }
    let [c0, c1, c2, c3] = &wide;
    let d = mma_f32::<16>(false, a, b, &[c0, c1, c2, c3]);
    let mut out = [[0; 32]; 2];
    for lane in 0..32 {
        for r in 0..4 {
            let half = f32_to_f16(f32::from_bits(d[r][lane])) as u32;
            out[r / 2][lane] |= half << (16 * (r % 2));
        }
    }
    out
}

/// m16n8k32 (four a registers) and m16n8k16 (two) on bytes with s32 accumulators: a register holds
/// four neighbours.
pub(super) fn mma_int(
    signed: (bool, bool),
    sat: bool,
    a: &[&Lanes],
    b: &[&Lanes],
    c: &[&Lanes; 4],
) -> [Lanes; 4] {
    let depth = 8 * a.len();
    let value = |signed: bool, byte: u32| {
        if signed { byte as u8 as i8 as i64 } else { byte as u8 as i64 }
    };
    let mut left = [[0i64; 32]; 16];
    for (r, lanes) in a.iter().enumerate() {
        for lane in 0..32 {
            for i in 0..4 {
                let k = 4 * (lane % 4) + i + 16 * (r / 2);
                left[lane / 4 + 8 * (r % 2)][k] = value(signed.0, lanes[lane] >> (8 * i));
            }
        }
    }
    let mut right = [[0i64; 8]; 32];
    for (r, lanes) in b.iter().enumerate() {
        for lane in 0..32 {
            for i in 0..4 {
                let k = 4 * (lane % 4) + i + 16 * r;
                right[k][lane / 4] = value(signed.1, lanes[lane] >> (8 * i));
            }
        }
    }
    let mut d = [[0; 32]; 4];
    for r in 0..4 {
        for lane in 0..32 {
            let (row, column) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
            let mut sum = c[r][lane] as i32 as i64;
            for k in 0..depth {
                sum += left[row][k] * right[k][column];
            }
            d[r][lane] =
                if sat { sum.clamp(i32::MIN as i64, i32::MAX as i64) as u32 } else { sum as u32 };
        }
    }
    d
}

/// Distributes the 8 rows of 16 bytes of one 8x8 matrix to the lanes: lane gets (row group, columns
/// 2w, 2w+1), transposed: the pair (2w, group), (2w+1, group).
#[inline(always)]
pub(super) fn matrix_to_lanes(rows: &[[u16; 8]; 8], trans: bool) -> Lanes {
    let mut out = [0; 32];
    for (lane, value) in out.iter_mut().enumerate() {
        let (group, pair) = (lane / 4, 2 * (lane % 4));
        let (low, high) = if trans {
            (rows[pair][group], rows[pair + 1][group])
        } else {
            (rows[group][pair], rows[group][pair + 1])
        };
        *value = low as u32 | (high as u32) << 16;
    }
    out
}

/// The inverse of `matrix_to_lanes`.
pub(super) fn lanes_to_matrix(lanes: &Lanes, trans: bool) -> [[u16; 8]; 8] {
    let mut rows = [[0; 8]; 8];
    for (lane, &value) in lanes.iter().enumerate() {
        let (group, pair) = (lane / 4, 2 * (lane % 4));
        if trans {
            rows[pair][group] = value as u16;
            rows[pair + 1][group] = (value >> 16) as u16;
        } else {
            rows[group][pair] = value as u16;
            rows[group][pair + 1] = (value >> 16) as u16;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_and_portable_products_are_the_same_bits() {
        let mut state = 7u64;
        let mut number = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Halves with middle exponents in both formats, no NaN.
            ((state >> 32) as u32) & 0x8FFF_8FFF | 0x3000_3000
        };
        for round in 0..100 {
            let registers: [Lanes; 10] = std::array::from_fn(|_| std::array::from_fn(|_| number()));
            let [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3] = &registers;
            let bf16 = round % 2 == 0;
            let (a, b, c) = ([a0, a1, a2, a3], [b0, b1], [c0, c1, c2, c3]);
            let fast = mma_f32::<16>(bf16, &a, &b, &c);
            assert_eq!(fast, mma_f32_portable::<16>(bf16, &a, &b, &c));
            let fast = mma_f32::<8>(bf16, &a[..2], &b[..1], &c);
            assert_eq!(fast, mma_f32_portable::<8>(bf16, &a[..2], &b[..1], &c));
        }
    }
}
