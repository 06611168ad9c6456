//! `Plan`: one step's work as plain data, complete in itself so that it can travel to another
//! machine.

use super::constraint::TokenMask;
use super::pooling::{Pooled, Pooling};
use super::request::{SampledToken, SamplingParams, TokenLogprobs};
use models::TokenId;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SequenceId(pub u64);

/// Hashes ids, which are our own numbers, so that nobody can choose them to collide.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spread(u64);

impl BuildHasher for Spread {
    type Hasher = Spread;

    fn build_hasher(&self) -> Spread {
        Spread::default()
    }
}

impl Hasher for Spread {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("ids are hashed by write_u64");
    }

    fn write_u64(&mut self, id: u64) {
        // Neighbours end up far from each other (Knuth's multiplicative hashing).
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockId(pub u32);

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    pub step: u64,
    pub chunks: Vec<Chunk>,
}

impl Plan {
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(Chunk::num_tokens).sum()
    }
}

/// The tokens one sequence computes in this step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk {
    pub sequence: SequenceId,
    pub input: ChunkInput,
    /// Position of the first token.
    pub start: usize,
    /// Blocks of positions 0, block_size, ...; enough for start + num_tokens() tokens.
    #[serde(with = "shared")]
    pub block_table: Arc<Vec<BlockId>>,
    /// Present when the chunk ends at the sequence's last token: then the next one is sampled.
    pub sample: Option<SampleStep>,
    /// Prompt tokens to score, when the request asked for it.
    pub prompt_logprobs: Option<PromptScore>,
    /// Present when the chunk ends a prompt that is pooled.
    pub pooling: Option<Pooling>,
}

impl Chunk {
    pub fn num_tokens(&self) -> usize {
        match &self.input {
            ChunkInput::Known(token_ids) => token_ids.len(),
            ChunkInput::FromLastStep => 1,
        }
    }
}

/// Which tokens a chunk computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkInput {
    /// These, at least one.
    Known(Vec<TokenId>),
    /// One that nobody knew when the plan was made: the plan before this one samples it, for the
    /// same sequence. Whoever computes plans remembers it (`LastStep`).
    FromLastStep,
}

/// How to sample the token at `position`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleStep {
    #[serde(with = "shared")]
    pub params: Arc<SamplingParams>,
    /// Place in the sequence of the token to sample: the number of tokens before it.
    pub position: usize,
    pub prompt_len: usize,
    /// All tokens before it when `params.needs_history()`, else empty. Of a chunk whose input is
    /// `FromLastStep` the last one is missing, since it is that input.
    pub history: Vec<TokenId>,
    /// No other token may come. Bans that leave none of these are void.
    #[serde(with = "shared_option")]
    pub mask: Option<Arc<TokenMask>>,
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
    /// Present exactly when the chunk had a `pooling`.
    pub pooled: Option<Pooled>,
}

/// What a runner sampled in its last step, by sequence: the tokens that the next plan may leave to
/// it.
#[derive(Debug, Default)]
pub struct LastStep {
    sampled: HashMap<SequenceId, TokenId, Spread>,
}

impl LastStep {
    /// Forgets the step before.
    pub fn remember(&mut self, plan: &Plan, output: &StepOutput) {
        self.sampled.clear();
        let results = plan.chunks.iter().zip(&output.chunks);
        self.sampled.extend(
            results.filter_map(|(chunk, result)| {
                Some((chunk.sequence, result.sampled.as_ref()?.token))
            }),
        );
    }

    /// The chunk's tokens. Panics when its sequence sampled nothing in the last step, but should
    /// have.
    pub fn token_ids<'a>(&'a self, chunk: &'a Chunk) -> &'a [TokenId] {
        match &chunk.input {
            ChunkInput::Known(token_ids) => token_ids,
            ChunkInput::FromLastStep => std::slice::from_ref(self.token(chunk.sequence)),
        }
    }

    /// How the chunk is to be sampled, with the whole history. Panics as `token_ids` does.
    pub fn sample_step<'a>(&self, chunk: &'a Chunk) -> Option<Cow<'a, SampleStep>> {
        let step = chunk.sample.as_ref()?;
        if chunk.input != ChunkInput::FromLastStep || !step.params.needs_history() {
            return Some(Cow::Borrowed(step));
        }
        let mut step = step.clone();
        step.history.push(*self.token(chunk.sequence));
        Some(Cow::Owned(step))
    }

    fn token(&self, sequence: SequenceId) -> &TokenId {
        let token = self.sampled.get(&sequence);
        token.unwrap_or_else(|| panic!("the last step sampled no token for {sequence:?}"))
    }
}

/// As `shared`, for a value that may be absent.
mod shared_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Arc<T>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_deref().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Ok(Option::<T>::deserialize(deserializer)?.map(Arc::new))
    }
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
