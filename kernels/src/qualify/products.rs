//! Is cuBLASLt to be trusted with weights of a shape on this GPU, and is it faster there than our
//! own kernels? It must agree with the reference, give a row the same bits alone and among any
//! number of others, and can be recorded. One shape is tried by itself, since the library has an
//! algorithm for each.

use super::linear::deviation;
use super::numbers::{bytes_of, on_device, rounded, values};
use super::speed::{CLEARLY, product};
use crate::device::cuda::cublaslt::Algorithms;
use crate::device::cuda::{CudaDevice, Graph};
use crate::ops::linear::cuda::layout::{Format, Layout};
use crate::ops::linear::cuda::rows::{self, Rows};
use crate::{Backend, DType, KernelError, Tensor};

/// Numbers of rows that one row comes among: alone, as in decode steps, as in prefills.
const HEIGHTS: [usize; 5] = [1, 2, 7, 16, 64];
const HEIGHT_MAX: usize = 130;
/// Different rows of W; larger weights repeat them.
const ROWS_OF_W: usize = 251;
/// Outputs at either end of a row, and between them, that are compared with the reference.
const OUTPUTS_AT_ENDS: usize = 16;
const OUTPUTS_BETWEEN: usize = 96;
/// Numbers of rows that are timed: decode steps of one, some and many requests, and a prefill.
const TIMED_ROWS: [usize; 4] = [1, 16, 64, 512];
/// What is faster on the whole may be slower by this much at one number of rows.
const SLOWER_MAX: f64 = 1.2;

/// cuBLASLt's way to multiply with weights of one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tried {
    pub algorithms: Algorithms,
    /// The largest distance from the reference, in units of what is allowed: up to 1 is right.
    pub deviation: f64,
}

/// Tries plain weights [out_features, in_features] of the device's activation format.
///
/// Errors: `Device`: there is no library or no algorithm, a row's bits depend on its neighbours, or
/// products cannot be recorded.
pub fn try_shape(device: &CudaDevice, shape: [usize; 2]) -> Result<Tried, KernelError> {
    let activation = device.activation_dtype();
    let [out_features, in_features] = shape;
    let layout = Layout { format: Format::Plain, out_features, in_features };
    let algorithms = rows::find(device, &layout)?;
    let w = values(7, ROWS_OF_W.min(out_features) * in_features, 2.0);
    let w = rounded(activation, &w);
    let mut bytes = bytes_of(activation, &w);
    let row_bytes = in_features * activation.block_bytes();
    bytes = bytes.iter().copied().cycle().take(out_features * row_bytes).collect();
    let weight = Rows::new(device, &layout, &algorithms, activation, &bytes)?;
    drop(bytes);
    let x = rounded(activation, &values(1, HEIGHT_MAX * in_features, 1.0));
    let trial = Trial { device, shape, weight: &weight, x: &x };
    let mut largest = 0.0f64;
    for out in [activation, DType::F32] {
        let all = trial.run(out, 0..HEIGHT_MAX)?;
        trial.expect_same_alone(out, &all)?;
        trial.expect_recorded(out, &all)?;
        largest = largest.max(trial.deviation(&w, &all));
    }
    Ok(Tried { algorithms, deviation: largest })
}

/// A weight and rows of x to multiply with it.
struct Trial<'a> {
    device: &'a CudaDevice,
    shape: [usize; 2],
    weight: &'a Rows,
    x: &'a [f32],
}

