//! The four projections of an attention layer.

use super::linear::Linear;
use crate::LoadError;
use crate::weights::loader::Loader;
use crate::weights::shard::Split;
use kernels::ops::linear_many;
use kernels::{Backend, KernelError, Tensor};

pub struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    pub o: Linear,
}

impl Projections {
    /// `name`: as "model.layers.0.self_attn".
    pub fn load(loader: &mut Loader, name: &str) -> Result<Projections, LoadError> {
        let config = loader.config;
        let hidden_size = config.hidden_size;
        let q_len = config.num_heads * config.head_dim;
        let kv_len = config.num_kv_heads * config.head_dim;
        let kv_split = Split::KvHeads { num_kv_heads: config.num_kv_heads };
        let load_qkv = if config.qkv_bias { Linear::load_with_bias } else { Linear::load };
        let load_o = if config.o_bias { Linear::load_with_bias } else { Linear::load };
        let part = |part: &str| format!("{name}.{part}");
        Ok(Projections {
            q: load_qkv(loader, &part("q_proj"), [q_len, hidden_size], Split::OutFeatures)?,
            k: load_qkv(loader, &part("k_proj"), [kv_len, hidden_size], kv_split)?,
            v: load_qkv(loader, &part("v_proj"), [kv_len, hidden_size], kv_split)?,
            o: load_o(loader, &part("o_proj"), [hidden_size, q_len], Split::InFeatures)?,
        })
    }

    /// Queries, keys and values of `x`, in one parallel region.
    pub fn qkv(
        &self,
        backend: &Backend,
        q: &mut Tensor,
        k: &mut Tensor,
        v: &mut Tensor,
        x: &Tensor,
    ) -> Result<(), KernelError> {
        let weights = [self.q.parts(), self.k.parts(), self.v.parts()];
        linear_many(backend, &mut [q, k, v], x, &weights)
    }
}
