//! Tensor-core instructions: fragments as the PTX ISA lays them out over the lanes ("Matrix fragments for mma").
//!
//! `group` is lane / 4, `within` is lane % 4. Accumulation: f32, ascending k, one fused multiply-add each. Hardware
//! sums in another order with wider, truncated alignment, so last bits may differ.

use super::float::{f16_to_f32, f32_to_f16, half_to_f32};

pub type Lanes = [u32; 32];

/// a[row][k] of a 16 x 8*K matrix of 16-bit elements: register r of a lane holds two neighbours in k.
#[inline(always)]
fn unpack_a<const K: usize>(bf16: bool, a: &[Lanes]) -> [[f32; K]; 16] {
    let mut out = [[0.0; K]; 16];
    for (r, lanes) in a.iter().enumerate() {
        for lane in 0..32 {
            let row = lane / 4 + 8 * (r % 2);
            let k = 2 * (lane % 4) + 8 * (r / 2);
            out[row][k] = half_to_f32(bf16, lanes[lane] as u16);
            out[row][k + 1] = half_to_f32(bf16, (lanes[lane] >> 16) as u16);
        }
    }
    out
}

/// b[k][column] of an 8*K x 8 matrix.
#[inline(always)]
fn unpack_b<const K: usize>(bf16: bool, b: &[Lanes]) -> [[f32; 8]; K] {
    let mut out = [[0.0; 8]; K];
    for (r, lanes) in b.iter().enumerate() {
        for lane in 0..32 {
            let k = 2 * (lane % 4) + 8 * r;
            let column = lane / 4;
            out[k][column] = half_to_f32(bf16, lanes[lane] as u16);
            out[k + 1][column] = half_to_f32(bf16, (lanes[lane] >> 16) as u16);
        }
    }
    out
}

/// d = a * b + c, m16n8k(K), f32 accumulators in four registers: (row group, columns 2w, 2w+1), (row group + 8, ...).
#[inline(always)]
pub fn mma_f32<const K: usize>(bf16: bool, a: &[Lanes], b: &[Lanes], c: &[Lanes; 4]) -> [Lanes; 4] {
    let a = unpack_a::<K>(bf16, a);
    let b = unpack_b::<K>(bf16, b);
    let mut acc = [[0f32; 8]; 16];
    for r in 0..4 {
        for lane in 0..32 {
            acc[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2] = f32::from_bits(c[r][lane]);
        }
    }
    for row in 0..16 {
        let mut sum = acc[row];
        for k in 0..K {
            for column in 0..8 {
                sum[column] = a[row][k].mul_add(b[k][column], sum[column]);
            }
        }
        acc[row] = sum;
    }
    let mut d = [[0; 32]; 4];
    for r in 0..4 {
        for lane in 0..32 {
            d[r][lane] = acc[lane / 4 + 8 * (r / 2)][2 * (lane % 4) + r % 2].to_bits();
        }
    }
    d
}

/// f16 accumulators: two registers of two neighbours each.
pub fn mma_f16(a: &[Lanes; 4], b: &[Lanes; 2], c: &[Lanes; 2]) -> [Lanes; 2] {
    let mut wide = [[0; 32]; 4];
    for lane in 0..32 {
        for r in 0..4 {
            let half = (c[r / 2][lane] >> (16 * (r % 2))) as u16;
            wide[r][lane] = f16_to_f32(half).to_bits();
        }
    }
    let d = mma_f32::<16>(false, a, b, &wide);
    let mut out = [[0; 32]; 2];
    for lane in 0..32 {
        for r in 0..4 {
            let half = f32_to_f16(f32::from_bits(d[r][lane])) as u32;
            out[r / 2][lane] |= half << (16 * (r % 2));
        }
    }
    out
}

/// m16n8k32 (four a registers) and m16n8k16 (two) on bytes with s32 accumulators: a register holds four neighbours.
pub fn mma_int(
    signed: (bool, bool),
    sat: bool,
    a: &[Lanes],
    b: &[Lanes],
    c: &[Lanes; 4],
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

/// Distributes the 8 rows of 16 bytes of one 8x8 matrix to the lanes: lane gets (row group, columns 2w, 2w+1),
/// transposed: the pair (2w, group), (2w+1, group).
#[inline(always)]
pub fn matrix_to_lanes(rows: &[[u16; 8]; 8], trans: bool) -> Lanes {
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
pub fn lanes_to_matrix(lanes: &Lanes, trans: bool) -> [[u16; 8]; 8] {
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
