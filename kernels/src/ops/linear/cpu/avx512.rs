//! The kernels with 512-bit vectors: one lane for each of the 16 rows of a tile, 4 k a step by
//! `vpdpbusd`.
//!
//! Every row of activations goes through the same operations in the same order whatever its group's
//! size, so its results do not depend on its neighbours.
#![allow(unsafe_code)]

pub mod wide;

use super::activations::{self, Rounded, scale_and_inverse};
use super::format::{
    BLOCK_LEN, Codes, Correction, LANES_BYTES, NIBBLE_BYTES, Quantised, Scales, TILE_ROWS,
    WORD_BYTES, WORDS,
};
use super::{Job, Start, Sums};
use crate::DType;
use std::arch::x86_64::*;

/// How far ahead of its use memory is asked for.
const PREFETCH_BYTES: usize = 4096;
/// With fewer rows the core reads ahead as fast as memory gives by itself, and asking for more
/// costs some percent.
const PREFETCH_ROWS_MIN: usize = 4;

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

/// Calls `$function::<.., R>` with R, the number of rows, as a constant: then all sums of a group
/// live in registers.
macro_rules! with_rows {
    ($rows:expr, $($function:ident)::+ < $($generic:ty),* > ($($argument:expr),*)) => {
        match $rows {
            1 => $($function)::+::<$($generic,)* 1>($($argument),*),
            2 => $($function)::+::<$($generic,)* 2>($($argument),*),
            3 => $($function)::+::<$($generic,)* 3>($($argument),*),
            4 => $($function)::+::<$($generic,)* 4>($($argument),*),
            5 => $($function)::+::<$($generic,)* 5>($($argument),*),
            6 => $($function)::+::<$($generic,)* 6>($($argument),*),
            7 => $($function)::+::<$($generic,)* 7>($($argument),*),
            8 => $($function)::+::<$($generic,)* 8>($($argument),*),
            rows => unreachable!("a group of {rows} rows"),
        }
    };
}

fn quantised_kernel<F: Quantised>(job: &Job, sums: &mut Sums) {
    let format = const { F::FORMAT };
    let super_blocks = job.tile.len() / format.super_block_bytes();
    let blocks = super_blocks * format.blocks * job.x.rows;
    assert_eq!(job.x.values.len(), blocks * BLOCK_LEN, "activations and tile differ in k");
    assert_eq!(job.x.scales.len(), blocks, "one scale a block");
    assert_eq!(job.x.corrections.len(), blocks * format.correction.count(), "corrections");
    // SAFETY: `linear_many` asserted that the machine has the instructions; the lengths were
    // checked above.
    unsafe { with_rows!(job.x.rows, quantised<F>(job, super_blocks, sums)) }
}

/// A block of weights in registers.
struct Block {
    words: [__m512i; WORDS],
    scales: __m512,
    /// Scales of the second half, or negated minima.
    second: __m512,
}

/// # Safety
/// AVX-512 as in `Isa::Avx512`; `job` holds `super_blocks` super-blocks and the activations of R
/// rows for them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn quantised<F: Quantised, const R: usize>(job: &Job, super_blocks: usize, sums: &mut Sums) {
    let format = const { F::FORMAT };
    let mut tile = job.tile.as_ptr();
    let (mut values, mut scales) = (job.x.values.as_ptr(), job.x.scales.as_ptr());
    let mut corrections = job.x.corrections.as_ptr();
    let mut acc = load::<R>(job, sums);
    for _ in 0..super_blocks {
        let header = tile;
        // SAFETY: the caller vouches for the lengths: each pointer moves by what one block has,
        // once a block.
        unsafe {
            tile = tile.add(format.header_bytes);
            for _ in 0..format.blocks {
                let block = unpack::<F>(header, tile);
                if R >= PREFETCH_ROWS_MIN {
                    prefetch::<F>(tile);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let correction = corrections.add(r * format.correction.count());
                    let values = values.add(r * BLOCK_LEN);
                    *acc = accumulate::<F>(*acc, &block, values, *scales.add(r), correction);
                }
                tile = tile.add(format.block_bytes());
                values = values.add(R * BLOCK_LEN);
                scales = scales.add(R);
                corrections = corrections.add(R * format.correction.count());
            }
        }
    }
    store(&acc, sums);
}

