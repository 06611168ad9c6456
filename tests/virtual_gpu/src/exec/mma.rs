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
#[inline(always)]
pub(super) fn mma_f32<const K: usize>(
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
