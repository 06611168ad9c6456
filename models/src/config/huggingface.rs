//! config.json and generation_config.json, in the spellings of transformers 4 and 5.

#[cfg(test)]
mod tests;

use super::{
    Architecture, GenerationDefaults, ModelConfig, Purpose, RopeConfig, YarnConfig, yarn_magnitude,
};
use crate::{LoadError, TokenId};
use serde_json::Value;
use std::path::Path;

const EOS_TOKENS_MAX: usize = 64;
const FAMILIES: &str = "Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3Model";
/// A network without an output head.
const HEADLESS: &str = "Qwen3Model";
/// What transformers takes when a Qwen3 config does not name it.
const QWEN3_HEAD_DIM: usize = 128;

/// config.json -> `ModelConfig`. `eos_token_ids` are those of this file alone.
///
/// Errors: `Invalid` for a value that is missing or makes no sense, `Unsupported` for one that asks
/// for too much.
pub fn parse_config(path: &Path, json: &Value) -> Result<ModelConfig, LoadError> {
    let outer = Fields { path, json };
    let text = Fields { path, json: json.get("text_config").unwrap_or(json) };
    let (architecture, purpose) = parse_architecture(&outer, &text)?;
    refuse_unsupported(&outer, &text)?;
    let hidden_size = text.count("hidden_size")?;
    let num_heads = text.count("num_attention_heads")?;
    let num_layers = text.count("num_hidden_layers")?;
    let head_dim = parse_head_dim(&text, architecture, hidden_size, num_heads)?;
    let rope = parse_rope(&text, head_dim)?;
    let (qkv_bias, o_bias) = match architecture {
        Architecture::Qwen2 => (true, false),
        Architecture::Qwen3 => {
            let bias = text.bool("attention_bias")?.unwrap_or(false);
            (bias, bias)
        }
    };
    refuse_sliding_window(&text, num_layers)?;
    let tied = outer.bool("tie_word_embeddings")?;
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: text.count("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: text.count_if_there("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: text.count("vocab_size")?,
        rms_norm_eps: text.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        max_position_embeddings: max_positions(&text, &rope)?,
        rope,
        qkv_bias,
        o_bias,
        tie_word_embeddings: match tied {
            Some(tied) => tied,
            None => text.bool("tie_word_embeddings")?.unwrap_or(false),
        },
        purpose,
        eos_token_ids: match eos_token_ids(path, text.json)? {
            ids if ids.is_empty() => eos_token_ids(path, json)?,
            ids => ids,
        },
    };
    config.check(path)?;
    Ok(config)
}

/// `eos_token_id` of either file: a number or a list of numbers.
pub fn eos_token_ids(path: &Path, json: &Value) -> Result<Vec<TokenId>, LoadError> {
    let fields = Fields { path, json };
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(TokenId).ok_or_else(|| fields.invalid("eos_token_id", value, "a token id"))
    };
    match fields.get("eos_token_id") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= EOS_TOKENS_MAX => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// The sampling values of generation_config.json; keys that are not there stay open.
