//! `Plan`: one step's work as plain data, complete in itself so that it can travel to another
//! machine.

use super::request::{SampledToken, SamplingParams, TokenLogprobs};
use models::TokenId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SequenceId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockId(pub u32);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    pub step: u64,
    pub chunks: Vec<Chunk>,
}

impl Plan {
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|c| c.token_ids.len()).sum()
    }
}

/// The tokens one sequence computes in this step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk {
    pub sequence: SequenceId,
    /// At least one.
    pub token_ids: Vec<TokenId>,
    /// Position of the first of them.
    pub start: usize,
    /// Blocks of positions 0, block_size, ...; enough for start + token_ids.len() tokens.
    pub block_table: Vec<BlockId>,
    /// Present when the chunk ends at the sequence's last token: then the next one is sampled.
    pub sample: Option<SampleStep>,
    /// Prompt tokens to score, when the request asked for it.
    pub prompt_logprobs: Option<PromptScore>,
}

/// How to sample the token at `position`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleStep {
    #[serde(with = "shared")]
    pub params: Arc<SamplingParams>,
    /// Place in the sequence of the token to sample: the number of tokens before it.
    pub position: usize,
    pub prompt_len: usize,
    /// All tokens before it when `params.needs_history()`, else empty.
    pub history: Vec<TokenId>,
}

/// Score `targets[i]` by the logits of the chunk's token i. There is one target fewer than tokens
/// when the chunk ends the prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PromptScore {
    pub targets: Vec<TokenId>,
    pub top: usize,
}

/// What a step gave, one entry per chunk, in the plan's order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    pub chunks: Vec<ChunkOutput>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChunkOutput {
    /// Present exactly when the chunk had a `sample`.
    pub sampled: Option<SampledToken>,
    /// As many as the chunk had targets.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

/// A shared value travels as a value of its own.
pub(crate) mod shared {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub fn serialize<T: Serialize, S: Serializer>(
        value: &Arc<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        T::serialize(value, serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<T>, D::Error> {
        T::deserialize(deserializer).map(Arc::new)
    }
}
