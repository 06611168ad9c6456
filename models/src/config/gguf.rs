//! GGUF metadata -> `ModelConfig` and the tokenizer's tables.

#[cfg(test)]
mod tests;

use super::{Architecture, ModelConfig, Purpose, RopeConfig, YarnConfig, yarn_magnitude};
use crate::weights::gguf::GgufFile;
use crate::{GgufTokenizer, LoadError, TokenId};

/// Tokens that end a turn or a text in every Qwen vocabulary. The metadata names only one of them.
const END_TOKENS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];
/// Token types of `tokenizer.ggml.token_type`: only these are more than text.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
/// Values of `pooling_type` in llama.cpp: none, and the last token's hidden state.
const POOLING_NONE: usize = 0;
const POOLING_LAST: usize = 3;
/// Ends every text that an embedding model of Qwen is given; its files do not say so.
const TEXT_END: &str = "<|endoftext|>";

/// Errors: `Invalid` for a value that is missing or makes no sense, `Unsupported` for one that asks
/// for too much.
pub fn parse_config(file: &GgufFile, tokenizer: &GgufTokenizer) -> Result<ModelConfig, LoadError> {
    let name = file.string("general.architecture")?.unwrap_or_default();
    let architecture = match name.as_str() {
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        _ => return Err(LoadError::unsupported("general.architecture", name, "qwen2, qwen3")),
    };
    let keys = Keys { file, prefix: name };
    refuse_unsupported(&keys)?;
    let hidden_size = keys.count("embedding_length")?;
    let num_heads = keys.count("attention.head_count")?;
    let head_dim = match keys.count_if_there("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_heads).unwrap_or(0),
    };
    if let Some(value_dim) = keys.count_if_there("attention.value_length")?
        && value_dim != head_dim
    {
        let key = keys.key("attention.value_length");
        return Err(LoadError::unsupported(key, value_dim, format!("head size {head_dim}")));
    }
    let rope = parse_rope(&keys, head_dim)?;
    let stated = keys.count("context_length")?;
    let stretched = rope.yarn.as_ref().map_or(0, YarnConfig::max_positions);
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: keys.count("feed_forward_length")?,
        num_layers: keys.count("block_count")?,
        num_heads,
        num_kv_heads: keys.count_if_there("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: embedding_rows(file)?,
        rms_norm_eps: keys.number("attention.layer_norm_rms_epsilon")? as f32,
        max_position_embeddings: stated.max(stretched),
        rope,
        // The format has no key for biases: they are there or not.
        qkv_bias: file.tensor("blk.0.attn_q.bias").is_some(),
        o_bias: file.tensor("blk.0.attn_output.bias").is_some(),
        tie_word_embeddings: file.tensor("output.weight").is_none(),
        purpose: purpose(&keys)?,
        eos_token_ids: eos_token_ids(file, tokenizer)?,
    };
    config.check(&file.path)?;
    Ok(config)
}

/// Errors: `Unsupported` for anything but byte-level BPE; `Invalid` for missing or contradicting
/// tables.
pub fn parse_tokenizer(file: &GgufFile) -> Result<GgufTokenizer, LoadError> {
    let model = file.string("tokenizer.ggml.model")?.unwrap_or_default();
    if model != "gpt2" {
        return Err(LoadError::unsupported("tokenizer.ggml.model", model, "gpt2"));
    }
    let missing = |key: &str| LoadError::invalid(&file.path, format!("{key} is missing"));
    let required = |key: &str| file.strings(key)?.ok_or_else(|| missing(key));
    let tokens = required("tokenizer.ggml.tokens")?;
    let token_types = match file.integers("tokenizer.ggml.token_type")? {
        Some(types) => types,
        None => vec![1; tokens.len()],
    };
    if token_types.len() != tokens.len() {
        let reason = format!("{} tokens with {} token types", tokens.len(), token_types.len());
        return Err(LoadError::invalid(&file.path, reason));
    }
    let id = |key: &str| match file.unsigned(key)? {
        Some(id) if id as usize >= tokens.len() => {
            let reason = format!("{key} is {id}, outside 0..{}", tokens.len());
            Err(LoadError::invalid(&file.path, reason))
        }
        id => Ok(id.map(|id| id as u32)),
    };
    let is_embedder = match file.string("general.architecture")? {
        Some(prefix) => purpose(&Keys { file, prefix })? == Purpose::Embedding,
        None => false,
    };
    let text_end = tokens.iter().position(|token| token == TEXT_END);
    Ok(GgufTokenizer {
        appended: text_end.filter(|_| is_embedder).map(|id| id as u32),
        pre: file.string("tokenizer.ggml.pre")?.unwrap_or_default(),
        merges: required("tokenizer.ggml.merges")?,
        token_types,
        eos: id("tokenizer.ggml.eos_token_id")?,
        pad: id("tokenizer.ggml.padding_token_id")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        tokens,
    })
}

