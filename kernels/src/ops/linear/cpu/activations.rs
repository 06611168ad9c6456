//! The activations of one call in the forms that the kernels multiply with.
//!
//! Rows are taken in groups. Within a group the block (or the k) comes first and the row second, so
//! a kernel that holds one block of weights finds all it needs of the group's rows in one place.

use super::format::{BLOCK_LEN, Correction, padded_len};
use crate::Tensor;
use crate::device::cpu::{CpuDevice, Isa};
use crate::device::memory::{AlignedVec, Element, SharedMut};
use std::ops::Range;

/// Rows that a kernel multiplies with one unpacked block of weights.
pub const GROUP_ROWS_MAX: usize = 8;
/// Activations that are worth a parallel region of their own: some microseconds of work.
const PARALLEL_LEN_MIN: usize = 16 * 1024;
/// A group below this is zero: the reciprocal of its scale would not be finite.
const MAGNITUDE_MIN: f32 = 1e-36;

/// What a kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// 8 bits with a scale for every 32, and the correction of the weight's format.
    Int8(Correction),
    /// Pairs of bf16.
    Bf16,
    /// f32 as they are.
    F32,
}

/// Buffers that are kept between calls. They grow to the largest call, which the server's token
/// budget limits.
pub struct Activations {
    rows: usize,
    in_features: usize,
    /// [block, row, 32] for each group.
    values: AlignedVec<i8>,
    /// [block, row] for each group.
    scales: AlignedVec<f32>,
    /// [block, row, `Correction::count`] for each group, by `Correction`. Those of `Minimum` are
    /// the bits of f32.
    corrections: [AlignedVec<i32>; Correction::COUNT],
    /// [padded k / 2, row] for each group.
    pairs: AlignedVec<u32>,
    /// [padded k, row] for each group.
    floats: AlignedVec<f32>,
}

/// The rows that one call of a kernel takes.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    pub first_row: usize,
    pub rows: usize,
    pub values: &'a [i8],
    pub scales: &'a [f32],
    pub corrections: &'a [i32],
    pub pairs: &'a [u32],
    pub floats: &'a [f32],
}

impl Default for Activations {
    fn default() -> Self {
        Self {
            rows: 0,
            in_features: 0,
            values: AlignedVec::zeroed(0),
            scales: AlignedVec::zeroed(0),
            corrections: std::array::from_fn(|_| AlignedVec::zeroed(0)),
            pairs: AlignedVec::zeroed(0),
            floats: AlignedVec::zeroed(0),
        }
    }
}

impl Activations {
    /// Brings `x` [rows, in_features] into every form that `inputs` name.
    pub fn prepare(&mut self, device: &CpuDevice, x: &Tensor, inputs: &[Input]) {
        (self.rows, self.in_features) = (x.rows(), x.row_len());
        let is_int8 = |input: &Input| matches!(input, Input::Int8(_));
        if inputs.iter().any(is_int8) {
            self.round_to_int8(device, x, inputs);
        }
        if inputs.contains(&Input::Bf16) {
            self.round_to_bf16(device, x);
        }
        if inputs.contains(&Input::F32) {
            self.transpose_f32(device, x);
        }
    }

    pub fn num_groups(&self) -> usize {
        self.rows.div_ceil(GROUP_ROWS_MAX)
    }