impl Trial<'_> {
    fn run(&self, out: DType, rows: std::ops::Range<usize>) -> Result<Vec<f32>, KernelError> {
        let (mut out, x) = self.operands(out, rows)?;
        self.weight.multiply(&mut out, &x)?;
        out.to_f32()
    }

    fn operands(
        &self,
        out: DType,
        rows: std::ops::Range<usize>,
    ) -> Result<(Tensor, Tensor), KernelError> {
        let [n, k] = self.shape;
        let activation = self.device.activation_dtype();
        let x = &self.x[rows.start * k..rows.end * k];
        let x = on_device(self.device, activation, &[rows.len(), k], x)?;
        let backend = Backend::Cuda(self.device.clone());
        Ok((Tensor::zeros_on(&backend, out, &[rows.len(), n])?, x))
    }

    /// Errors: `Device` when a row has other bits than among all of them.
    fn expect_same_alone(&self, out: DType, all: &[f32]) -> Result<(), KernelError> {
        for height in HEIGHTS {
            let last = HEIGHT_MAX - height;
            for start in [0, last / 2, last] {
                let some = self.run(out, start..start + height)?;
                self.expect_same(&some, all, start, &format!("among {height}"))?;
            }
        }
        Ok(())
    }

    /// Errors: `Device` when products cannot be recorded, or a replay gives other bits.
    fn expect_recorded(&self, out: DType, all: &[f32]) -> Result<(), KernelError> {
        let (mut out, x) = self.operands(out, 0..HEIGHT_MAX)?;
        let graph = Graph::record(self.device, || self.weight.multiply(&mut out, &x))?;
        graph.launch()?;
        self.expect_same(&out.to_f32()?, all, 0, "recorded, among all")
    }

    fn expect_same(
        &self,
        some: &[f32],
        all: &[f32],
        start: usize,
        how: &str,
    ) -> Result<(), KernelError> {
        let n = self.shape[0];
        let pairs = some.iter().zip(&all[start * n..]);
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        let Some(at) = pairs.into_iter().position(differs) else { return Ok(()) };
        let row = start + at / n;
        let reason = format!("cuBLASLt: row {row} has other bits {how} than among {HEIGHT_MAX}");
        Err(KernelError::Device(reason))
    }

    /// Of some outputs of every row, those at both ends among them.
    fn deviation(&self, w: &[f32], all: &[f32]) -> f64 {
        let [n, k] = self.shape;
        let ends = (0..OUTPUTS_AT_ENDS).flat_map(|i| [i, n.saturating_sub(i + 1)]);
        let between = (0..OUTPUTS_BETWEEN).map(|i| i * n / OUTPUTS_BETWEEN);
        let outputs: Vec<usize> = ends.chain(between).filter(|&i| i < n).collect();
        let (mut actual, mut expected) = (Vec::new(), Vec::new());
        for (x, all) in self.x.chunks_exact(k).zip(all.chunks_exact(n)) {
            for &output in &outputs {
                let w = &w[output % (w.len() / k) * k..][..k];
                let sum: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                actual.push(all[output]);
                expected.push(sum as f32);
            }
        }
        deviation(self.device.activation_dtype(), &actual, &expected)
    }
}

/// What one product takes, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    pub rows: usize,
    pub own_ms: f64,
    pub cublaslt_ms: f64,
}

/// Times our own kernels and cuBLASLt with weights of one shape. What the device was told to choose
/// is left as it was.
///
/// Errors: what the device answers.
pub fn time_shape(
    device: &CudaDevice,
    shape: [usize; 2],
    algorithms: Algorithms,
) -> Result<Vec<Times>, KernelError> {
    let before = device.chosen_product(shape);
    let [n, k] = shape;
    let time = |choice, rows| {
        device.choose_product(shape, choice);
        Ok::<f64, KernelError>(product(device, device.activation_dtype(), [rows, n, k])?.median_ms)
    };
    let times = TIMED_ROWS.iter().map(|&rows| {
        let (own_ms, cublaslt_ms) = (time(None, rows)?, time(Some(algorithms), rows)?);
        Ok(Times { rows, own_ms, cublaslt_ms })
    });
    let times = times.collect();
    device.choose_product(shape, before);
    times
}

