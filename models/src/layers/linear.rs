//! A projection: weight and, in some families, bias.

use crate::LoadError;
use crate::weights::loader::Loader;
use crate::weights::shard::Split;
use kernels::ops::{Weight, linear};
use kernels::{Backend, KernelError, Tensor};

pub struct Linear {
    pub weight: Weight,
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `shape` [out_features, in_features]: that of the whole projection, over all ranks.
    pub fn load(
        loader: &mut Loader,
        name: &str,
        shape: [usize; 2],
        split: Split,
    ) -> Result<Linear, LoadError> {
        let weight = loader.weight_without_bias(&format!("{name}.weight"), shape, split)?;
        Ok(Linear { weight, bias: None })
    }

    pub fn load_with_bias(
        loader: &mut Loader,
        name: &str,
        shape: [usize; 2],
        split: Split,
    ) -> Result<Linear, LoadError> {
        let weight = loader.weight(&format!("{name}.weight"), shape, split)?;
        let mut linear = Linear { weight, bias: None };
        // The results of ranks that share out the input features are summed: one adds the bias.
        let is_summed = matches!(split, Split::InFeatures | Split::InUnits { .. });
        let bias_split = if is_summed { Split::Whole } else { split };
        let bias = loader.vector(&format!("{name}.bias"), shape[0], bias_split)?;
        if !is_summed || loader.spec.rank == 0 {
            linear.bias = Some(bias);
        }
        Ok(linear)
    }

    pub fn forward(
        &self,
        backend: &Backend,
        out: &mut Tensor,
        x: &Tensor,
    ) -> Result<(), KernelError> {
        linear(backend, out, x, &self.weight, self.bias.as_ref())
    }

    /// Weight and bias as `linear_many` takes them.
    pub fn parts(&self) -> (&Weight, Option<&Tensor>) {
        (&self.weight, self.bias.as_ref())
    }
}
