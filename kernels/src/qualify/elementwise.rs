//! Ops on rows: additions, norms, gates, embeddings, columns of ranks.

use super::Findings;
use super::numbers::{Tolerance, bytes_of, indices_on, on_device, rounded, values, weight_bytes};
use crate::comm::part_len_max;
use crate::ops::{self, Table};
use crate::{Backend, DType, KernelError, Tensor};

const EPS: f32 = 1e-6;

/// Rows and values of a row. The norm's rows are multiples of 4, and longer than registers keep.
const ROWS: [[usize; 2]; 4] = [[3, 896], [1, 4], [5, 5120], [2, 9216]];
/// Rows, their length and the ranks that share it out: in vectors, and unevenly.
const JOINED: [[usize; 3]; 3] = [[3, 1002, 4], [2, 4096, 2], [1, 7, 3]];
/// Lengths, with and without a rest.
const LENS: [usize; 4] = [2051, 1, 4096, 6000];

pub fn add(findings: &mut Findings) {
    for &len in findings.cases(&LENS, 1) {
        let deviation = add_one(findings, len);
        findings.add("add", format!("{len} values"), deviation);
    }
}

fn add_one(findings: &Findings, len: usize) -> Result<f64, KernelError> {
    let (x, y) = (values(1, len, 3.0), values(2, len, 3.0));
    let mut out = on_device(&findings.device, DType::F32, &[len], &x)?;
    let y_on = on_device(&findings.device, DType::F32, &[len], &y)?;
    ops::add_assign(&findings.backend(), &mut out, &y_on)?;
    let mut expected = Tensor::from_f32(&[len], &x);
    ops::add_assign(&Backend::Reference, &mut expected, &Tensor::from_f32(&[len], &y))?;
    Ok(Tolerance::of(DType::F32, 1.0).deviation(&out.to_f32()?, expected.f32()))
}

pub fn add_rms_norm(findings: &mut Findings) {
    for &[rows, n] in findings.cases(&ROWS, 1) {
        for has_delta in [true, false] {
            let deviation = add_rms_norm_one(findings, rows, n, has_delta);
            let what = if has_delta { "added and normed" } else { "normed" };
            findings.add("add_rms_norm", format!("{rows} rows of {n} {what}"), deviation);
        }
    }
}

fn add_rms_norm_one(
    findings: &Findings,
    rows: usize,
    n: usize,
    has_delta: bool,
) -> Result<f64, KernelError> {
    let (device, shape, dtype) = (&findings.device, [rows, n], findings.activation());
    let [hidden, delta] = [1, 2].map(|seed| values(seed, rows * n, 3.0));
    let weight = values(3, n, 2.0);
    let mut hidden_on = on_device(device, DType::F32, &shape, &hidden)?;
    let delta_on = on_device(device, DType::F32, &shape, &delta)?;
    let weight_on = on_device(device, DType::F32, &[n], &weight)?;
    let mut out = Tensor::zeros_on(&findings.backend(), dtype, &shape)?;
    let delta_on = has_delta.then_some(&delta_on);
    let backend = findings.backend();
    ops::add_rms_norm(&backend, &mut hidden_on, delta_on, &mut out, &weight_on, EPS)?;

    let mut sum = Tensor::from_f32(&shape, &hidden);
    let delta = Tensor::from_f32(&shape, &delta);
    let weight = Tensor::from_f32(&[n], &weight);
    let mut expected = Tensor::zeros(DType::F32, &shape)?;
    let delta = has_delta.then_some(&delta);
    let reference = Backend::Reference;
    ops::add_rms_norm(&reference, &mut sum, delta, &mut expected, &weight, EPS)?;
    let of_sum = Tolerance::of(DType::F32, 1.0).deviation(&hidden_on.to_f32()?, sum.f32());
    let of_norm = Tolerance::of(dtype, 1e-3).deviation(&out.to_f32()?, expected.f32());
    Ok(of_sum.max(of_norm))
}

