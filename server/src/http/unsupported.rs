//! Fields of the OpenAI and vLLM APIs that this server knows of and cannot serve yet. Each passes
//! with the value that means "not used"; anything else is refused by name, never silently ignored.

use super::error::RequestError;
use super::fields::{Fields, show};
use serde_json::Value;

/// Values that pass, beside null.
type Harmless = fn(&Value) -> bool;

const UNUSED: Harmless = |v| match v {
    Value::Array(list) => list.is_empty(),
    Value::Object(map) => map.is_empty(),
    _ => false,
};
const FALSE: Harmless = |v| v == &Value::Bool(false);
const TRUE: Harmless = |v| v == &Value::Bool(true);
const NEVER: Harmless = |_| false;
const ONE: Harmless = |v| v.as_f64() == Some(1.0);

/// For every endpoint that generates.
const ANYWHERE: &[(&str, Harmless)] = &[
    ("guided_decoding_backend", NEVER),
    ("structural_tag", NEVER),
    ("logprob_token_ids", UNUSED),
    ("logits_processors", UNUSED),
    ("use_beam_search", FALSE),
    ("early_stopping", FALSE),
    ("length_penalty", ONE),
    ("spaces_between_special_tokens", TRUE),
    ("truncate_prompt_tokens", NEVER),
    ("kv_transfer_params", UNUSED),
    ("vllm_xargs", UNUSED),
    ("add_special_tokens", |v| v.is_boolean()),
    ("prompt_embeds", NEVER),
    ("service_tier", |v| v == "auto" || v == "default"),
];

const CHAT: &[(&str, Harmless)] = &[
    ("functions", UNUSED),
    ("function_call", |v| v == "none" || v == "auto"),
    ("modalities", |v| v == &serde_json::json!(["text"])),
    ("audio", NEVER),
    ("prediction", NEVER),
    ("verbosity", |v| v == "medium"),
    ("web_search_options", NEVER),
    ("store", FALSE),
    ("echo", FALSE),
    ("best_of", ONE),
    ("documents", UNUSED),
    ("chat_template", NEVER),
    ("mm_processor_kwargs", UNUSED),
    ("media_io_kwargs", UNUSED),
];

const EMBEDDINGS: &[(&str, Harmless)] = &[
    ("messages", NEVER),
    ("chat_template", NEVER),
    ("chat_template_kwargs", UNUSED),
    ("normalize", TRUE),
    ("use_activation", TRUE),
    ("embed_dtype", |v| v == "float32"),
    ("endianness", |v| v == "little" || v == "native"),
    ("mm_processor_kwargs", UNUSED),
];

const RERANK: &[(&str, Harmless)] = &[
    ("max_tokens_per_doc", NEVER),
    ("max_chunks_per_doc", NEVER),
    ("rank_fields", UNUSED),
    ("use_activation", TRUE),
    ("activation", TRUE),
    ("softmax", TRUE),
    ("chat_template", NEVER),
    ("chat_template_kwargs", UNUSED),
    ("mm_processor_kwargs", UNUSED),
];

/// Errors: the first field that is used and not served at /v1/embeddings.
pub fn check_embeddings(fields: &Fields) -> Result<(), RequestError> {
    check_all(fields, EMBEDDINGS.iter())
}

/// Errors: the first field that is used and not served at /v1/rerank and /v1/score.
pub fn check_rerank(fields: &Fields) -> Result<(), RequestError> {
    check_all(fields, RERANK.iter())
}

/// Fields of /v1/embeddings that are known and not served.
pub fn embedding_names() -> Vec<&'static str> {
    EMBEDDINGS.iter().map(|(name, _)| *name).collect()
}

/// Fields of /v1/rerank and /v1/score that are known and not served.
pub fn rerank_names() -> Vec<&'static str> {
    RERANK.iter().map(|(name, _)| *name).collect()
}

/// Errors: the first field that is used and not served at /v1/chat/completions.
pub fn check_chat(fields: &Fields) -> Result<(), RequestError> {
    check(fields, CHAT)
}

/// Errors: the first field that is used and not served at /v1/completions.
pub fn check_completions(fields: &Fields) -> Result<(), RequestError> {
    check(fields, &[])
}

/// Fields of /v1/chat/completions that are known and not served.
pub fn chat_names() -> Vec<&'static str> {
    CHAT.iter().chain(ANYWHERE).map(|(name, _)| *name).collect()
}

/// Fields of /v1/completions that are known and not served.
pub fn completion_names() -> Vec<&'static str> {
    ANYWHERE.iter().map(|(name, _)| *name).collect()
}

fn check(fields: &Fields, own: &[(&'static str, Harmless)]) -> Result<(), RequestError> {
    check_all(fields, own.iter().chain(ANYWHERE))
}

fn check_all<'a>(
    fields: &Fields,
    known: impl Iterator<Item = &'a (&'static str, Harmless)>,
) -> Result<(), RequestError> {
    for (name, harmless) in known {
        if let Some(value) = fields.value(name).filter(|v| !harmless(v)) {
            return Err(RequestError::Unsupported { field: (*name).into(), value: show(value) });
        }
    }
    Ok(())
}
