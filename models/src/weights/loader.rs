//! One rank's tensors, taken by name out of a checkpoint.

use super::shard::{self, ShardSizes, ShardSpec, Split};
use super::{StoredTensor, Weights};
use crate::{LoadError, ModelConfig};
use kernels::ops::{Table, Weight, dequantize};
use kernels::{Backend, Tensor};
use std::collections::BTreeSet;

/// Takes tensors, cuts this rank's part out of them, and notes which ones were used.
pub struct Loader<'a> {
    pub backend: &'a Backend,
    pub config: &'a ModelConfig,
    pub spec: ShardSpec,
    /// Heads and features of this rank.
    pub sizes: ShardSizes,
    weights: &'a Weights,
    taken: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    /// Errors: `Unsupported` when the model cannot be shared out over `spec.world_size` ranks.
    pub fn new(
        backend: &'a Backend,
        config: &'a ModelConfig,
        weights: &'a Weights,
        spec: ShardSpec,
    ) -> Result<Loader<'a>, LoadError> {
        let sizes = shard::shard_sizes(config, spec)?;
        Ok(Loader { backend, config, spec, sizes, weights, taken: BTreeSet::new() })
    }

    /// A matrix to multiply with; `shape` [out_features, in_features] is that of the whole tensor.
    pub fn weight(
        &mut self,
        name: &str,
        shape: [usize; 2],
        split: Split,
    ) -> Result<Weight, LoadError> {
        let tensor = shard::slice(name, self.take(name, &shape)?, split, self.spec)?;
        let StoredTensor { dtype, shape, bytes } = tensor;
        Ok(Weight::load(self.backend, dtype, shape[0], shape[1], bytes)?)
    }

    /// A norm or a bias, widened to F32.
    pub fn vector(&mut self, name: &str, len: usize, split: Split) -> Result<Tensor, LoadError> {
        let tensor = shard::slice(name, self.take(name, &[len])?, split, self.spec)?;
        let mut out = Tensor::zeros(kernels::DType::F32, &tensor.shape)?;
        dequantize(tensor.dtype, &tensor.bytes, out.f32_mut())?;
        Ok(out)
    }

    /// A matrix that is read by row; it stays in the file.
    pub fn table(&mut self, name: &str, shape: [usize; 2]) -> Result<Table, LoadError> {
        let tensor = self.take(name, &shape)?;
        Ok(Table::new(tensor.dtype, shape[0], shape[1], tensor.bytes)?)
    }

    /// Refuses a checkpoint that holds more of a layer than the network reads: a bias or norm that
    /// was left out would give wrong text without any other sign.
    pub fn finish(self) -> Result<(), LoadError> {
        let num_layers = self.config.num_layers;
        let left_out = |name: &&str| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let in_layers = layer.is_some_and(|(layer, rest)| {
                layer.parse().is_ok_and(|layer: usize| layer < num_layers)
                    && (rest.ends_with(".weight") || rest.ends_with(".bias"))
            });
            (in_layers || matches!(*name, "lm_head.bias" | "rope_freqs.weight"))
                && !self.taken.contains(*name)
        };
        match self.weights.names().find(left_out) {
            Some(name) => Err(LoadError::unsupported(
                "a tensor",
                name,
                format!("the tensors of {:?}", self.config.architecture),
            )),
            None => Ok(()),
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<StoredTensor, LoadError> {
        self.taken.insert(name.to_string());
        self.weights.take(name, shape)
    }
}
