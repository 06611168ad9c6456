//! A small config for tests of other modules.

use super::{Architecture, ModelConfig, Purpose, RopeConfig};
use crate::TokenId;

pub fn tiny_config() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen2,
        hidden_size: 64,
        intermediate_size: 96,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 4,
        rms_norm_eps: 1e-6,
        max_position_embeddings: 512,
        rope: RopeConfig { theta: 1e6, rotary_dim: 16, yarn: None },
        qkv_bias: true,
        o_bias: false,
        tie_word_embeddings: true,
        purpose: Purpose::Generation,
        eos_token_ids: vec![TokenId(3), TokenId(2)],
    }
}
