//! Any bytes as the body of a request: a checked request whose values are in range, or a short
//! error that is the client's; never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use models::{GenerationDefaults, TokenId};
use server::http::chat_completions::ChatRequest;
use server::http::completions::{CompletionRequest, Prompt};
use server::http::error::{ApiError, RequestError};
use server::http::fields::Fields;
use server::http::sampling::Common;
use server::http::{HttpConfig, ServedModel, Task, ThinkingModel};
use server::text::ToolFormat;

const VOCAB_SIZE: u32 = 1000;
/// A message of 400 characters, each up to 6 bytes as JSON, and the rest of the error object.
const ERROR_BYTES_MAX: usize = 400 * 6 + 1000;

fuzz_target!(|data: &[u8]| {
    let (model, config) = (model(), HttpConfig::default());
    let chat = Fields::parse(data)
        .and_then(|mut fields| ChatRequest::into_request(&mut fields, &model, &config));
    match chat {
        Ok(request) => {
            check(&request.common);
            assert!(request.max_tokens != Some(0) && !request.chat.messages.is_empty());
        }
        Err(error) => check_error(error),
    }
    let completion = Fields::parse(data)
        .and_then(|mut fields| CompletionRequest::into_request(&mut fields, &model, &config));
    match completion {
        Ok(request) => {
            check(&request.common);
            assert!(request.max_tokens > 0 || request.echo);
            assert!(!request.prompts.is_empty());
            for prompt in &request.prompts {
                match prompt {
                    Prompt::Text(text) | Prompt::FillIn(text) => assert!(!text.is_empty()),
                    Prompt::Tokens(ids) => assert!(!ids.is_empty() && known(ids)),
                }
            }
        }
        Err(error) => check_error(error),
    }
});

fn model() -> ServedModel {
    ServedModel {
        names: vec!["m".into()],
        created: 0,
        max_model_len: 4096,
        vocab_size: VOCAB_SIZE as usize,
        eos_token_ids: vec![TokenId(0)],
        generation: GenerationDefaults::default(),
        tool_format: Some(ToolFormat::Hermes),
        thinking: ThinkingModel::Yes,
        task: Task::Generate,
    }
}

fn known(ids: &[TokenId]) -> bool {
    ids.iter().all(|id| id.0 < VOCAB_SIZE)
}

fn check(common: &Common) {
    let params = &common.params;
    assert!((1..=128).contains(&common.n));
    assert!(params.temperature == 0.0 || (1e-5..=1000.0).contains(&params.temperature));
    assert!(params.top_p > 0.0 && params.top_p <= 1.0);
    assert!((0.0..=1.0).contains(&params.min_p));
    assert!((0.01..=100.0).contains(&params.repetition_penalty));
    assert!((-2.0..=2.0).contains(&params.presence_penalty));
    assert!((-2.0..=2.0).contains(&params.frequency_penalty));
    assert!(params.logit_bias.is_sorted_by(|a, b| a.0 < b.0));
    assert!(params.logit_bias.iter().all(|(id, bias)| id.0 < VOCAB_SIZE && bias.abs() <= 100.0));
    assert!(known(&params.stop_token_ids));
    assert!(common.stop.iter().all(|stop| !stop.is_empty()));
}

fn check_error(error: RequestError) {
    let error = ApiError::from(error);
    assert!(error.status().is_client_error());
    assert!(error.body().to_string().len() < ERROR_BYTES_MAX);
}
