//! The kernels with 256-bit vectors: a tile is multiplied as two halves of 8 rows. The byte
//! products are summed exactly, and the f32 operations are those of `avx512` in the same order, so
//! quantised weights give the same bits on both.
#![allow(unsafe_code)]

use super::format::{
    BLOCK_LEN, Codes, Correction, NIBBLE_BYTES, Quantised, SCALE_BYTES, TILE_ROWS, WORD_BYTES,
    WORDS,
};
use super::{Job, Sums};
use crate::DType;
use std::arch::x86_64::*;

/// Lanes of a vector, rows of half a tile.
const LANES: usize = TILE_ROWS / 2;
/// Bytes of half a word.
const HALF_BYTES: usize = WORD_BYTES / 2;

pub fn kernel(dtype: DType) -> fn(&Job, &mut Sums) {
    use super::format::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
    match dtype {
        DType::F32 => f32_kernel,
        DType::F16 => f16_kernel,
        DType::BF16 => bf16_kernel,
        DType::Q8_0 => quantised_kernel::<Q8_0>,
        DType::Q4_0 => quantised_kernel::<Q4_0>,
        DType::Q5_0 => quantised_kernel::<Q5_0>,
        DType::Q4K => quantised_kernel::<Q4K>,
        DType::Q5K => quantised_kernel::<Q5K>,
        DType::Q6K => quantised_kernel::<Q6K>,
    }
}

fn quantised_kernel<F: Quantised>(job: &Job, sums: &mut Sums) {
    let format = const { F::FORMAT };
    let super_blocks = job.tile.len() / format.super_block_bytes();
    let blocks = super_blocks * format.blocks * job.x.rows;
    assert_eq!(job.x.values.len(), blocks * BLOCK_LEN, "activations and tile differ in k");
    assert_eq!(job.x.scales.len(), blocks, "one scale a block");
    assert_eq!(job.x.corrections.len(), blocks * format.correction.count(), "corrections");
    sums.start(job);
    for half in 0..2 {
        // SAFETY: `linear_many` asserted that the machine has the instructions; the lengths were
        // checked above.
        unsafe { quantised::<F>(job, half, super_blocks, sums) }
    }
}

/// Half a block of weights in registers.
struct Block {
    words: [__m256i; WORDS],
    scales: __m256,
    /// Scales of the second half of k, or negated minima.
    second: __m256,
}

/// # Safety
/// AVX2, FMA and F16C; `job` holds `super_blocks` super-blocks and the activations of its rows for
/// them; `half` is 0 or 1.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantised<F: Quantised>(job: &Job, half: usize, super_blocks: usize, sums: &mut Sums) {
    let format = const { F::FORMAT };
    let rows = job.x.rows;
    let mut tile = job.tile.as_ptr();
    let mut at = 0;
    for _ in 0..super_blocks {
        // SAFETY: the caller vouches for the lengths: the pointer moves by what one block has, once
        // a block, and `at` counts the blocks of all rows.
        unsafe {
            let header = tile;
            tile = tile.add(format.header_bytes);
            for _ in 0..format.blocks {
                let block = unpack::<F>(header, tile, half);
                for sums in &mut sums.0[..rows] {
                    let values = job.x.values.as_ptr().add(at * BLOCK_LEN);
                    let correction = job.x.corrections.as_ptr().add(at * format.correction.count());
                    let scale = *job.x.scales.as_ptr().add(at);
                    let sum = sums.as_mut_ptr().add(half * LANES);
                    let acc = _mm256_loadu_ps(sum);
                    let acc = accumulate::<F>(acc, &block, values, scale, correction);
                    _mm256_storeu_ps(sum, acc);
                    at += 1;
                }
                tile = tile.add(format.block_bytes());
            }
        }
    }
}

/// Adds the products of half a block and one row of activations.
///
/// # Safety
/// As `quantised`; `values` are 32, `correction` as many as the format has.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate<F: Quantised>(
    acc: __m256,
    block: &Block,
    values: *const i8,
    scale: f32,
    correction: *const i32,
) -> __m256 {
    let scale = _mm256_set1_ps(scale);
    let scales = _mm256_mul_ps(block.scales, scale);
    let (first, second) = block.words.split_at(WORDS / 2);
    // SAFETY: 32 values and the corrections can be read, by this function's contract.
    unsafe {
        match const { F::FORMAT.correction } {
            Correction::Offset8 | Correction::Offset16 => {
                let dots = dot(_mm256_set1_epi32(*correction), first, values);
                let dots = dot(dots, second, values.add(BLOCK_LEN / 2));
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scales, acc)
            }
            Correction::Offset128 => {
                let dots = dot_bytes(_mm256_setzero_si256(), first, values);
                let dots = dot_bytes(dots, second, values.add(BLOCK_LEN / 2));
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scales, acc)
            }
            Correction::HalvesOffset32 => {
                let dots = dot(_mm256_set1_epi32(*correction), first, values);
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), block.scales);
                let start = _mm256_set1_epi32(*correction.add(1));
                let dots = dot(start, second, values.add(BLOCK_LEN / 2));
                let scaled = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), block.second, scaled);
                _mm256_fmadd_ps(scaled, scale, acc)
            }
            Correction::Minimum => {
                let dots = dot(_mm256_setzero_si256(), first, values);
                let dots = dot(dots, second, values.add(BLOCK_LEN / 2));
                let acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scales, acc);
                let x_sum = _mm256_set1_ps(f32::from_bits((*correction).cast_unsigned()));
                _mm256_fmadd_ps(block.second, x_sum, acc)
            }
        }
    }
}

