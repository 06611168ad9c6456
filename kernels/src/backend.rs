//! Which implementation of the ops runs. The set is closed, so it is an enum: each op stays in its
//! own folder.

use crate::DType;
use crate::device::cpu::CpuDevice;
use crate::device::cuda::CudaDevice;

#[derive(Debug, Clone)]
pub enum Backend {
    /// Plain loops with f64 sums: slow, and the definition of right.
    Reference,
    /// SIMD on the threads of a `CpuDevice`.
    Cpu(CpuDevice),
    /// Kernels on a GPU.
    Cuda(CudaDevice),
}

impl Backend {
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Reference => "reference",
            Backend::Cpu(_) => "cpu",
            Backend::Cuda(_) => "cuda",
        }
    }

    /// The number format between projections, attention and the MLP. The hidden state that layers
    /// add to, and logits, are F32 on every backend.
    pub fn activation_dtype(&self) -> DType {
        match self {
            Backend::Reference | Backend::Cpu(_) => DType::F32,
            Backend::Cuda(device) => device.activation_dtype(),
        }
    }
}
