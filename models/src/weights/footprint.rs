//! What weights take once loaded, told before they are. Pure arithmetic.

use super::loader::inner_block_len;
use super::shard::{ShardSpec, Split, VOCAB, feature_range, is_between_blocks, shard_sizes};
use super::{Checkpoint, StoredTensor};
use crate::config::Purpose;
use crate::layers::embedding::EMBEDDING;
use crate::{LoadError, ModelConfig};
use kernels::DType;
use kernels::ops::WeightForm;
use std::collections::BTreeSet;

impl Checkpoint {
    /// Bytes that one rank's weights take: matrices as they are repacked, parts that a cut through
    /// blocks widens to F32 included; norms and biases in F32. On the host the embedding stays in
    /// the file. A tensor that is missing is missed when it is loaded.
    ///
    /// Errors: `Unsupported` when the model cannot be shared out.
    pub fn loaded_bytes(&self, spec: ShardSpec, form: WeightForm) -> Result<u64, LoadError> {
        let (config, weights) = (&self.config, &self.weights);
        let unit = shard_sizes(config, spec, inner_block_len(config, weights))?.inner_unit;
        let mut total = 0u64;
        for name in weights.names() {
            let Some(tensor) = weights.get(name) else { continue };
            let Some(use_of) = use_of(name, config, unit) else { continue };
            total = total.saturating_add(match use_of {
                Use::Matrix(split) => matrix_bytes(tensor, split, spec, form),
                Use::Vector(split) => {
                    let len = tensor.shape.first().map_or(0, |&len| len);
                    (feature_range(split, len, spec).len() * size_of::<f32>()) as u64
                }
                Use::Embedding => embedding_bytes(tensor, config, spec, form),
            });
        }
        Ok(total)
    }
}

impl Checkpoint {
    /// Shapes [out_features, in_features] of one rank's plain matrices whose products get no bias,
    /// each once: those that a GPU can multiply with in more than one way.
    ///
    /// Errors: as `loaded_bytes`.
    pub fn plain_products(&self, spec: ShardSpec) -> Result<Vec<[usize; 2]>, LoadError> {
        let (config, weights) = (&self.config, &self.weights);
        let unit = shard_sizes(config, spec, inner_block_len(config, weights))?.inner_unit;
        let has_bias = |name: &str| {
            let bias = name.strip_suffix("weight").map(|name| format!("{name}bias"));
            bias.is_some_and(|bias| weights.get(&bias).is_some())
        };
        let mut shapes = BTreeSet::new();
        for name in weights.names() {
            let split = match use_of(name, config, unit) {
                Some(Use::Matrix(split)) => split,
                Some(Use::Embedding) if has_tied_head(config) => VOCAB,
                _ => continue,
            };
            let part = weights.get(name).and_then(|tensor| matrix_part(tensor, split, spec));
            if let Some((dtype, shape)) = part
                && !dtype.is_quantized()
                && !shape.contains(&0)
                && !has_bias(name)
            {
                shapes.insert(shape);
            }
        }
        Ok(shapes.into_iter().collect())
    }
}

/// What a tensor is for.
enum Use {
    Matrix(Split),
    Vector(Split),
    /// And the head, if that is tied.
    Embedding,
}

/// As the files in `layers` load it.
fn use_of(name: &str, config: &ModelConfig, unit: usize) -> Option<Use> {
    match name {
        EMBEDDING => return Some(Use::Embedding),
        "lm_head.weight" if config.purpose == Purpose::Embedding => return None,
        "lm_head.weight" if config.tie_word_embeddings => return None,
        "lm_head.weight" => return Some(Use::Matrix(VOCAB)),
        "model.norm.weight" => return Some(Use::Vector(Split::Whole)),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    layer.parse().ok().filter(|layer: &usize| *layer < config.num_layers)?;
    let (part, kind) = part.rsplit_once('.')?;
    let split = match part {
        "self_attn.q_proj" => Split::OutFeatures,
        "self_attn.k_proj" | "self_attn.v_proj" => {
            Split::KvHeads { num_kv_heads: config.num_kv_heads }
        }
        "self_attn.o_proj" => Split::InFeatures,
        "mlp.gate_proj" | "mlp.up_proj" => Split::OutUnits { unit },
        "mlp.down_proj" => Split::InUnits { unit },
        _ if kind == "weight" => return Some(Use::Vector(Split::Whole)),
        _ => return None,
    };
    match (kind, split) {
        ("weight", split) => Some(Use::Matrix(split)),
        // Added once, to the sum over ranks.
        ("bias", Split::InFeatures | Split::InUnits { .. }) => Some(Use::Vector(Split::Whole)),
        ("bias", split) => Some(Use::Vector(split)),
        _ => None,
    }
}

fn matrix_bytes(tensor: &StoredTensor, split: Split, spec: ShardSpec, form: WeightForm) -> u64 {
    let Some((dtype, [rows, columns])) = matrix_part(tensor, split, spec) else { return 0 };
    form.num_bytes(dtype, rows, columns).map_or(u64::MAX, |bytes| bytes as u64)
}

/// What one rank has of a matrix, and its shape.
fn matrix_part(
    tensor: &StoredTensor,
    split: Split,
    spec: ShardSpec,
) -> Option<(DType, [usize; 2])> {
    let [rows, columns] = tensor.shape[..] else { return None };
    Some(match split {
        Split::InFeatures | Split::InUnits { .. } => {
            let part = feature_range(split, columns, spec);
            let dtype = match is_between_blocks(tensor.dtype, &part) {
                true => tensor.dtype,
                false => DType::F32,
            };
            (dtype, [rows, part.len()])
        }
        _ => (tensor.dtype, [feature_range(split, rows, spec).len(), columns]),
    })
}

fn embedding_bytes(
    tensor: &StoredTensor,
    config: &ModelConfig,
    spec: ShardSpec,
    form: WeightForm,
) -> u64 {
    let [rows, columns] = tensor.shape[..] else { return 0 };
    let own = feature_range(VOCAB, rows, spec).len();
    let table = match form {
        WeightForm::Reference | WeightForm::Cpu => Some(0),
        WeightForm::Cuda => tensor.dtype.row_bytes(columns).and_then(|n| n.checked_mul(own)),
    };
    let table = table.map_or(u64::MAX, |bytes| bytes as u64);
    match has_tied_head(config) {
        true => table.saturating_add(matrix_bytes(tensor, VOCAB, spec, form)),
        false => table,
    }
}

/// Whether the embedding's bytes are loaded once more, as the head.
fn has_tied_head(config: &ModelConfig) -> bool {
    config.tie_word_embeddings && config.purpose == Purpose::Generation
}
