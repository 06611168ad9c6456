//! Networks written as lists of op calls, and the checkpoints they are loaded from.

pub mod registry;
pub mod config;
pub mod token;
pub mod tokenizer_source;
pub mod batch;
pub mod kv_cache;
pub mod qwen2;
pub mod qwen3;
pub mod layers;
pub mod weights;
pub mod error;

pub use batch::ForwardBatch;
pub use config::{GenerationDefaults, ModelConfig, Purpose};
pub use error::LoadError;
pub use kv_cache::KvCache;
pub use registry::{cuda_activation, load_model};
pub use token::TokenId;
pub use tokenizer_source::{ChatTemplateSource, GgufTokenizer, TokenizerSource};
pub use weights::Checkpoint;
pub use weights::shard::ShardSpec;

use kernels::comm::Communicator;
use kernels::{Backend, Indices, KernelError, Tensor};

/// A network with its weights, on one rank.
pub trait Model: Send {
    fn config(&self) -> &ModelConfig;

    /// Makes room once for steps of `num_tokens` with logits for `num_rows` of them, so that no
    /// step up to that size allocates. A larger step makes its own room.
    fn reserve(&mut self, _num_tokens: usize, _num_rows: usize) -> Result<(), KernelError> {
        Ok(())
    }

    /// Runs every token of `batch` through all layers, writes its keys and values into the cache,
    /// and leaves its last hidden state, before the final norm, in `hidden`.
    ///
    /// Shapes: `hidden` [batch.num_rows(), hidden_size] F32. Errors: a batch that does not fit
    /// cache or vocabulary.
    fn forward(
        &self,
        ctx: &mut ForwardContext,
        batch: &ForwardBatch,
        hidden: &mut Tensor,
    ) -> Result<(), KernelError>;

    /// The final norm alone, of rows taken out of `hidden`: what embeddings are made of.
    ///
    /// Shapes: `rows` [num_rows, hidden_size] F32, which are spent; `out` the same in the backend's
    /// activation format.
    fn final_norm(
        &self,
        ctx: &mut ForwardContext,
        rows: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<(), KernelError>;

    /// Final norm and output head for some rows of `hidden`. Panics on a model that was loaded for
    /// embeddings.
    ///
    /// Shapes: `logits` [rows.len(), vocab_size] F32 (more rows where a GPU's step is padded),
    /// padding rows of the vocabulary included (the
    /// sampler masks them).
    fn logits(
        &self,
        ctx: &mut ForwardContext,
        hidden: &Tensor,
        rows: &Indices,
        logits: &mut Tensor,
    ) -> Result<(), KernelError>;
}

/// All that a forward pass needs beside weights and batch; there are no globals.
pub struct ForwardContext {
    pub backend: Backend,
    pub communicator: Box<dyn Communicator>,
    pub kv_cache: KvCache,
}