pub fn silu_mul(findings: &mut Findings) {
    for &len in findings.cases(&LENS, 1) {
        let deviation = silu_mul_one(findings, len);
        findings.add("silu_mul", format!("{len} values"), deviation);
    }
}

fn silu_mul_one(findings: &Findings, len: usize) -> Result<f64, KernelError> {
    let dtype = findings.activation();
    let [gate, up] = [1, 2].map(|seed| rounded(dtype, &values(seed, len, 6.0)));
    let shape = [1, len];
    let gate_on = on_device(&findings.device, dtype, &shape, &gate)?;
    let up_on = on_device(&findings.device, dtype, &shape, &up)?;
    let mut out = Tensor::zeros_on(&findings.backend(), dtype, &shape)?;
    ops::silu_mul(&findings.backend(), &mut out, &gate_on, &up_on)?;
    let mut expected = Tensor::zeros(DType::F32, &shape)?;
    let [gate, up] = [gate, up].map(|x| Tensor::from_f32(&shape, &x));
    ops::silu_mul(&Backend::Reference, &mut expected, &gate, &up)?;
    Ok(Tolerance::of(dtype, 1e-3).deviation(&out.to_f32()?, expected.f32()))
}

pub fn embedding(findings: &mut Findings) {
    for dtype in DType::ALL {
        let deviation = embedding_one(findings, dtype);
        findings.add("embedding", format!("a table of {dtype}"), deviation);
    }
}

fn embedding_one(findings: &Findings, dtype: DType) -> Result<f64, KernelError> {
    let (rows, row_len) = (9, 512);
    let bytes = if dtype.is_quantized() {
        weight_bytes(dtype, rows, row_len)
    } else {
        bytes_of(dtype, &values(1, rows * row_len, 2.0))
    };
    let backends = [findings.backend(), Backend::Reference];
    let load = |b: &Backend| Table::load(b, dtype, rows, row_len, bytes.clone().into());
    let [on_gpu, on_host] = [load(&backends[0])?, load(&backends[1])?];
    let (ids, _ids) = indices_on(&findings.device, &[8, 0, 3, 3])?;
    let shape = [ids.len(), row_len];
    let mut out = Tensor::zeros_on(&backends[0], DType::F32, &shape)?;
    ops::embedding(&backends[0], &mut out, &on_gpu, &ids)?;
    let mut expected = Tensor::zeros(DType::F32, &shape)?;
    ops::embedding(&backends[1], &mut expected, &on_host, &ids)?;
    Ok(Tolerance::of(DType::F32, 1.0).deviation(&out.to_f32()?, expected.f32()))
}

pub fn join_columns(findings: &mut Findings) {
    for &[num_rows, len, num_parts] in findings.cases(&JOINED, 1) {
        let deviation = join_columns_one(findings, [num_rows, len], num_parts);
        let what = format!("{num_rows} rows of {len} from {num_parts} ranks");
        findings.add("join_columns", what, deviation);
    }
}

fn join_columns_one(
    findings: &Findings,
    shape: [usize; 2],
    num_parts: usize,
) -> Result<f64, KernelError> {
    let room = (shape[0] * part_len_max(shape[1], num_parts)).next_multiple_of(4);
    let parts = values(1, num_parts * room, 3.0);
    let parts_on = on_device(&findings.device, DType::F32, &[num_parts, room], &parts)?;
    let mut out = Tensor::zeros_on(&findings.backend(), DType::F32, &shape)?;
    ops::join_columns(&findings.backend(), &mut out, &parts_on)?;
    let mut expected = Tensor::zeros(DType::F32, &shape)?;
    let parts = Tensor::from_f32(&[num_parts, room], &parts);
    ops::join_columns(&Backend::Reference, &mut expected, &parts)?;
    Ok(Tolerance::of(DType::F32, 1.0).deviation(&out.to_f32()?, expected.f32()))
}
