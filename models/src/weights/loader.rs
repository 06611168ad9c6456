//! One rank's tensors, taken by name out of a checkpoint.

use super::shard::{self, ShardSizes, ShardSpec, Split, VOCAB, feature_range};
use super::{StoredTensor, Weights};
use crate::{LoadError, ModelConfig};
use bytes::Bytes;
use kernels::ops::{Table, Weight, dequantize};
use kernels::{Backend, DType, KernelError, Tensor};
use std::collections::BTreeSet;

/// Takes tensors, cuts this rank's part out of them, and notes which ones were used.
pub struct Loader<'a> {
    pub backend: &'a Backend,
    pub config: &'a ModelConfig,
    pub spec: ShardSpec,
    /// Heads and features of this rank.
    pub sizes: ShardSizes,
    /// Memory that was taken so far.
    pub loaded_bytes: u64,
    weights: &'a Weights,
    taken: BTreeSet<String>,
}

/// One of the two ways to load a weight.
type LoadWeight = fn(&Backend, DType, usize, usize, Bytes) -> Result<Weight, KernelError>;

impl<'a> Loader<'a> {
    /// Errors: `Unsupported` when the model cannot be shared out over `spec.world_size` ranks.
    pub fn new(
        backend: &'a Backend,
        config: &'a ModelConfig,
        weights: &'a Weights,
        spec: ShardSpec,
    ) -> Result<Loader<'a>, LoadError> {
        let sizes = shard::shard_sizes(config, spec, inner_block_len(config, weights))?;
        let (loaded_bytes, taken) = (0, BTreeSet::new());
        Ok(Loader { backend, config, spec, sizes, loaded_bytes, weights, taken })
    }

    /// A matrix to multiply with; `shape` [out_features, in_features] is that of the whole tensor.
    pub fn weight(
        &mut self,
        name: &str,
        shape: [usize; 2],
        split: Split,
    ) -> Result<Weight, LoadError> {
        self.weight_by(Weight::load, name, shape, split)
    }

    /// As `weight`, for one whose products get no bias, which leaves more choice of how to compute
    /// them.
    pub fn weight_without_bias(
        &mut self,
        name: &str,
        shape: [usize; 2],
        split: Split,
    ) -> Result<Weight, LoadError> {
        self.weight_by(Weight::load_without_bias, name, shape, split)
    }

    fn weight_by(
        &mut self,
        load: LoadWeight,
        name: &str,
        shape: [usize; 2],
        split: Split,
    ) -> Result<Weight, LoadError> {
        let tensor = shard::slice(self.take(name, &shape)?, split, self.spec)?;
        let StoredTensor { dtype, shape, bytes } = tensor;
        let weight = load(self.backend, dtype, shape[0], shape[1], bytes)?;
        self.loaded_bytes += weight.num_bytes() as u64;
        Ok(weight)
    }

    /// A norm or a bias, widened to F32.
    pub fn vector(&mut self, name: &str, len: usize, split: Split) -> Result<Tensor, LoadError> {
        let tensor = shard::slice(self.take(name, &[len])?, split, self.spec)?;
        let mut values = vec![0.0; tensor.shape.iter().product()];
        dequantize(tensor.dtype, &tensor.bytes, &mut values)?;
        self.loaded_bytes += size_of_val(&values[..]) as u64;
        Ok(Tensor::from_f32_on(self.backend, &tensor.shape, &values)?)
    }

    /// This rank's rows of a matrix that is read by row; on the host they stay in the file.
    pub fn vocab_table(&mut self, name: &str, shape: [usize; 2]) -> Result<Table, LoadError> {
        let [vocab, row_len] = shape;
        let rows = feature_range(VOCAB, vocab, self.spec);
        let tensor = shard::slice(self.take(name, &shape)?, VOCAB, self.spec)?;
        let StoredTensor { dtype, bytes, .. } = tensor;
        if matches!(self.backend, Backend::Cuda(_)) {
            self.loaded_bytes += bytes.len() as u64;
        }
        Ok(Table::load_part(self.backend, dtype, vocab, rows, row_len, bytes)?)
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

/// Features that the last projection of an MLP stores together, at the most over all layers. A
/// tensor that is missing is missed when it is taken.
pub(super) fn inner_block_len(config: &ModelConfig, weights: &Weights) -> usize {
    let names =
        (0..config.num_layers).map(|layer| format!("model.layers.{layer}.mlp.down_proj.weight"));
    let tensors = names.filter_map(|name| weights.get(&name));
    tensors.map(|tensor| tensor.dtype.block_len()).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::tiny_config;
    use std::path::Path;

    fn weights(names: &[&str]) -> Weights {
        let mut weights = Weights::default();
        for name in names {
            let bytes = bytes::Bytes::from(vec![0x80, 0x3f, 0x00, 0xc0]);
            let tensor = StoredTensor { dtype: kernels::DType::BF16, shape: vec![2], bytes };
            weights.insert(name, tensor, Path::new("x")).unwrap();
        }
        weights
    }

    #[test]
    fn vectors_are_widened_and_shared_out() {
        let (config, weights) = (tiny_config(), weights(&["a"]));
        let spec = ShardSpec { rank: 1, world_size: 2 };
        let mut loader = Loader::new(&Backend::Reference, &config, &weights, spec).unwrap();
        let whole = loader.vector("a", 2, Split::Whole).unwrap();
        assert_eq!(whole.f32(), [1.0, -2.0]);
        assert_eq!(loader.vector("a", 2, Split::OutFeatures).unwrap().f32(), [-2.0]);
        assert!(loader.vector("a", 3, Split::Whole).is_err());
    }

    #[test]
    fn tensors_of_a_layer_that_were_left_out_are_refused() {
        let (config, taken) = (tiny_config(), "model.layers.1.mlp.up_proj.weight");
        let check = |other: &str| {
            let weights = weights(&[taken, other]);
            let spec = ShardSpec::SOLO;
            let mut loader = Loader::new(&Backend::Reference, &config, &weights, spec).unwrap();
            loader.vector(taken, 2, Split::Whole).unwrap();
            loader.finish()
        };
        for other in ["model.layers.0.self_attn.o_proj.bias", "rope_freqs.weight", "lm_head.bias"] {
            let error = check(other).unwrap_err().to_string();
            assert!(error.contains(other), "{error}");
        }
        for other in [
            "model.layers.2.self_attn.o_proj.bias",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.visual.merger.weight",
            "lm_head.weight",
        ] {
            check(other).unwrap();
        }
    }
}
