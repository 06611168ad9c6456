//! Pieces of the replies that endpoints share.

use super::choice::{Finish, StopCause, TextToken};
use crate::engine::{FinishReason, TokenLogprobs};
use crate::text::TextStage;
use models::TokenId;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Names the build in every reply, as OpenAI's `system_fingerprint` does.
pub const FINGERPRINT: &str = concat!("build-", env!("CARGO_PKG_VERSION"));

/// Token counts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub cached_tokens: usize,
    /// Part of the completion's; `None` where they are not told apart.
    pub reasoning_tokens: Option<usize>,
}

impl Usage {
    pub fn to_json(self) -> Value {
        let mut usage = json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        });
        if let Some(tokens) = self.reasoning_tokens {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": tokens});
        }
        usage
    }
}

/// What the head of every reply and chunk of one request says.
#[derive(Debug, Clone)]
pub struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
}

impl Head {
    /// `prefix` as `chatcmpl`; the rest of the id cannot be guessed.
    pub fn new(prefix: &str, model: &str) -> Self {
        let hex = random_hex();
        Self { id: format!("{prefix}-{hex}"), created: unix_seconds(), model: model.into() }
    }

    pub fn reply(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }
}

/// 128 random bits, for ids.
pub fn random_hex() -> String {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).expect("the system gives random numbers");
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The fields `finish_reason` and `stop_reason` of a choice; both null while it goes on.
pub fn set_finish(choice: &mut Value, finish: Option<&Finish>) {
    choice["finish_reason"] = match finish.map(|f| (f.reason, f.has_calls)) {
        None => Value::Null,
        Some((FinishReason::Stop, false)) => "stop".into(),
        Some((FinishReason::Stop, true)) => "tool_calls".into(),
        Some((FinishReason::Length, _)) => "length".into(),
    };
    choice["stop_reason"] = match finish.and_then(|f| f.cause.as_ref()) {
        None => Value::Null,
        Some(StopCause::String(string)) => string.as_str().into(),
        Some(StopCause::Token(token)) => token.0.into(),
    };
}

/// The field `token_ids` of a choice; `None`: nobody asked for it.
pub fn set_token_ids(choice: &mut Value, token_ids: Option<&[TokenId]>) {
    if let Some(token_ids) = token_ids {
        choice["token_ids"] = numbers(token_ids);
    }
}

/// Token ids as a JSON list.
pub fn numbers(token_ids: &[TokenId]) -> Value {
    token_ids.iter().map(|token| token.0).collect()
}

/// How tokens are written in logprobs.
#[derive(Clone)]
pub struct TokenNames {
    text: TextStage,
    as_ids: bool,
}

impl TokenNames {
    /// Tokens as text.
    pub fn as_text(text: &TextStage) -> Self {
        Self { text: text.clone(), as_ids: false }
    }

    /// Tokens as `token_id:N`.
    pub fn as_ids(text: &TextStage) -> Self {
        Self { text: text.clone(), as_ids: true }
    }

    /// With broken characters as U+FFFD; the bytes that go with it are exact.
    fn lossy(&self, token: TokenId) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.text.token_text(token) }
    }

    /// With the bytes of broken characters written out, so that no two tokens look the same.
    fn distinct(&self, token: TokenId) -> String {
        let bytes = self.text.token_bytes(token);
        if self.as_ids || std::str::from_utf8(bytes).is_ok() {
            return self.lossy(token);
        }
        let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("bytes:{hex}")
    }

    /// The `logprobs` object of a chat choice.
    pub fn chat_logprobs(&self, tokens: &[TextToken]) -> Value {
        let content: Vec<Value> = tokens
            .iter()
            .map(|token| {
                let logprobs = &token.logprobs;
                let mut entry = self.chat_entry(logprobs.token, logprobs.logprob);
                let top = logprobs.top.iter().map(|&(id, logprob)| self.chat_entry(id, logprob));
                entry["top_logprobs"] = top.collect();
                entry
            })
            .collect();
        json!({"content": content, "refusal": null})
    }

    /// vLLM's list for the tokens of a prompt: null for the first, then for each an object from
    /// token id to what is known of it, with the `top` likeliest.
    pub fn prompt_logprobs(&self, tokens: &[TokenLogprobs], top: usize) -> Value {
        let entry = |token: TokenId, logprob: f32, rank: usize| {
            let text = self.lossy(token);
            json!({"logprob": finite(logprob), "rank": rank, "decoded_token": text})
        };
        let of_token = |known: &TokenLogprobs| {
            let own = entry(known.token, known.logprob, known.rank as usize);
            let mut entries = serde_json::Map::from_iter([(known.token.to_string(), own)]);
            for (place, &(token, logprob)) in known.top.iter().take(top).enumerate() {
                let key = token.to_string();
                entries.entry(key).or_insert_with(|| entry(token, logprob, place + 1));
            }
            Value::from(entries)
        };
        std::iter::once(Value::Null).chain(tokens.iter().map(of_token)).collect()
    }

    fn chat_entry(&self, token: TokenId, logprob: f32) -> Value {
        json!({
            "token": self.lossy(token),
            "logprob": finite(logprob),
            "bytes": self.text.token_bytes(token),
        })
    }
}

/// The `logprobs` object of plain completions: parallel lists.
#[derive(Debug, Default)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `offset`: characters of the choice's text before the token. At most `top` alternatives.
    pub fn push(
        &mut self,
        names: &TokenNames,
        logprobs: &TokenLogprobs,
        top: usize,
        offset: usize,
    ) {
        let name = names.distinct(logprobs.token);
        let mut top: serde_json::Map<String, Value> = logprobs
            .top
            .iter()
            .take(top)
            .map(|&(id, logprob)| (names.distinct(id), finite(logprob)))
            .collect();
        top.entry(name.clone()).or_insert_with(|| finite(logprobs.logprob));
        self.tokens.push(name);
        self.token_logprobs.push(finite(logprobs.logprob));
        self.top_logprobs.push(top.into());
        self.text_offset.push(offset);
    }

    /// The first token of a prompt, which nothing comes before to predict it from.
    pub fn push_first(&mut self, names: &TokenNames, token: TokenId) {
        self.tokens.push(names.distinct(token));
        self.token_logprobs.push(Value::Null);
        self.top_logprobs.push(Value::Null);
        self.text_offset.push(0);
    }

    pub fn to_json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// JSON has no infinities: what is impossible is as unlikely as OpenAI writes it.
fn finite(logprob: f32) -> Value {
    json!(if logprob.is_finite() { f64::from(logprob) } else { -9999.0 })
}
