//! Fields that chat and plain completions share: what to sample, how much, and when to stop.

use super::constraint::Wanted;
use super::error::{RequestError, excerpt};
use super::fields::{Field, Fields, Kind, as_integer, field, out_of_range, show, wrong_type};
use super::limits::{
    HttpConfig, LOGIT_BIAS_MAX, STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX, STOP_TOKEN_IDS_MAX,
};
use super::state::ServedModel;
use crate::engine::SamplingParams;
use crate::engine::request::TOP_LOGPROBS_MAX;
use models::TokenId;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Below this a temperature divides logits into infinities; vLLM takes it for greedy too.
const TEMPERATURE_GREEDY: f32 = 1e-5;

pub const MODEL: Field = field("model", Kind::Name, "A name from /v1/models; left out: the first.");
pub const TEMPERATURE: Field = field(
    "temperature",
    Kind::Number { min: 0.0, max: 1000.0 },
    "0 is greedy. Default: the model's generation_config.json, else 1.",
);
pub const TOP_P: Field = field(
    "top_p",
    Kind::Positive { max: 1.0 },
    "Sample from the likeliest tokens of this total probability. Default: the model's, else 1.",
);
pub const TOP_K: Field = field(
    "top_k",
    Kind::Integer { min: -1, max: i64::MAX },
    "Sample from so many likeliest tokens; 0 or -1: all. Default: the model's, else 0.",
);
pub const MIN_P: Field = field(
    "min_p",
    Kind::Number { min: 0.0, max: 1.0 },
    "Drop tokens below this share of the likeliest one's probability. Default: model's, else 0.",
);
pub const REPETITION_PENALTY: Field = field(
    "repetition_penalty",
    Kind::Number { min: 0.01, max: 100.0 },
    "Divides (below 0: multiplies) logits of tokens seen so far. Default: the model's, else 1.",
);
pub const PRESENCE_PENALTY: Field = field(
    "presence_penalty",
    Kind::Number { min: -2.0, max: 2.0 },
    "Taken from the logit of each token in the output. Default: the model's, else 0.",
);
pub const FREQUENCY_PENALTY: Field = field(
    "frequency_penalty",
    Kind::Number { min: -2.0, max: 2.0 },
    "Taken from a token's logit for each time it was generated. Default: the model's, else 0.",
);
pub const LOGIT_BIAS: Field = field(
    "logit_bias",
    Kind::Shape(logit_bias_schema),
    "Token id to a number from -100 to 100 added to its logit.",
);
pub const SEED: Field = field(
    "seed",
    Kind::Integer { min: i64::MIN, max: i64::MAX },
    "Equal seeds give equal answers. Default: a random one.",
);
pub const STOP: Field = field(
    "stop",
    Kind::Shape(stop_schema),
    "One or more strings; the text ends before the first one that appears.",
);
pub const STOP_TOKEN_IDS: Field = field(
    "stop_token_ids",
    Kind::Shape(stop_token_ids_schema),
    "Generation ends at these tokens; they are not part of the text.",
);
pub const MIN_TOKENS: Field = field(
    "min_tokens",
    Kind::Integer { min: 0, max: i64::MAX },
    "No end-of-sequence or stop token is sampled before so many tokens. Default 0.",
);
pub const IGNORE_EOS: Field =
    field("ignore_eos", Kind::Boolean, "Go on after the end-of-sequence token. Default false.");
pub const N: Field = field(
    "n",
    Kind::Integer { min: 1, max: i64::MAX },
    "Number of answers to each prompt. Default 1; the server sets the limit.",
);
pub const STREAM: Field =
    field("stream", Kind::Boolean, "Send the answer as server-sent events. Default false.");