/// Asks for as many bytes as a block has, some blocks after `tile`: the tile that follows in memory
/// is the next to be read, and with several rows the core's own prefetching does not run far
/// enough ahead of the products. An address that is not mapped is passed over.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<F: Quantised>(tile: *const u8) {
    // Where there is nothing to unpack, memory is the slower one.
    if matches!(const { F::FORMAT.codes }, Codes::Bits8) {
        return;
    }
    for line in (0..const { F::FORMAT.block_bytes() }).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(PREFETCH_BYTES + line).cast());
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load<const R: usize>(job: &Job, sums: &Sums) -> [__m512; R] {
    let mut acc = [_mm512_setzero_ps(); R];
    if job.start == Start::Zero {
        return acc;
    }
    for (acc, sums) in acc.iter_mut().zip(&sums.0) {
        // SAFETY: `sums` is 16 f32 on a 64-byte boundary (see `Sums`).
        *acc = unsafe { _mm512_load_ps(sums.as_ptr()) };
    }
    acc
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const R: usize>(acc: &[__m512; R], sums: &mut Sums) {
    for (sums, acc) in sums.0.iter_mut().zip(acc) {
        // SAFETY: `sums` is 16 f32 on a 64-byte boundary (see `Sums`).
        unsafe { _mm512_store_ps(sums.as_mut_ptr(), *acc) };
    }
}

/// Adds the products of one block and one row of activations.
///
/// # Safety
/// As `quantised`; `values` are 32, `correction` as many as the format has.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn accumulate<F: Quantised>(
    acc: __m512,
    block: &Block,
    values: *const i8,
    scale: f32,
    correction: *const i32,
) -> __m512 {
    let scale = _mm512_set1_ps(scale);
    let scales = _mm512_mul_ps(block.scales, scale);
    let [w0, w1, w2, w3, w4, w5, w6, w7] = block.words;
    // SAFETY: 32 values and the corrections can be read, by this function's contract.
    unsafe {
        match const { F::FORMAT.correction } {
            Correction::Offset8 | Correction::Offset16 | Correction::Offset128 => {
                let start = _mm512_set1_epi32(*correction);
                let dots = dot(start, [w0, w1, w2, w3], values);
                let dots = dot(dots, [w4, w5, w6, w7], values.add(16));
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scales, acc)
            }
            Correction::HalvesOffset32 => {
                let first = dot(_mm512_set1_epi32(*correction), [w0, w1, w2, w3], values);
                let start = _mm512_set1_epi32(*correction.add(1));
                let second = dot(start, [w4, w5, w6, w7], values.add(16));
                // The scale of x once for both halves: a product less than with either's own.
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(first), block.scales);
                let scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), block.second, scaled);
                _mm512_fmadd_ps(scaled, scale, acc)
            }
            Correction::Minimum => {
                let dots = dot(_mm512_setzero_si512(), [w0, w1, w2, w3], values);
                let dots = dot(dots, [w4, w5, w6, w7], values.add(16));
                let acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scales, acc);
                let x_sum = _mm512_set1_ps(f32::from_bits((*correction).cast_unsigned()));
                _mm512_fmadd_ps(block.second, x_sum, acc)
            }
        }
    }
}

/// dots + codes * values, 16 k of 16 rows.
///
/// # Safety
/// As `quantised`; 16 `values` can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot(mut dots: __m512i, words: [__m512i; 4], values: *const i8) -> __m512i {
    for (g, word) in words.into_iter().enumerate() {
        // SAFETY: 4 * 4 values can be read.
        let four = unsafe { values.add(4 * g).cast::<i32>().read_unaligned() };
        dots = _mm512_dpbusd_epi32(dots, word, _mm512_set1_epi32(four));
    }
    dots
}

