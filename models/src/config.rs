//! config.json or GGUF metadata -> `ModelConfig`, checked.

pub mod huggingface;
pub mod gguf;
pub mod sentence_transformers;
#[cfg(test)]
pub(crate) mod testing;

use crate::{LoadError, TokenId};
use std::path::Path;

// Far beyond any published model, and small enough that no product of two of them overflows.
const HIDDEN_SIZE_MAX: usize = 1 << 16;
const INTERMEDIATE_SIZE_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 10;
const HEAD_DIM_MAX: usize = 1 << 10;
const VOCAB_SIZE_MAX: usize = 1 << 22;
const POSITIONS_MAX: usize = 1 << 22;
/// YaRN stretches by small factors: 4 in the published configs.
const YARN_FACTOR_MAX: f64 = 1024.0;

/// Network families that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Qwen2,
    Qwen3,
}

/// What a network's last hidden states are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The logits of the next token.
    Generation,
    /// Embeddings: there is no output head, or it is not loaded.
    Embedding,
}

/// The dimensions of a network, one type for all families, checked when parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Rows of the embedding, padding included.
    pub vocab_size: usize,
    pub rms_norm_eps: f32,
    pub max_position_embeddings: usize,
    pub rope: RopeConfig,
    /// Bias on q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the o projection.
    pub o_bias: bool,
    pub tie_word_embeddings: bool,
    pub purpose: Purpose,
    pub eos_token_ids: Vec<TokenId>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// Leading values of each head that are rotated; head_dim but for partial rotary models.
    pub rotary_dim: usize,
    pub yarn: Option<YarnConfig>,
}

/// Numbers of the YaRN extension; `attention_factor` is resolved when parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct YarnConfig {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub attention_factor: f64,
    pub truncate: bool,
}

impl ModelConfig {
    /// So many tokens of context take as many multiplications to attend to as all projections of a
    /// token.
    pub fn double_cost_context(&self) -> usize {
        let query_width = self.num_heads * self.head_dim;
        let kv_width = self.num_kv_heads * self.head_dim;
        let projections = self.hidden_size * (2 * query_width + 2 * kv_width)
            + 3 * self.hidden_size * self.intermediate_size;
        // A key and a value for each value of the query.
        projections / (2 * query_width)
    }

    /// The checks that both sources of a config share. Errors: `Invalid`.
    pub(crate) fn check(&self, path: &Path) -> Result<(), LoadError> {
        let limits = [
            ("hidden_size", self.hidden_size, HIDDEN_SIZE_MAX),
            ("intermediate_size", self.intermediate_size, INTERMEDIATE_SIZE_MAX),
            ("num_hidden_layers", self.num_layers, LAYERS_MAX),
            ("num_attention_heads", self.num_heads, HEADS_MAX),
            ("num_key_value_heads", self.num_kv_heads, HEADS_MAX),
            ("head_dim", self.head_dim, HEAD_DIM_MAX),
            ("vocab_size", self.vocab_size, VOCAB_SIZE_MAX),
            ("max_position_embeddings", self.max_position_embeddings, POSITIONS_MAX),
        ];
        for (key, value, max) in limits {
            if !(1..=max).contains(&value) {
                let reason = format!("{key} is {value}, outside 1..={max}");
                return Err(LoadError::invalid(path, reason));
            }
        }
        let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{heads} heads cannot share {kv_heads} kv heads evenly");
            return Err(LoadError::invalid(path, reason));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            let reason = format!("rms_norm_eps is {}, outside 0..1", self.rms_norm_eps);
            return Err(LoadError::invalid(path, reason));
        }
        if let Some(id) = self.eos_token_ids.iter().find(|id| id.0 as usize >= self.vocab_size) {
            let reason = format!("eos token id {id} is outside 0..{}", self.vocab_size);
            return Err(LoadError::invalid(path, reason));
        }
        self.rope.check(path, self.head_dim)
    }
}

impl RopeConfig {
    fn check(&self, path: &Path, head_dim: usize) -> Result<(), LoadError> {
        let RopeConfig { theta, rotary_dim, yarn } = self;
        if !(*theta > 1.0 && theta.is_finite()) {
            return Err(LoadError::invalid(path, format!("rope_theta is {theta}, not above 1")));
        }
        if *rotary_dim == 0 || *rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            let reason = format!("{rotary_dim} of {head_dim} head values cannot be rotated");
            return Err(LoadError::invalid(path, reason));
        }
        let Some(yarn) = yarn else { return Ok(()) };
        let wrong = |key: &str, value: f64| {
            Err(LoadError::invalid(path, format!("rope scaling has a {key} of {value}")))
        };
        let YarnConfig { factor, beta_fast, beta_slow, attention_factor, .. } = *yarn;
        if !(1.0..=YARN_FACTOR_MAX).contains(&factor) {
            return wrong("factor", factor);
        }
        if !(beta_fast > 0.0 && beta_fast.is_finite()) {
            return wrong("beta_fast", beta_fast);
        }
        if !(beta_slow > 0.0 && beta_slow <= beta_fast) {
            return wrong("beta_slow", beta_slow);
        }
        if !(attention_factor > 0.0 && attention_factor.is_finite()) {
            return wrong("attention_factor", attention_factor);
        }
        let original = yarn.original_max_position_embeddings;
        if !(1..=POSITIONS_MAX).contains(&original) {
            return wrong("original_max_position_embeddings", original as f64);
        }
        Ok(())
    }
}

impl YarnConfig {
    /// How far the stretched positions reach.
    fn max_positions(&self) -> usize {
        // Checked later against POSITIONS_MAX; a float cast saturates, so nothing wraps before.
        (self.original_max_position_embeddings as f64 * self.factor) as usize
    }
}

/// The factor on cosine and sine that YaRN recommends for a stretch.
fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// Sampling values that generation_config.json sets; a request may override each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
}
