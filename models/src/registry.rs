//! Architecture name -> constructor.

use crate::config::Architecture;
use crate::qwen2::Qwen2;
use crate::qwen3::Qwen3;
use crate::weights::loader::Loader;
use crate::{Checkpoint, LoadError, Model, ShardSpec};
use kernels::{Backend, DType};

/// Loads one rank's part of a checkpoint, ready for `backend`.
///
/// `max_model_len`: positions that can be served, up to the config's `max_position_embeddings`.
/// Errors: `MissingTensor`, `TensorShape`, `Unsupported`, and `Kernel` when memory runs out.
pub fn load_model(
    backend: &Backend,
    checkpoint: &Checkpoint,
    shard: ShardSpec,
    max_model_len: usize,
) -> Result<Box<dyn Model>, LoadError> {
    let config = &checkpoint.config;
    let len_max = config.max_position_embeddings;
    if !(1..=len_max).contains(&max_model_len) {
        let supported = format!("1..={len_max}, the positions this model was made for");
        return Err(LoadError::unsupported("max model length", max_model_len, supported));
    }
    let mut loader = Loader::new(backend, config, &checkpoint.weights, shard)?;
    let model: Box<dyn Model> = match config.architecture {
        Architecture::Qwen2 => Box::new(Qwen2::load(&mut loader, max_model_len)?),
        Architecture::Qwen3 => Box::new(Qwen3::load(&mut loader, max_model_len)?),
    };
    loader.finish()?;
    checkpoint.weights.forget_pages();
    Ok(model)
}

/// What a GPU computes this checkpoint in: F16 when its projections are F16, else BF16, whose range
/// is that of F32.
pub fn cuda_activation(checkpoint: &Checkpoint) -> DType {
    match checkpoint.weights.get("model.layers.0.mlp.down_proj.weight") {
        Some(tensor) if tensor.dtype == DType::F16 => DType::F16,
        _ => DType::BF16,
    }
}
