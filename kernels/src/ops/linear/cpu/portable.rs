//! The kernels in plain Rust, for machines without the instructions of the others. The compiler
//! vectorises the lanes.

use super::format::{
    BLOCK_LEN, Codes, Correction, Format, NIBBLE_BYTES, Quantised, SCALE_BYTES, TILE_ROWS,
    WORD_BYTES, WORDS,
};
use super::{Job, Sums};
use crate::DType;
use half::f16;

pub fn kernel(dtype: DType) -> fn(&Job, &mut Sums) {
    use super::format::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
    match dtype {
        DType::F32 => f32_kernel,
        DType::F16 => f16_kernel,
        DType::BF16 => bf16_kernel,
        DType::Q8_0 => quantised::<Q8_0>,
        DType::Q4_0 => quantised::<Q4_0>,
        DType::Q5_0 => quantised::<Q5_0>,
        DType::Q4K => quantised::<Q4K>,
        DType::Q5K => quantised::<Q5K>,
        DType::Q6K => quantised::<Q6K>,
    }
}

fn f32_kernel(job: &Job, sums: &mut Sums) {
    let widen = |w: &[u8]| [f32::from_le_bytes([w[0], w[1], w[2], w[3]])];
    plain::<4, 1>(job, sums, widen);
}

fn f16_kernel(job: &Job, sums: &mut Sums) {
    plain::<2, 1>(job, sums, |w| [f16::from_le_bytes([w[0], w[1]]).to_f32()]);
}

fn bf16_kernel(job: &Job, sums: &mut Sums) {
    let widen = |b0, b1| f32::from_le_bytes([0, 0, b0, b1]);
    plain::<4, 2>(job, sums, |w| [widen(w[0], w[1]), widen(w[2], w[3])]);
}

/// Weights of `BYTES` bytes that hold `N` consecutive k of one row.
fn plain<const BYTES: usize, const N: usize>(
    job: &Job,
    sums: &mut Sums,
    widen: impl Fn(&[u8]) -> [f32; N],
) {
    let rows = job.x.rows;
    sums.start(job);
    let columns = job.tile.chunks_exact(BYTES * TILE_ROWS);
    for (column, x) in columns.zip(job.x.floats.chunks_exact(rows * N)) {
        let mut w = [[0f32; TILE_ROWS]; N];
        for (lane, bytes) in column.chunks_exact(BYTES).enumerate() {
            for (w, value) in w.iter_mut().zip(widen(bytes)) {
                w[lane] = value;
            }
        }
        for (w, x) in w.iter().zip(x.chunks_exact(rows)) {
            for (sum, x) in sums.0.iter_mut().zip(x) {
                for (sum, w) in sum.iter_mut().zip(w) {
                    *sum += w * x;
                }
            }
        }
    }
}

/// One block of a tile, unpacked.
struct Block {
    codes: [[u8; WORD_BYTES]; WORDS],
    /// Scales of the two halves; the same but for `HalvesOffset32`.
    scales: [[f32; TILE_ROWS]; 2],
    /// What `Minimum` subtracts, negated.
    minima: [f32; TILE_ROWS],
}

fn quantised<F: Quantised>(job: &Job, sums: &mut Sums) {
    let format = const { F::FORMAT };
    let (rows, x) = (job.x.rows, job.x);
    sums.start(job);
    let mut at = 0;
    for super_block in job.tile.chunks_exact(format.super_block_bytes()) {
        let (header, blocks) = super_block.split_at(format.header_bytes);
        for block in blocks.chunks_exact(format.block_bytes()) {
            let block = unpack(&format, header, block);
            for row in 0..rows {
                let i = at * rows + row;
                let values = &x.values[i * BLOCK_LEN..(i + 1) * BLOCK_LEN];
                let n = format.correction.count();
                let correction = &x.corrections[i * n..(i + 1) * n];
                accumulate(&format, &block, values, x.scales[i], correction, &mut sums.0[row]);
            }
            at += 1;
        }
    }
}

