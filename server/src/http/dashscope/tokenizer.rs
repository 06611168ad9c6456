//! POST /api/v1/tokenizer: the tokens of a text or a conversation.

use super::into_chat::{PROMPT, read_messages};
use super::{DashScopeError, Envelope, read_envelope, reply};
use crate::http::chat_completions::{MESSAGES, read_chat};
use crate::http::error::RequestError;
use crate::http::fields::{Field, Fields, wrong_type};
use crate::http::generation::text_error;
use crate::http::state::Context;
use crate::http::unknown::IgnoredFields;
use crate::text::{Frame, FramedText};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

/// For the description of the API: of `input` and of `parameters`.
pub const FIELDS: (&[Field], &[Field]) = (&[PROMPT, MESSAGES], &[]);

pub async fn tokenizer(
    State(context): State<Context>,
    request: Request,
) -> Result<Response, DashScopeError> {
    let serving = context.serving()?;
    let (envelope, reservation) = read_envelope(&context, &serving.model, request).await?;
    let Envelope { mut input, parameters, ignored: outer, .. } = envelope;
    let mut chat = Fields::of_object(parameters);
    let encoded = match input.value(MESSAGES.name) {
        None => match input.take(&PROMPT) {
            None => return Err(RequestError::Missing { field: "input.prompt".into() }.into()),
            Some(Value::String(text)) => {
                let texts = vec![FramedText::Text(text)];
                let prompts = serving.text.encode_framed(Frame::None, texts, None).await;
                prompts.map(|prompts| prompts.into_iter().flatten().collect())
            }
            Some(other) => return Err(wrong_type("input.prompt", &other, "a string").into()),
        },
        Some(_) => {
            let (messages, _) = read_messages(&mut input)?;
            chat.set(&MESSAGES, messages.into());
            let (chat, _) = read_chat(&mut chat, &serving.model, &context.config)?;
            serving.text.encode_chat(chat).await.map(|prompt| prompt.token_ids)
        }
    };
    drop(reservation);
    let token_ids: Vec<_> = encoded.map_err(|e| text_error(&context, "input", e))?;
    let ignored = IgnoredFields::of(&chat, &[], &context.config)?;
    let output = json!({
        "token_ids": token_ids.iter().map(|token| token.0).collect::<Vec<_>>(),
        "tokens": token_ids.iter().map(|id| serving.text.token_text(*id)).collect::<Vec<_>>(),
    });
    Ok(reply(output, json!({"input_tokens": token_ids.len()}), [&outer, &ignored]))
}