///
/// Errors: `Invalid` for a value that no request would be allowed to set.
pub fn parse_generation(path: &Path, json: &Value) -> Result<GenerationDefaults, LoadError> {
    let fields = Fields { path, json };
    let within = |key: &str, low: f64, high: f64| match fields.number(key)? {
        Some(x) if !(low..=high).contains(&x) => {
            Err(fields.invalid(key, x, &format!("from {low} to {high}")))
        }
        x => Ok(x.map(|x| x as f32)),
    };
    let top_k = match fields.get("top_k") {
        None => None,
        Some(value) => {
            let top_k = value.as_i64().filter(|&k| (-1..=1 << 31).contains(&k));
            Some(top_k.ok_or_else(|| fields.invalid("top_k", value, "a whole number from -1"))?)
        }
    };
    Ok(GenerationDefaults {
        temperature: within("temperature", 0.0, 100.0)?,
        top_p: within("top_p", 0.0, 1.0)?.filter(|&p| p > 0.0),
        top_k,
        min_p: within("min_p", 0.0, 1.0)?,
        repetition_penalty: within("repetition_penalty", 1e-3, 1e3)?,
        presence_penalty: within("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: within("frequency_penalty", -2.0, 2.0)?,
    })
}

fn parse_architecture(outer: &Fields, text: &Fields) -> Result<(Architecture, Purpose), LoadError> {
    let first = |fields: &Fields| {
        let name = fields.get("architectures").and_then(|list| list.get(0));
        name.and_then(Value::as_str).map(String::from)
    };
    if let Some(name) = first(outer).or_else(|| first(text)) {
        return match name.as_str() {
            "Qwen2ForCausalLM" => Ok((Architecture::Qwen2, Purpose::Generation)),
            "Qwen3ForCausalLM" => Ok((Architecture::Qwen3, Purpose::Generation)),
            HEADLESS => Ok((Architecture::Qwen3, Purpose::Embedding)),
            _ => Err(LoadError::unsupported("architectures", name, FAMILIES)),
        };
    }
    let model_type = text.get("model_type").or_else(|| outer.get("model_type"));
    match model_type.and_then(Value::as_str) {
        Some("qwen2") => Ok((Architecture::Qwen2, Purpose::Generation)),
        Some("qwen3") => Ok((Architecture::Qwen3, Purpose::Generation)),
        Some(name) => Err(LoadError::unsupported("model_type", name, "qwen2, qwen3")),
        None => Err(text.missing("architectures")),
    }
}

/// Keys that change the arithmetic in ways that no family here computes.
fn refuse_unsupported(outer: &Fields, text: &Fields) -> Result<(), LoadError> {
    for fields in [outer, text] {
        if let Some(quantization) = fields.get("quantization_config") {
            let method = quantization.get("quant_method").unwrap_or(quantization);
            let supported = "checkpoints in F32, F16 or BF16, and GGUF files";
            return Err(LoadError::unsupported("quantization_config", method, supported));
        }
    }
    match text.string("hidden_act")?.as_deref() {
        None | Some("silu") => {}
        Some(other) => return Err(LoadError::unsupported("hidden_act", other, "silu")),
    }
    if let Some(value) = text.get("num_experts").filter(|n| n.as_u64() != Some(0)) {
        return Err(LoadError::unsupported("num_experts", value, "dense models"));
    }
    Ok(())
}

/// Windowed layers are those of `layer_types` if it is there, else the ones from
/// `max_window_layers` on.
fn refuse_sliding_window(text: &Fields, num_layers: usize) -> Result<(), LoadError> {
    if let Some(types) = text.get("layer_types") {
        let Some(types) = types.as_array().filter(|types| types.len() == num_layers) else {
            return Err(text.invalid("layer_types", types, "one type for each layer"));
        };
        return match types.iter().find(|kind| kind.as_str() != Some("full_attention")) {
            Some(kind) => Err(LoadError::unsupported("layer_types", kind, "full_attention")),
            None => Ok(()),
        };
    }
    let from_layer = text.count_if_there("max_window_layers")?.unwrap_or(0);
    let windowed = text.bool("use_sliding_window")?.unwrap_or(false) && from_layer < num_layers;
    match text.get("sliding_window") {
        Some(window) if windowed => {
            let value = format!("true (sliding_window {window} from layer {from_layer} on)");
            Err(LoadError::unsupported("use_sliding_window", value, "false"))
        }
        _ => Ok(()),
    }
}

fn parse_head_dim(
    text: &Fields,
    architecture: Architecture,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, LoadError> {
    if let Some(head_dim) = text.count_if_there("head_dim")? {
        return Ok(head_dim);
    }
    // A key that is there but null asks for the quotient in every family.
    if architecture == Architecture::Qwen3 && text.json.get("head_dim").is_none() {
        return Ok(QWEN3_HEAD_DIM);
    }
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        let rule = format!("a divisor of hidden_size {hidden_size} when head_dim is absent");
        return Err(text.invalid("num_attention_heads", num_heads, &rule));
    }
    Ok(hidden_size / num_heads)
}

/// `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling` (transformers 4).
fn parse_rope(text: &Fields, head_dim: usize) -> Result<RopeConfig, LoadError> {
    let null = Value::Null;
    let parameters = text.get("rope_parameters").or_else(|| text.get("rope_scaling"));
    let parameters = parameters.unwrap_or(&null);
    // Models with several kinds of layers nest one object for each kind.
    let parameters = parameters.get("full_attention").unwrap_or(parameters);
    if !parameters.is_object() && !parameters.is_null() {
        return Err(text.invalid("rope_scaling", parameters, "an object or null"));
    }
    let rope = Fields { path: text.path, json: parameters };
    let theta = match rope.number("rope_theta")? {
        Some(theta) => theta,
        None => text.number("rope_theta")?.ok_or_else(|| text.missing("rope_theta"))?,
    };
    let partial = match rope.number("partial_rotary_factor")? {
        Some(partial) => Some(partial),
        None => text.number("partial_rotary_factor")?,
    };
    let kind = match rope.string("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.string("type")?,
    };
    let yarn = match kind.as_deref() {
        None | Some("default") => None,
        Some("yarn") => Some(parse_yarn(text, &rope)?),
        Some(kind) => {
            return Err(LoadError::unsupported("rope_type", kind, "default, yarn"));
        }
    };
    let rotary_dim = (head_dim as f64 * partial.unwrap_or(1.0)) as usize;
    Ok(RopeConfig { theta, rotary_dim, yarn })
}

fn parse_yarn(text: &Fields, rope: &Fields) -> Result<YarnConfig, LoadError> {
    let factor = rope.number("factor")?.ok_or_else(|| rope.missing("factor"))?;
    let original = match rope.count_if_there("original_max_position_embeddings")? {
        Some(original) => original,
        None => text.count("max_position_embeddings")?,
    };
    let (mscale, mscale_all_dim) = (rope.number("mscale")?, rope.number("mscale_all_dim")?);
    let attention_factor = match (rope.number("attention_factor")?, mscale, mscale_all_dim) {
        (Some(attention_factor), _, _) => attention_factor,
        (None, Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
            yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dim)
        }
        _ => yarn_magnitude(factor, 1.0),
    };
    Ok(YarnConfig {
        factor,
        original_max_position_embeddings: original,
        beta_fast: rope.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: rope.number("beta_slow")?.unwrap_or(1.0),
        attention_factor,
        truncate: rope.bool("truncate")?.unwrap_or(true),
    })
}

