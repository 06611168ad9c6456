//! How a weight lies in memory when packed: the one description that packing and the kernels of all
//! instruction sets share.
//!
//! A panel is `PANEL_TILES` tiles, a tile `TILE_ROWS` rows. A panel is cut along k into chunks;
//! its memory goes chunk by chunk, and in a chunk tile by tile: one stretch of memory that is read
//! once, while the activations of a chunk stay in the first-level cache (where all of k came tile
//! by tile, k = 4864 reached three quarters of the speed). A tile's part of a chunk is a list of
//! blocks along k, each `BLOCK_LEN` values of every row:
//!
//! ```text
//! super-block   header (K formats: d and dmin of the 16 rows, f16), then its blocks
//! block         32 bytes of scales: 16 x f16 d | 16 x u8 scale, 16 x u8 min | 2 x 16 x i8 scale
//!               codes, see `Codes`
//! ```
//!
//! Codes lie in words of 64 bytes: 4 consecutive k of 16 rows, row-major. That is what one byte dot
//! product instruction takes beside 4 broadcast activations. Word g holds k = 4g..4g+4.
//! Plain numbers lie as \[k, 16\], bf16 as \[k / 2, 16, 2\].

use crate::DType;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows of one tile: the f32 lanes of the widest vector.
pub const TILE_ROWS: usize = 16;
/// Tiles of one panel; the last panel of a weight may have fewer.
pub const PANEL_TILES: usize = 4;
/// Columns of a chunk, the last one excepted: a multiple of every format's block. The activations
/// of 8 rows and 1024 columns are 10 KiB.
const CHUNK_COLUMNS: usize = 1024;
/// Values along k that share one scale of the activations.
pub const BLOCK_LEN: usize = 32;
/// Code words of a block.
pub const WORDS: usize = 8;
/// Bytes of a code word.
pub const WORD_BYTES: usize = 64;
/// Bytes of scales in front of a block's codes.
pub const SCALE_BYTES: usize = 32;
/// Bytes of one f32 for each row.
pub const LANES_BYTES: usize = 4 * TILE_ROWS;
/// Bytes of the low four bits of a block's codes: low nibbles are words 0..4, high nibbles words
/// 4..8.
pub const NIBBLE_BYTES: usize = WORDS * WORD_BYTES / 2;

/// The bits of a block's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// 256 bytes of nibbles.
    Bits4,
    /// Nibbles, then for each word a 64-bit mask of the fifth bits.
    Bits5,
    /// Nibbles, then two words of bits 5 and 6: of word 4h + i in bits 2i and 2i + 1 of word h.
    Bits6,
    /// Eight words of bytes.
    Bits8,
}

/// What turns a sum of code * activation into a sum of weight * activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    /// A weight is d (code - 8).
    Offset8,
    /// A weight is d (code - 16).
    Offset16,
    /// A weight is d (code - 128).
    Offset128,
    /// A weight is d scale (code - 32), with a scale for each half of the block.
    HalvesOffset32,
    /// A weight is d scale code - dmin min.
    Minimum,
}

impl Correction {
    pub const COUNT: usize = 5;

    /// Numbers that one row of activations has of this correction for one block.
    pub const fn count(self) -> usize {
        match self {
            Correction::HalvesOffset32 => 2,
            _ => 1,
        }
    }
}

/// How the scales of a block lie in front of its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
    /// `SCALE_BYTES`, as the head of this file has it.
    Packed,
    /// 16 x f32 to multiply sums with. Then as many again where `Correction` has halves (those of
    /// the second half) or minima (negated).
    F32,
}

/// A quantised format when packed.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    pub scales: Scales,
    pub codes: Codes,
    pub correction: Correction,
    /// Blocks that share a header.
    pub blocks: usize,
    pub header_bytes: usize,
}

