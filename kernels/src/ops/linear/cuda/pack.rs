//! Checkpoint bytes -> tiles of codes and headers, in the order of `formats.cuh`.

use super::layout::{Format, HEADER_PART_BYTES, Layout, TILE_K, TILE_N};
use crate::ops::dequantize::reference::k_scale_min;
use crate::{DType, KernelError};
use half::{bf16, f16};
use std::num::NonZero;

/// Bytes that one warp reads of a tile at once: 16 for each lane.
const VECTOR_BYTES: usize = 512;
/// Rows of W in a block of a tile.
const BLOCK_N: usize = 16;
/// Steps of an mma instruction in a tile.
const MMA_STEPS: usize = TILE_K / 16;
/// Which nibbles of a word hold the pairs of codes 2i, 2i + 1 of the word's eight.
const PAIR_NIBBLES: [[usize; 2]; 4] = [[7, 0], [1, 2], [3, 4], [5, 6]];
/// A code of 0 in 8-bit formats.
const ZERO_8: u8 = 128;

/// A weight as it goes to the device.
#[derive(Debug)]
pub struct Packed {
    pub codes: Vec<u8>,
    pub headers: Vec<u8>,
}

impl Packed {
    /// Repacks row-major `bytes` of `dtype` on all cores. Plain weights become `activation` (F16 or
    /// BF16), rounded to nearest even where they do not fit; all else is exact.
    ///
    /// Errors: `OutOfMemory`.
    pub fn new(
        layout: &Layout,
        dtype: DType,
        activation: DType,
        bytes: &[u8],
    ) -> Result<Packed, KernelError> {
        assert_eq!(layout.format, Format::of(dtype), "the layout is that of the dtype");
        let row_bytes = bytes.len() / layout.out_features;
        let rows_len = TILE_N * row_bytes;
        Self::by_tile_rows(layout, |tile_row, codes, headers| {
            let end = bytes.len().min((tile_row + 1) * rows_len);
            let rows = &bytes[tile_row * rows_len..end];
            Job { layout, dtype, activation, row_bytes, rows, codes, headers }.run();
        })
    }

    /// A weight whose rows of tiles are filled by `pack`, on all cores: the number of the row, its
    /// codes and its headers, zeros at first.
    ///
    /// Errors: `OutOfMemory`.
    pub(super) fn by_tile_rows(
        layout: &Layout,
        pack: impl Fn(usize, &mut [u8], &mut [u8]) + Sync,
    ) -> Result<Packed, KernelError> {
        let mut codes = zeroed(layout.codes_bytes())?;
        let mut headers = zeroed(layout.headers_bytes())?;
        // Plain weights have no headers; `max` keeps the iterator below in step.
        let headers_len = layout.tile_row_headers_bytes().max(1);
        let mut headers_of = headers.chunks_mut(headers_len);
        let mut jobs: Vec<_> = codes
            .chunks_mut(layout.tile_row_codes_bytes())
            .map(|codes| (codes, headers_of.next().unwrap_or_default()))
            .enumerate()
            .collect();
        let num_threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let jobs_per_thread = jobs.len().div_ceil(num_threads);
        std::thread::scope(|scope| {
            for jobs in jobs.chunks_mut(jobs_per_thread) {
                scope.spawn(|| {
                    for (tile_row, (codes, headers)) in jobs {
                        pack(*tile_row, codes, headers);
                    }
                });
            }
        });
        drop(jobs);
        Ok(Packed { codes, headers })
    }
}

fn zeroed(len: usize) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    let no_memory = |_| KernelError::OutOfMemory { what: "packed weight", bytes: len };
    bytes.try_reserve_exact(len).map_err(no_memory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// One row of tiles.
struct Job<'a> {
    layout: &'a Layout,
    dtype: DType,
    activation: DType,
    row_bytes: usize,
    /// The rows that exist, at most `TILE_N`.
    rows: &'a [u8],
    codes: &'a mut [u8],
    headers: &'a mut [u8],
}