/// dots + codes * values, 16 k of 8 rows. Codes have at most 6 bits, so a sum of two products fits
/// the 16 bits that `maddubs` has for it: 2 * 63 * 127 < 2^15.
///
/// # Safety
/// As `quantised`; 16 `values` can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot(mut dots: __m256i, words: &[__m256i], values: *const i8) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    for (g, word) in words.iter().enumerate() {
        // SAFETY: 4 * 4 values can be read.
        let four = unsafe { values.add(4 * g).cast::<i32>().read_unaligned() };
        let pairs = _mm256_maddubs_epi16(*word, _mm256_set1_epi32(four));
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
    }
    dots
}

/// dots + (codes - 128) * values, 16 k of 8 rows. Products of full bytes would overflow the 16 bits
/// of `maddubs`; |weight| times the activation with the weight's sign does not: 2 * 128 * 127 <
/// 2^15.
///
/// # Safety
/// As `quantised`; 16 `values` can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dot_bytes(mut dots: __m256i, words: &[__m256i], values: *const i8) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    for (g, word) in words.iter().enumerate() {
        // SAFETY: 4 * 4 values can be read.
        let four = unsafe { values.add(4 * g).cast::<i32>().read_unaligned() };
        let weights = _mm256_xor_si256(*word, _mm256_set1_epi8(-128));
        let signed = _mm256_sign_epi8(_mm256_set1_epi32(four), weights);
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
    }
    dots
}

/// # Safety
/// As `quantised`; `header` and `block` are those of one packed block.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn unpack<F: Quantised>(header: *const u8, block: *const u8, half: usize) -> Block {
    let format = const { F::FORMAT };
    // SAFETY: `block` has SCALE_BYTES and then the codes; `header` has one or two times 32 bytes
    // where they are read.
    unsafe {
        let words = unpack_codes::<F>(block.add(SCALE_BYTES), half);
        let low = block.add(half * LANES).cast::<__m128i>();
        let high = block.add(TILE_ROWS + half * LANES).cast::<__m128i>();
        let f16_half = |bytes: *const u8| f16_lanes(bytes.add(2 * half * LANES));
        let (scales, second) = match format.correction {
            Correction::Offset8 | Correction::Offset16 | Correction::Offset128 => {
                (f16_half(block), _mm256_setzero_ps())
            }
            Correction::HalvesOffset32 => {
                let d = f16_half(header);
                let scaled = |s| _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(s)));
                (scaled(_mm_loadl_epi64(low)), scaled(_mm_loadl_epi64(high)))
            }
            Correction::Minimum => {
                let widen = |s| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(s));
                let d_min = f16_half(header.add(2 * TILE_ROWS));
                let negative_d_min = _mm256_sub_ps(_mm256_set1_ps(-0.0), d_min);
                let minima = _mm256_mul_ps(negative_d_min, widen(_mm_loadl_epi64(high)));
                (_mm256_mul_ps(f16_half(header), widen(_mm_loadl_epi64(low))), minima)
            }
        };
        Block { words, scales, second }
    }
}

/// # Safety
/// F16C; 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn f16_lanes(bytes: *const u8) -> __m256 {
    // SAFETY: by this function's contract.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.cast()) })
}

/// The codes of half a block, one byte each.
///
/// # Safety
/// As `quantised`; `codes` are those of one packed block.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn unpack_codes<F: Quantised>(codes: *const u8, half: usize) -> [__m256i; WORDS] {
    let kind = const { F::FORMAT.codes };
    // SAFETY: the codes of a block are as long as `Format::block_bytes` says for its kind.
    let codes = unsafe { codes.add(half * HALF_BYTES) };
    // SAFETY: as above.
    let word = |i: usize| unsafe { _mm256_loadu_si256(codes.add(i * WORD_BYTES).cast()) };
    if matches!(kind, Codes::Bits8) {
        return std::array::from_fn(word);
    }
    let fifteen = _mm256_set1_epi8(15);
    let mut words = [_mm256_setzero_si256(); WORDS];
    for i in 0..WORDS / 2 {
        let nibbles = word(i);
        words[i] = _mm256_and_si256(nibbles, fifteen);
        words[i + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(nibbles), fifteen);
    }
    match kind {
        Codes::Bits5 => {
            for (g, word) in words.iter_mut().enumerate() {
                // SAFETY: eight masks of 8 bytes follow the nibbles; `codes` is already 32 bytes
                // into them for the second half, whose bits are the upper four bytes of a mask.
                let mask = unsafe {
                    let masks = codes.sub(half * HALF_BYTES).add(NIBBLE_BYTES + 4 * half);
                    masks.add(8 * g).cast::<i32>().read_unaligned()
                };
                *word = _mm256_or_si256(*word, fifth_bits(mask));
            }
        }
        Codes::Bits6 => {
            let both = _mm256_set1_epi8(0x30);
            for (words, pairs) in words.chunks_exact_mut(4).zip([word(4), word(5)]) {
                let bits = [
                    _mm256_slli_epi16::<4>(pairs),
                    _mm256_slli_epi16::<2>(pairs),
                    pairs,
                    _mm256_srli_epi16::<2>(pairs),
                ];
                for (word, bits) in words.iter_mut().zip(bits) {
                    *word = _mm256_or_si256(*word, _mm256_and_si256(bits, both));
                }
            }
        }
        Codes::Bits4 | Codes::Bits8 => {}
    }
    words
}

