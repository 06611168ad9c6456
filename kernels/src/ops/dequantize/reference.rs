//! The definition of each block format.

use crate::DType;
use half::{bf16, f16};

pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    let block = match dtype {
        DType::F32 => {
            |b: &[u8], out: &mut [f32]| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
        DType::F16 => |b: &[u8], out: &mut [f32]| out[0] = f16_at(b, 0),
        DType::BF16 => {
            |b: &[u8], out: &mut [f32]| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()
        }
        DType::Q8_0 => q8_0,
        DType::Q4_0 => q4_0,
        DType::Q5_0 => q5_0,
        DType::Q4K => q4_k,
        DType::Q5K => q5_k,
        DType::Q6K => q6_k,
    };
    let blocks = bytes.chunks_exact(dtype.block_bytes());
    for (bytes, out) in blocks.zip(out.chunks_exact_mut(dtype.block_len())) {
        block(bytes, out);
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = d * f32::from(q as i8);
    }
}

/// Value j of the first half is the low nibble of byte j, of the second half the high nibble.
fn nibble(qs: &[u8], j: usize) -> u8 {
    if j < 16 { qs[j] & 15 } else { qs[j - 16] >> 4 }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (j, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&block[2..], j)) - 8.0);
    }
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    let high_bits = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, out) in out.iter_mut().enumerate() {
        let q = nibble(&block[6..], j) | ((((high_bits >> j) & 1) as u8) << 4);
        *out = d * (f32::from(q) - 16.0);
    }
}

/// The 6-bit scale and minimum of sub-block `j` (0..8) of Q4_K and Q5_K.
pub fn k_scale_min(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let scale = (scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4);
        let min = (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4);
        (scale, min)
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, d_min) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, qs) = (&block[4..16], &block[16..144]);
    for (i, out) in out.iter_mut().enumerate() {
        let (sub_block, l) = (i / 32, i % 32);
        let (scale, min) = k_scale_min(scales, sub_block);
        let q = (qs[sub_block / 2 * 32 + l] >> (4 * (sub_block % 2))) & 15;
        *out = d * f32::from(scale) * f32::from(q) - d_min * f32::from(min);
    }
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, d_min) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, qh, qs) = (&block[4..16], &block[16..48], &block[48..176]);
    for (i, out) in out.iter_mut().enumerate() {
        let (sub_block, l) = (i / 32, i % 32);
        let (scale, min) = k_scale_min(scales, sub_block);
        let low = (qs[sub_block / 2 * 32 + l] >> (4 * (sub_block % 2))) & 15;
        let q = low | (((qh[l] >> sub_block) & 1) << 4);
        *out = d * f32::from(scale) * f32::from(q) - d_min * f32::from(min);
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (ql, qh, scales, d) =
        (&block[..128], &block[128..192], &block[192..208], f16_at(block, 208));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let low = ql[half * 64 + quarter % 2 * 32 + l] >> (4 * (quarter / 2));
        let high = qh[half * 32 + l] >> (2 * quarter);
        let q = (low & 15) | ((high & 3) << 4);
        *out = d * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
    }
}
