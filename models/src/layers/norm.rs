//! Root-mean-square norms.

use crate::LoadError;
use crate::weights::loader::Loader;
use crate::weights::shard::Split;
use kernels::ops::rms_norm;
use kernels::{Backend, KernelError, Tensor};

pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `len`: hidden_size, or head_dim for a norm that every head shares.
    pub fn load(loader: &mut Loader, name: &str, len: usize) -> Result<RmsNorm, LoadError> {
        let weight = loader.vector(&format!("{name}.weight"), len, Split::Whole)?;
        Ok(RmsNorm { weight, eps: loader.config.rms_norm_eps })
    }

    pub fn forward(
        &self,
        backend: &Backend,
        out: &mut Tensor,
        x: &Tensor,
    ) -> Result<(), KernelError> {
        rms_norm(backend, out, x, &self.weight, self.eps)
    }

    pub fn forward_in_place(&self, backend: &Backend, x: &mut Tensor) -> Result<(), KernelError> {
        rms_norm::rms_norm_in_place(backend, x, &self.weight, self.eps)
    }
}
