//! POST /tokenize and /detokenize: what the model sees, without running it.

use super::body::read_fields;
use super::chat_completions::{self, MESSAGES};
use super::completions::PROMPT;
use super::error::{ApiError, RequestError};
use super::fields::{Field, Fields, Kind, wrong_type};
use super::generation::text_error;
use super::limits::HttpConfig;
use super::sampling::{MODEL, read_model, read_token_id};
use super::state::{Context, ServedModel};
use super::tools::TOOLS;
use super::unknown::IgnoredFields;
use crate::text::{ChatPrompt, SpecialTokens};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use models::TokenId;
use serde_json::{Value, json};

const TEXT: Field = Field {
    name: PROMPT.name,
    kind: Kind::Shape(text_schema),
    doc: "The text to encode; or `messages`.",
};
const CONTENT: Field = Field {
    name: "content",
    kind: Kind::Shape(text_schema),
    doc: "The same as `prompt`, as llama.cpp has it.",
};
const RETURN_TOKEN_STRS: Field = Field {
    name: "return_token_strs",
    kind: Kind::Boolean,
    doc: "Also give each token's text. Default false.",
};
const TOKENS: Field = Field {
    name: "tokens",
    kind: Kind::Shape(tokens_schema),
    doc: "Token ids to decode. Required.",
};

/// All fields of /tokenize.
pub fn tokenize_fields() -> impl Iterator<Item = &'static Field> {
    [MODEL, TEXT, CONTENT, MESSAGES, TOOLS, RETURN_TOKEN_STRS]
        .iter()
        .chain(chat_completions::TEMPLATE_FIELDS)
}

/// All fields of /detokenize.
pub fn detokenize_fields() -> impl Iterator<Item = &'static Field> {
    [MODEL, TOKENS].iter()
}

/// What to encode.
#[derive(Debug)]
pub enum TokenizeInput {
    Text(String),
    Chat(ChatPrompt),
}

#[derive(Debug)]
pub struct TokenizeRequest {
    pub input: TokenizeInput,
    pub with_texts: bool,
}

impl TokenizeRequest {
    /// Errors: not one of `prompt` and `messages`; what the chat endpoint says of messages.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
        config: &HttpConfig,
    ) -> Result<TokenizeRequest, RequestError> {
        read_model(fields, model)?;
        let text = match (fields.take(&TEXT), fields.take(&CONTENT)) {
            (Some(text), _) => Some((TEXT.name, text)),
            (None, Some(text)) => Some((CONTENT.name, text)),
            (None, None) => None,
        };
        let with_texts = fields.boolean(&RETURN_TOKEN_STRS)?.unwrap_or(false);
        let has_messages = fields.value(MESSAGES.name).is_some();
        let input = match text {
            Some((field, _)) if has_messages => {
                let reason = "and 'messages' cannot both be given".to_string();
                return Err(RequestError::Invalid { field: field.into(), reason });
            }
            Some((_, Value::String(text))) => TokenizeInput::Text(text),
            Some((field, other)) => return Err(wrong_type(field, &other, "a string")),
            None if has_messages => {
                TokenizeInput::Chat(chat_completions::read_chat(fields, model, config)?.0)
            }
            None => return Err(RequestError::Missing { field: TEXT.name.into() }),
        };
        Ok(TokenizeRequest { input, with_texts })
    }
}

/// The token ids to decode.
#[derive(Debug)]
pub struct DetokenizeRequest(pub Vec<TokenId>);

impl DetokenizeRequest {
    /// Errors: no list, or an id that the model does not have.
    pub fn into_request(
        fields: &mut Fields,
        model: &ServedModel,
    ) -> Result<DetokenizeRequest, RequestError> {
        read_model(fields, model)?;
        let list = match fields.take(&TOKENS) {
            None => return Err(RequestError::Missing { field: TOKENS.name.into() }),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong_type(TOKENS.name, &other, "a list of integers")),
        };
        let ids = list.iter().map(|value| read_token_id(TOKENS.name, value, model));
        Ok(DetokenizeRequest(ids.collect::<Result<_, _>>()?))
    }
}

pub async fn tokenize(
    State(context): State<Context>,
    request: Request,
) -> Result<Response, ApiError> {
    let serving = context.serving()?;
    let (mut fields, reservation) = read_fields(&context, request).await?;
    let request = TokenizeRequest::into_request(&mut fields, &serving.model, &context.config)?;
    let ignored = IgnoredFields::of(&fields, &[], &context.config)?;
    let (field, encoded) = match request.input {
        TokenizeInput::Text(text) if text.is_empty() => (TEXT.name, Ok(Vec::new())),
        TokenizeInput::Text(text) => {
            (TEXT.name, serving.text.encode_text(text).await.map(|prompt| prompt.token_ids))
        }
        TokenizeInput::Chat(chat) => {
            (MESSAGES.name, serving.text.encode_chat(chat).await.map(|prompt| prompt.token_ids))
        }
    };
    drop(reservation);
    let token_ids = encoded.map_err(|e| text_error(&context, field, e))?;
    let texts = request.with_texts.then(|| {
        let texts = token_ids.iter().map(|token| serving.text.token_text(*token));
        texts.collect::<Vec<_>>()
    });
    let reply = json!({
        "tokens": token_ids.iter().map(|token| token.0).collect::<Vec<_>>(),
        "count": token_ids.len(),
        "max_model_len": serving.model.max_model_len,
        "token_strs": texts,
    });
    Ok(ignored.tell(Json(reply).into_response()))
}

pub async fn detokenize(
    State(context): State<Context>,
    request: Request,
) -> Result<Response, ApiError> {
    let serving = context.serving()?;
    let (mut fields, _reservation) = read_fields(&context, request).await?;
    let DetokenizeRequest(tokens) = DetokenizeRequest::into_request(&mut fields, &serving.model)?;
    let ignored = IgnoredFields::of(&fields, &[], &context.config)?;
    let text = serving.text.decode(tokens, SpecialTokens::Keep).await;
    // llama.cpp calls it content.
    Ok(ignored.tell(Json(json!({"prompt": text, "content": text})).into_response()))
}

fn text_schema() -> Value {
    json!({"type": ["string", "null"]})
}

fn tokens_schema() -> Value {
    json!({"type": "array", "items": {"type": "integer", "minimum": 0}})
}
