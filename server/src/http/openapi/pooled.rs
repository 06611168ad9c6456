//! The endpoints that embed and judge texts.

use super::{object, post, request_schema};
use crate::http::limits::HttpConfig;
use crate::http::{embeddings, rerank, score};
use serde_json::{Value, json};

/// `None`: another endpoint.
pub fn operation(path: &str) -> Option<Value> {
    Some(match path {
        "/v1/embeddings" => {
            post("createEmbedding", "Texts to vectors", "EmbeddingsRequest", "Embeddings")
        }
        "/v1/rerank" => rerank_operation("rerankV1"),
        "/v2/rerank" => rerank_operation("rerankV2"),
        "/rerank" => rerank_operation("rerank"),
        "/v1/score" => score_operation("scoreV1"),
        "/score" => score_operation("score"),
        _ => return None,
    })
}

pub fn add_schemas(schemas: &mut Value, config: &HttpConfig) {
    schemas["EmbeddingsRequest"] = request_schema(embeddings::fields(), &["input"], config);
    schemas["RerankRequest"] = request_schema(rerank::fields(), &["query", "documents"], config);
    schemas["ScoreRequest"] = request_schema(score::fields(), &[], config);
    schemas["Embeddings"] = embeddings_schema();
    schemas["Ranking"] = ranking_schema();
    schemas["Scores"] = scores_schema();
}

fn rerank_operation(id: &str) -> Value {
    post(id, "Documents by how well they answer a query", "RerankRequest", "Ranking")
}

fn score_operation(id: &str) -> Value {
    post(id, "How well texts answer other texts", "ScoreRequest", "Scores")
}

fn embeddings_schema() -> Value {
    let embedding = json!({"anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "contentEncoding": "base64"},
    ]});
    let one = object(json!({
        "object": {"const": "embedding"}, "index": {"type": "integer"}, "embedding": embedding,
    }));
    object(json!({
        "object": {"const": "list"},
        "data": {"type": "array", "items": one},
        "model": {"type": "string"},
        "usage": prompt_usage_schema(),
    }))
}

fn ranking_schema() -> Value {
    let document = object(json!({"text": {"type": "string"}}));
    let mut result = object(json!({
        "index": {"type": "integer"}, "relevance_score": {"type": "number"},
    }));
    result["properties"]["document"] = document;
    object(json!({
        "id": {"type": "string"},
        "model": {"type": "string"},
        "usage": prompt_usage_schema(),
        "results": {"type": "array", "items": result},
    }))
}

fn scores_schema() -> Value {
    let score = object(json!({
        "index": {"type": "integer"},
        "object": {"const": "score"},
        "score": {"type": "number"},
    }));
    object(json!({
        "id": {"type": "string"},
        "object": {"const": "list"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "data": {"type": "array", "items": score},
        "usage": prompt_usage_schema(),
    }))
}

fn prompt_usage_schema() -> Value {
    let integer = json!({"type": "integer"});
    object(json!({
        "prompt_tokens": integer,
        "total_tokens": integer,
        "prompt_tokens_details": object(json!({"cached_tokens": integer})),
    }))
}
