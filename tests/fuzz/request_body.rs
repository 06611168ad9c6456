//! Any bytes as the body of a chat or completion request: a checked request or a refusal, never a
//! panic; and a refusal's message stays short, however large the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use models::{GenerationDefaults, TokenId};
use server::http::chat_completions::ChatRequest;
use server::http::completions::CompletionRequest;
use server::http::fields::Fields;
use server::http::{HttpConfig, ServedModel};
use std::sync::LazyLock;

const MESSAGE_BYTES_MAX: usize = 2048;

static CONFIG: LazyLock<HttpConfig> = LazyLock::new(HttpConfig::default);
static MODEL: LazyLock<ServedModel> = LazyLock::new(|| ServedModel {
    names: vec!["m".into()],
    created: 0,
    max_model_len: 4096,
    vocab_size: 1100,
    eos_token_ids: vec![TokenId(1093)],
    generation: GenerationDefaults::default(),
});

fuzz_target!(|data: &[u8]| {
    let refused = [
        Fields::parse(data).and_then(|f| ChatRequest::into_request(f, &MODEL, &CONFIG)).err(),
        Fields::parse(data).and_then(|f| CompletionRequest::into_request(f, &MODEL, &CONFIG)).err(),
    ];
    for error in refused.into_iter().flatten() {
        let message = error.to_string();
        assert!(message.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", message.len());
    }
});