/// # Safety
/// As `quantised`; `header` and `block` are those of one packed block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn unpack<F: Quantised>(header: *const u8, block: *const u8) -> Block {
    let format = const { F::FORMAT };
    // SAFETY: `block` has its scales and then the codes; `header` has one or two times 32 bytes
    // where they are read.
    unsafe {
        let words = unpack_codes::<F>(block.add(format.scale_bytes()));
        let (low, high) = (block.cast::<__m128i>(), block.add(TILE_ROWS).cast::<__m128i>());
        let (scales, second) = match format.correction {
            _ if matches!(format.scales, Scales::F32) => {
                let has_second = format.scale_bytes() > LANES_BYTES;
                // Where there is no second vector, it is not used.
                let second = if has_second { block.add(LANES_BYTES) } else { block };
                (_mm512_loadu_ps(block.cast()), _mm512_loadu_ps(second.cast()))
            }
            Correction::Offset8 | Correction::Offset16 | Correction::Offset128 => {
                (f16_lanes(block), _mm512_setzero_ps())
            }
            Correction::HalvesOffset32 => {
                let d = f16_lanes(header);
                let scaled = |s| _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(s)));
                (scaled(_mm_loadu_si128(low)), scaled(_mm_loadu_si128(high)))
            }
            Correction::Minimum => {
                let widen = |s| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(s));
                let scale = widen(_mm_loadu_si128(low));
                let minimum = widen(_mm_loadu_si128(high));
                let negative_d_min =
                    _mm512_sub_ps(_mm512_set1_ps(-0.0), f16_lanes(header.add(2 * TILE_ROWS)));
                let d = f16_lanes(header);
                (_mm512_mul_ps(d, scale), _mm512_mul_ps(negative_d_min, minimum))
            }
        };
        Block { words, scales, second }
    }
}

/// # Safety
/// AVX-512F; 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn f16_lanes(bytes: *const u8) -> __m512 {
    // SAFETY: by this function's contract.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.cast()) })
}

/// The codes of a block, one byte each.
///
/// # Safety
/// As `quantised`; `codes` are those of one packed block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_codes<F: Quantised>(codes: *const u8) -> [__m512i; WORDS] {
    let kind = const { F::FORMAT.codes };
    // SAFETY: the codes of a block are as long as `Format::block_bytes` says for its kind.
    let word = |i: usize| unsafe { _mm512_loadu_si512(codes.add(i * WORD_BYTES).cast()) };
    if matches!(kind, Codes::Bits8) {
        return [word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7)];
    }
    let fifteen = _mm512_set1_epi8(15);
    let nibbles: [__m512i; WORDS] = std::array::from_fn(|g| {
        let packed = word(g % 4);
        if g < 4 { packed } else { _mm512_srli_epi16::<4>(packed) }
    });
    let mut words = nibbles.map(|nibbles| _mm512_and_si512(nibbles, fifteen));
    match kind {
        Codes::Bits5 => {
            let sixteen = _mm512_set1_epi8(16);
            // SAFETY: eight masks of 8 bytes follow the nibbles.
            let masks = unsafe { codes.add(NIBBLE_BYTES) }.cast::<u64>();
            for (g, word) in words.iter_mut().enumerate() {
                // SAFETY: as above.
                let mask = unsafe { masks.add(g).read_unaligned() };
                // nibbles & fifteen | fifth, in one instruction.
                let fifth = _mm512_maskz_mov_epi8(mask, sixteen);
                *word = _mm512_ternarylogic_epi32::<0xea>(nibbles[g], fifteen, fifth);
            }
        }
        Codes::Bits6 => {
            let both = _mm512_set1_epi8(0x30);
            let (low, high) = (word(4), word(5));
            let set = |word: &mut __m512i, bits| {
                *word = _mm512_or_si512(*word, _mm512_and_si512(bits, both));
            };
            for (words, pairs) in words.chunks_exact_mut(4).zip([low, high]) {
                set(&mut words[0], _mm512_slli_epi16::<4>(pairs));
                set(&mut words[1], _mm512_slli_epi16::<2>(pairs));
                set(&mut words[2], pairs);
                set(&mut words[3], _mm512_srli_epi16::<2>(pairs));
            }
        }
        Codes::Bits4 | Codes::Bits8 => {}
    }
    words
}

