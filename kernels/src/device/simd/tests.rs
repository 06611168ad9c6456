use super::*;

/// Loads 16 rows of 16 values, transposes them and stores them again.
struct Transpose<'a>(&'a mut [[f32; LANES]; LANES]);

impl Kernel for Transpose<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut rows = [simd.splat(0.0); LANES];
        for (row, values) in rows.iter_mut().zip(self.0.iter()) {
            *row = simd.load(values);
        }
        simd.transpose(&mut rows);
        for (row, values) in rows.iter().zip(self.0.iter_mut()) {
            simd.store(*row, values);
        }
    }
}

struct Exp([f32; LANES]);

impl Kernel for Exp {
    type Output = [f32; LANES];
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        simd.store(simd.exp(simd.load(&self.0)), &mut out);
        out
    }
}

/// sum, largest, and the first `len` values followed by -1.
struct Reduce([f32; LANES], usize);

impl Kernel for Reduce {
    type Output = (f32, f32, [f32; LANES]);
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let v = simd.load(&self.0);
        let mut kept = [0.0; LANES];
        simd.store(simd.keep_first(v, self.1, -1.0), &mut kept);
        (simd.sum(v), simd.largest(v), kept)
    }
}

#[test]
fn transpose_swaps_rows_and_columns() {
    for isa in Isa::available() {
        let mut values = [[0.0; LANES]; LANES];
        for (i, row) in values.iter_mut().enumerate() {
            *row = std::array::from_fn(|j| (100 * i + j) as f32);
        }
        dispatch(isa, Transpose(&mut values));
        for (i, row) in values.iter().enumerate() {
            let expected: [f32; LANES] = std::array::from_fn(|j| (100 * j + i) as f32);
            assert_eq!(*row, expected, "{isa:?}, row {i}");
        }
    }
}

#[test]
fn exp_is_within_two_ulp_and_flushes_what_is_too_small() {
    for isa in Isa::available() {
        for start in (-86_000..88_000).step_by(7) {
            let x: [f32; LANES] = std::array::from_fn(|i| start as f32 * 1e-3 + i as f32 * 0.01);
            for (x, y) in x.into_iter().zip(dispatch(isa, Exp(x))) {
                let expected = f64::from(x).exp();
                let ulp = f64::from(f32::EPSILON) * expected;
                assert!(
                    (f64::from(y) - expected).abs() <= 2.0 * ulp,
                    "{isa:?}: exp({x}) gave {y}, not {expected}"
                );
            }
        }
        let mut edges = [0.0; LANES];
        edges[..5].copy_from_slice(&[-87.0, f32::NEG_INFINITY, f32::NAN, 1e9, f32::INFINITY]);
        let y = dispatch(isa, Exp(edges));
        assert!(y[0] == 0.0 && y[1] == 0.0 && y[2].is_nan(), "{isa:?}: {y:?}");
        assert!(y[3] > 3e38 && y[4] > 3e38 && y[5..].iter().all(|&y| y == 1.0), "{isa:?}: {y:?}");
    }
}

#[test]
fn reductions_see_every_lane() {
    for isa in Isa::available() {
        for lane in 0..LANES {
            let mut values = [-4.0; LANES];
            values[lane] = 3.0;
            let (sum, largest, kept) = dispatch(isa, Reduce(values, lane));
            assert_eq!((sum, largest), (-57.0, 3.0), "{isa:?}, lane {lane}");
            assert!(kept[..lane].iter().all(|&v| v == -4.0), "{isa:?}, lane {lane}");
            assert!(kept[lane..].iter().all(|&v| v == -1.0), "{isa:?}, lane {lane}");
        }
    }
}