    /// Columns `columns` of group `i` in the form of `input`, which must have been prepared. Both
    /// ends are whole blocks.
    pub fn group(&self, i: usize, input: Input, columns: Range<usize>) -> Group<'_> {
        let (first_row, rows) = group_rows(i, self.rows);
        // The group's part of a buffer with `row_len` numbers a row, of which `columns` are these.
        let part = |row_len: usize, start: usize, end: usize| {
            first_row * row_len + rows * start..first_row * row_len + rows * end
        };
        let (start, end) = (columns.start, columns.end);
        let mut group = Group {
            first_row,
            rows,
            values: &[],
            scales: &[],
            corrections: &[],
            pairs: &[],
            floats: &[],
        };
        let blocks = self.in_features / BLOCK_LEN;
        match input {
            Input::Int8(correction) => {
                let n = correction.count();
                group.values = &self.values[part(self.in_features, start, end)];
                let (start, end) = (start / BLOCK_LEN, end / BLOCK_LEN);
                group.scales = &self.scales[part(blocks, start, end)];
                let corrections = &self.corrections[correction as usize];
                group.corrections = &corrections[part(blocks * n, start * n, end * n)];
            }
            Input::Bf16 => {
                let row_len = padded(self.in_features) / 2;
                group.pairs = &self.pairs[part(row_len, padded(start) / 2, padded(end) / 2)];
            }
            Input::F32 => {
                let row_len = padded(self.in_features);
                group.floats = &self.floats[part(row_len, padded(start), padded(end))];
            }
        }
        group
    }

    fn round_to_int8(&mut self, device: &CpuDevice, x: &Tensor, inputs: &[Input]) {
        let blocks = self.in_features / BLOCK_LEN;
        grow(&mut self.values, self.rows * self.in_features);
        grow(&mut self.scales, self.rows * blocks);
        let mut wanted: Vec<(Correction, SharedMut<i32>)> = Vec::new();
        for (i, corrections) in self.corrections.iter_mut().enumerate() {
            let is_this = |input: &&Input| matches!(input, Input::Int8(c) if *c as usize == i);
            if let Some(&Input::Int8(correction)) = inputs.iter().find(is_this) {
                grow(corrections, self.rows * blocks * correction.count());
                wanted.push((correction, SharedMut::new(corrections)));
            }
        }
        let values = SharedMut::new(&mut self.values[..]);
        let scales = SharedMut::new(&mut self.scales[..]);
        let round = rounder(device.isa);
        for_each_group(device, x, &|first_row, rows| {
            let len = rows * blocks;
            // SAFETY: groups do not overlap, so neither do their parts of the buffers, which
            // outlive the region.
            let values = unsafe { values.slice(first_row * blocks * BLOCK_LEN, len * BLOCK_LEN) };
            // SAFETY: as above.
            let scales = unsafe { scales.slice(first_row * blocks, len) };
            let mut sums = vec![[0i32; 2]; len];
            let out = Rounded { values, scales, sums: &mut sums };
            round(&x.f32()[first_row * x.row_len()..][..rows * x.row_len()], rows, out);
            for (correction, out) in &wanted {
                let n = correction.count();
                // SAFETY: as above.
                let out = unsafe { out.slice(first_row * blocks * n, len * n) };
                correct(*correction, &sums, scales, out);
            }
        });
    }

    fn round_to_bf16(&mut self, device: &CpuDevice, x: &Tensor) {
        let num_pairs = padded(self.in_features) / 2;
        grow(&mut self.pairs, self.rows * num_pairs);
        let pairs = SharedMut::new(&mut self.pairs[..]);
        for_each_group(device, x, &|first_row, rows| {
            // SAFETY: groups do not overlap, and the buffer outlives the region.
            let pairs = unsafe { pairs.slice(first_row * num_pairs, rows * num_pairs) };
            for row in 0..rows {
                let out = pairs.iter_mut().skip(row).step_by(rows);
                let x = x.f32_row(first_row + row).chunks(2);
                for (out, x) in out.zip(x.chain(std::iter::repeat(&[0.0][..]))) {
                    let second = x.get(1).map_or(0, |&x| bf16_bits(x));
                    *out = bf16_bits(x[0]) | second << 16;
                }
            }
        });
    }

    fn transpose_f32(&mut self, device: &CpuDevice, x: &Tensor) {
        let padded_len = padded(self.in_features);
        grow(&mut self.floats, self.rows * padded_len);
        let floats = SharedMut::new(&mut self.floats[..]);
        for_each_group(device, x, &|first_row, rows| {
            // SAFETY: groups do not overlap, and the buffer outlives the region.
            let floats = unsafe { floats.slice(first_row * padded_len, rows * padded_len) };
            for row in 0..rows {
                let x = x.f32_row(first_row + row).iter().copied();
                let x = x.chain(std::iter::repeat(0.0));
                for (out, x) in floats.iter_mut().skip(row).step_by(rows).zip(x) {
                    *out = x;
                }
            }
        });
    }
}

fn padded(columns: usize) -> usize {
    padded_len(columns).expect("the weight was packed with this length")
}

/// First row and number of rows of group `i`.
fn group_rows(i: usize, num_rows: usize) -> (usize, usize) {
    let first_row = i * GROUP_ROWS_MAX;
    (first_row, GROUP_ROWS_MAX.min(num_rows - first_row))
}

