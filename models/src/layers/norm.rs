//! Root-mean-square norms.

use crate::LoadError;
use crate::weights::loader::Loader;
use crate::weights::shard::Split;
use kernels::ops::add_rms_norm;
use kernels::{Backend, KernelError, Tensor};

pub struct RmsNorm {
    pub weight: Tensor,
    pub eps: f32,
}

impl RmsNorm {
    /// `len`: hidden_size, or head_dim for a norm that every head shares.
    pub fn load(loader: &mut Loader, name: &str, len: usize) -> Result<RmsNorm, LoadError> {
        let weight = loader.vector(&format!("{name}.weight"), len, Split::Whole)?;
        Ok(RmsNorm { weight, eps: loader.config.rms_norm_eps })
    }

    /// hidden += delta, if there is one; out = the norm of hidden.
    pub fn add_forward(
        &self,
        backend: &Backend,
        hidden: &mut Tensor,
        delta: Option<&Tensor>,
        out: &mut Tensor,
    ) -> Result<(), KernelError> {
        add_rms_norm(backend, hidden, delta, out, &self.weight, self.eps)
    }
}
