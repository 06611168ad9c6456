//! What the served model is for, which decides which endpoints answer.

use super::error::{ApiError, RequestError};
use super::state::{Context, Serving};
use models::TokenId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    Generate,
    Embed(Embedder),
    Rerank(Reranker),
}

/// A model that makes embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedder {
    /// Values of an embedding.
    pub size: usize,
    /// Whether the first values of an embedding are an embedding too (Matryoshka learning).
    pub shortens: bool,
}

/// A model that says whether a document answers a query, by one of two words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reranker {
    pub no: TokenId,
    pub yes: TokenId,
}

impl Task {
    fn describe(self) -> &'static str {
        match self {
            Task::Generate => "generates text",
            Task::Embed(_) => "makes embeddings",
            Task::Rerank(_) => "scores documents",
        }
    }
}

impl Context {
    /// Errors: still loading; the model is not for generating text.
    pub fn generator(&self) -> Result<&Serving, ApiError> {
        let serving = self.serving()?;
        match serving.model.task {
            Task::Generate => Ok(serving),
            _ => Err(wrong_task(serving, "generate text", "generate")),
        }
    }

    /// Errors: still loading; the model is not for embeddings.
    pub fn embedder(&self) -> Result<(&Serving, Embedder), ApiError> {
        let serving = self.serving()?;
        match serving.model.task {
            Task::Embed(embedder) => Ok((serving, embedder)),
            _ => Err(wrong_task(serving, "make embeddings", "embed")),
        }
    }

    /// Errors: still loading; the model is not for scoring documents.
    pub fn reranker(&self) -> Result<(&Serving, Reranker), ApiError> {
        let serving = self.serving()?;
        match serving.model.task {
            Task::Rerank(reranker) => Ok((serving, reranker)),
            _ => Err(wrong_task(serving, "score documents", "rerank")),
        }
    }
}

fn wrong_task(serving: &Serving, asked: &'static str, flag: &'static str) -> ApiError {
    let model = serving.model.names[0].clone();
    RequestError::WrongTask { model, does: serving.model.task.describe(), asked, flag }.into()
}