pub const STREAM_OPTIONS: Field = field(
    "stream_options",
    Kind::Shape(stream_options_schema),
    "Only with `stream`. include_usage: usage in a last event; continuous_usage_stats: in all.",
);
pub const SKIP_SPECIAL_TOKENS: Field = field(
    "skip_special_tokens",
    Kind::Boolean,
    "Leave special tokens out of the text. Default true.",
);
pub const RETURN_TOKENS_AS_TOKEN_IDS: Field = field(
    "return_tokens_as_token_ids",
    Kind::Boolean,
    "Write tokens in logprobs as token_id:N. Default false.",
);
pub const INCLUDE_STOP_STR_IN_OUTPUT: Field = field(
    "include_stop_str_in_output",
    Kind::Boolean,
    "The stop string, or stop token, that ends the text is part of it. Default false.",
);
pub const RETURN_TOKEN_IDS: Field = field(
    "return_token_ids",
    Kind::Boolean,
    "Also give the token ids of prompt and answer. Default false.",
);
pub const PROMPT_LOGPROBS: Field = field(
    "prompt_logprobs",
    Kind::Integer { min: 0, max: TOP_LOGPROBS_MAX as i64 },
    "Report each prompt token's log-probability and so many likeliest ones; not with `stream`.",
);
pub const PRIORITY: Field = field(
    "priority",
    Kind::Integer { min: i32::MIN as i64, max: i32::MAX as i64 },
    "Smaller is sooner, under the priority policy. Default 0.",
);
pub const CACHE_SALT: Field = field(
    "cache_salt",
    Kind::Name,
    "The prefix cache is shared only among requests with the same salt (and API key).",
);
pub const USER: Field = field("user", Kind::Name, "Accepted and not used.");

/// What `Common::read` reads, in its order.
pub const COMMON_FIELDS: &[Field] = &[
    MODEL,
    N,
    STREAM,
    STREAM_OPTIONS,
    TEMPERATURE,
    TOP_P,
    TOP_K,
    MIN_P,
    REPETITION_PENALTY,
    PRESENCE_PENALTY,
    FREQUENCY_PENALTY,
    LOGIT_BIAS,
    SEED,
    STOP,
    STOP_TOKEN_IDS,
    MIN_TOKENS,
    IGNORE_EOS,
    INCLUDE_STOP_STR_IN_OUTPUT,
    SKIP_SPECIAL_TOKENS,
    RETURN_TOKENS_AS_TOKEN_IDS,
    RETURN_TOKEN_IDS,
    PROMPT_LOGPROBS,
    PRIORITY,
    CACHE_SALT,
    USER,
];

/// How a stream is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    pub include_usage: bool,
    pub continuous_usage: bool,
}

/// The checked values of `COMMON_FIELDS`.
#[derive(Debug, Clone)]
pub struct Common {
    /// The name to answer with.
    pub model: String,
    pub n: usize,
    /// None: one whole answer.
    pub stream: Option<StreamOptions>,
    /// Complete but for `max_new_tokens`, `seed` and the logprobs, which the endpoints settle.
    pub params: SamplingParams,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub includes_stop: bool,
    pub skip_special_tokens: bool,
    pub tokens_as_ids: bool,
    pub returns_token_ids: bool,
    /// Some(k): of the prompt's tokens, with the k best.
    pub prompt_logprobs: Option<usize>,
    pub priority: i32,
    pub cache_salt: Option<String>,
    pub wanted: Wanted,
}

