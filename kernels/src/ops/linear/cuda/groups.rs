//! Weights of 4 bits in groups along k, as GPTQ and AWQ checkpoints hold them -> tiles of
//! `Format::W4Z`. Lossless: a code, a zero and a scale stay what they are.
//!
//! Sources of the layouts: GPTQModel's `qweight` and `qzeros` (checkpoint format "gptq"), and
//! AutoAWQ's "gemm" version.

use super::layout::{Format, Layout, TILE_K, TILE_N};
use super::pack::{Packed, place_nibbles};
use crate::KernelError;
use half::f16;

/// Bytes of a word of eight codes or zeros, and of an f16 scale.
const WORD_BYTES: usize = 4;
const SCALE_BYTES: usize = 2;
const CODES_PER_WORD: usize = 8;
/// Nibble of an AWQ word that holds column i of its eight: nibbles 0 to 7 are columns 0, 2, 4, 6,
/// 1, 3, 5, 7.
const AWQ_NIBBLES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupLayout {
    /// `qweight` [in / 8, out], a word holds eight inputs; `qzeros` [in / group, out / 8] hold
    /// zero - 1, the first output lowest. Inputs are in order (`desc_act` false).
    Gptq,
    /// `qweight` [in, out / 8], a word holds eight outputs; `qzeros` [in / group, out / 8]; both in
    /// the order of `AWQ_NIBBLES`.
    Awq,
}

/// A weight as in the checkpoint, little endian: w[n, k] = scale (code - zero), scale and zero
/// those of output n and group k / group_len. `scales` [in / group, out] are f16.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    pub layout: GroupLayout,
    pub out_features: usize,
    pub in_features: usize,
    pub group_len: usize,
    pub qweight: &'a [u8],
    pub qzeros: &'a [u8],
    pub scales: &'a [u8],
}

impl Groups<'_> {
    /// Errors: `Shape` when the arrays have other lengths than these, when outputs or inputs are no
    /// multiple of 8, or when a group is no multiple of 64 inputs, which share a header.
    fn check(&self) -> Result<(), KernelError> {
        let Groups { out_features: n, in_features: k, group_len, .. } = *self;
        let shape = |what, got: usize, expected: String| {
            Err(KernelError::Shape { op: "linear", what, got: vec![got], expected })
        };
        if group_len == 0 || !group_len.is_multiple_of(TILE_K) {
            return shape("group", group_len, format!("a multiple of {TILE_K} inputs"));
        }
        if n == 0 || !n.is_multiple_of(CODES_PER_WORD) {
            return shape("outputs", n, format!("a multiple of {CODES_PER_WORD}"));
        }
        if k == 0 || !k.is_multiple_of(CODES_PER_WORD) {
            return shape("inputs", k, format!("a multiple of {CODES_PER_WORD}"));
        }
        let num_groups = k.div_ceil(group_len);
        for (what, bytes, expected) in [
            ("qweight", self.qweight, n * k / CODES_PER_WORD * WORD_BYTES),
            ("qzeros", self.qzeros, num_groups * n / CODES_PER_WORD * WORD_BYTES),
            ("scales", self.scales, num_groups * n * SCALE_BYTES),
        ] {
            if bytes.len() != expected {
                return shape(what, bytes.len(), format!("{expected} bytes"));
            }
        }
        Ok(())
    }

    pub fn layout(&self) -> Layout {
        let Groups { out_features, in_features, .. } = *self;
        Layout { format: Format::W4Z, out_features, in_features }
    }

    /// The weight as numbers, exact: [out_features, in_features].
    ///
    /// Errors: as `Packed::of_groups`.
    pub fn values(&self) -> Result<Vec<f32>, KernelError> {
        self.check()?;
        let value = |n: usize, k: usize| {
            let group = k / self.group_len;
            let scale = self.scale(n, group);
            let code = f32::from(self.code(n, k)) - f32::from(self.zero(n, group));
            f16::from_le_bytes([scale[0], scale[1]]).to_f32() * code
        };
        let rows = 0..self.out_features;
        Ok(rows.flat_map(|n| (0..self.in_features).map(move |k| value(n, k))).collect())
    }

    /// The code of output `n` at input `k`.
    fn code(&self, n: usize, k: usize) -> u8 {
        match self.layout {
            GroupLayout::Gptq => {
                let word = k / CODES_PER_WORD * self.out_features + n;
                nibble(self.qweight, word, k % CODES_PER_WORD)
            }
            GroupLayout::Awq => {
                let word = k * (self.out_features / CODES_PER_WORD) + n / CODES_PER_WORD;
                nibble(self.qweight, word, AWQ_NIBBLES[n % CODES_PER_WORD])
            }
        }
    }

    /// The zero of output `n` in `group`: 0 to 15, for GPTQ 1 to 16.
    fn zero(&self, n: usize, group: usize) -> u8 {
        let word = group * (self.out_features / CODES_PER_WORD) + n / CODES_PER_WORD;
        match self.layout {
            GroupLayout::Gptq => nibble(self.qzeros, word, n % CODES_PER_WORD) + 1,
            GroupLayout::Awq => nibble(self.qzeros, word, AWQ_NIBBLES[n % CODES_PER_WORD]),
        }
    }

    /// The f16 scale of output `n` in `group`, as it lies there.
    fn scale(&self, n: usize, group: usize) -> &[u8] {
        &self.scales[(group * self.out_features + n) * SCALE_BYTES..][..SCALE_BYTES]
    }
}

fn nibble(words: &[u8], word: usize, nibble: usize) -> u8 {
    words[word * WORD_BYTES + nibble / 2] >> (nibble % 2 * 4) & 15
}

impl Packed {
    /// Repacks a weight of groups on all cores.
    ///
    /// Errors: `Shape` as its check says, `OutOfMemory`.
    pub fn of_groups(groups: &Groups) -> Result<Packed, KernelError> {
        groups.check()?;
        let layout = groups.layout();
        Packed::by_tile_rows(&layout, |tile_row, codes, headers| {
            let rows = tile_row * TILE_N..groups.out_features.min((tile_row + 1) * TILE_N);
            let mut row_codes = vec![0; groups.in_features];
            for (row, n) in rows.enumerate() {
                for (k, code) in row_codes.iter_mut().enumerate() {
                    *code = groups.code(n, k);
                }
                place_nibbles(&layout, codes, row, &row_codes);
                for header in 0..layout.headers_per_row() {
                    let group = header * TILE_K / groups.group_len;
                    let at = (header * TILE_N + row) * layout.format.header_bytes();
                    headers[at..at + SCALE_BYTES].copy_from_slice(groups.scale(n, group));
                    headers[at + SCALE_BYTES] = groups.zero(n, group);
                }
            }
        })
    }
}