impl Job<'_> {
    fn run(&mut self) {
        match self.layout.format {
            Format::Plain => self.pack_plain(),
            Format::W8 | Format::W8K => self.pack_8(),
            Format::W4 | Format::W4K => self.pack_4(),
            Format::W4Z => unreachable!("no dtype has this format"),
        }
        if self.layout.format.header_bytes() > 0 {
            self.pack_headers();
        }
    }

    fn pack_plain(&mut self) {
        let value_bytes = self.dtype.block_bytes();
        let column_bytes = column_offsets(|k| {
            (k.step / 2 * VECTOR_BYTES) + k.lane * 16 + k.step % 2 * 8 + k.index * 2
        });
        for (n, row) in self.rows.chunks(self.row_bytes).enumerate() {
            let row_at = (n / 8) * 2 * VECTOR_BYTES + n % 8 * 64;
            for (i, value) in row.chunks(value_bytes).enumerate() {
                let tile = i / TILE_K * self.layout.format.tile_bytes();
                let at = tile + row_at + column_bytes[i % TILE_K];
                let bits = plain_bits(self.dtype, self.activation, value);
                self.codes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
    }

    fn pack_8(&mut self) {
        self.codes.fill(ZERO_8);
        let column_bytes = column_offsets(|k| k.lane * 16 + k.step * 4 + k.index);
        let mut row_codes = vec![0; self.layout.in_features];
        for (n, row) in self.rows.chunks(self.row_bytes).enumerate() {
            unpack_codes(self.dtype, row, &mut row_codes);
            let row_at = n / 8 * VECTOR_BYTES + n % 8 * 64;
            for (i, &code) in row_codes.iter().enumerate() {
                let tile = i / TILE_K * self.layout.format.tile_bytes();
                self.codes[tile + row_at + column_bytes[i % TILE_K]] = code;
            }
        }
    }

    fn pack_4(&mut self) {
        let mut row_codes = vec![0; self.layout.in_features];
        for (n, row) in self.rows.chunks(self.row_bytes).enumerate() {
            unpack_codes(self.dtype, row, &mut row_codes);
            place_nibbles(self.layout, self.codes, n, &row_codes);
        }
    }

    fn pack_headers(&mut self) {
        let header_bytes = self.layout.format.header_bytes();
        // Blocks of the checkpoint that one header serves.
        let blocks = self.layout.format.header_k() / self.dtype.block_len();
        let mut out = vec![0; header_bytes];
        for (n, row) in self.rows.chunks(self.row_bytes).enumerate() {
            for (i, blocks) in row.chunks(blocks * self.dtype.block_bytes()).enumerate() {
                let tile = &mut self.headers[i * TILE_N * header_bytes..][..TILE_N * header_bytes];
                out.fill(0);
                header(self.dtype, blocks, &mut out);
                let parts = out.chunks(HEADER_PART_BYTES);
                for (part, tile) in parts.zip(tile.chunks_mut(TILE_N * HEADER_PART_BYTES)) {
                    tile[n * part.len()..(n + 1) * part.len()].copy_from_slice(part);
                }
            }
        }
    }
}

/// Puts the 4-bit codes of row `n` of a row of tiles, `codes`, in their places, which hold zeros.
pub(super) fn place_nibbles(layout: &Layout, codes: &mut [u8], n: usize, row_codes: &[u8]) {
    // In nibbles from the start of the row's place in the tile.
    let column_nibbles = column_offsets(|k| {
        let nibble = PAIR_NIBBLES[n % BLOCK_N / 8 * 2 + k.index / 2][k.index % 2];
        (k.lane * 16 + k.step * 4) * 2 + nibble
    });
    let row_at = n / BLOCK_N * VECTOR_BYTES + n % 8 * 64;
    for (i, &code) in row_codes.iter().enumerate() {
        let tile = i / TILE_K * layout.format.tile_bytes();
        let nibble = column_nibbles[i % TILE_K];
        codes[tile + row_at + nibble / 2] |= code << (nibble % 2 * 4);
    }
}

/// Where a column of a tile belongs in mma operands.
struct Column {
    /// Step of 16 columns.
    step: usize,
    /// Lane within the four that share a row.
    lane: usize,
    /// Which of the lane's four numbers of the step.
    index: usize,
}

/// For each column of a tile, its place as `place` says.
fn column_offsets(place: impl Fn(Column) -> usize) -> [usize; TILE_K] {
    std::array::from_fn(|k| {
        let (step, in_step) = (k / 16, k % 16);
        debug_assert!(step < MMA_STEPS);
        let (lane, index) = (in_step % 8 / 2, in_step / 8 * 2 + in_step % 2);
        place(Column { step, lane, index })
    })
}

/// A plain value as the bits of `activation`.
pub(super) fn plain_bits(dtype: DType, activation: DType, value: &[u8]) -> u16 {
    let low = u16::from_le_bytes([value[0], value[1]]);
    if dtype == activation {
        return low;
    }
    let value = match dtype {
        DType::F16 => f16::from_bits(low).to_f32(),
        DType::BF16 => bf16::from_bits(low).to_f32(),
        DType::F32 => f32::from_le_bytes([value[0], value[1], value[2], value[3]]),
        _ => unreachable!("quantised weights are not plain"),
    };
    match activation {
        DType::F16 => f16::from_f32(value).to_bits(),
        DType::BF16 => bf16::from_f32(value).to_bits(),
        _ => panic!("activations are F16 or BF16, not {activation}"),
    }
}

/// The codes of a row as the device keeps them: 4-bit ones as they are, others plus 128.
fn unpack_codes(dtype: DType, row: &[u8], out: &mut [u8]) {
    let unpack = match dtype {
        DType::Q8_0 => |b: &[u8], i: usize| b[2 + i] ^ ZERO_8,
        DType::Q4_0 => |b: &[u8], i: usize| nibble(&b[2..18], i),
        DType::Q5_0 => |b: &[u8], i: usize| {
            let high_bits = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            let q = nibble(&b[6..22], i) | ((((high_bits >> i) & 1) as u8) << 4);
            q + (ZERO_8 - 16)
        },
        DType::Q4K => |b: &[u8], i: usize| k_nibble(&b[16..144], i),
        DType::Q5K => |b: &[u8], i: usize| {
            let (qh, qs) = (&b[16..48], &b[48..176]);
            (k_nibble(qs, i) | (((qh[i % 32] >> (i / 32)) & 1) << 4)) + ZERO_8
        },
        DType::Q6K => |b: &[u8], i: usize| {
            let (ql, qh) = (&b[..128], &b[128..192]);
            let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
            let low = (ql[half * 64 + quarter % 2 * 32 + l] >> (4 * (quarter / 2))) & 15;
            let high = (qh[half * 32 + l] >> (2 * quarter)) & 3;
            (low | (high << 4)) + (ZERO_8 - 32)
        },
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("plain weights have no codes"),
    };
    let blocks = row.chunks_exact(dtype.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(dtype.block_len())) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = unpack(block, i);
        }
    }
}