/// Whether cuBLASLt beats our own kernels clearly over all numbers of rows, each counting alike,
/// and loses much at none: the choice must be one for all of them.
pub fn is_faster(times: &[Times]) -> bool {
    let ratios = || times.iter().map(|t| t.cublaslt_ms / t.own_ms);
    let mean = (ratios().map(f64::ln).sum::<f64>() / times.len() as f64).exp();
    !times.is_empty() && mean < CLEARLY && ratios().all(|ratio| ratio < SLOWER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::cublaslt;
    use crate::ops::Weight;
    use crate::ops::linear;
    use crate::ops::testing::{assert_same_bits, cuda_devices};

    fn times(pairs: [[f64; 2]; 2]) -> Vec<Times> {
        let times = |[own_ms, cublaslt_ms]: [f64; 2]| Times { rows: 1, own_ms, cublaslt_ms };
        pairs.map(times).to_vec()
    }

    #[test]
    fn the_faster_one_leads_clearly_and_loses_much_nowhere() {
        assert!(is_faster(&times([[1.0, 0.5], [1.0, 1.1]])));
        assert!(!is_faster(&times([[1.0, 0.5], [1.0, 1.3]])), "much slower once");
        assert!(!is_faster(&times([[1.0, 0.99], [1.0, 0.98]])), "noise");
        assert!(!is_faster(&times([[1.0, f64::NAN], [1.0, 0.5]])), "no number");
        assert!(!is_faster(&[]));
    }

    #[test]
    fn a_chosen_shape_is_multiplied_by_the_library_to_the_same_tolerance() {
        if cublaslt::version().is_none() {
            return;
        }
        for device in cuda_devices() {
            let (activation, [n, k]) = (device.activation_dtype(), [72, 320]);
            let tried = try_shape(&device, [n, k]).expect("the stand-in is well");
            assert!(tried.deviation <= 1.0, "{}", tried.deviation);
            let backend = Backend::Cuda(device.clone());
            let bytes = bytes_of(DType::F32, &values(3, n * k, 1.0));
            let load = || {
                Weight::load_without_bias(&backend, DType::F32, n, k, bytes.clone().into()).unwrap()
            };
            let own = load();
            device.choose_product([n, k], Some(tried.algorithms));
            let chosen = load();
            device.choose_product([n, k], None);
            assert_eq!(chosen.num_bytes(), n * k * activation.block_bytes());
            assert!(own.num_bytes() > chosen.num_bytes(), "tiles have a rest");
            let x = on_device(&device, activation, &[5, k], &values(4, 5 * k, 1.0)).unwrap();
            for dtype in [activation, DType::F32] {
                let run = |weight: &Weight, rows: usize| {
                    let x = &x.to_f32().unwrap()[..rows * k];
                    let x = on_device(&device, activation, &[rows, k], x).unwrap();
                    let mut out = Tensor::zeros_on(&backend, dtype, &[rows, n]).unwrap();
                    linear(&backend, &mut out, &x, weight, None).expect("shapes fit");
                    out.to_f32().unwrap()
                };
                let [a, b] = [run(&own, 5), run(&chosen, 5)];
                let distance = deviation(activation, &b, &a);
                assert!(distance <= 1.0, "{activation} to {dtype}: {distance}");
                assert_same_bits(&run(&chosen, 1), &b[..n], "a row alone");
            }
        }
    }

    #[test]
    fn both_are_timed_and_the_choice_is_left_as_it_was() {
        if cublaslt::version().is_none() {
            return;
        }
        for device in cuda_devices().into_iter().take(1) {
            let tried = try_shape(&device, [64, 64]).expect("the stand-in is well");
            let times = time_shape(&device, [64, 64], tried.algorithms).expect("both run");
            assert_eq!(times.iter().map(|t| t.rows).collect::<Vec<_>>(), TIMED_ROWS);
            assert!(times.iter().all(|t| t.own_ms >= 0.0 && t.cublaslt_ms >= 0.0), "{times:?}");
            assert_eq!(device.chosen_product([64, 64]), None);
        }
    }

    #[test]
    fn shapes_that_are_not_asked_for_are_refused() {
        for device in cuda_devices().into_iter().take(1) {
            let refused = try_shape(&device, [64, 100]).expect_err("rows of 200 bytes");
            let text = refused.to_string();
            assert!(text.contains("16 bytes") || text.contains("libcublasLt"), "{text}");
        }
    }
}