impl Common {
    /// Errors: each field outside its type or range, an unknown model, `stream_options` without
    /// `stream`.
    pub fn read(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<Common, RequestError> {
        let name = read_model(fields, model)?;
        let n = fields.count(&N)?.unwrap_or(1);
        if n > config.choices_max {
            let range = format!("an integer from 1 to {}", config.choices_max);
            return Err(out_of_range("n", &json!(n), range));
        }
        let stream = read_stream(fields)?;
        let params = read_params(fields, model)?;
        let seed = fields.integer(&SEED)?.map(|seed| seed as u64);
        let stop = read_stop(fields)?;
        let stop_token_ids = read_stop_token_ids(fields, model)?;
        let min_tokens = fields.count(&MIN_TOKENS)?.unwrap_or(0);
        let ignore_eos = fields.boolean(&IGNORE_EOS)?.unwrap_or(false);
        let wanted = Wanted::read(fields, model)?;
        if let Some(grammar) = wanted.grammar.as_ref().filter(|_| ignore_eos) {
            let reason = format!("cannot be held together with '{}'", grammar.field);
            return Err(RequestError::Invalid { field: IGNORE_EOS.name.into(), reason });
        }
        let eos_token_ids = if ignore_eos { Vec::new() } else { model.eos_token_ids.clone() };
        let common = Common {
            model: name,
            n,
            stream,
            params: SamplingParams { stop_token_ids, min_tokens, eos_token_ids, ..params },
            seed,
            stop,
            includes_stop: fields.boolean(&INCLUDE_STOP_STR_IN_OUTPUT)?.unwrap_or(false),
            skip_special_tokens: fields.boolean(&SKIP_SPECIAL_TOKENS)?.unwrap_or(true),
            tokens_as_ids: fields.boolean(&RETURN_TOKENS_AS_TOKEN_IDS)?.unwrap_or(false),
            returns_token_ids: fields.boolean(&RETURN_TOKEN_IDS)?.unwrap_or(false),
            prompt_logprobs: read_prompt_logprobs(fields, stream)?,
            priority: fields.integer(&PRIORITY)?.unwrap_or(0) as i32,
            cache_salt: fields.name(&CACHE_SALT)?,
            wanted,
        };
        fields.name(&USER)?;
        Ok(common)
    }
}

/// Errors: a name that this server does not serve.
pub fn read_model(fields: &mut Fields, model: &ServedModel) -> Result<String, RequestError> {
    let name = fields.name(&MODEL)?.unwrap_or_else(|| model.names[0].clone());
    if model.names.contains(&name) {
        Ok(name)
    } else {
        Err(RequestError::UnknownModel { name: excerpt(&name) })
    }
}

fn read_params(fields: &mut Fields, model: &ServedModel) -> Result<SamplingParams, RequestError> {
    let given = &model.generation;
    let temperature = fields.number(&TEMPERATURE)?.or(given.temperature).unwrap_or(1.0);
    let top_p = fields.number(&TOP_P)?.or(given.top_p).unwrap_or(1.0);
    let top_k = fields.integer(&TOP_K)?.or(given.top_k).unwrap_or(0);
    Ok(SamplingParams {
        temperature: if temperature < TEMPERATURE_GREEDY { 0.0 } else { temperature },
        top_p,
        top_k: top_k.clamp(0, i64::from(u32::MAX)) as u32,
        min_p: fields.number(&MIN_P)?.or(given.min_p).unwrap_or(0.0),
        repetition_penalty: fields
            .number(&REPETITION_PENALTY)?
            .or(given.repetition_penalty)
            .unwrap_or(1.0),
        presence_penalty: fields
            .number(&PRESENCE_PENALTY)?
            .or(given.presence_penalty)
            .unwrap_or(0.0),
        frequency_penalty: fields
            .number(&FREQUENCY_PENALTY)?
            .or(given.frequency_penalty)
            .unwrap_or(0.0),
        logit_bias: read_logit_bias(fields, model)?,
        ..SamplingParams::default()
    })
}

fn read_stream(fields: &mut Fields) -> Result<Option<StreamOptions>, RequestError> {
    let stream = fields.boolean(&STREAM)?.unwrap_or(false);
    let options = match fields.take(&STREAM_OPTIONS) {
        None => StreamOptions::default(),
        Some(_) if !stream => {
            return Err(RequestError::Invalid {
                field: "stream_options".into(),
                reason: "is only allowed together with 'stream'".into(),
            });
        }
        Some(Value::Object(map)) => {
            let flag = |name: &str| match map.get(name) {
                None | Some(Value::Null) => Ok(false),
                Some(Value::Bool(on)) => Ok(*on),
                Some(other) => {
                    Err(wrong_type(&format!("stream_options.{name}"), other, "a boolean"))
                }
            };
            StreamOptions {
                include_usage: flag("include_usage")?,
                continuous_usage: flag("continuous_usage_stats")?,
            }
        }
        Some(other) => return Err(wrong_type("stream_options", &other, "an object")),
    };
    Ok(stream.then_some(options))
}

fn read_prompt_logprobs(
    fields: &mut Fields,
    stream: Option<StreamOptions>,
) -> Result<Option<usize>, RequestError> {
    match fields.count(&PROMPT_LOGPROBS)? {
        Some(_) if stream.is_some() => Err(RequestError::Invalid {
            field: PROMPT_LOGPROBS.name.into(),
            reason: "is not allowed together with 'stream'".into(),
        }),
        top => Ok(top),
    }
}

fn read_stop(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let list = match fields.take(&STOP) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let invalid = |reason: String| RequestError::Invalid { field: "stop".into(), reason };
    if list.len() > STOP_STRINGS_MAX {
        return Err(invalid(format!("has {} strings, at most {STOP_STRINGS_MAX}", list.len())));
    }
    let mut stops = Vec::with_capacity(list.len());
    for value in list {
        match value {
            Value::String(s) if s.is_empty() => return Err(invalid("a string is empty".into())),
            Value::String(s) if s.len() > STOP_STRING_BYTES_MAX => {
                let reason =
                    format!("a string has {} bytes, at most {STOP_STRING_BYTES_MAX}", s.len());
                return Err(invalid(reason));
            }
            Value::String(s) => stops.push(s),
            other => return Err(wrong_type("stop", &other, "a string or a list of strings")),
        }
    }
    Ok(stops)
}

fn read_stop_token_ids(
    fields: &mut Fields,
    model: &ServedModel,
) -> Result<Vec<TokenId>, RequestError> {
    let list = match fields.take(&STOP_TOKEN_IDS) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type("stop_token_ids", &other, "a list of integers")),
    };
    if list.len() > STOP_TOKEN_IDS_MAX {
        let reason = format!("has {} ids, at most {STOP_TOKEN_IDS_MAX}", list.len());
        return Err(RequestError::Invalid { field: "stop_token_ids".into(), reason });
    }
    list.iter().map(|value| read_token_id("stop_token_ids", value, model)).collect()
}

