//! What /openapi.json says of DashScope's services.

use super::{into_chat, text_embedding, text_rerank, tokenizer};
use crate::http::chat_completions::{self, MESSAGES};
use crate::http::fields::Field;
use crate::http::sampling::MODEL;
use serde_json::{Map, Value, json};

/// Operation, summary and the name of the request's schema; `None`: no path of DashScope.
pub fn describe(path: &str) -> Option<(&'static str, &'static str, &'static str)> {
    Some(match path {
        "/api/v1/services/aigc/text-generation/generation" => {
            ("dashscopeGenerate", "A chat in DashScope's protocol", "DashScopeGeneration")
        }
        "/api/v1/services/aigc/multimodal-generation/generation" => (
            "dashscopeGenerateParts",
            "A chat of text parts in DashScope's protocol",
            "DashScopeGeneration",
        ),
        "/api/v1/services/embeddings/text-embedding/text-embedding" => {
            ("dashscopeEmbed", "Embeddings in DashScope's protocol", "DashScopeEmbedding")
        }
        "/api/v1/services/rerank/text-rerank/text-rerank" => {
            ("dashscopeRerank", "Ranking in DashScope's protocol", "DashScopeRerank")
        }
        "/api/v1/tokenizer" => {
            ("dashscopeTokenize", "Tokens in DashScope's protocol", "DashScopeTokenizer")
        }
        _ => return None,
    })
}

/// Schemas of the requests, by name.
pub fn requests() -> Vec<(&'static str, Value)> {
    let of = |(input, parameters): (&[Field], &[Field])| {
        envelope(properties(input.iter()), properties(parameters.iter()))
    };
    let own = into_chat::parameter_fields();
    let chat = chat_completions::fields().filter(|field| {
        ![MESSAGES.name, MODEL.name, "stream", "stream_options"].contains(&field.name)
    });
    let input = properties([into_chat::PROMPT, MESSAGES].iter());
    vec![
        ("DashScopeGeneration", envelope(input, properties(own.chain(chat)))),
        ("DashScopeEmbedding", of(text_embedding::FIELDS)),
        ("DashScopeRerank", of(text_rerank::FIELDS)),
        ("DashScopeTokenizer", of(tokenizer::FIELDS)),
    ]
}

fn envelope(input: Map<String, Value>, parameters: Map<String, Value>) -> Value {
    json!({
        "type": "object",
        "required": ["input"],
        "properties": {
            "model": MODEL.schema(),
            "input": {"type": "object", "properties": input},
            "parameters": {"type": "object", "properties": parameters},
        },
    })
}

fn properties<'a>(fields: impl Iterator<Item = &'a Field>) -> Map<String, Value> {
    fields.map(|field| (field.name.to_owned(), field.schema())).collect()
}
