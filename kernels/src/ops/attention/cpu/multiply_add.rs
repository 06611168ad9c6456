//! The matrix product of small tiles, with accumulators in registers.
#![allow(unsafe_code)]

use crate::device::simd::{Kernel, LANES, Simd};

/// Rows of accumulators held in registers at once.
const PANEL_ROWS: usize = 6;

/// What the sums begin with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Zero,
    /// What `c` holds.
    C,
}

/// c = start + a b, for row-major matrices: a [num_rows, depth], b [depth, num_vectors * 16]. Each
/// element of c adds its products one after the other, whatever the number of rows.
pub struct MultiplyAdd<'a> {
    pub start: Start,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub a: &'a [f32],
    pub a_stride: usize,
    pub b: &'a [f32],
    pub b_stride: usize,
    pub num_rows: usize,
    pub depth: usize,
    pub num_vectors: usize,
}

impl Kernel for MultiplyAdd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (num_rows, width) = (self.num_rows, self.num_vectors * LANES);
        assert!(num_rows > 0 && self.depth > 0 && width > 0, "nothing to multiply");
        assert!((num_rows - 1) * self.a_stride + self.depth <= self.a.len(), "a is too short");
        assert!((self.depth - 1) * self.b_stride + width <= self.b.len(), "b is too short");
        assert!((num_rows - 1) * self.c_stride + width <= self.c.len(), "c is too short");
        let mut column = 0;
        while column < width {
            let num_vectors = (width - column) / LANES;
            column += if S::COLUMNS_MAX >= 4 && num_vectors >= 4 {
                self.columns::<S, 4>(simd, column)
            } else if S::COLUMNS_MAX >= 2 && num_vectors >= 2 {
                self.columns::<S, 2>(simd, column)
            } else {
                self.columns::<S, 1>(simd, column)
            };
        }
    }
}

impl MultiplyAdd<'_> {
    /// All rows of N vectors from `column` on, in panels of about equal height. Returns the width.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S, column: usize) -> usize {
        let num_panels = self.num_rows.div_ceil(PANEL_ROWS);
        let mut row = 0;
        for panel in 0..num_panels {
            let end = self.num_rows * (panel + 1) / num_panels;
            match end - row {
                1 => self.panel::<S, 1, N>(simd, row, column),
                2 => self.panel::<S, 2, N>(simd, row, column),
                3 => self.panel::<S, 3, N>(simd, row, column),
                4 => self.panel::<S, 4, N>(simd, row, column),
                5 => self.panel::<S, 5, N>(simd, row, column),
                _ => self.panel::<S, PANEL_ROWS, N>(simd, row, column),
            }
            row = end;
        }
        N * LANES
    }

    /// R rows of N vectors, held in registers.
    #[inline(always)]
    fn panel<S: Simd, const R: usize, const N: usize>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let mut sums = [[simd.splat(0.0); N]; R];
        if self.start == Start::C {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.load(self.c_mut(row + r, column + n * LANES));
                }
            }
        }
        for k in 0..self.depth {
            let mut b = [simd.splat(0.0); N];
            for (n, b) in b.iter_mut().enumerate() {
                let at = k * self.b_stride + column + n * LANES;
                // SAFETY: k < depth and column + (n + 1) * 16 <= width: inside b by the assert in
                // `run`.
                let b_16 = unsafe { &*self.b.as_ptr().add(at).cast::<[f32; LANES]>() };
                *b = simd.load(b_16);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row + r < num_rows and k < depth: inside a by the assert in `run`.
                let a = unsafe { *self.a.get_unchecked((row + r) * self.a_stride + k) };
                let a = simd.splat(a);
                for (sum, b) in sums.iter_mut().zip(&b) {
                    *sum = simd.mul_add(a, *b, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                simd.store(*sum, self.c_mut(row + r, column + n * LANES));
            }
        }
    }

    #[inline(always)]
    fn c_mut(&mut self, row: usize, column: usize) -> &mut [f32; LANES] {
        let at = row * self.c_stride + column;
        self.c[at..].first_chunk_mut().expect("inside c by the assert in `run`")
    }
}
