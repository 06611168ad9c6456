//! The gated MLP: down(silu(gate x) * up x).

use super::linear::Linear;
use crate::LoadError;
use crate::weights::loader::Loader;
use crate::weights::shard::Split;
use kernels::ops::linear_many;
use kernels::{Backend, KernelError, Tensor};

pub struct Mlp {
    gate: Linear,
    up: Linear,
    pub down: Linear,
}

impl Mlp {
    /// `name`: as "model.layers.0.mlp".
    pub fn load(loader: &mut Loader, name: &str) -> Result<Mlp, LoadError> {
        let (hidden, inner) = (loader.config.hidden_size, loader.config.intermediate_size);
        let unit = loader.sizes.inner_unit;
        let (first, last) = (Split::OutUnits { unit }, Split::InUnits { unit });
        let part = |part: &str| format!("{name}.{part}");
        Ok(Mlp {
            gate: Linear::load(loader, &part("gate_proj"), [inner, hidden], first)?,
            up: Linear::load(loader, &part("up_proj"), [inner, hidden], first)?,
            down: Linear::load(loader, &part("down_proj"), [hidden, inner], last)?,
        })
    }

    /// Both first projections of `x`, in one parallel region.
    pub fn gate_up(
        &self,
        backend: &Backend,
        gate: &mut Tensor,
        up: &mut Tensor,
        x: &Tensor,
    ) -> Result<(), KernelError> {
        linear_many(backend, &mut [gate, up], x, &[self.gate.parts(), self.up.parts()])
    }
}
