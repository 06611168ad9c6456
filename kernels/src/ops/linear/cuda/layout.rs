//! How a weight lies on a CUDA device, and in which splits it is multiplied. `formats.cuh` is the
//! other half of this page: the order of codes and headers within a tile.

use crate::DType;

/// Rows and columns of W in a tile.
pub const TILE_N: usize = 128;
pub const TILE_K: usize = 64;

/// Longer headers lie in parts, those of the tile's rows side by side.
pub const HEADER_PART_BYTES: usize = 16;

/// Splits are made until a row of tiles, times its splits, is about this many blocks: one for each
/// multiprocessor of a large device. A constant, not the number of this device's multiprocessors,
/// so that all devices give the same bits.
pub const BLOCKS_WANTED: usize = 128;
const SPLITS_MAX: usize = 16;
/// Bytes that a split reads of one row of W at least. It then writes and reads 8 bytes of sums for
/// each row of x, which for one row are 3% more.
const SPLIT_ROW_BYTES_MIN: usize = 256;

/// A format of weights on the device. The dtypes of checkpoints map onto them without loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The activation dtype.
    Plain,
    /// 8-bit codes, an f16 scale for each 32.
    W8,
    /// 4-bit codes less 8, an f16 scale for each 32. For a longer group repeat its scale.
    W4,
    /// 4-bit codes, scales and minima of 6 bits for each 32 in superblocks of 256.
    W4K,
    /// 8-bit codes, scales for each 16 and minima for each 32 in superblocks of 256.
    W8K,
}

impl Format {
    pub const ALL: [Format; 5] = [Format::Plain, Format::W8, Format::W4, Format::W4K, Format::W8K];

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
            Format::W4 | Format::W4K => 4,
        }
    }

    /// Columns that one header serves; a multiple of `TILE_K`.
    pub fn header_k(self) -> usize {
        match self {
            Format::Plain | Format::W8 | Format::W4 => 64,
            Format::W4K | Format::W8K => 256,
        }
    }

    /// Bytes of one header.
    pub fn header_bytes(self) -> usize {
        match self {
            Format::Plain => 0,
            Format::W8 | Format::W4 => 4,
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
    /// Rows of the weight that this one is a run of rows of: its sums are added in the same order.
    pub whole_features: usize,
}

impl Layout {
    /// Of a whole weight.
    pub fn new(format: Format, out_features: usize, in_features: usize) -> Layout {
        Layout { format, out_features, in_features, whole_features: out_features }
    }

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

    /// Tiles along k of each split, but for the last, which may have less: whole headers.
    ///
    /// The order of all sums follows from this number, so it must depend on the weight alone, and
    /// of a part on the whole.
    pub fn steps_per_split(&self) -> usize {
        let step_row_bytes = TILE_K * self.format.code_bits() / 8;
        let steps_min = SPLIT_ROW_BYTES_MIN / step_row_bytes;
        let unit = steps_min.next_multiple_of(self.format.header_k() / TILE_K);
        // Rounded to nearest.
        let tile_rows = self.whole_features.div_ceil(TILE_N);
        let wanted = ((BLOCKS_WANTED + tile_rows / 2) / tile_rows).clamp(1, SPLITS_MAX);
        self.num_steps().div_ceil(unit).div_ceil(wanted) * unit
    }

    pub fn num_splits(&self) -> usize {
        self.num_steps().div_ceil(self.steps_per_split())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(format: Format, out_features: usize, in_features: usize) -> Layout {
        Layout::new(format, out_features, in_features)
    }

    #[test]
    fn parts_of_a_weight_have_the_splits_of_the_whole() {
        for (n, k) in [(4096, 4096), (1152, 1024), (151_936, 896)] {
            let whole = layout(Format::Plain, n, k);
            let part = Layout { out_features: n / 8, ..whole };
            assert_eq!(part.steps_per_split(), whole.steps_per_split(), "{whole:?}");
            assert_eq!(part.num_splits(), whole.num_splits(), "{whole:?}");
        }
        let alone = layout(Format::Plain, 1152 / 8, 1024);
        let part = Layout { whole_features: 1152, ..alone };
        assert_ne!(part.num_splits(), alone.num_splits(), "the whole makes a difference");
    }

    #[test]
    fn splits_fill_the_device_and_are_not_too_short() {
        let cases = [
            // format, n, k, steps per split, splits
            (Format::Plain, 4096, 4096, 16, 4),
            (Format::W4K, 4096, 4096, 16, 4),
            (Format::W4, 1024, 2048, 8, 4),
            (Format::Plain, 896, 896, 2, 7),
            (Format::W8, 12_288, 4096, 64, 1),
            (Format::Plain, 151_936, 896, 14, 1),
            (Format::W8K, 8, 256, 4, 1),
            (Format::W8, 8, 32, 4, 1),
            (Format::Plain, 1, 1, 2, 1),
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