fn f32_kernel(job: &Job, sums: &mut Sums) {
    let columns = job.tile.len() / (4 * TILE_ROWS);
    check_floats(job, columns);
    // SAFETY: `linear_many` asserted that the machine has the instructions; the lengths were
    // checked above.
    unsafe { with_rows!(job.x.rows, plain_f32<>(job, columns, sums)) }
}

fn f16_kernel(job: &Job, sums: &mut Sums) {
    let columns = job.tile.len() / (2 * TILE_ROWS);
    check_floats(job, columns);
    // SAFETY: as in `f32_kernel`.
    unsafe { with_rows!(job.x.rows, plain_f16<>(job, columns, sums)) }
}

fn bf16_kernel(job: &Job, sums: &mut Sums) {
    let pairs = job.tile.len() / (4 * TILE_ROWS);
    check_floats(job, 2 * pairs);
    // SAFETY: as in `f32_kernel`.
    unsafe { with_rows!(job.x.rows, plain_bf16<>(job, pairs, sums)) }
}

/// bf16 weights and bf16 activations, where the machine multiplies them.
pub fn bf16_pairs_kernel(job: &Job, sums: &mut Sums) {
    let pairs = job.tile.len() / (4 * TILE_ROWS);
    assert_eq!(job.x.pairs.len(), pairs * job.x.rows, "activations and tile differ in k");
    assert!(pairs.is_multiple_of(2), "tiles of plain numbers are padded");
    // SAFETY: as in `f32_kernel`; this kernel is chosen for `Isa::Avx512Bf16` alone.
    unsafe { with_rows!(job.x.rows, bf16_pairs<>(job, pairs, sums)) }
}

fn check_floats(job: &Job, columns: usize) {
    assert_eq!(job.x.floats.len(), columns * job.x.rows, "activations and tile differ in k");
    assert!(columns.is_multiple_of(4), "tiles of plain numbers are padded");
}

/// # Safety
/// AVX-512F; `job` has `columns` columns of f32 weights and the activations of R rows for them.
#[target_feature(enable = "avx512f")]
unsafe fn plain_f32<const R: usize>(job: &Job, columns: usize, sums: &mut Sums) {
    let (w, x) = (job.tile.as_ptr().cast::<f32>(), job.x.floats.as_ptr());
    let mut acc = Chains::<R>::load(job, sums);
    for k in (0..columns).step_by(2) {
        let first = k;
        let second = k + 1;
        // SAFETY: columns are even and the caller vouches for their number.
        unsafe {
            acc.multiply(0, _mm512_loadu_ps(w.add(first * TILE_ROWS)), x.add(first * R));
            acc.multiply(1, _mm512_loadu_ps(w.add(second * TILE_ROWS)), x.add(second * R));
        }
    }
    acc.store(sums);
}

/// # Safety
/// AVX-512F; `job` has `columns` columns of f16 weights and the activations of R rows for them.
#[target_feature(enable = "avx512f")]
unsafe fn plain_f16<const R: usize>(job: &Job, columns: usize, sums: &mut Sums) {
    let (w, x) = (job.tile.as_ptr(), job.x.floats.as_ptr());
    let mut acc = Chains::<R>::load(job, sums);
    for k in (0..columns).step_by(2) {
        let first = k;
        let second = k + 1;
        // SAFETY: columns are even and the caller vouches for their number.
        unsafe {
            acc.multiply(0, f16_lanes(w.add(first * 2 * TILE_ROWS)), x.add(first * R));
            acc.multiply(1, f16_lanes(w.add(second * 2 * TILE_ROWS)), x.add(second * R));
        }
    }
    acc.store(sums);
}

