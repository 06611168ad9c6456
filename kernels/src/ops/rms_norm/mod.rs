//! Root-mean-square normalisation, of hidden states and of each head's queries and keys.

mod cpu;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{add_assign, expect, not_on};
use crate::{Backend, DType, KernelError, Tensor};

const OP: &str = "rms_norm";

/// Scales each group of `weight.len()` values of `x` to unit root mean square, then by `weight`.
///
/// out[g, i] = weight[i] * x[g, i] / sqrt(mean over j of x[g, j]^2 + eps)
///
/// Shapes: `x`, `out` the same [num_tokens, groups * n]; `weight` [n]. With groups = 1 this is the
/// norm of a hidden state, with groups = heads the per-head norm of Qwen3. Memory: reads `x` twice,
/// writes `out` once.
/// Numbers: sums in f32 (reference: f64). Errors: `Shape`, `DType`.
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
pub fn rms_norm(
    backend: &Backend,
    out: &mut Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(), KernelError> {
    check(out, x, weight)?;
    match backend {
        Backend::Reference => reference::rms_norm(out.f32_mut(), x.f32(), weight.f32(), eps),
        Backend::Cpu(device) => cpu::rms_norm(device, out.f32_mut(), x.f32(), weight.f32(), eps),
        Backend::Cuda(_) => return Err(not_on(OP, backend)),
    }
    Ok(())
}

/// Adds `delta`, if there is one, to the residual stream `hidden`, and norms the sum.
///
/// hidden += delta; out[t, i] = weight[i] * hidden[t, i] / sqrt(mean over j of hidden[t, j]^2 +
/// eps)
///
/// Shapes: `hidden`, `delta` [num_tokens, n] F32; `out` the same in the backend's activation
/// format; `weight` [n], n a multiple of 4 on a GPU. Memory: on a GPU reads `hidden` and `delta`
/// once, up to n = 8192. Numbers: as `add_assign`, then `rms_norm`; on a GPU rounded once to the
/// activation format. Errors: `Shape`, `DType`.
pub fn add_rms_norm(
    backend: &Backend,
    hidden: &mut Tensor,
    delta: Option<&Tensor>,
    out: &mut Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(), KernelError> {
    let Backend::Cuda(device) = backend else {
        if let Some(delta) = delta {
            add_assign(backend, hidden, delta)?;
        }
        return rms_norm(backend, out, hidden, weight, eps);
    };
    let shape = [hidden.rows(), weight.len()];
    expect(OP, "hidden", hidden, DType::F32, &shape)?;
    expect(OP, "weight", weight, DType::F32, &shape[1..])?;
    expect(OP, "out", out, backend.activation_dtype(), &shape)?;
    if let Some(delta) = delta {
        expect(OP, "delta", delta, DType::F32, &shape)?;
    }
    if !weight.len().is_multiple_of(cuda::VECTOR_LEN) {
        let expected = format!("a multiple of {} values", cuda::VECTOR_LEN);
        return Err(KernelError::Shape {
            op: OP,
            what: "weight",
            got: vec![weight.len()],
            expected,
        });
    }
    cuda::add_rms_norm(device, hidden, delta, out, weight, eps)
}

/// `rms_norm` with `out` = `x`, for the per-head norms.
pub fn rms_norm_in_place(
    backend: &Backend,
    x: &mut Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(), KernelError> {
    check_weight(x, weight)?;
    match backend {
        Backend::Cpu(device) => cpu::rms_norm_in_place(device, x.f32_mut(), weight.f32(), eps),
        Backend::Cuda(_) => return Err(not_on(OP, backend)),
        Backend::Reference => {
            let copy = x.f32().to_vec();
            reference::rms_norm(x.f32_mut(), &copy, weight.f32(), eps);
        }
    }
    Ok(())
}

fn check(out: &Tensor, x: &Tensor, weight: &Tensor) -> Result<(), KernelError> {
    check_weight(x, weight)?;
    expect(OP, "out", out, DType::F32, x.shape())
}

fn check_weight(x: &Tensor, weight: &Tensor) -> Result<(), KernelError> {
    expect(OP, "x", x, DType::F32, x.shape())?;
    expect(OP, "weight", weight, DType::F32, &[weight.len()])?;
    if weight.is_empty() || !x.row_len().is_multiple_of(weight.len()) {
        let expected = format!("rows of a multiple of {} values", weight.len());
        return Err(KernelError::Shape { op: OP, what: "x", got: x.shape().to_vec(), expected });
    }
    Ok(())
}
