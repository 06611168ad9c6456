//! How a weight lies on a CUDA device, and in which splits it is multiplied. `formats.cuh` is the
//! other half of this page: the order of codes and headers within a tile.

use crate::DType;

/// Rows and columns of W in a tile.
pub const TILE_N: usize = 128;
pub const TILE_K: usize = 64;

/// Longer headers lie in parts, those of the tile's rows side by side.
pub const HEADER_PART_BYTES: usize = 16;

/// Rows of W that one warp multiplies with: a piece of a tile.
pub const PIECE_N: usize = 32;
/// The most splits along k: one for each warp of a block that has them side by side.
pub const SPLITS_MAX: usize = 4;

/// A format of weights on the device. The dtypes of checkpoints map onto them without loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The activation dtype.
    Plain,
    /// 8-bit codes, an f16 scale for each 32.
    W8,
    /// 4-bit codes less 8, an f16 scale for each 32.
    W4,
    /// 4-bit codes, scales and minima of 6 bits for each 32 in superblocks of 256.
    W4K,
    /// 8-bit codes, scales for each 16 and minima for each 32 in superblocks of 256.
    W8K,
    /// 4-bit codes less a zero, an f16 scale and the zero for each 64; those of longer groups are
    /// repeated. No dtype of ours has it, see `Groups`.
    W4Z,
}

impl Format {
    pub const ALL: [Format; 6] =
        [Format::Plain, Format::W8, Format::W4, Format::W4K, Format::W8K, Format::W4Z];

    pub fn of(dtype: DType) -> Format {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 => Format::Plain,
            DType::Q8_0 | DType::Q5_0 => Format::W8,
            DType::Q4_0 => Format::W4,
            DType::Q4K => Format::W4K,
            DType::Q5K | DType::Q6K => Format::W8K,
        }
    }

    /// Bits of one code.
    pub fn code_bits(self) -> usize {
        match self {
            Format::Plain => 16,
            Format::W8 | Format::W8K => 8,
            Format::W4 | Format::W4K | Format::W4Z => 4,
        }
    }

    /// Columns that one header serves; a multiple of `TILE_K`.
    pub fn header_k(self) -> usize {
        match self {
            Format::Plain | Format::W8 | Format::W4 | Format::W4Z => 64,
            Format::W4K | Format::W8K => 256,
        }
    }

    /// Bytes of one header.
    pub fn header_bytes(self) -> usize {
        match self {
            Format::Plain => 0,
            Format::W8 | Format::W4 | Format::W4Z => 4,
            Format::W4K => HEADER_PART_BYTES,
            Format::W8K => 2 * HEADER_PART_BYTES,
        }
    }

    /// Bytes of the codes of one tile.
    pub fn tile_bytes(self) -> usize {
        TILE_N * TILE_K * self.code_bits() / 8
    }
}

/// The shape of one weight on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub format: Format,
    pub out_features: usize,
    pub in_features: usize,
}

impl Layout {
    /// Tiles along n.
    pub fn num_tile_rows(&self) -> usize {
        self.out_features.div_ceil(TILE_N)
    }

    /// Tiles along k, as many as whole headers need.
    pub fn num_steps(&self) -> usize {
        self.headers_per_row() * (self.format.header_k() / TILE_K)
    }

    pub fn headers_per_row(&self) -> usize {
        self.in_features.div_ceil(self.format.header_k())
    }

    pub fn codes_bytes(&self) -> usize {
        self.num_tile_rows() * self.tile_row_codes_bytes()
    }

    pub fn headers_bytes(&self) -> usize {
        self.num_tile_rows() * self.tile_row_headers_bytes()
    }

    pub fn tile_row_codes_bytes(&self) -> usize {
        self.num_steps() * self.format.tile_bytes()
    }

    pub fn tile_row_headers_bytes(&self) -> usize {
        self.headers_per_row() * TILE_N * self.format.header_bytes()
    }

    /// Bytes of one row of W: codes and headers.
    pub fn row_bytes(&self) -> usize {
        self.num_steps() * TILE_K * self.format.code_bits() / 8
            + self.headers_per_row() * self.format.header_bytes()
    }

    /// Tiles along k of each split, but for the last, which may have less: whole headers.
    ///
    /// The order of all sums follows from this number, so it must depend on the weight alone; it
    /// depends on its columns and format, so that a rank's share of the rows has the same sums.
    pub fn steps_per_split(&self) -> usize {
        let unit = self.format.header_k() / TILE_K;
        self.headers_per_row().div_ceil(SPLITS_MAX) * unit
    }

    pub fn num_splits(&self) -> usize {
        self.num_steps().div_ceil(self.steps_per_split())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(format: Format, out_features: usize, in_features: usize) -> Layout {
        Layout { format, out_features, in_features }
    }

    #[test]
    fn parts_of_a_weight_have_the_splits_of_the_whole() {
        for (n, k) in [(4096, 4096), (1152, 1024), (151_936, 896)] {
            let whole = layout(Format::Plain, n, k);
            let part = Layout { out_features: n / 8, ..whole };
            assert_eq!(part.steps_per_split(), whole.steps_per_split(), "{whole:?}");
            assert_eq!(part.num_splits(), whole.num_splits(), "{whole:?}");
        }
    }

    #[test]
    fn there_are_four_splits_where_there_are_four_headers() {
        let cases = [
            // format, n, k, steps per split, splits
            (Format::Plain, 4096, 4096, 16, 4),
            (Format::W4K, 4096, 4096, 16, 4),
            (Format::W4, 1024, 2048, 8, 4),
            (Format::Plain, 896, 896, 4, 4),
            (Format::Plain, 151_936, 896, 4, 4),
            (Format::W8, 40, 320, 2, 3),
            (Format::W8K, 8, 256, 4, 1),
            (Format::W4K, 8, 768, 4, 3),
            (Format::Plain, 1, 1, 1, 1),
        ];
        for (format, n, k, steps, splits) in cases {
            let layout = layout(format, n, k);
            let got = (layout.steps_per_split(), layout.num_splits());
            assert_eq!(got, (steps, splits), "{layout:?}");
        }
    }

    #[test]
    fn splits_are_whole_headers_and_none_is_empty() {
        for format in Format::ALL {
            for n in [1, 128, 1152, 4096, 27_648] {
                for k in (256..=27_648).step_by(256) {
                    let layout = layout(format, n, k);
                    let steps = layout.steps_per_split();
                    assert_eq!(steps % (format.header_k() / TILE_K), 0, "{layout:?}");
                    assert!((layout.num_splits() - 1) * steps < layout.num_steps(), "{layout:?}");
                    assert!(layout.num_splits() <= SPLITS_MAX, "{layout:?}");
                }
            }
        }
    }
}