/// # Safety
/// AVX-512F; `job` has `pairs` pairs of columns of bf16 weights and the activations of R rows for
/// them.
#[target_feature(enable = "avx512f")]
unsafe fn plain_bf16<const R: usize>(job: &Job, pairs: usize, sums: &mut Sums) {
    let (w, x) = (job.tile.as_ptr(), job.x.floats.as_ptr());
    let mut acc = Chains::<R>::load(job, sums);
    for p in 0..pairs {
        // SAFETY: p is below `pairs`, for which the caller vouches.
        unsafe {
            let both = _mm512_loadu_si512(w.add(p * WORD_BYTES).cast());
            let second = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(both));
            acc.multiply(0, first, x.add(2 * p * R));
            acc.multiply(1, _mm512_castsi512_ps(second), x.add((2 * p + 1) * R));
        }
    }
    acc.store(sums);
}

/// # Safety
/// AVX-512F and BF16; `job` has `pairs` pairs of columns of bf16 weights and the activations of R
/// rows for them.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_pairs<const R: usize>(job: &Job, pairs: usize, sums: &mut Sums) {
    let (w, x) = (job.tile.as_ptr(), job.x.pairs.as_ptr());
    let mut acc = Chains::<R>::load(job, sums);
    for p in (0..pairs).step_by(2) {
        for (i, acc) in acc.0.iter_mut().enumerate() {
            // SAFETY: pairs are even and the caller vouches for their number; the casts only rename
            // 64 bytes.
            unsafe {
                let both = _mm512_loadu_si512(w.add((p + i) * WORD_BYTES).cast());
                let both = std::mem::transmute::<__m512i, __m512bh>(both);
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32((*x.add((p + i) * R + r)).cast_signed());
                    let x = std::mem::transmute::<__m512i, __m512bh>(x);
                    *acc = _mm512_dpbf16_ps(*acc, both, x);
                }
            }
        }
    }
    acc.store(sums);
}

/// Two sums for each row, of alternating k: one alone would wait for its own last addition, which
/// with one row is slower than memory.
struct Chains<const R: usize>([[__m512; R]; 2]);

impl<const R: usize> Chains<R> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(job: &Job, sums: &Sums) -> Self {
        Chains([load(job, sums), [_mm512_setzero_ps(); R]])
    }

    /// Chain `i` of each row r += w * x\[r\].
    ///
    /// # Safety
    /// R values can be read from `x`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply(&mut self, i: usize, w: __m512, x: *const f32) {
        for (r, acc) in self.0[i].iter_mut().enumerate() {
            // SAFETY: r is below R.
            *acc = _mm512_fmadd_ps(w, _mm512_set1_ps(unsafe { *x.add(r) }), *acc);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(self, sums: &mut Sums) {
        let [mut first, second] = self.0;
        for (first, second) in first.iter_mut().zip(second) {
            *first = _mm512_add_ps(*first, second);
        }
        store(&first, sums);
    }
}

/// `activations::round_rows` with vectors; the same numbers as its plain form.
pub fn round_rows(x: &[f32], rows: usize, out: Rounded) {
    // SAFETY: `linear_many` asserted that the machine has the instructions.
    unsafe { round_rows_avx512(x, rows, out) }
}

/// # Safety
/// AVX-512 as in `Isa::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn round_rows_avx512(x: &[f32], rows: usize, out: Rounded) {
    activations::round_rows(x, rows, out, |x, values| round_block(x, values));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
fn round_block(x: &[f32; BLOCK_LEN], values: &mut [i8; BLOCK_LEN]) -> (f32, [i32; 2]) {
    // SAFETY: both halves are 16 f32.
    let (first, second) =
        unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[BLOCK_LEN / 2..].as_ptr())) };
    let magnitude = |v| _mm512_castps_si512(_mm512_abs_ps(v));
    let largest = _mm512_max_epu32(magnitude(first), magnitude(second));
    let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
    let Some((scale, inverse)) = scale_and_inverse(largest) else {
        values.fill(0);
        return (f32::NAN, [0; 2]);
    };
    let inverse = _mm512_set1_ps(inverse);
    let round = |v| _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)));
    let rounded = _mm256_set_m128i(round(second), round(first));
    // SAFETY: `values` are 32 bytes.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), rounded) };
    // Sums of four, then of eight, then of sixteen, within each half.
    let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), rounded);
    let sums = _mm256_hadd_epi32(sums, sums);
    let sums = _mm256_hadd_epi32(sums, sums);
    (scale, [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)])
}