fn max_positions(text: &Fields, rope: &RopeConfig) -> Result<usize, LoadError> {
    let stated = text.count("max_position_embeddings")?;
    let stretched = rope.yarn.as_ref().map_or(0, YarnConfig::max_positions);
    let Some(json) = text.get("dual_chunk_attention_config") else {
        return Ok(stated.max(stretched));
    };
    // Within one chunk, dual chunk attention is plain attention; longer contexts are not served.
    let chunks = Fields { path: text.path, json };
    let (chunk, local) = (chunks.count("chunk_size")?, chunks.count("local_size")?);
    let plain = chunk.checked_sub(local).filter(|&plain| plain > 0);
    let plain = plain.ok_or_else(|| chunks.invalid("local_size", local, "below chunk_size"))?;
    Ok(stated.min(plain))
}

/// An object of one file, read by key. A null counts as absent.
struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn count(&self, key: &str) -> Result<usize, LoadError> {
        self.count_if_there(key)?.ok_or_else(|| self.missing(key))
    }

    fn count_if_there(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.typed(key, "a whole number from 0", |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok())
        })
    }

    fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, "a finite number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn string(&self, key: &str) -> Result<Option<String>, LoadError> {
        self.typed(key, "a string", |value| value.as_str().map(String::from))
    }

    fn typed<T>(
        &self,
        key: &str,
        rule: &str,
        get: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        get(value).map(Some).ok_or_else(|| self.invalid(key, value, rule))
    }

    fn invalid(&self, key: &str, value: impl std::fmt::Display, rule: &str) -> LoadError {
        LoadError::invalid(self.path, format!("{key} is {value}, not {rule}"))
    }

    fn missing(&self, key: &str) -> LoadError {
        LoadError::invalid(self.path, format!("{key} is missing"))
    }
}
