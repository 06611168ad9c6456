//! `KvCache`: the memory behind block ids, one object per layer.

use crate::ModelConfig;
use kernels::{Backend, DType, KernelError, Tensor};

/// What a layer carries from token to token. Attention layers keep keys and values of every token.
#[derive(Debug)]
pub struct KvLayer {
    /// [num_blocks, kv_heads, block_size, head_dim]
    pub k: Tensor,
    /// As `k`.
    pub v: Tensor,
}

#[derive(Debug)]
pub struct KvCache {
    pub layers: Vec<KvLayer>,
    pub num_blocks: usize,
    pub block_size: usize,
}

impl KvCache {
    /// `num_kv_heads`: those of this rank. `dtype`: F32 or F16; on a GPU the activation format.
    pub fn new(
        backend: &Backend,
        config: &ModelConfig,
        num_kv_heads: usize,
        num_blocks: usize,
        block_size: usize,
        dtype: DType,
    ) -> Result<KvCache, KernelError> {
        let shape = [num_blocks, num_kv_heads, block_size, config.head_dim];
        let zeros = || Tensor::zeros_on(backend, dtype, &shape);
        let layer = |_| Ok(KvLayer { k: zeros()?, v: zeros()? });
        let layers = (0..config.num_layers).map(layer).collect::<Result<_, KernelError>>()?;
        Ok(KvCache { layers, num_blocks, block_size })
    }

    /// Bytes that one block takes over all layers of this rank.
    pub fn bytes_per_block(
        config: &ModelConfig,
        num_kv_heads: usize,
        block_size: usize,
        dtype: DType,
    ) -> usize {
        2 * config.num_layers * num_kv_heads * block_size * config.head_dim * dtype.block_bytes()
    }
}
