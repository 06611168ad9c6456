//! The gate of the SwiGLU MLP.

mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

use super::{expect, not_on};
use crate::{Backend, DType, KernelError, Tensor};

/// out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)).
///
/// Shapes: all the same. Numbers: within 4 ulp of the reference where |gate| < 86; below -86 down
/// to 0.
/// Errors: `Shape`, `DType`.
/// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
pub fn silu_mul(
    backend: &Backend,
    out: &mut Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(), KernelError> {
    expect("silu_mul", "gate", gate, DType::F32, out.shape())?;
    expect("silu_mul", "up", up, DType::F32, out.shape())?;
    expect("silu_mul", "out", out, DType::F32, up.shape())?;
    match backend {
        Backend::Reference => reference::silu_mul(out.f32_mut(), gate.f32(), up.f32()),
        Backend::Cuda(_) => return Err(not_on("silu_mul", backend)),
        Backend::Cpu(device) => cpu::silu_mul(device, out.f32_mut(), gate.f32(), up.f32()),
    }
    Ok(())
}