/// One token id, below the vocabulary size.
pub fn read_token_id(
    field: &str,
    value: &Value,
    model: &ServedModel,
) -> Result<TokenId, RequestError> {
    let id = as_integer(field, value)?;
    if id < 0 || id >= model.vocab_size as i128 {
        return Err(unknown_token(field, &show(value), model));
    }
    Ok(TokenId(id as u32))
}

fn unknown_token(field: &str, value: &str, model: &ServedModel) -> RequestError {
    RequestError::OutOfRange {
        field: field.into(),
        value: excerpt(value),
        range: format!("a token id below the vocabulary size {}", model.vocab_size),
    }
}

fn read_logit_bias(
    fields: &mut Fields,
    model: &ServedModel,
) -> Result<Vec<(TokenId, f32)>, RequestError> {
    let map = match fields.take(&LOGIT_BIAS) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("logit_bias", &other, "an object")),
    };
    if map.len() > LOGIT_BIAS_MAX {
        let reason = format!("has {} entries, at most {LOGIT_BIAS_MAX}", map.len());
        return Err(RequestError::Invalid { field: "logit_bias".into(), reason });
    }
    let mut bias = BTreeMap::new();
    for (key, value) in &map {
        let id = match key.parse::<u64>() {
            Ok(id) if id < model.vocab_size as u64 => TokenId(id as u32),
            Ok(_) => return Err(unknown_token("logit_bias", key, model)),
            Err(_) => {
                return Err(RequestError::Invalid {
                    field: "logit_bias".into(),
                    reason: format!("the key '{}' is no token id", excerpt(key)),
                });
            }
        };
        let name = || format!("logit_bias.{id}");
        let number = value.as_f64().ok_or_else(|| wrong_type(&name(), value, "a number"))?;
        if !(-100.0..=100.0).contains(&number) {
            return Err(out_of_range(&name(), value, "a number from -100 to 100".into()));
        }
        bias.insert(id, number as f32);
    }
    Ok(bias.into_iter().collect())
}

fn logit_bias_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "maxProperties": LOGIT_BIAS_MAX,
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    })
}

fn stop_schema() -> Value {
    let string = json!({"type": "string", "minLength": 1, "maxLength": STOP_STRING_BYTES_MAX});
    json!({"anyOf": [
        string,
        {"type": "array", "items": string, "maxItems": STOP_STRINGS_MAX},
        {"type": "null"},
    ]})
}

fn stop_token_ids_schema() -> Value {
    json!({
        "type": ["array", "null"],
        "items": {"type": "integer", "minimum": 0},
        "maxItems": STOP_TOKEN_IDS_MAX,
    })
}

fn stream_options_schema() -> Value {
    json!({
        "type": ["object", "null"],
        "properties": {
            "include_usage": {"type": ["boolean", "null"]},
            "continuous_usage_stats": {"type": ["boolean", "null"]},
        },
    })
}
