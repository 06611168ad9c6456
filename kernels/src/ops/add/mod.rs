//! Residual addition.

mod cpu;
pub mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

use super::expect;
use crate::{Backend, DType, KernelError, Tensor};

/// x += y, elementwise.
///
/// Shapes: `x`, `y` the same. Numbers: one f32 rounding. Errors: `Shape`, `DType`.
pub fn add_assign(backend: &Backend, x: &mut Tensor, y: &Tensor) -> Result<(), KernelError> {
    expect("add_assign", "x", x, DType::F32, y.shape())?;
    expect("add_assign", "y", y, DType::F32, y.shape())?;
    match backend {
        Backend::Reference => reference::add_assign(x.f32_mut(), y.f32()),
        Backend::Cpu(device) => cpu::add_assign(device, x.f32_mut(), y.f32()),
        Backend::Cuda(device) => cuda::add_assign(device, x, y)?,
    }
    Ok(())
}