/// Bit i of `mask` as bit 4 of byte i.
#[inline]
#[target_feature(enable = "avx2")]
fn fifth_bits(mask: i32) -> __m256i {
    // Byte i takes byte i / 8 of the mask, then keeps bit i % 8 of it.
    let byte_of_mask =
        _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(mask), byte_of_mask);
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    _mm256_and_si256(is_set, _mm256_set1_epi8(16))
}

fn f32_kernel(job: &Job, sums: &mut Sums) {
    plain(job, sums, 4, |job, half, sums| {
        // SAFETY: `linear_many` asserted that the machine has the instructions; `plain` checked the
        // lengths.
        unsafe { plain_f32(job, half, sums) }
    });
}

fn f16_kernel(job: &Job, sums: &mut Sums) {
    plain(job, sums, 2, |job, half, sums| {
        // SAFETY: as in `f32_kernel`.
        unsafe { plain_f16(job, half, sums) }
    });
}

fn bf16_kernel(job: &Job, sums: &mut Sums) {
    plain(job, sums, 2, |job, half, sums| {
        // SAFETY: as in `f32_kernel`; columns come in pairs and so do activations.
        unsafe { plain_bf16(job, half, sums) }
    });
}

/// Runs `kernel` on both halves of a tile of weights that have `weight_bytes` bytes.
fn plain(job: &Job, sums: &mut Sums, weight_bytes: usize, kernel: impl Fn(&Job, usize, &mut Sums)) {
    let columns = job.tile.len() / (weight_bytes * TILE_ROWS);
    assert!(job.x.floats.len() >= columns * job.x.rows, "activations and tile differ in k");
    sums.start(job);
    kernel(job, 0, sums);
    kernel(job, 1, sums);
}

/// # Safety
/// AVX2 and FMA; `job` has as many columns of activations as of f32 weights; `half` is 0 or 1.
#[target_feature(enable = "avx2,fma")]
unsafe fn plain_f32(job: &Job, half: usize, sums: &mut Sums) {
    let columns = job.tile.len() / (4 * TILE_ROWS);
    for k in 0..columns {
        // SAFETY: k is below the number of columns.
        unsafe {
            let w = job.tile.as_ptr().cast::<f32>().add(k * TILE_ROWS + half * LANES);
            multiply(job, half, k, _mm256_loadu_ps(w), sums);
        }
    }
}

/// # Safety
/// AVX2, FMA and F16C; as `plain_f32`, of f16 weights.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn plain_f16(job: &Job, half: usize, sums: &mut Sums) {
    let columns = job.tile.len() / (2 * TILE_ROWS);
    for k in 0..columns {
        // SAFETY: k is below the number of columns.
        unsafe {
            let w = f16_lanes(job.tile.as_ptr().add(2 * (k * TILE_ROWS + half * LANES)));
            multiply(job, half, k, w, sums);
        }
    }
}

/// # Safety
/// AVX2 and FMA; as `plain_f32`, of pairs of bf16 weights.
#[target_feature(enable = "avx2,fma")]
unsafe fn plain_bf16(job: &Job, half: usize, sums: &mut Sums) {
    let pairs = job.tile.len() / (4 * TILE_ROWS);
    for p in 0..pairs {
        // SAFETY: p is below the number of pairs.
        unsafe {
            let w = job.tile.as_ptr().add(4 * (p * TILE_ROWS + half * LANES));
            let both = _mm256_loadu_si256(w.cast());
            let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let first = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(both));
            let second = _mm256_castsi256_ps(_mm256_and_si256(both, upper));
            multiply(job, half, 2 * p, first, sums);
            multiply(job, half, 2 * p + 1, second, sums);
        }
    }
}

/// sums\[r\] += w * x\[k, r\] for every row r of the group.
///
/// # Safety
/// AVX2 and FMA; the activations have a column k.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply(job: &Job, half: usize, k: usize, w: __m256, sums: &mut Sums) {
    for (r, sums) in sums.0[..job.x.rows].iter_mut().enumerate() {
        // SAFETY: the caller vouches for column k; half a row of sums has 8 lanes.
        unsafe {
            let x = _mm256_set1_ps(*job.x.floats.as_ptr().add(k * job.x.rows + r));
            let sum = sums.as_mut_ptr().add(half * LANES);
            _mm256_storeu_ps(sum, _mm256_fmadd_ps(w, x, _mm256_loadu_ps(sum)));
        }
    }
}
