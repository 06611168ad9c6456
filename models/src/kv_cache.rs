//! `KvCache`: the memory behind block ids, one object per layer.

use crate::ModelConfig;
use kernels::{Backend, DType, KernelError, Tensor};

/// Values of one tensor that `touch_next` goes through at a time: some milliseconds of work.
const TOUCHED_VALUES: usize = 4 << 20;

/// What a layer carries from token to token. Attention layers keep keys and values of every token.
#[derive(Debug)]
pub struct KvLayer {
    /// [num_blocks, kv_heads, block_size, head_dim], in the order of `kv_write`.
    pub k: Tensor,
    /// As `k`.
    pub v: Tensor,
}

#[derive(Debug)]
pub struct KvCache {
    pub layers: Vec<KvLayer>,
    pub num_blocks: usize,
    pub block_size: usize,
    /// What `touch_next` has gone through: tensors, and values of the one after them.
    touched: (usize, usize),
}

impl KvCache {
    /// `num_kv_heads`: those of this rank. `dtype`: F32, F16 or BF16; on a GPU that of
    /// activations.
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
        Ok(KvCache { layers, num_blocks, block_size, touched: (0, 0) })
    }

    /// Has the system find the memory of the next piece of the cache. A new cache is only promised
    /// memory: finding it takes seconds for some GiB, which a server spends while it has nothing
    /// else to do. `false` once all of it is there.
    pub fn touch_next(&mut self) -> bool {
        let (tensor, start) = self.touched;
        let Some(layer) = self.layers.get_mut(tensor / 2) else { return false };
        let values = if tensor.is_multiple_of(2) { &mut layer.k } else { &mut layer.v };
        let end = values.len().min(start + TOUCHED_VALUES);
        values.touch(start..end);
        self.touched = if end == values.len() { (tensor + 1, 0) } else { (tensor, end) };
        true
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::tiny_config;

    #[test]
    fn touching_goes_through_all_memory_once_and_changes_nothing() {
        let config = tiny_config();
        // Each tensor has 1.5 times the values of one piece.
        let num_blocks = TOUCHED_VALUES * 3 / 2 / (2 * 16 * 16);
        let mut cache =
            KvCache::new(&Backend::Reference, &config, 2, num_blocks, 16, DType::F16).unwrap();
        let last = cache.layers[1].v.f16_mut().last_mut().unwrap();
        *last = half::f16::from_f32(2.5);
        let pieces = (0..100).take_while(|_| cache.touch_next()).count();
        assert_eq!(pieces, 2 * config.num_layers * 2);
        assert!(!cache.touch_next());
        let sum: f32 = cache.layers.iter().flat_map(|l| l.v.to_f32().unwrap()).sum();
        assert_eq!(sum, 2.5);
    }
}
