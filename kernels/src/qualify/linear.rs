//! Products with weights of every format, in every height of tile.

use super::Findings;
use super::numbers::{Tolerance, bytes_of, on_device, rounded, values, weight_bytes};
use super::products::try_shape;
use crate::device::cuda::cublaslt;
use crate::ops::linear::cuda::groups::{GroupLayout, Groups};
use crate::ops::linear::cuda::layout::{Format, Layout};
use crate::ops::linear::cuda::{self, DeviceWeight, can_multiply, kernels_for, launch_of};
use crate::ops::{self, Weight};
use crate::{Backend, DType, KernelError, Tensor};

/// Rows of x: one for each height of tile, the last with more than one tile of rows.
const ROWS: [usize; 4] = [1, 17, 40, 130];
/// Outputs and inputs: with a rest in both, and with splits.
const SHAPES: [[usize; 2]; 2] = [[200, 512], [136, 1280]];
const GROUP_LEN: usize = 128;
/// How far a sum may lie from the reference, in units in the last place of the activation format
/// at the size of a usual sum: weights of the quantised formats are rounded to that format once. A
/// wrong sum is off by a hundred of them.
const UNITS: f32 = 4.0;

pub fn linear(findings: &mut Findings) {
    for &[n, k] in findings.cases(&SHAPES, 1) {
        for dtype in DType::ALL {
            let layout = Layout { format: Format::of(dtype), out_features: n, in_features: k };
            let what = format!("[{n}, {k}] of {dtype}");
            each_kernel(findings, &layout, &what, |findings, rows| one(findings, dtype, rows));
        }
        let layout = Layout { format: Format::W4Z, out_features: n, in_features: k };
        each_kernel(findings, &layout, &format!("[{n}, {k}] in groups"), grouped);
    }
    by_cublaslt(findings);
}

/// Runs `product` with rows for each kernel of a format, which is then launched whatever would be
/// launched otherwise; one that is switched off gives way to another. Nothing is tried where all
/// are.
fn each_kernel(
    findings: &mut Findings,
    layout: &Layout,
    what: &str,
    product: impl Fn(&Findings, [usize; 3]) -> Result<f64, KernelError>,
) {
    if !can_multiply(&findings.device, layout.format) {
        return;
    }
    let kernels = kernels_for(layout.format, findings.activation());
    for (rows, kernel) in ROWS.into_iter().zip(kernels) {
        let usual = launch_of(layout, findings.activation(), rows).kernel;
        let before = findings.device.preferred(usual);
        findings.device.prefer(usual, kernel);
        let deviation = product(findings, [rows, layout.out_features, layout.in_features]);
        findings.device.prefer(usual, before);
        findings.add_of_kernel("linear", Some(kernel), format!("{rows} rows, {what}"), deviation);
    }
}

/// Plain weights by cuBLASLt, if it is installed and not found to be wrong before.
fn by_cublaslt(findings: &mut Findings) {
    let kernel = cuda::cublaslt(findings.activation());
    if cublaslt::version().is_none() || findings.device.is_switched_off(kernel) {
        return;
    }
    for &[n, k] in findings.cases(&SHAPES, 1) {
        let tried = try_shape(&findings.device, [n, k]).map(|tried| tried.deviation);
        let case = format!("1 to 130 rows, [{n}, {k}] by cuBLASLt");
        findings.add_of_kernel("linear", Some(kernel), case, tried);
    }
}

/// As `one`, with a weight in groups of 4-bit codes, which no dtype has.
fn grouped(findings: &Findings, [rows, n, k]: [usize; 3]) -> Result<f64, KernelError> {
    let (device, activation) = (&findings.device, findings.activation());
    let bytes = weight_bytes(DType::F16, 3, n * k);
    let (qweight, rest) = bytes.split_at(n * k / 2);
    let (qzeros, scales) = rest.split_at(n / 2 * k.div_ceil(GROUP_LEN));
    let groups = Groups {
        layout: GroupLayout::Awq,
        out_features: n,
        in_features: k,
        group_len: GROUP_LEN,
        qweight,
        qzeros,
        scales: &scales[scales.len() - 2 * n * k.div_ceil(GROUP_LEN)..],
    };
    let values = groups.values()?;
    let x = rounded(activation, &self::values(1, rows * k, 1.0));
    let x_on = on_device(device, activation, &[rows, k], &x)?;
    let mut out = Tensor::zeros_on(&findings.backend(), DType::F32, &[rows, n])?;
    cuda::linear(device, &mut out, &x_on, &DeviceWeight::of_groups(device, &groups)?, None)?;

    let reference = Backend::Reference;
    let bytes = bytes_of(DType::F32, &values).into();
    let weight = Weight::load(&reference, DType::F32, n, k, bytes)?;
    let mut expected = Tensor::zeros(DType::F32, &[rows, n])?;
    ops::linear(&reference, &mut expected, &Tensor::from_f32(&[rows, k], &x), &weight, None)?;
    Ok(deviation(activation, &out.to_f32()?, expected.f32()))
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
    Ok(deviation(activation, &out.to_f32()?, expected.f32()))
}

pub(super) fn deviation(activation: DType, out: &[f32], expected: &[f32]) -> f64 {
    let mean_square = expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32;
    Tolerance::of(activation, UNITS * mean_square.sqrt()).deviation(out, expected)
}
