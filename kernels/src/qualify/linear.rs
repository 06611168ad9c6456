//! Products with weights of every format, in every height of tile.

use super::Findings;
use super::numbers::{Tolerance, on_device, rounded, values, weight_bytes};
use crate::ops::linear::cuda::launch_of;
use crate::ops::linear::cuda::layout::{Format, Layout};
use crate::ops::{self, Weight};
use crate::{Backend, DType, KernelError, Tensor};

/// Rows of x: one for each height of tile, the last with more than one tile of rows.
const ROWS: [usize; 4] = [1, 17, 40, 130];
/// Outputs and inputs: with a rest in both, and with splits.
const SHAPES: [[usize; 2]; 2] = [[200, 512], [136, 1280]];
/// How far a sum may lie from the reference, in units in the last place of the activation format
/// at the size of a usual sum: weights of the quantised formats are rounded to that format once. A
/// wrong sum is off by a hundred of them.
const UNITS: f32 = 4.0;

pub fn linear(findings: &mut Findings) {
    for &[n, k] in findings.cases(&SHAPES, 1) {
        for dtype in DType::ALL {
            for rows in ROWS {
                let layout = Layout { format: Format::of(dtype), out_features: n, in_features: k };
                let kernel = launch_of(&layout, findings.activation(), rows).kernel;
                let case = format!("{rows} rows, [{n}, {k}] of {dtype}");
                let deviation = one(findings, dtype, [rows, n, k]);
                findings.add_of_kernel("linear", Some(kernel), case, deviation);
            }
        }
    }
}

fn one(findings: &Findings, dtype: DType, [rows, n, k]: [usize; 3]) -> Result<f64, KernelError> {
    let activation = findings.activation();
    let bytes = weight_bytes(dtype, n, k);
    let load = |b: &Backend| Weight::load(b, dtype, n, k, bytes.clone().into());
    let x = rounded(activation, &values(1, rows * k, 1.0));
    let bias = values(2, n, 1.0);
    let backend = findings.backend();
    let x_on = on_device(&findings.device, activation, &[rows, k], &x)?;
    let bias_on = on_device(&findings.device, DType::F32, &[n], &bias)?;
    let mut out = Tensor::zeros_on(&backend, DType::F32, &[rows, n])?;
    ops::linear(&backend, &mut out, &x_on, &load(&backend)?, Some(&bias_on))?;

    let reference = Backend::Reference;
    let mut expected = Tensor::zeros(DType::F32, &[rows, n])?;
    let (x, bias) = (Tensor::from_f32(&[rows, k], &x), Tensor::from_f32(&[n], &bias));
    ops::linear(&reference, &mut expected, &x, &load(&reference)?, Some(&bias))?;
    let mean_square = expected.f32().iter().map(|x| x * x).sum::<f32>() / (rows * n) as f32;
    let tolerance = Tolerance::of(activation, UNITS * mean_square.sqrt());
    Ok(tolerance.deviation(&out.to_f32()?, expected.f32()))
}