impl Format {
    pub const fn scale_bytes(&self) -> usize {
        match (self.scales, self.correction) {
            (Scales::Packed, _) => SCALE_BYTES,
            (Scales::F32, Correction::HalvesOffset32 | Correction::Minimum) => 2 * LANES_BYTES,
            (Scales::F32, _) => LANES_BYTES,
        }
    }

    pub const fn block_bytes(&self) -> usize {
        self.scale_bytes()
            + match self.codes {
                Codes::Bits4 => NIBBLE_BYTES,
                Codes::Bits5 => NIBBLE_BYTES + WORD_BYTES,
                Codes::Bits6 => NIBBLE_BYTES + 2 * WORD_BYTES,
                Codes::Bits8 => WORDS * WORD_BYTES,
            }
    }

    /// Bytes of a header and its blocks.
    pub const fn super_block_bytes(&self) -> usize {
        self.header_bytes + self.blocks * self.block_bytes()
    }
}

/// A quantised format as a type, so that each gets its own straight-line kernel.
pub trait Quantised {
    const FORMAT: Format;
}

macro_rules! formats {
    ($($name:ident, $codes:ident, $correction:ident, $blocks:expr, $header_bytes:expr;)*) => {
        $(
            pub struct $name;
            impl Quantised for $name {
                const FORMAT: Format = Format {
                    scales: Scales::Packed,
                    codes: Codes::$codes,
                    correction: Correction::$correction,
                    blocks: $blocks,
                    header_bytes: $header_bytes,
                };
            }
        )*
    };
}

formats! {
    Q4_0, Bits4, Offset8, 1, 0;
    Q5_0, Bits5, Offset16, 1, 0;
    Q8_0, Bits8, Offset128, 1, 0;
    Q4K, Bits4, Minimum, 8, 64;
    Q5K, Bits5, Minimum, 8, 64;
    Q6K, Bits6, HalvesOffset32, 8, 32;
}

/// `F` unpacked: a byte for each code, scales ready to multiply with, no headers. Not how a weight
/// is kept, but what a piece of it becomes for the time that many rows of activations pass by.
pub struct Wide<F>(PhantomData<F>);

impl<F: Quantised> Quantised for Wide<F> {
    const FORMAT: Format = Format {
        scales: Scales::F32,
        codes: Codes::Bits8,
        correction: F::FORMAT.correction,
        blocks: 1,
        header_bytes: 0,
    };
}

/// The packed form of `dtype`; none for plain numbers.
pub const fn format_of(dtype: DType) -> Option<Format> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => None,
        DType::Q4_0 => Some(Q4_0::FORMAT),
        DType::Q5_0 => Some(Q5_0::FORMAT),
        DType::Q8_0 => Some(Q8_0::FORMAT),
        DType::Q4K => Some(Q4K::FORMAT),
        DType::Q5K => Some(Q5K::FORMAT),
        DType::Q6K => Some(Q6K::FORMAT),
    }
}

/// Columns that a tile of plain numbers has, zeros after the end: kernels take four at a time.
pub fn padded_len(in_features: usize) -> Option<usize> {
    in_features.checked_next_multiple_of(4)
}

/// Bytes of one tile with this many columns, or of its first columns up to a whole block.
pub fn tile_bytes(dtype: DType, in_features: usize) -> Option<usize> {
    match dtype {
        DType::F32 => padded_len(in_features)?.checked_mul(4 * TILE_ROWS),
        DType::F16 | DType::BF16 => padded_len(in_features)?.checked_mul(2 * TILE_ROWS),
        _ => {
            let format = format_of(dtype)?;
            let super_blocks = in_features / (BLOCK_LEN * format.blocks);
            super_blocks.checked_mul(format.super_block_bytes())
        }
    }
}

/// The columns 0..in_features in chunks.
pub fn chunks(in_features: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..in_features).step_by(CHUNK_COLUMNS);
    starts.map(move |start| start..in_features.min(start + CHUNK_COLUMNS))
}