/// Code `i` of a block of 32.
fn nibble(qs: &[u8], i: usize) -> u8 {
    if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 }
}

/// Code `i` of a superblock of 256, without its fifth bit.
fn k_nibble(qs: &[u8], i: usize) -> u8 {
    (qs[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15
}

/// The header of `blocks`; what lies past the end of the row stays zero.
fn header(dtype: DType, blocks: &[u8], out: &mut [u8]) {
    match dtype {
        DType::Q8_0 | DType::Q5_0 | DType::Q4_0 => {
            for (block, out) in blocks.chunks(dtype.block_bytes()).zip(out.chunks_mut(2)) {
                out.copy_from_slice(&block[..2]);
            }
        }
        DType::Q4K => header_w4k(blocks, out),
        DType::Q5K => {
            out[..4].copy_from_slice(&blocks[..4]);
            for j in 0..8 {
                let (scale, min) = k_scale_min(&blocks[4..16], j);
                out[4 + j] = min;
                out[HEADER_PART_BYTES + 2 * j..][..2].fill(scale);
            }
        }
        DType::Q6K => {
            out[..2].copy_from_slice(&blocks[208..210]);
            out[HEADER_PART_BYTES..].copy_from_slice(&blocks[192..208]);
        }
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("plain weights have no headers"),
    }
}

/// d and dmin, then for each 64 columns 24 bits: the first three in the low bits of the words, the
/// last in their top bytes.
fn header_w4k(block: &[u8], out: &mut [u8]) {
    out[..4].copy_from_slice(&block[..4]);
    let mut words = [0u32; 3];
    for step in 0..4 {
        let [(scale_0, min_0), (scale_1, min_1)] =
            [0, 1].map(|half| k_scale_min(&block[4..16], 2 * step + half));
        let six_bits = [scale_0, min_0, scale_1, min_1];
        let bits = six_bits.iter().rev().fold(0, |bits, &x| (bits << 6) | u32::from(x));
        match words.get_mut(step) {
            Some(word) => *word |= bits,
            None => {
                for (word, byte) in words.iter_mut().zip(bits.to_le_bytes()) {
                    *word |= u32::from(byte) << 24;
                }
            }
        }
    }
    for (out, word) in out[4..].chunks_mut(4).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
}
