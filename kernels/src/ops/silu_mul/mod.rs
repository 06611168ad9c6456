//! The gate of the SwiGLU MLP.

mod cpu;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::expect;
use crate::{Backend, KernelError, Tensor};

/// out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)).
///
/// Shapes: all the same, in the backend's activation format. Numbers: within 4 ulp of the reference
/// where |gate| < 86; below -86 down to 0. On a GPU f32 in between, rounded once at the end.
/// Errors: `Shape`, `DType`.
/// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
pub fn silu_mul(
    backend: &Backend,
    out: &mut Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(), KernelError> {
    let dtype = backend.activation_dtype();
    expect("silu_mul", "gate", gate, dtype, out.shape())?;
    expect("silu_mul", "up", up, dtype, out.shape())?;
    expect("silu_mul", "out", out, dtype, up.shape())?;
    match backend {
        Backend::Reference => reference::silu_mul(out.f32_mut(), gate.f32(), up.f32()),
        Backend::Cpu(device) => cpu::silu_mul(device, out.f32_mut(), gate.f32(), up.f32()),
        Backend::Cuda(device) => cuda::silu_mul(device, out, gate, up)?,
    }
    Ok(())
}