fn accumulate(
    format: &Format,
    block: &Block,
    values: &[i8],
    scale: f32,
    correction: &[i32],
    sums: &mut [f32; TILE_ROWS],
) {
    let add = |sums: &mut [f32; TILE_ROWS], dots: [i32; TILE_ROWS], scales: &[f32; TILE_ROWS]| {
        for lane in 0..TILE_ROWS {
            sums[lane] += dots[lane] as f32 * (scales[lane] * scale);
        }
    };
    let (first, second) = (&block.codes[..4], &block.codes[4..]);
    let (x_first, x_second) = values.split_at(BLOCK_LEN / 2);
    if format.correction == Correction::HalvesOffset32 {
        add(sums, dot(correction[0], first, x_first), &block.scales[0]);
        add(sums, dot(correction[1], second, x_second), &block.scales[1]);
        return;
    }
    let is_minimum = format.correction == Correction::Minimum;
    let start = if is_minimum { 0 } else { correction[0] };
    add(sums, dot(start, &block.codes, values), &block.scales[0]);
    if is_minimum {
        let x_sum = f32::from_bits(correction[0].cast_unsigned());
        for (sum, minimum) in sums.iter_mut().zip(&block.minima) {
            *sum += minimum * x_sum;
        }
    }
}

/// start + sum of codes * values for each of 16 rows. Exact.
fn dot(start: i32, codes: &[[u8; WORD_BYTES]], values: &[i8]) -> [i32; TILE_ROWS] {
    let mut dots = [start; TILE_ROWS];
    for (codes, values) in codes.iter().zip(values.chunks_exact(4)) {
        for (dot, codes) in dots.iter_mut().zip(codes.chunks_exact(4)) {
            let products = codes.iter().zip(values).map(|(&c, &v)| i32::from(c) * i32::from(v));
            *dot += products.sum::<i32>();
        }
    }
    dots
}

fn unpack(format: &Format, header: &[u8], block: &[u8]) -> Block {
    let (scales, codes) = block.split_at(SCALE_BYTES);
    let f16_lanes = |bytes: &[u8]| -> [f32; TILE_ROWS] {
        std::array::from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    };
    let mut block = Block {
        codes: unpack_codes(format.codes, codes),
        scales: [[0.0; TILE_ROWS]; 2],
        minima: [0.0; TILE_ROWS],
    };
    let (low, high) = scales.split_at(TILE_ROWS);
    match format.correction {
        Correction::Offset8 | Correction::Offset16 | Correction::Offset128 => {
            block.scales = [f16_lanes(scales); 2];
        }
        Correction::HalvesOffset32 => {
            let d = f16_lanes(header);
            let scaled = |s: &[u8]| std::array::from_fn(|i| d[i] * f32::from(s[i].cast_signed()));
            block.scales = [scaled(low), scaled(high)];
        }
        Correction::Minimum => {
            let (d, d_min) = (f16_lanes(header), f16_lanes(&header[32..]));
            block.scales = [std::array::from_fn(|i| d[i] * f32::from(low[i])); 2];
            block.minima = std::array::from_fn(|i| -d_min[i] * f32::from(high[i]));
        }
    }
    block
}

fn unpack_codes(codes: Codes, packed: &[u8]) -> [[u8; WORD_BYTES]; WORDS] {
    let mut out = [[0u8; WORD_BYTES]; WORDS];
    for (g, out) in out.iter_mut().enumerate() {
        if codes == Codes::Bits8 {
            out.copy_from_slice(&packed[g * WORD_BYTES..(g + 1) * WORD_BYTES]);
            continue;
        }
        let (nibbles, high) = packed.split_at(NIBBLE_BYTES);
        for (i, out) in out.iter_mut().enumerate() {
            let nibble = (nibbles[g % 4 * WORD_BYTES + i] >> (4 * (g / 4))) & 15;
            let high = match codes {
                Codes::Bits5 => (high[g * 8 + i / 8] >> (i % 8)) & 1,
                Codes::Bits6 => (high[g / 4 * WORD_BYTES + i] >> (2 * (g % 4))) & 3,
                Codes::Bits4 | Codes::Bits8 => 0,
            };
            *out = nibble | high << 4;
        }
    }
    out
}
