//! Which implementation of the ops runs. The set is closed, so it is an enum: each op stays in its
//! own folder.

use crate::device::cpu::CpuDevice;

#[derive(Debug, Clone)]
pub enum Backend {
    /// Plain loops with f64 sums: slow, and the definition of right.
    Reference,
    /// SIMD on the threads of a `CpuDevice`.
    Cpu(CpuDevice),
}

impl Backend {
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Reference => "reference",
            Backend::Cpu(_) => "cpu",
        }
    }
}
