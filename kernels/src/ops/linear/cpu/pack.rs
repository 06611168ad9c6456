//! Checkpoint bytes -> packed tiles.

use super::format::{
    BLOCK_LEN, Codes, Format, NIBBLE_BYTES, PANEL_TILES, SCALE_BYTES, TILE_ROWS, WORD_BYTES, WORDS,
    chunks, format_of, tile_bytes,
};
use crate::device::arena::ArenaBytes;
use crate::device::cpu::CpuDevice;
use crate::device::memory::SharedMut;
use crate::ops::dequantize::reference::k_scale_min;
use crate::{DType, KernelError};
use std::ops::Range;

/// A weight in panels, see `format`. Rows past the last are zero.
#[derive(Debug)]
pub struct Packed {
    bytes: ArenaBytes,
    tile_bytes: usize,
    num_tiles: usize,
    chunks: Vec<Chunk>,
}

/// Columns that lie together.
#[derive(Debug)]
pub struct Chunk {
    pub columns: Range<usize>,
    /// Bytes of a tile before these columns.
    pub start: usize,
    /// Bytes of a tile in these columns.
    pub bytes: usize,
}

impl Packed {
    /// Repacks row-major `bytes` on the threads of `device`.
    ///
    /// Errors: `OutOfMemory`.
    pub fn new(
        device: &CpuDevice,
        dtype: DType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<Packed, KernelError> {
        let num_tiles = out_features.div_ceil(TILE_ROWS);
        let tile_bytes = tile_bytes(dtype, in_features).unwrap_or(usize::MAX);
        let packed_bytes = packed_bytes(dtype, out_features, in_features).unwrap_or(usize::MAX);
        let no_memory = KernelError::OutOfMemory { what: "packed weight", bytes: packed_bytes };
        let mut packed = device.arena.try_zeroed(packed_bytes).ok_or(no_memory)?;
        let row_bytes = bytes.len() / out_features;
        let shared = SharedMut::new(&mut packed[..]);
        device.pool.run_ranges(num_tiles.div_ceil(PANEL_TILES), 1, &|range| {
            for i in range {
                let tiles = panel_tiles(i, num_tiles);
                let start = tiles.start * TILE_ROWS * row_bytes;
                let end = bytes.len().min(tiles.end * TILE_ROWS * row_bytes);
                let (at, len) = (tiles.start * tile_bytes, tiles.len() * tile_bytes);
                // SAFETY: each panel is in one range alone, and `packed` outlives the region.
                let panel = unsafe { shared.slice(at, len) };
                pack_panel(dtype, in_features, &bytes[start..end], panel);
            }
        });
        Ok(Packed { bytes: packed, tile_bytes, num_tiles, chunks: chunks_of(dtype, in_features) })
    }

    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    pub fn num_panels(&self) -> usize {
        self.num_tiles.div_ceil(PANEL_TILES)
    }

    /// The tiles of panel `i`.
    pub fn tiles(&self, i: usize) -> Range<usize> {
        panel_tiles(i, self.num_tiles)
    }

    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Columns `chunk` of tile `i` of the panel with tiles `panel`.
    pub fn part(&self, panel: &Range<usize>, i: usize, chunk: &Chunk) -> &[u8] {
        let panel_start = panel.start * self.tile_bytes;
        let chunk_start = panel_start + panel.len() * chunk.start;
        let start = chunk_start + (i - panel.start) * chunk.bytes;
        &self.bytes[start..start + chunk.bytes]
    }
}

/// Memory that a packed weight takes; `None` when it overflows.
pub fn packed_bytes(dtype: DType, out_features: usize, in_features: usize) -> Option<usize> {
    tile_bytes(dtype, in_features)?.checked_mul(out_features.div_ceil(TILE_ROWS))
}

fn chunks_of(dtype: DType, in_features: usize) -> Vec<Chunk> {
    let bytes = |k: usize| tile_bytes(dtype, k).expect("a part of the tile");
    let chunk = |columns: Range<usize>| {
        let start = bytes(columns.start);
        Chunk { start, bytes: bytes(columns.end) - start, columns }
    };
    chunks(in_features).map(chunk).collect()
}

fn panel_tiles(i: usize, num_tiles: usize) -> Range<usize> {
    i * PANEL_TILES..num_tiles.min((i + 1) * PANEL_TILES)
}

/// Packs rows of the checkpoint, row-major in `bytes`, into the panel that they fill, which is
/// zero.
fn pack_panel(dtype: DType, in_features: usize, bytes: &[u8], panel: &mut [u8]) {
    let row_bytes = |k: usize| dtype.row_bytes(k).expect("whole blocks");
    let rows: Vec<&[u8]> = bytes.chunks_exact(row_bytes(in_features)).collect();
    let mut panel = panel;
    for columns in chunks(in_features) {
        let source = row_bytes(columns.start)..row_bytes(columns.end);
        for rows in rows.chunks(TILE_ROWS) {
            let rows: Vec<&[u8]> = rows.iter().map(|row| &row[source.clone()]).collect();
            let tile_bytes = tile_bytes(dtype, columns.len()).expect("a part of the tile");
            let (tile, rest) = panel.split_at_mut(tile_bytes);
            pack_tile(dtype, &rows, tile);
            panel = rest;
        }
    }
}

/// Packs up to 16 rows of the checkpoint into `tile`, which is zero.
fn pack_tile(dtype: DType, rows: &[&[u8]], tile: &mut [u8]) {
    match (format_of(dtype), dtype) {
        (Some(format), _) => pack_quantised(dtype, &format, rows, tile),
        (None, DType::F32) => interleave::<4>(rows, tile),
        // A word holds two k of each row.
        (None, DType::BF16) => interleave_words(rows, tile),
        (None, _) => interleave::<2>(rows, tile),
    }
}

/// [rows, k] -> [k, 16] for values of N bytes.
fn interleave<const N: usize>(rows: &[&[u8]], tile: &mut [u8]) {
    for (i, row) in rows.iter().enumerate() {
        for (value, column) in row.chunks_exact(N).zip(tile.chunks_exact_mut(N * TILE_ROWS)) {
            column[i * N..(i + 1) * N].copy_from_slice(value);
        }
    }
}

/// [rows, k] -> [k / 2, 16, 2] for values of two bytes; the last pair may be a half.
fn interleave_words(rows: &[&[u8]], tile: &mut [u8]) {
    for (i, row) in rows.iter().enumerate() {
        for (pair, column) in row.chunks(4).zip(tile.chunks_exact_mut(4 * TILE_ROWS)) {
            column[i * 4..i * 4 + pair.len()].copy_from_slice(pair);
        }
    }
}

fn pack_quantised(dtype: DType, format: &Format, rows: &[&[u8]], tile: &mut [u8]) {
    let source_bytes = dtype.block_bytes();
    for (s, packed) in tile.chunks_exact_mut(format.super_block_bytes()).enumerate() {
        let (header, blocks) = packed.split_at_mut(format.header_bytes);
        for (row, bytes) in rows.iter().enumerate() {
            let source = &bytes[s * source_bytes..(s + 1) * source_bytes];
            pack_header(dtype, source, header, row);
            for (b, block) in blocks.chunks_exact_mut(format.block_bytes()).enumerate() {
                let (scales, codes) = block.split_at_mut(SCALE_BYTES);
                pack_scales(dtype, source, b, scales, row);
                pack_codes(format.codes, &read_codes(dtype, source, b), codes, row);
            }
        }
    }
}

fn pack_header(dtype: DType, source: &[u8], header: &mut [u8], row: usize) {
    match dtype {
        DType::Q4K | DType::Q5K => {
            header[2 * row..][..2].copy_from_slice(&source[..2]);
            header[32 + 2 * row..][..2].copy_from_slice(&source[2..4]);
        }
        DType::Q6K => header[2 * row..][..2].copy_from_slice(&source[208..210]),
        _ => {}
    }
}

fn pack_scales(dtype: DType, source: &[u8], b: usize, scales: &mut [u8], row: usize) {
    match dtype {
        DType::Q4K | DType::Q5K => {
            (scales[row], scales[TILE_ROWS + row]) = k_scale_min(&source[4..16], b);
        }
        DType::Q6K => {
            (scales[row], scales[TILE_ROWS + row]) = (source[192 + 2 * b], source[193 + 2 * b]);
        }
        _ => scales[2 * row..][..2].copy_from_slice(&source[..2]),
    }
}

/// Writes the codes of one row (4 in each word, k ascending) into the block that 16 rows share.
fn pack_codes(codes: Codes, words: &[u32; WORDS], packed: &mut [u8], row: usize) {
    if codes == Codes::Bits8 {
        for (word, packed) in words.iter().zip(packed.chunks_exact_mut(WORD_BYTES)) {
            packed[4 * row..][..4].copy_from_slice(&word.to_le_bytes());
        }
        return;
    }
    let (nibbles, high) = packed.split_at_mut(NIBBLE_BYTES);
    for (i, nibbles) in nibbles.chunks_exact_mut(WORD_BYTES).enumerate() {
        let low_high = (words[i] & 0x0f0f_0f0f) | ((words[i + 4] & 0x0f0f_0f0f) << 4);
        nibbles[4 * row..][..4].copy_from_slice(&low_high.to_le_bytes());
    }
    match codes {
        Codes::Bits5 => {
            for (word, mask) in words.iter().zip(high.chunks_exact_mut(8)) {
                mask[row / 2] |= gather_bits(word >> 4) << (4 * (row % 2));
            }
        }
        Codes::Bits6 => {
            for (words, high) in words.chunks_exact(4).zip(high.chunks_exact_mut(WORD_BYTES)) {
                let pairs = (0..4).map(|i| ((words[i] >> 4) & 0x0303_0303) << (2 * i));
                let pairs = pairs.fold(0, |all, pair| all | pair);
                high[4 * row..][..4].copy_from_slice(&pairs.to_le_bytes());
            }
        }
        Codes::Bits4 | Codes::Bits8 => {}
    }
}

/// Bit 0 of each byte of `word`, as four neighbouring bits.
fn gather_bits(word: u32) -> u8 {
    // The product adds bit 0 to bit 24, 8 to 25, 16 to 26 and 24 to 27; no two other bits meet, so
    // nothing carries there.
    ((word & 0x0101_0101).wrapping_mul(0x0102_0408) >> 24) as u8 & 15
}

/// The four low bits of `bits` as bit 0 of four bytes.
fn spread_bits(bits: u32) -> u32 {
    (bits & 15).wrapping_mul(0x0020_4081) & 0x0101_0101
}

/// The unsigned codes of block `b` of a checkpoint block: four in each word, k ascending.
#[inline]
fn read_codes(dtype: DType, source: &[u8], b: usize) -> [u32; WORDS] {
    const NIBBLES: u32 = 0x0f0f_0f0f;
    let words = |at: usize| -> [u32; WORDS] { words_at(&source[at..at + BLOCK_LEN]) };
    // The first half of k has the low nibbles of 16 bytes, the second half the high ones.
    let halves = |at: usize| -> [u32; WORDS] {
        let words: [u32; 4] = words_at(&source[at..at + BLOCK_LEN / 2]);
        std::array::from_fn(|g| (words[g % 4] >> (4 * (g / 4))) & NIBBLES)
    };
    match dtype {
        // Two's complement with the top bit flipped is the value plus 128.
        DType::Q8_0 => words(2).map(|word| word ^ 0x8080_8080),
        DType::Q4_0 => halves(2),
        DType::Q5_0 => {
            let ([fifth], low) = (words_at(&source[2..6]), halves(6));
            std::array::from_fn(|g| low[g] | (spread_bits(fifth >> (4 * g)) << 4))
        }
        DType::Q4K => words(16 + b / 2 * BLOCK_LEN).map(|word| (word >> (4 * (b % 2))) & NIBBLES),
        DType::Q5K => {
            let (low, fifth) = (words(48 + b / 2 * BLOCK_LEN), words(16));
            let low = low.map(|word| (word >> (4 * (b % 2))) & NIBBLES);
            std::array::from_fn(|g| low[g] | (((fifth[g] >> b) & 0x0101_0101) << 4))
        }
        DType::Q6K => {
            let (half, quarter) = (b / 4, b % 4);
            let low = words(half * 64 + quarter % 2 * 32);
            let low = low.map(|word| (word >> (4 * (quarter / 2))) & NIBBLES);
            let high = words(128 + half * 32).map(|word| (word >> (2 * quarter)) & 0x0303_0303);
            std::array::from_fn(|g| low[g] | (high[g] << 4))
        }
        DType::F32 | DType::F16 | DType::BF16 => unreachable!("{dtype} has no codes"),
    }
}

fn words_at<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let bytes = &bytes[..4 * N];
    std::array::from_fn(|i| {
        let word = &bytes[4 * i..4 * i + 4];
        u32::from_le_bytes([word[0], word[1], word[2], word[3]])
    })
}