/// Calls `task(first_row, rows)` for each group, on all threads if that pays.
fn for_each_group(device: &CpuDevice, x: &Tensor, task: &(dyn Fn(usize, usize) + Sync)) {
    let num_groups = x.rows().div_ceil(GROUP_ROWS_MAX);
    let group = |i: usize| {
        let (first_row, rows) = group_rows(i, x.rows());
        task(first_row, rows);
    };
    if x.len() >= PARALLEL_LEN_MIN {
        device.pool.run(num_groups, &group);
    } else {
        (0..num_groups).for_each(group);
    }
}

fn grow<T: Element>(buffer: &mut AlignedVec<T>, len: usize) {
    if buffer.len() < len {
        *buffer = AlignedVec::zeroed(len);
    }
}

fn correct(correction: Correction, sums: &[[i32; 2]], scales: &[f32], out: &mut [i32]) {
    let offset = match correction {
        Correction::Offset8 => 8,
        Correction::Offset16 => 16,
        Correction::Offset128 => 128,
        Correction::HalvesOffset32 => {
            for (out, sums) in out.chunks_exact_mut(2).zip(sums) {
                out.copy_from_slice(&sums.map(|sum| -32 * sum));
            }
            return;
        }
        Correction::Minimum => {
            for ((out, sums), scale) in out.iter_mut().zip(sums).zip(scales) {
                *out = (scale * (sums[0] + sums[1]) as f32).to_bits().cast_signed();
            }
            return;
        }
    };
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = -offset * (sums[0] + sums[1]);
    }
}

/// Rounds to the nearest bf16, ties to even; the two bytes as a number.
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

/// What rounding the rows of a group gives: [block, row, 32], [block, row] and the sums of the two
/// halves of each block, [block, row, 2].
pub struct Rounded<'a> {
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [[i32; 2]],
}

/// Rounds `x` [rows, in_features].
type Round = fn(&[f32], usize, Rounded);

fn rounder(isa: Isa) -> Round {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        return super::avx512::round_rows;
    }
    let _ = isa;
    |x, rows, out| round_rows(x, rows, out, round_block)
}

/// Rounds each block of `x` with `round_block` and puts it where it belongs.
#[inline(always)]
pub fn round_rows(
    x: &[f32],
    rows: usize,
    out: Rounded,
    round_block: impl Fn(&[f32; BLOCK_LEN], &mut [i8; BLOCK_LEN]) -> (f32, [i32; 2]),
) {
    let (values, _) = out.values.as_chunks_mut::<BLOCK_LEN>();
    for (row, x) in x.chunks_exact(x.len() / rows).enumerate() {
        let (blocks, _) = x.as_chunks::<BLOCK_LEN>();
        for (b, x) in blocks.iter().enumerate() {
            let at = b * rows + row;
            (out.scales[at], out.sums[at]) = round_block(x, &mut values[at]);
        }
    }
}

/// value = round(x / scale), scale = max |x| / 127. A NaN or an infinity makes the scale NaN, and
/// with it every output of the row. Every instruction set gives these very numbers.
fn round_block(x: &[f32; BLOCK_LEN], values: &mut [i8; BLOCK_LEN]) -> (f32, [i32; 2]) {
    // As integers, magnitudes order as f32 do and NaN comes out above all, where f32::max would
    // lose it.
    let magnitude = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let Some((scale, inverse)) = scale_and_inverse(f32::from_bits(magnitude)) else {
        values.fill(0);
        return (f32::NAN, [0; 2]);
    };
    let mut sums = [0i32; 2];
    for (i, (value, x)) in values.iter_mut().zip(x).enumerate() {
        let rounded = (x * inverse).round_ties_even() as i32;
        *value = rounded as i8;
        sums[i / (BLOCK_LEN / 2)] += rounded;
    }
    (scale, sums)
}

/// The scale of a block with this largest magnitude, and what its values are multiplied with. None
/// if the magnitude is not finite.
pub fn scale_and_inverse(magnitude: f32) -> Option<(f32, f32)> {
    if magnitude < MAGNITUDE_MIN {
        return Some((0.0, 0.0));
    }
    magnitude.is_finite().then(|| (magnitude / 127.0, 127.0 / magnitude))
}