/// Errors: `Unsupported` for an embedding made of other tokens than the last one.
fn purpose(keys: &Keys) -> Result<Purpose, LoadError> {
    match keys.count_if_there("pooling_type")? {
        None | Some(POOLING_NONE) => Ok(Purpose::Generation),
        Some(POOLING_LAST) => Ok(Purpose::Embedding),
        Some(other) => {
            let supported = "0 (none), 3 (the last token)";
            Err(LoadError::unsupported(keys.key("pooling_type"), other, supported))
        }
    }
}

/// Rows of the embedding: the vocabulary and its padding.
fn embedding_rows(file: &GgufFile) -> Result<usize, LoadError> {
    let name = "token_embd.weight";
    let tensor = file.tensor(name);
    Ok(tensor.ok_or_else(|| LoadError::MissingTensor { name: name.into() })?.shape[0])
}

fn eos_token_ids(file: &GgufFile, tokenizer: &GgufTokenizer) -> Result<Vec<TokenId>, LoadError> {
    let mut ids: Vec<TokenId> = tokenizer.eos.map(TokenId).into_iter().collect();
    let mut add = |id: u32| {
        if !ids.contains(&TokenId(id)) {
            ids.push(TokenId(id));
        }
    };
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = file.unsigned(key)? {
            add(u32::try_from(id).unwrap_or(u32::MAX));
        }
    }
    for (id, (token, kind)) in tokenizer.tokens.iter().zip(&tokenizer.token_types).enumerate() {
        if matches!(*kind, CONTROL | USER_DEFINED) && END_TOKENS.contains(&token.as_str()) {
            add(id as u32);
        }
    }
    Ok(ids)
}

fn refuse_unsupported(keys: &Keys) -> Result<(), LoadError> {
    for (name, supported) in [("expert_count", "dense models"), ("attention.sliding_window", "0")] {
        if let Some(value) = keys.count_if_there(name)?.filter(|&n| n > 0) {
            return Err(LoadError::unsupported(keys.key(name), value, supported));
        }
    }
    Ok(())
}

fn parse_rope(keys: &Keys, head_dim: usize) -> Result<RopeConfig, LoadError> {
    let kind_key = keys.key("rope.scaling.type");
    let yarn = match keys.file.string(&kind_key)?.as_deref() {
        None | Some("none") => None,
        Some("yarn") => Some(parse_yarn(keys)?),
        Some(kind) => return Err(LoadError::unsupported(kind_key, kind, "none, yarn")),
    };
    Ok(RopeConfig {
        theta: keys.number("rope.freq_base")?,
        rotary_dim: keys.count_if_there("rope.dimension_count")?.unwrap_or(head_dim),
        yarn,
    })
}

fn parse_yarn(keys: &Keys) -> Result<YarnConfig, LoadError> {
    let factor = keys.number("rope.scaling.factor")?;
    let original = match keys.count_if_there("rope.scaling.original_context_length")? {
        Some(original) => original,
        None => keys.count("context_length")?,
    };
    // The file's factor comes on top of the recommended magnitude.
    let extra = keys.number_if_there("rope.scaling.attn_factor")?.unwrap_or(1.0);
    Ok(YarnConfig {
        factor,
        original_max_position_embeddings: original,
        beta_fast: keys.number_if_there("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.number_if_there("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor: yarn_magnitude(factor, 1.0) * extra,
        truncate: true,
    })
}

/// The keys that start with the architecture's name.
struct Keys<'a> {
    file: &'a GgufFile,
    prefix: String,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn count(&self, name: &str) -> Result<usize, LoadError> {
        self.count_if_there(name)?.ok_or_else(|| self.missing(name))
    }

    fn count_if_there(&self, name: &str) -> Result<Option<usize>, LoadError> {
        let count = self.file.unsigned(&self.key(name))?;
        Ok(count.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    fn number(&self, name: &str) -> Result<f64, LoadError> {
        self.number_if_there(name)?.ok_or_else(|| self.missing(name))
    }

    fn number_if_there(&self, name: &str) -> Result<Option<f64>, LoadError> {
        self.file.float(&self.key(name))
    }

    fn missing(&self, name: &str) -> LoadError {
        LoadError::invalid(&self.file.path, format!("{} is missing", self.key(name)))
    }
}
