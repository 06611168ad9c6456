//! The field `suffix` of /v1/completions: the model fills in between prompt and suffix.

use super::completions::{Echoes, Prompt};
use super::error::RequestError;
use super::fields::{Field, Fields, Kind, wrong_type};
use super::state::Serving;
use serde_json::{Value, json};

/// Around prefix and suffix, and before the middle, as Qwen-Coder was taught.
const FILL_IN_TOKENS: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];

pub const SUFFIX: Field = Field {
    name: "suffix",
    kind: Kind::Shape(suffix_schema),
    doc: "What comes after the text that is asked for; for models that fill in the middle.",
};

/// `None` where there is nothing to fill in before.
pub fn read_suffix(fields: &mut Fields, echo: Echoes) -> Result<Option<String>, RequestError> {
    match fields.take(&SUFFIX) {
        None => Ok(None),
        Some(Value::String(suffix)) if suffix.is_empty() => Ok(None),
        Some(Value::String(_)) if echo == Echoes::Yes => {
            let reason = "and 'echo' cannot both be given".to_string();
            Err(RequestError::Invalid { field: SUFFIX.name.into(), reason })
        }
        Some(Value::String(suffix)) => Ok(Some(suffix)),
        Some(other) => Err(wrong_type(SUFFIX.name, &other, "a string")),
    }
}

/// The prompts with the suffix that all of them get.
///
/// Errors: a prompt that is not text.
pub fn fill_in(prompts: Vec<Prompt>, suffix: Option<String>) -> Result<Vec<Prompt>, RequestError> {
    let Some(suffix) = suffix else { return Ok(prompts) };
    let [before, between, behind] = FILL_IN_TOKENS;
    let fill = |prompt| match prompt {
        Prompt::Text(prefix) => {
            Ok(Prompt::FillIn(format!("{before}{prefix}{between}{suffix}{behind}")))
        }
        Prompt::Tokens(_) | Prompt::FillIn(_) => Err(RequestError::Invalid {
            field: SUFFIX.name.into(),
            reason: "needs a 'prompt' that is text".into(),
        }),
    };
    prompts.into_iter().map(fill).collect()
}

/// Errors: the model does not have the tokens.
pub fn check_fill_in(serving: &Serving) -> Result<(), RequestError> {
    match FILL_IN_TOKENS.into_iter().find(|token| serving.text.token_id(token).is_none()) {
        None => Ok(()),
        Some(token) => {
            let reason = format!("this model does not fill in: it has no token {token}");
            Err(RequestError::Invalid { field: SUFFIX.name.into(), reason })
        }
    }
}

fn suffix_schema() -> Value {
    json!({"type": ["string", "null"]})
}
